"""MAML's meta-gradient against finite differences of its loss, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jmeta
from jmeta import data, learners, losses, models


def sinusoid_problem(**options):
    learner = learners.maml(
        models.mlp(hidden=(8, 8)),
        inner_optimizer=optax.sgd(0.05),
        inner_steps=3,
        loss_fn=losses.squared_error,
        **options,
    )
    return learner, data.sinusoid(shots=5, queries=5)(jax.random.key(0))


def image_problem(**options):
    learner = learners.maml(models.conv4(outputs=3, width=3), inner_optimizer=optax.sgd(0.05), inner_steps=1, **options)
    images = jax.random.normal(jax.random.key(0), (15, 9, 9, 1))
    table = data.class_table(np.asarray(images), np.repeat(np.arange(3), 5))
    return learner, data.episodes(table, ways=3, shots=2, queries=2)(jax.random.key(1))


def relative_error_of_meta_gradient(learner, task):
    """Of the derivative along a random direction, against a central difference."""
    params, state = learner.init(jax.random.key(2), task)
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)
    loss = jax.jit(lambda params: learner.loss(params, state, task)[0])
    derivative = jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, jax.jit(jax.grad(loss))(params), direction))
    step = 1e-6
    ahead, behind = (loss(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction)) for s in (step, -step))
    difference = (ahead - behind) / (2 * step)
    return abs(derivative - difference) / abs(difference)


@pytest.mark.parametrize("problem", [sinusoid_problem, image_problem])
def test_second_order_is_the_derivative_of_the_loss(x64, problem):
    assert relative_error_of_meta_gradient(*problem()) < 1e-6


@pytest.mark.parametrize("problem", [sinusoid_problem, image_problem])
def test_first_order_is_not(x64, problem):
    assert relative_error_of_meta_gradient(*problem(meta_gradient="first_order")) > 1e-2


def test_first_order_is_the_query_gradient_at_the_fast_weights(x64):
    learner, task = sinusoid_problem(meta_gradient="first_order")
    params, state = learner.init(jax.random.key(2), task)
    fast = learner.adapt(params, state, task.support)
    model = models.mlp(hidden=(8, 8))

    def query_loss(params):
        return losses.squared_error(
            model.apply(params, state, task.query.inputs)[0], task.query.targets, task.query.mask
        )

    meta_gradient = jax.grad(lambda params: learner.loss(params, state, task)[0])(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12),
        meta_gradient.model,
        jax.grad(query_loss)(fast.params),
    )


def test_fomaml_is_first_order_maml(x64):
    maml, task = sinusoid_problem(meta_gradient="first_order")
    fomaml = learners.fomaml(
        models.mlp(hidden=(8, 8)), inner_optimizer=optax.sgd(0.05), inner_steps=3, loss_fn=losses.squared_error
    )
    params, state = maml.init(jax.random.key(2), task)
    one, other = (
        jax.grad(lambda p, learner=learner: learner.loss(p, state, task)[0])(params) for learner in (maml, fomaml)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_test_steps_are_taken_in_adapt_alone(x64):
    few, task = sinusoid_problem()
    many, _ = sinusoid_problem(test_steps=30)
    params, state = few.init(jax.random.key(2), task)
    support_losses = []
    for learner in (few, many):
        adapted = learner.adapt(params, state, task.support)
        outputs = learner.predict(params, state, adapted, task.support.inputs)
        support_losses.append(losses.squared_error(outputs, task.support.targets, task.support.mask))
    assert support_losses[1] < 0.9 * support_losses[0]
    assert few.loss(params, state, task)[0] == many.loss(params, state, task)[0]


def test_meta_training_lowers_the_error_after_adaptation():
    learner = learners.maml(models.mlp(), inner_optimizer=optax.sgd(0.01), loss_fn=losses.squared_error)
    sample = data.sinusoid()
    state = jmeta.fit(learner, optax.adam(1e-3), sample, key=jax.random.key(0), steps=0, batch_size=25)
    before = jmeta.evaluate(learner, state, sample, key=jax.random.key(1))
    state = jmeta.fit(
        learner, optax.adam(1e-3), sample, key=jax.random.key(0), steps=2000, batch_size=25, log_every=500
    )
    after = jmeta.evaluate(learner, state, sample, key=jax.random.key(1))
    assert after.loss + after.loss_ci95 < 0.5 * before.loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": -1}, "inner_steps is -1"),
        ({"test_steps": -2}, "test_steps is -2"),
        ({"meta_gradient": "third_order"}, "meta_gradient is 'third_order'"),
    ],
)
def test_refuses_an_inner_loop_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        learners.maml(models.mlp(), **options)
