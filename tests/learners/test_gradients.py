"""Every gradient-based learner's meta-gradient against finite differences of its loss, in float64."""

import inspect
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmeta import data, learners, losses, models
from jmeta.types import Examples, Task

WAYS = 3
pytestmark = pytest.mark.usefixtures("every_product_stored")


def network(shape, **options):
    """An MLP, or a small Conv4 whose batch statistics are those of the set."""
    options = {"outputs": WAYS} | options
    if len(shape) == 1:
        return models.mlp(hidden=(6, 6), norm="layer", **options)
    return models.conv4(width=3, **options)


def encoder(shape):
    return network(shape, outputs=None)


def contextual(shape):
    return network(shape, context=3)


RATE = {"inner_optimizer": optax.sgd(0.05)}
EXACT = {
    "maml": lambda shape: learners.maml(network(shape), inner_steps=2, **RATE),
    "maml, inner Adam": lambda shape: learners.maml(
        network(shape), inner_steps=2, inner_optimizer=optax.adam(0.05, eps_root=1e-6)
    ),
    "maml, minibatches": lambda shape: learners.maml(network(shape), inner_steps=2, inner_batch=2, **RATE),
    "anil": lambda shape: learners.anil(network(shape), inner_steps=2, **RATE),
    "boil": lambda shape: learners.boil(network(shape), inner_steps=2, **RATE),
    "meta_sgd": lambda shape: learners.meta_sgd(network(shape), inner_steps=2),
    "meta_curvature": lambda shape: learners.meta_curvature(network(shape), inner_steps=2),
    "cavia": lambda shape: learners.cavia(contextual(shape)),
    "mamlpp": lambda shape: learners.mamlpp(network(shape), inner_steps=2, first_order_until=0),
    "proto_maml": lambda shape: learners.proto_maml(
        encoder(shape), inner_steps=2, meta_gradient="second_order", **RATE
    ),
}
FIRST_ORDER = {
    "fomaml": lambda shape: learners.fomaml(network(shape), inner_steps=2, **RATE),
    "maml, truncated": lambda shape: learners.maml(
        network(shape), inner_steps=2, meta_gradient="truncated", last_steps=1, **RATE
    ),
    "mamlpp, before its order changes": lambda shape: learners.mamlpp(network(shape), inner_steps=2),
    "proto_maml": lambda shape: learners.proto_maml(encoder(shape), inner_steps=2, **RATE),
    "reptile": lambda shape: learners.reptile(network(shape), inner_steps=2, **RATE),
}
SHAPES = [(5,), (9, 9, 1)]


class Problem(NamedTuple):
    loss: Any  # (params) -> scalar
    params: Any


def problem(make, shape):
    keys = jax.random.split(jax.random.key(0), 4)

    def examples(key, shots):
        targets = jnp.repeat(jnp.eye(WAYS), shots, axis=0)
        inputs = jax.random.normal(key, (WAYS * shots, *shape))
        return Examples(inputs, targets, jnp.ones(WAYS * shots))

    task, learner = Task(examples(keys[0], 2), examples(keys[1], 2)), make(shape)
    params, state = learner.init(keys[2], task)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(keys[3], leaf.shape), params
    )  # off all identities
    return Problem(lambda params: learner.loss(params, state, task, key=keys[3])[0], params)


def relative_error(problem):
    """Of the derivative along a direction over every meta-parameter, against a central difference."""
    direction = jax.tree.map(
        lambda leaf: jnp.cos(1 + jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), problem.params
    )
    value, gradient = jax.jit(jax.value_and_grad(problem.loss))(problem.params)
    derivative = optax.tree.vdot(gradient, direction)
    loss = jax.jit(lambda step: problem.loss(optax.tree.add_scale(problem.params, step, direction)))
    difference = (loss(1e-6) - loss(-1e-6)) / 2e-6
    np.testing.assert_allclose(loss(0.0), value)
    return abs(derivative - difference) / abs(difference)


def on_both_networks(names, long):
    """Each learner on an MLP and on a Conv4; those on a Conv4 that take long are marked so."""
    on_mlp = [pytest.param(name, SHAPES[0], id=f"{name}, mlp") for name in names]
    marks = {name: [pytest.mark.long] if name in long else [] for name in names}
    return on_mlp + [pytest.param(name, SHAPES[1], id=f"{name}, conv4", marks=marks[name]) for name in names]


def test_every_learner_that_chooses_how_exact_steps_are_differentiated_is_among_them():
    choosing = {
        name
        for name in learners.__all__
        if {"options", "differentiation"} & inspect.signature(getattr(learners, name)).parameters.keys()
    }
    assert choosing == {name.split(",")[0] for name in EXACT}


@pytest.mark.parametrize(("name", "shape"), on_both_networks(EXACT, long=set(EXACT) - {"maml"}))
def test_an_exact_meta_gradient_is_the_derivative_of_the_loss(x64, name, shape):
    assert relative_error(problem(EXACT[name], shape)) < 1e-6


@pytest.mark.parametrize(("name", "shape"), on_both_networks(FIRST_ORDER, long=set(FIRST_ORDER) - {"fomaml"}))
def test_a_first_order_one_is_not(x64, name, shape):
    assert relative_error(problem(FIRST_ORDER[name], shape)) > 1e-3


@pytest.mark.long
def test_every_mode_is_the_same_meta_gradient_of_a_convolutional_network(x64):
    def gradient(**options):
        subject = problem(lambda shape: learners.maml(network(shape), inner_steps=3, **RATE, **options), SHAPES[1])
        return jax.jit(jax.grad(subject.loss))(subject.params)

    modes = [{}, {"checkpoint": True}, {"differentiation": "reverse"}]
    first, *others = (gradient(**mode) for mode in modes)
    for other in others:
        chex.assert_trees_all_close(first, other, rtol=1e-10, atol=1e-10)


# Where a network has no derivative: values and gradients stay finite, and modes agree.


def test_images_of_one_colour_have_ties_in_every_pool_and_zeros_in_every_relu(x64):
    blank = Examples(jnp.zeros((WAYS, 8, 8, 1)), jnp.eye(WAYS), jnp.ones(WAYS))

    def loss_and_gradient(mode):
        network = models.conv4(outputs=WAYS, width=3)
        learner = learners.maml(network, inner_steps=2, differentiation=mode)
        params, state = learner.init(jax.random.key(0), Task(blank, blank))
        differentiate = jax.value_and_grad(lambda params: learner.loss(params, state, Task(blank, blank))[0])
        return jax.jit(differentiate)(params)

    mixed, reverse = map(loss_and_gradient, ("mixed", "reverse"))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(mixed))
    chex.assert_trees_all_close(mixed, reverse, rtol=1e-10, atol=1e-12)


def test_one_example_is_a_set_with_batch_statistics(x64):
    task = data.sinusoid(shots=1, queries=1)(jax.random.key(0))
    learner = learners.maml(models.mlp(norm="batch"), inner_steps=2, loss_fn=losses.squared_error)
    params, state = learner.init(jax.random.key(1), task)
    gradient = jax.jit(jax.grad(lambda params: learner.loss(params, state, task)[0]))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
