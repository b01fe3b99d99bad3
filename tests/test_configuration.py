"""Learners by name."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jmeta import data, models
from jmeta.configuration import (
    build_learner,
    build_optimizer,
    Configuration,
    HEADED,
    LEARNER_OPTIONS,
    LEARNERS,
    MODELS,
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


# One value for each option, of learners that have it.
OPTIONS = {
    "maml": {"inner_steps": 3, "test_steps": 4, "inner_batch": 2, "differentiation": "reverse", "checkpoint": True},
    "imaml": {"proximal": 3.0, "cg_steps": 2, "damping": 4.0},
    "mamlpp": {"multi_step_until": 7, "first_order_until": 8},
    "protonet": {"distance": "cosine"},
}
TRUNCATED = {"meta_gradient": "truncated", "last_steps": 2, "inner_steps": 3}


@pytest.mark.parametrize(("name", "options"), [*OPTIONS.items(), ("maml", TRUNCATED)])
def test_options_of_a_learner_are_passed_on(name, options, monkeypatch):
    given = {}

    @functools.wraps(LEARNERS[name])
    def factory(model, **options):
        given.update(options)

    monkeypatch.setitem(LEARNERS, name, factory)
    build_learner(Configuration(learner=name, **options))
    assert given == options


def test_every_option_of_a_learner_is_passed_on_to_one():
    tried = set().union(*OPTIONS.values(), TRUNCATED)
    assert tried == set(LEARNER_OPTIONS)


def test_options_of_a_network_are_passed_on(monkeypatch):
    given = {}

    @functools.wraps(MODELS["conv4"])
    def factory(**options):
        given.update(options)
        return models.conv4(**options)

    monkeypatch.setitem(MODELS, "conv4", factory)
    options = {"norm": "running", "width": 8, "strided": True, "context": 3}
    build_learner(Configuration(learner="cavia", **options))
    assert given == {**options, "outputs": 5}


def test_the_rate_is_that_of_the_optimizer():
    optimizer = build_optimizer(Configuration(learning_rate=0.5))
    updates, _ = optimizer.update(np.ones(3), optimizer.init(np.ones(3)))
    np.testing.assert_allclose(updates, -0.5, rtol=1e-5)  # Adam's first step


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


def test_ridge_regression_of_sinusoids_starts_at_their_scale():
    configuration = Configuration(learner="r2d2", data="sinusoid")
    params, _ = build_learner(configuration).init(jax.random.key(0), stand_in(configuration)(jax.random.key(1)))
    assert params.head["scale"] == 1


def test_reptile_keeps_its_optimizer_on_sinusoids():
    left_out = Configuration(learner="reptile", data="sinusoid")
    assert not np.allclose(outputs_of(left_out), outputs_of(dataclasses.replace(left_out, inner_rate=0.01)))
