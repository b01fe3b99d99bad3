"""Two-by-two max-pooling whose gradient is cheap at every order."""

import functools

import jax
import jax.numpy as jnp

from jmeta.types import Array


@jax.custom_jvp
def max_pool(x: Array) -> Array:
    """Maximum over windows of 2 x 2 pixels, two apart, without padding.

    The maximum of four strided slices, with a rule of its own: the gradient of
    `lax.reduce_window` costs 26 times as much on a CPU (docs/decisions/0003-convolution.md). On
    a tie the first pixel in row order takes the gradient, as there.

    Args:
        x: [B, H, W, C] images, H and W at least 2.

    Returns:
        [B, H // 2, W // 2, C].

    Example:
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0]
        Array([[ 5.,  7.],
               [13., 15.]], dtype=float32)
    """
    return functools.reduce(jnp.maximum, _quarters(x))


@max_pool.defjvp
def _max_pool_jvp(primals, tangents):
    pixels = zip(_quarters(*primals), _quarters(*tangents), strict=True)
    return functools.reduce(_larger, pixels)


def _larger(one, other):
    """Of two values, each with its tangent, the larger; the first on a tie.

    Pixels are compared with each other and not with their maximum: a compiler that computes a pixel
    twice may round it twice, and then no pixel would equal the maximum, and the gradient be lost.
    """
    (value, tangent), (other_value, other_tangent) = one, other
    is_first = value >= other_value
    return jnp.maximum(value, other_value), jnp.where(is_first, tangent, other_tangent)


def _quarters(x):
    """The four pixels of every window, in row order, each [B, H // 2, W // 2, C]."""
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return [x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]
