"""What second order costs over first order, as far as it does not depend on the machine; and that benchmarks run."""

import functools
import json
import math

import chex
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

import jmeta
from benchmarks import flops, learners, order, sinusoid
from jmeta import cli, models
from jmeta.learners import anil, maml


def test_products_and_convolutions_are_counted_as_often_as_they_run():
    def function(a, b):
        return jax.lax.scan(lambda a, _: (jax.jit(jnp.tanh)(a @ b), None), a, None, length=3)[0]

    assert flops.count(function, jnp.ones((2, 4)), jnp.ones((4, 4))) == 3 * 2 * 2 * 4 * 4
    assert flops.count(jmeta.functional.conv, jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 7))) == 2 * 2 * 25 * 27 * 7
    assert flops.count(jmeta.functional.linear, jnp.ones((2, 4)), jnp.ones((4, 3))) == 2 * 2 * 4 * 3
    lax_conv = functools.partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
    assert flops.count(lax_conv, jnp.ones((2, 3, 5, 5)), jnp.ones((7, 3, 3, 3))) == 2 * 2 * 25 * 27 * 7
    gradients = jax.grad(lambda x, w: jmeta.functional.linear(x, w).sum(), (0, 1))
    assert flops.count(gradients, jnp.ones((2, 4)), jnp.ones((4, 3))) == 2 * (2 * 2 * 4 * 3)


def test_conjugate_gradient_counts_as_its_solver():
    """One product for the first residual, and one for each of three steps."""

    def function(a, b):
        return jax.scipy.sparse.linalg.cg(lambda x: a @ x, b, maxiter=3)[0]

    count = flops.count(function, jnp.eye(100), jnp.ones(100), iterations=3)
    assert count == pytest.approx(4 * 2 * 100**2, rel=0.05)  # lengths of vectors are the rest


def test_what_no_result_depends_on_is_not_counted():
    assert flops.count(lambda a: (a @ a, a)[1], jnp.ones((2, 2))) == 0


TASK = jax.jit(order.images(28, 1))


@functools.cache
def operations(steps, factory=maml, **options):
    learner, task = factory(models.conv4(outputs=5), inner_steps=steps, **options), TASK(jax.random.key(0))
    params, state = jax.eval_shape(learner.init, jax.random.key(0), task)
    return flops.count(jax.grad(learner.loss, has_aux=True), params, state, task)


@pytest.mark.parametrize(("steps", "exact", "thrifty"), [(1, 1.12, 1.23), (5, 1.49, 1.86)])
def test_the_arithmetic_of_second_over_first_order(steps, exact, thrifty):
    first = operations(steps, meta_gradient="first_order")
    assert operations(steps, differentiation="reverse") / first == pytest.approx(exact, abs=0.005)
    assert operations(steps) / first == pytest.approx(exact, abs=0.01)  # and the first layer's again
    assert operations(steps, checkpoint=True) / first == pytest.approx(thrifty, abs=0.005)


@pytest.mark.parametrize("options", [{}, {"differentiation": "reverse"}, {"checkpoint": True}])
def test_an_inner_step_of_anil_costs_what_its_head_does(options):
    assert operations(20, anil, **options) / operations(1, anil, **options) < 1.01


def test_bench_order_writes_its_rows_a_table_and_a_figure(tmp_path, capsys):
    command = ["bench", "order", "--models", "mlp", "--steps", "1", "--repeats", "1", "--modes", "first order", "mixed"]
    assert cli.main([*command, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "cpu-mlp.json").read_text())
    first, mixed = result["rows"][:2]
    assert (first["mode"], first["flops_ratio"], mixed["mode"]) == ("first order", 1.0, "mixed")
    assert mixed["flops_ratio"] > 1
    assert mixed["milliseconds"] > 0
    assert "to first order: time" in capsys.readouterr().out
    assert (tmp_path / "cpu.md").read_text().count("| mlp | 1 |") == len(result["rows"])
    assert matplotlib.image.imread(tmp_path / "cpu.png").size


def test_bench_learners_spends_its_budget_and_writes_the_test(tmp_path):
    assert (
        cli.main(["bench", "learners", "sinusoid", "--only", "fomaml", "--seconds", "5", "--out", str(tmp_path)]) == 0
    )
    result = json.loads((tmp_path / "sinusoid-fomaml.json").read_text())
    assert result["processor_seconds"] >= 5
    assert result["steps"] > 0
    assert np.isfinite(result["tests"][0]["loss"])


def test_the_budget_that_runs_out_first_ends_a_training():
    both = learners.Budget(seconds=10, steps=100)
    assert (both.spent(5, 20), both.spent(1, 90)) == (0.5, 0.9)
    assert learners.Budget(steps=100).spent(1e9, 50) == 0.5


@pytest.mark.parametrize("suite", learners.SUITES.values(), ids=learners.SUITES)
def test_every_entry_of_a_suite_is_a_learner(suite):
    for name in suite.entries:
        assert isinstance(learners.build(name, suite), jmeta.Learner)
        json.dumps(learners.in_words(suite.entries[name].options))


def test_at_full_length_every_learner_trains_for_meta_steps():
    assert all(entry.budget.seconds == math.inf for entry in learners.SUITES["omniglot-encoders-full"].entries.values())


def test_results_are_of_the_entries_as_they_are():
    for path in sorted((learners.RESULTS / "learners").glob("*.json")):
        result = json.loads(path.read_text())
        suite = learners.SUITES[result["tasks"]]
        entry = suite.entries[result["learner"]]
        options = {name: value for name, value in learners.in_words(entry.options).items() if name != "loss_fn"}
        expected = json.loads(json.dumps({"options": options, "model": dict(entry.model)}))
        result["options"].pop("loss_fn", None)
        assert {name: result[name] for name in expected} == expected, path.name
        tasks = {**suite.tasks, **entry.tasks}
        assert result.get("training_tasks", tasks) == tasks, path.name
        assert result["outer_rate"] == entry.rate, path.name
        tests = tuple((test["ways"] or 1, test["shots"], test["queries"]) for test in result["tests"])
        assert tests == (entry.tests or suite.tests), path.name
        assert result["budget"] == (entry.budget or suite.budget).limits(), path.name


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


def test_an_unknown_benchmark_network_or_learner_is_one_line(capsys):
    assert cli.main(["bench", "speed"]) == 2
    assert cli.main(["bench", "order", "--models", "vgg"]) == 2
    assert "models has 'vgg'; there are mlp" in capsys.readouterr().err
    assert cli.main(["bench", "learners", "sinusoid", "--only", "sgd"]) == 2
    assert "only has 'sgd'; there are maml" in capsys.readouterr().err
