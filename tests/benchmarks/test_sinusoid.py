"""That every seed is reported, and what the policy's cost is measured against."""

import json
import math

import chex
import jax
import pytest

import jmeta
from benchmarks import sinusoid


@pytest.mark.long
def test_the_sinusoid_benchmark_reports_every_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(sinusoid, "cost_of_policy", lambda inner_steps: {})
    monkeypatch.setattr(sinusoid, "EPISODES", 4)
    sinusoid.main(inner_steps=(2,), meta_steps=2, seeds=2, dispatch=1, out=tmp_path)
    runs = json.loads((tmp_path / "sinusoid-2.json").read_text())["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    assert all(run["finite_parameters"] for run in runs)


def test_the_policys_cost_is_that_over_a_step_which_does_the_same():
    learner = sinusoid.maml(2)
    state = jmeta.init_state(learner, sinusoid.OPTIMIZER, jax.random.key(0), sinusoid.SAMPLE(jax.random.key(0)))
    tasks = jax.vmap(sinusoid.SAMPLE)(jax.random.split(jax.random.key(1), sinusoid.BATCH_SIZE))
    with_policy = jmeta.make_train_step(learner, sinusoid.OPTIMIZER, max_task_norm=math.inf)
    found, by_hand = (jax.jit(step)(state, tasks) for step in (with_policy, sinusoid.bare_step(learner)))
    assert float(found[1]["gradient_norm"]) == pytest.approx(float(by_hand[1]["gradient_norm"]), rel=1e-4)
    chex.assert_trees_all_close(found[0].params, by_hand[0].params, atol=1e-5)


def test_meta_steps_that_are_no_whole_dispatches_are_refused(tmp_path):
    with pytest.raises(ValueError, match="meta_steps is 500; it must be a multiple of dispatch, 1000"):
        sinusoid.main(meta_steps=500, out=tmp_path)
