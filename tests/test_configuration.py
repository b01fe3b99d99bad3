"""Learners by name."""

import dataclasses

import jax
import numpy as np
import pytest

from jmeta import data
from jmeta.configuration import (
    build_learner,
    Configuration,
    HEADED,
    LEARNERS,
    Protocol,
    stand_in,
    task_sizes,
)


@pytest.mark.parametrize("source", ["omniglot", "sinusoid"])
@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_can_be_built_by_its_name_and_predicts_its_tasks(name, source):
    configuration = Configuration(learner=name, data=source, context=4 if name == "cavia" else None)
    if source == "sinusoid" and name not in HEADED | {"cnp", "in_context", "mann", "r2d2", "snail"}:
        with pytest.raises(ValueError, match=r"classifies|is not over classes"):
            build_learner(configuration)
        return
    learner = build_learner(configuration)

    def predicted(key):
        task = stand_in(configuration)(key)
        params, state = learner.init(key, task)
        return learner.predict(params, state, learner.adapt(params, state, task.support), task.query.inputs), task

    outputs, task = jax.eval_shape(predicted, jax.random.key(0))
    assert all(leaf.shape == task.query.targets.shape for leaf in jax.tree.leaves(outputs))


def test_sizes_of_a_task_that_are_left_out_are_the_sources_own():
    assert task_sizes("sinusoid", Protocol()) == {"shots": 10, "queries": 10}
    assert task_sizes("glyphs", Protocol(shots=3)) == {"ways": 5, "shots": 3, "queries": 15}


def test_a_run_of_before_keeps_its_sizes():
    assert task_sizes("sinusoid", Protocol(ways=5, shots=1, queries=15)) == {"shots": 1, "queries": 15}


def outputs_of(configuration):
    """What the learner of a configuration, as initialised, predicts of a task it has adapted to."""
    learner = build_learner(configuration)
    task = data.sinusoid(shots=5, queries=5)(jax.random.key(0))
    params, state = learner.init(jax.random.key(1), task)
    return learner.predict(params, state, learner.adapt(params, state, task.support), task.query.inputs)


@pytest.mark.parametrize(("name", "rate"), [("maml", 0.01), ("meta_sgd", 0.01), ("cavia", 1.0)])
def test_an_inner_rate_left_out_on_sinusoids_is_theirs_where_weights_descend(name, rate):
    left_out = Configuration(learner=name, data="sinusoid", context=4 if name == "cavia" else None)
    found = outputs_of(left_out)
    np.testing.assert_array_equal(found, outputs_of(dataclasses.replace(left_out, inner_rate=rate)))
    assert not np.allclose(found, outputs_of(dataclasses.replace(left_out, inner_rate=0.1)))


def test_reptile_keeps_its_optimizer_on_sinusoids():
    left_out = Configuration(learner="reptile", data="sinusoid")
    assert not np.allclose(outputs_of(left_out), outputs_of(dataclasses.replace(left_out, inner_rate=0.01)))
