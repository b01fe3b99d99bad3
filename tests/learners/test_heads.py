"""Learners that fit a linear head in one solve, end to end against NumPy."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.svm import LinearSVC

from jmeta import data, learners, losses
from jmeta.functional import present_in
from jmeta.functional.heads import learned_regularisation
from jmeta.types import Examples, Model, Task

IDENTITY = Model(lambda key, inputs: ({}, ()), lambda params, state, inputs, *, train=False, key=None: (inputs, state))
HEADS = {name: getattr(learners, name) for name in ("r2d2", "metaoptnet", "logistic")}


def task_of_clusters(key, ways=5, shots=2, width=8):
    inputs = np.random.default_rng(0).normal(size=(ways, 6, width)) + 6 * np.eye(ways, width)[:, None]
    table = data.class_table(inputs.reshape(-1, width), np.repeat(np.arange(ways), 6))
    return data.episodes(table, ways=ways, shots=shots, queries=3)(key)


def test_examples_are_counted_beyond_256_in_half_precision():
    support = Examples(jnp.ones((301, 2)), jnp.ones((301, 2)), jnp.ones(301, jnp.bfloat16))
    assert float(learned_regularisation({"log_regularisation": 0.0}, support)) == 301


def test_r2d2_is_ridge_regression_with_a_regularised_bias_and_mean_squared_errors(x64):
    task = task_of_clusters(jax.random.key(0))
    learner = learners.r2d2(IDENTITY, regularisation=0.2, scale=3.0)
    params, state = learner.init(jax.random.key(1), task)
    assert params.head["bias"] == 0
    params = params._replace(head=params.head | {"bias": jnp.asarray(0.7)})
    outputs = learner.predict(params, state, learner.adapt(params, state, task.support), task.query.inputs)
    x, q = (np.column_stack([part.inputs, np.ones(len(part.inputs))]) for part in task[:2])
    weights = np.linalg.solve(x.T @ x / 10 + 0.2 * np.eye(9), x.T @ np.asarray(task.support.targets) / 10)
    np.testing.assert_allclose(outputs, 3 * q @ weights + 0.7, rtol=1e-10, atol=1e-12)


def weights_of(learner, support):
    """What it adapts for these examples, whose features are their inputs."""
    params, state = learner.init(jax.random.key(1), Task(support, support))
    return learner.adapt(params, state, support).head


def overlapping_classes():
    """With examples on both sides of a margin, and one of padding."""
    support = task_of_clusters(jax.random.key(0), shots=3).support
    inputs = support.inputs.at[:, :5].divide(4)
    return support._replace(inputs=inputs, mask=support.mask.at[3].set(0))


def test_the_weights_of_metaoptnet_are_those_of_scikit_learns_machine_of_its_cost(x64):
    support = overlapping_classes()
    x, labels = (np.asarray(leaf)[support.mask > 0] for leaf in (support.inputs, support.targets.argmax(1)))
    oracle = LinearSVC(multi_class="crammer_singer", fit_intercept=False, C=0.03, tol=1e-10, max_iter=10**6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its stopping rule, at the tolerance asked for
        expected = oracle.fit(x, labels).coef_.T
    found = weights_of(learners.metaoptnet(IDENTITY, cost=0.03, solver_steps=300), support)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_the_weights_of_logistic_are_the_minimum_of_the_mean_cross_entropy_and_its_regulariser(x64):
    x, y, mask = map(np.asarray, overlapping_classes())
    weights = weights_of(learners.logistic(IDENTITY, regularisation=0.03), Examples(x, y, mask))
    error = mask[:, None] * (jax.nn.softmax(x @ weights) - y) / mask.sum()
    np.testing.assert_allclose(x.T @ error + 0.03 * weights, 0, atol=1e-10)
    assert np.abs(weights).max() > 0.1


@pytest.mark.parametrize("fewer", [{"newton_steps": 1}, {"cg_steps": 1}])
def test_fewer_steps_of_the_solver_of_logistic_end_before_the_minimum(x64, fewer):
    minimum, before = (weights_of(learners.logistic(IDENTITY, **steps), overlapping_classes()) for steps in ({}, fewer))
    assert np.abs(minimum - before).max() > 1e-3


def test_r2d2_regresses_a_line(x64):
    x = jnp.linspace(-1, 1, 7)[:, None]
    line = Examples(x, 2 * x + 1, jnp.ones(7))
    learner = learners.r2d2(IDENTITY, regularisation=1e-12, scale=1.0, loss_fn=losses.squared_error)
    params, state = learner.init(jax.random.key(0), Task(line, line))
    loss, (_, metrics) = learner.loss(params, state, Task(line, line))
    assert loss < 1e-20
    assert metrics == {}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    ("inputs", "labels", "tolerance"), [("float64", "int32", 1e-12), ("bfloat16", "bfloat16", 0.1)]
)
def test_a_head_takes_labels_of_any_dtype_and_half_precision(name, inputs, labels, tolerance, x64):
    task, learner = task_of_clusters(jax.random.key(0)), HEADS[name](IDENTITY)
    params, state = learner.init(jax.random.key(1), task)

    def cast(part):
        return Examples(part.inputs.astype(inputs), part.targets.astype(labels), part.mask.astype(labels))

    loss, expected = (learner.loss(params, state, Task(*parts))[0] for parts in (map(cast, task[:2]), task[:2]))
    np.testing.assert_allclose(loss, expected, atol=tolerance)


def test_the_outputs_of_metaoptnet_are_in_proportion_to_its_scale(x64):
    task = task_of_clusters(jax.random.key(0))

    def outputs(scale):
        learner = learners.metaoptnet(IDENTITY, scale=scale)
        params, state = learner.init(jax.random.key(1), task)
        return learner.predict(params, state, learner.adapt(params, state, task.support), task.query.inputs)

    np.testing.assert_allclose(outputs(3.0), 3 * outputs(1.0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_serves_any_number_of_ways(name):
    learner = HEADS[name](IDENTITY)
    params, state = learner.init(jax.random.key(1), task_of_clusters(jax.random.key(0)))
    task = task_of_clusters(jax.random.key(2), ways=8)
    outputs = learner.predict(params, state, learner.adapt(params, state, task.support), task.query.inputs)
    assert losses.accuracy(outputs, task.query.targets, task.query.mask) > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: learners.r2d2(IDENTITY, regularisation=0.0), "regularisation is 0.0; it must be above 0"),
        (lambda: learners.r2d2(IDENTITY, scale=-1.0), "scale is -1.0"),
        (lambda: learners.metaoptnet(IDENTITY, cost=0.0), "cost is 0.0"),
        (lambda: learners.metaoptnet(IDENTITY, scale=0.0), "scale is 0.0"),
        (lambda: learners.matching(IDENTITY, scale=0.0), "scale is 0.0"),
        (lambda: learners.metaoptnet(IDENTITY, solver_steps=0), "solver_steps is 0"),
        (lambda: learners.logistic(IDENTITY, regularisation=-1.0), "regularisation is -1.0"),
        (lambda: learners.logistic(IDENTITY, newton_steps=1.5), "newton_steps is 1.5; it must be a whole number"),
        (lambda: learners.logistic(IDENTITY, cg_steps=0), "cg_steps is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_loss_that_smooths_labels_over_the_classes_present_is_that_of_a_task_without_the_others():
    @losses.classification
    def smoothed(outputs, targets, mask):
        present = present_in(outputs)[None]
        logs = jnp.where(present, jax.nn.log_softmax(outputs), 0)
        return losses.masked_mean(-((0.9 * targets + 0.1 * present / present.sum()) * logs).sum(-1), mask)

    task = task_of_clusters(jax.random.key(0), ways=3)
    learner = learners.r2d2(IDENTITY, loss_fn=smoothed)
    params, state = learner.init(jax.random.key(1), task)
    wider = [part._replace(targets=jnp.pad(part.targets, ((0, 0), (0, 2)))) for part in (task.support, task.query)]
    found, expected = (learner.loss(params, state, each)[0] for each in (Task(*wider), task))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found > 0
