"""That arithmetic is counted as often as it runs."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jmeta
from benchmarks import flops


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
