"""Max-pooling equals Flax's in value and in every derivative, ties and odd sizes included."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jmeta.functional import max_pool


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (2, 7, 5, 3)])
def test_equals_flax_with_ties_at_odd_sizes(x64, shape):
    x = jnp.round(2 * jax.random.normal(jax.random.key(0), shape))  # few values, many ties

    direction = jax.random.normal(jax.random.key(1), shape)  # not the same on pixels that tie

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(pool):
        gradient = jax.grad(lambda x: jnp.sin(pool(x)).sum())
        forward_over_reverse = jax.jvp(gradient, (x,), (direction,))
        reverse_over_reverse = jax.grad(lambda x: (gradient(x) * direction).sum())(x)
        return pool(x), forward_over_reverse, reverse_over_reverse

    ours, flax = derivatives(max_pool), derivatives(lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    chex.assert_trees_all_close(ours, flax, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 1, 5, 3), (2, 5, 1, 3)])
def test_a_map_one_pixel_high_or_wide_stays_as_it_is(shape):
    x = jnp.arange(30.0).reshape(shape)
    chex.assert_trees_all_equal(max_pool(x), x)
