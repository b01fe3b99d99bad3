"""A fully connected layer equals `jnp.matmul` and a sum in value and in every derivative, in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from jmeta.functional import linear
from jmeta.functional.linear import (
    _add_up_on_cpu,
    _dw_as_product,
    _dw_as_sum,
    _dw_on_cpu,
    add_up_p,
    ADDS_PRODUCTS,
    dw_p,
    dx_p,
    linear_p,
    repeat_p,
)

SHAPES = {
    "one vector": ((3,), (3, 4)),
    "few examples": ((5, 3), (3, 4)),
    "many examples": ((17, 3), (3, 4)),
    "no example": ((0, 3), (3, 4)),
    "no input": ((5, 0), (0, 4)),
    "tokens": ((2, 5, 3), (3, 1)),
}


def normal(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def derivatives(layer, *arguments):
    """Value, gradients and a forward-over-reverse Hessian-vector product of a function that is not quadratic."""
    f = lambda x, *rest: jnp.sin(layer(jnp.tanh(x), *rest)).sum()  # noqa: E731
    gradient = jax.grad(f, tuple(range(len(arguments))))
    tangents = tuple(argument[::-1] for argument in arguments)
    return f(*arguments), gradient(*arguments), jax.jvp(gradient, arguments, tangents)[1]


def layer(x, w, b):
    """What `linear` is to equal."""
    return jnp.matmul(x, w) + b.reshape((1,) * (x.ndim - 1) + b.shape)


def assert_equal(one, other):
    chex.assert_trees_all_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_matrix_product_in_value_gradient_and_hessian_vector_product(x64, name):
    x, w = normal(*SHAPES[name])
    assert_equal(linear(x, w), np.asarray(x) @ np.asarray(w))
    assert_equal(*(jax.jit(lambda p=p: derivatives(p, x, w))() for p in (linear, jnp.matmul)))


@pytest.mark.parametrize("name", ["few examples", "no example"])
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0), (1, 1)])
def test_equals_the_matrix_product_for_tasks_with_matrices_shared_and_their_own(x64, axes, name):
    x, w = normal(*SHAPES[name])
    x, w = (a if axis is None else jnp.stack([a, 2 * a, a[::-1]], axis) for a, axis in zip((x, w), axes, strict=True))
    assert_equal(*(jax.jit(jax.vmap(lambda x, w, p=p: derivatives(p, x, w), axes))(x, w) for p in (linear, jnp.matmul)))


FEW_AND_MANY = ("few examples", "many examples")  # summed in two ways


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        *((name, axes) for name in FEW_AND_MANY for axes in [(0, 0, 0), (None, None, 0), (0, 0, None)]),
        *((name, (0, None, 1)) for name in SHAPES),
    ],
)
def test_a_bias_is_added_in_value_gradient_and_hessian_vector_product_for_each_task(x64, axes, name):
    x, w = SHAPES[name]
    pairs = zip(normal(x, w, w[1:]), axes, strict=True)
    arguments = [a if axis is None else jnp.stack([a, 2 * a], axis) for a, axis in pairs]
    assert_equal(*(jax.jit(jax.vmap(functools.partial(derivatives, f), axes))(*arguments) for f in (linear, layer)))


X, W, Y = (2, 4, 3), (2, 3, 2), (2, 4, 2)  # [T, K, D], [T, D, E], [T, K, E]
PRIMITIVES = {"linear": (linear_p, X, W), "dx": (dx_p, Y, W), "dw": (dw_p, X, Y)}


@pytest.mark.parametrize(("primitive", "shape", "params"), [(repeat_p, (2, 3), {"examples": 4}), (add_up_p, Y, {})])
def test_the_operations_of_a_bias_are_differentiable_and_batched(x64, primitive, shape, params):
    (x,) = normal((5, *shape))
    operation = lambda x: primitive.bind(x, **params)  # noqa: E731
    check_grads(jax.jit(lambda x: jnp.sin(operation(x))), (x[0],), order=3)
    expected = jnp.stack([operation(one) for one in x])
    assert_equal(jax.vmap(operation)(x), expected)
    assert_equal(jax.vmap(operation, 1, 1)(jnp.moveaxis(x, 0, 1)), jnp.moveaxis(expected, 0, 1))


@pytest.mark.parametrize("name", PRIMITIVES)
def test_every_primitive_is_differentiable_to_third_order_in_both_operands(x64, name):
    primitive, *shapes = PRIMITIVES[name]
    check_grads(jax.jit(lambda a, b: jnp.sin(primitive.bind(a, b))), normal(*shapes), order=3)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
@pytest.mark.parametrize("name", PRIMITIVES)
def test_every_primitive_is_batched_as_a_loop(x64, name, axes):
    primitive, *shapes = PRIMITIVES[name]
    a, b = normal(*(shape if axis is None else (5, *shape) for axis, shape in zip(axes, shapes, strict=True)))
    one = lambda operand, axis, task: operand if axis is None else operand[task]  # noqa: E731
    expected = [primitive.bind(one(a, axes[0], task), one(b, axes[1], task)) for task in range(5)]
    assert_equal(jax.vmap(primitive.bind, axes)(a, b), jnp.stack(expected))


def test_reverse_over_reverse_inside_a_scan_equals_the_matrix_product(x64):
    x, w = normal(*SHAPES["few examples"])

    def descended(product):
        gradient = jax.grad(lambda w: jnp.sin(product(x, w)).sum())
        return lambda w: gradient(lax.scan(lambda w, _: (w - 0.1 * gradient(w), None), w, None, length=2)[0]).sum()

    assert_equal(*(jax.jit(jax.grad(descended(product)))(w) for product in (linear, jnp.matmul)))


def test_the_matrix_gradient_as_a_sum_equals_the_product(x64):
    x, y = (jax.random.normal(jax.random.key(seed), (3, 7, width)) for seed, width in ((0, 4), (1, 2)))
    assert_equal(_dw_as_sum(x, y), _dw_as_product(x, y))


@pytest.mark.parametrize(
    ("examples", "dtype", "reductions"),
    [(1, "float32", 1), (2, "float32", 0), (16, "float32", 0), (17, "float32", 1), (16, "bfloat16", 1)],
)
def test_the_bias_gradient_of_a_few_examples_in_single_precision_is_added_outright(examples, dtype, reductions):
    y = jnp.ones((4, examples, 3), dtype)
    assert jax.jit(_add_up_on_cpu).lower(y).as_text().count("stablehlo.reduce(") == reductions
    np.testing.assert_array_equal(_add_up_on_cpu(y), jnp.full((4, 3), examples, dtype))


@pytest.mark.skipif(not ADDS_PRODUCTS, reason="on this jax the matrix gradient is always a product")
@pytest.mark.parametrize(
    ("examples", "dtype", "products"),
    [(1, "float32", 1), (2, "float32", 0), (16, "float32", 0), (17, "float32", 1), (16, "bfloat16", 1)],
)
def test_the_matrix_gradient_of_a_few_examples_in_single_precision_is_a_sum(examples, dtype, products):
    x, y = (jnp.ones((4, examples, width), dtype) for width in (3, 2))
    assert jax.jit(_dw_on_cpu).lower(x, y).as_text().count("dot_general") == products


def test_the_gradient_of_a_bias_of_half_precision_is_added_up_in_the_precision_of_the_layer():
    x, w, b = jnp.ones((1000, 3)), jnp.ones((3, 2)), jnp.zeros(2, jnp.float16)
    gradient = jax.grad(lambda b: 1e-6 * linear(x, w, b).sum())(b)
    np.testing.assert_allclose(gradient, 1e-3, rtol=1e-3)  # a term, 1e-6, has one digit in half precision


def test_integers_are_promoted():
    assert linear(jnp.arange(3), jnp.ones((3, 2))).tolist() == [3.0, 3.0]


@pytest.mark.parametrize("shapes", [((5, 3), (4, 2)), ((5, 3), (3,)), ((), (3, 2))])
def test_refuses_shapes_that_do_not_match(shapes):
    x, w = map(jnp.ones, shapes)
    with pytest.raises(ValueError, match=r"must be \[\.\.\., D\] and \[D, E\]"):
        linear(x, w)


def test_refuses_a_bias_of_another_width():
    with pytest.raises(ValueError, match=r"b has shape \(3,\); with w of shape \(3, 2\) it must be \(2,\)"):
        linear(jnp.ones((5, 3)), jnp.ones((3, 2)), jnp.ones(3))
