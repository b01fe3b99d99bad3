"""The product of examples and a matrix equals NumPy's in value, and `jnp.matmul` in every derivative, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jmeta.functional import linear
from jmeta.functional.linear import FEW_EXAMPLES

SHAPES = {
    "one vector": ((3,), (3, 4)),
    "few examples": ((5, 3), (3, 4)),
    "many examples": ((FEW_EXAMPLES + 1, 3), (3, 4)),
    "no example": ((0, 3), (3, 4)),
    "tokens": ((2, 5, 3), (3, 1)),
}


def operands(name):
    x_shape, w_shape = SHAPES[name]
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], x_shape), jax.random.normal(keys[1], w_shape)


def derivatives(product, x, w):
    """Value, gradients and a forward-over-reverse Hessian-vector product of a function that is not quadratic."""
    f = lambda x, w: jnp.sin(product(jnp.tanh(x), w)).sum()  # noqa: E731
    gradient = jax.grad(f, (0, 1))
    return f(x, w), gradient(x, w), jax.jvp(gradient, (x, w), (x[::-1], w[::-1]))[1]


def assert_equal(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), one, other)


@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_matrix_product_in_value_gradient_and_hessian_vector_product(x64, name):
    x, w = operands(name)
    np.testing.assert_allclose(linear(x, w), np.asarray(x) @ np.asarray(w), atol=1e-13)
    assert_equal(*(jax.jit(lambda p=p: derivatives(p, x, w))() for p in (linear, jnp.matmul)))


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0), (1, 1)])
def test_equals_the_matrix_product_for_tasks_with_matrices_shared_and_their_own(x64, axes):
    x, w = operands("few examples")
    x, w = (a if axis is None else jnp.stack([a, 2 * a, a[::-1]], axis) for a, axis in zip((x, w), axes, strict=True))
    assert_equal(*(jax.jit(jax.vmap(lambda x, w, p=p: derivatives(p, x, w), axes))(x, w) for p in (linear, jnp.matmul)))


def test_reverse_over_reverse_inside_a_scan_equals_the_matrix_product(x64):
    x, w = operands("few examples")

    def descended(product):
        gradient = jax.grad(lambda w: jnp.sin(product(x, w)).sum())
        return lambda w: gradient(lax.scan(lambda w, _: (w - 0.1 * gradient(w), None), w, None, length=2)[0]).sum()

    assert_equal(*(jax.jit(jax.grad(descended(product)))(w) for product in (linear, jnp.matmul)))


@pytest.mark.skipif(FEW_EXAMPLES == 0, reason="on this jax it is always a product")
def test_the_matrix_gradient_of_a_few_examples_of_each_task_is_a_sum_and_of_many_a_product():
    def products(examples):
        """How many matrix products the compiler is given."""
        x, w = jnp.ones((4, examples, 3)), jnp.ones((4, 3, 2))
        gradient = jax.vmap(jax.grad(lambda w, x: linear(x, w).sum()))
        return jax.jit(gradient).trace(w, x).lower(lowering_platforms=("cpu",)).as_text().count("dot_general")

    assert products(FEW_EXAMPLES) == products(FEW_EXAMPLES + 1) - 1


def test_integers_are_promoted():
    assert linear(jnp.arange(3), jnp.ones((3, 2))).tolist() == [3.0, 3.0]


@pytest.mark.parametrize("shapes", [((5, 3), (4, 2)), ((5, 3), (3,)), ((), (3, 2))])
def test_refuses_shapes_that_do_not_match(shapes):
    x, w = map(jnp.ones, shapes)
    with pytest.raises(ValueError, match=r"must be \[\.\.\., D\] and \[D, E\]"):
        linear(x, w)
