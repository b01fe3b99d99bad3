"""The product of examples and a matrix equals `jnp.matmul` in value and in every derivative, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from jmeta.functional import linear
from jmeta.functional.linear import _dw_as_product, _dw_as_sum, _dw_on_cpu, dw_p, dx_p, FEW_EXAMPLES, linear_p

SHAPES = {
    "one vector": ((3,), (3, 4)),
    "few examples": ((5, 3), (3, 4)),
    "many examples": ((17, 3), (3, 4)),
    "no example": ((0, 3), (3, 4)),
    "no input": ((5, 0), (0, 4)),
    "tokens": ((2, 5, 3), (3, 1)),
}


def both_normal(*shapes):
    return [
        jax.random.normal(key, shape) for key, shape in zip(jax.random.split(jax.random.key(0)), shapes, strict=True)
    ]


def derivatives(product, x, w):
    """Value, gradients and a forward-over-reverse Hessian-vector product of a function that is not quadratic."""
    f = lambda x, w: jnp.sin(product(jnp.tanh(x), w)).sum()  # noqa: E731
    gradient = jax.grad(f, (0, 1))
    return f(x, w), gradient(x, w), jax.jvp(gradient, (x, w), (x[::-1], w[::-1]))[1]


def assert_equal(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12, rtol=1e-12), one, other)


@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_matrix_product_in_value_gradient_and_hessian_vector_product(x64, name):
    x, w = both_normal(*SHAPES[name])
    assert_equal(linear(x, w), np.asarray(x) @ np.asarray(w))
    assert_equal(*(jax.jit(lambda p=p: derivatives(p, x, w))() for p in (linear, jnp.matmul)))


@pytest.mark.parametrize("name", ["few examples", "no example"])
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0), (1, 1)])
def test_equals_the_matrix_product_for_tasks_with_matrices_shared_and_their_own(x64, axes, name):
    x, w = both_normal(*SHAPES[name])
    x, w = (a if axis is None else jnp.stack([a, 2 * a, a[::-1]], axis) for a, axis in zip((x, w), axes, strict=True))
    assert_equal(*(jax.jit(jax.vmap(lambda x, w, p=p: derivatives(p, x, w), axes))(x, w) for p in (linear, jnp.matmul)))


X, W, Y = (2, 4, 3), (2, 3, 2), (2, 4, 2)  # [T, K, D], [T, D, E], [T, K, E]
PRIMITIVES = {"linear": (linear_p, X, W), "dx": (dx_p, Y, W), "dw": (dw_p, X, Y)}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_every_primitive_is_differentiable_to_third_order_in_both_operands(x64, name):
    primitive, *shapes = PRIMITIVES[name]
    check_grads(jax.jit(lambda a, b: jnp.sin(primitive.bind(a, b))), both_normal(*shapes), order=3)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
@pytest.mark.parametrize("name", PRIMITIVES)
def test_every_primitive_is_batched_as_a_loop(x64, name, axes):
    primitive, *shapes = PRIMITIVES[name]
    a, b = both_normal(*(shape if axis is None else (5, *shape) for axis, shape in zip(axes, shapes, strict=True)))
    one = lambda operand, axis, task: operand if axis is None else operand[task]  # noqa: E731
    expected = [primitive.bind(one(a, axes[0], task), one(b, axes[1], task)) for task in range(5)]
    assert_equal(jax.vmap(primitive.bind, axes)(a, b), jnp.stack(expected))


def test_reverse_over_reverse_inside_a_scan_equals_the_matrix_product(x64):
    x, w = both_normal(*SHAPES["few examples"])

    def descended(product):
        gradient = jax.grad(lambda w: jnp.sin(product(x, w)).sum())
        return lambda w: gradient(lax.scan(lambda w, _: (w - 0.1 * gradient(w), None), w, None, length=2)[0]).sum()

    assert_equal(*(jax.jit(jax.grad(descended(product)))(w) for product in (linear, jnp.matmul)))


def test_the_matrix_gradient_as_a_sum_equals_the_product(x64):
    x, y = (jax.random.normal(jax.random.key(seed), (3, 7, width)) for seed, width in ((0, 4), (1, 2)))
    assert_equal(_dw_as_sum(x, y), _dw_as_product(x, y))


@pytest.mark.skipif(not FEW_EXAMPLES, reason="on this jax the matrix gradient is always a product")
@pytest.mark.parametrize(
    ("examples", "dtype", "products"),
    [(1, "float32", 1), (2, "float32", 0), (16, "float32", 0), (17, "float32", 1), (16, "bfloat16", 1)],
)
def test_the_matrix_gradient_of_a_few_examples_in_single_precision_is_a_sum(examples, dtype, products):
    x, y = (jnp.ones((4, examples, width), dtype) for width in (3, 2))
    assert jax.jit(_dw_on_cpu).lower(x, y).as_text().count("dot_general") == products


def test_integers_are_promoted():
    assert linear(jnp.arange(3), jnp.ones((3, 2))).tolist() == [3.0, 3.0]


@pytest.mark.parametrize("shapes", [((5, 3), (4, 2)), ((5, 3), (3,)), ((), (3, 2))])
def test_refuses_shapes_that_do_not_match(shapes):
    x, w = map(jnp.ones, shapes)
    with pytest.raises(ValueError, match=r"must be \[\.\.\., D\] and \[D, E\]"):
        linear(x, w)
