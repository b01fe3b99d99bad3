"""What the primitives share: how many terms they add, and how they behave when tasks are sharded over devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from jmeta.functional import conv, linear
from jmeta.functional.primitives import terms


def counted(function, *operands):
    """The terms of each primitive of a function that has any."""
    equations = jax.make_jaxpr(function)(*operands).eqns
    found = (terms(e.primitive, *(v.aval for v in e.invars), **e.params) for e in equations)
    return [number for number in found if number]


def test_terms_are_the_products_added_for_one_number_whatever_vmap_folds():
    x, w, images, kernel = jnp.ones((6, 3)), jnp.ones((3, 2)), jnp.ones((4, 5, 5, 2)), jnp.ones((3, 3, 2, 7))
    assert counted(linear, x, w) == [3]
    assert counted(jax.vmap(linear, (0, None)), x[None], w) == [3]
    assert counted(jax.grad(lambda x, w: linear(x, w).sum(), (0, 1)), x, w) == [3, 6, 2]  # then of w, and of x
    assert counted(conv, images, kernel) == [18]
    assert counted(jax.vmap(conv, (None, 0)), images, kernel[None]) == [18]
    assert counted(jax.grad(lambda x, w: conv(x, w).sum(), (0, 1)), images, kernel) == [18, 100, 63]
    grouped = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    assert counted(grouped, images, kernel[:, :, :1, :6]) == [9]


OPERATIONS = {
    "linear": (linear, (6, 3), (3, 2)),
    "bias": (lambda x, b: linear(x, jnp.full((3, 2), 0.5), b), (6, 3), (2,)),
    "conv": (conv, (4, 5, 5, 2), (3, 3, 2, 3)),
    "pointwise": (conv, (4, 5, 5, 2), (1, 1, 2, 3)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_runs_without_jit_too(name):
    operation, *shapes = OPERATIONS[name]
    operands = [jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate(shapes)]
    with jax.disable_jit():
        found = operation(*operands)
    np.testing.assert_allclose(found, operation(*operands), rtol=1e-6)


@pytest.mark.parametrize("axes", [(0, None), (0, 0)])
@pytest.mark.parametrize("name", ["linear", "conv"])
def test_a_batch_of_nothing_has_results_of_the_usual_shape(name, axes):
    operation, *operands = OPERATIONS[name]

    def shape_of(number):
        batches = ((number, *shape) if axis == 0 else shape for shape, axis in zip(operands, axes, strict=True))
        return jax.vmap(operation, axes)(*map(jnp.ones, batches)).shape

    assert shape_of(0) == (0, *shape_of(1)[1:])


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_gradient_of_an_operand_that_devices_share_is_the_sum_over_their_examples(x64, over_two_devices, name):
    operation, *shapes = OPERATIONS[name]
    x, w = (jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate(shapes))

    def loss(x, w):
        return jnp.sin(operation(x, w)).sum()

    sharded = over_two_devices(
        lambda x, w: (lax.psum(loss(x, w), "tasks"), jax.grad(loss, 1)(x, w)),
        (PartitionSpec("tasks"), PartitionSpec()),
        PartitionSpec(),
    )
    expected = loss(x, w), jax.grad(loss, 1)(x, w)
    chex.assert_trees_all_close(sharded(x, w), expected, rtol=1e-12)
