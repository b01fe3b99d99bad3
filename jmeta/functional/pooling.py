"""Two-by-two max-pooling whose gradient is cheap at every order."""

import jax
import jax.numpy as jnp

from jmeta.types import Array


def max_pool(x: Array) -> Array:
    """Maximum over windows of 2 x 2 pixels with a stride of 2, without padding; a map without a window stays as it is.

    It has its own differentiation rule: the gradient of `lax.reduce_window` costs many
    times as much on a CPU (docs/decisions/0003-convolution.md). On a tie, the first
    pixel in row order takes the gradient, as it does there.

    Args:
        x: [B, H, W, C] images.

    Returns:
        [B, H // 2, W // 2, C], or `x` if H or W is 1.

    Example:
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0]
        Array([[ 5.,  7.],
               [13., 15.]], dtype=float32)
    """
    return x if min(x.shape[1:3]) < 2 else _max_of_windows(x)


@jax.custom_jvp
def _max_of_windows(x):
    return _largest(x)[0]


@_max_of_windows.defjvp
def _max_of_windows_jvp(primals, tangents):
    _, where = _largest(*primals)
    # A sum over windows transposes to a broadcast: the gradient is written once, pixel by pixel.
    is_largest = where[:, :, None, :, None] == jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    # The function again, not the maxima at hand, which would divide a second derivative among ties.
    return _max_of_windows(*primals), jnp.where(is_largest, _windows(*tangents), 0).sum((2, 4))


def _largest(x):
    """The largest pixel of every window [B, H // 2, W // 2, C], and its position in it, 0 to 3 in row order.

    Pixels are compared with each other and not with their maximum: a compiler that computes a pixel
    twice may round it twice; then no pixel would equal the maximum, and the gradient would be lost.
    """
    windows = _windows(x)
    above, above_at = _larger(windows[:, :, 0, :, 0], windows[:, :, 0, :, 1], jnp.int8(0), jnp.int8(1))
    below, below_at = _larger(windows[:, :, 1, :, 0], windows[:, :, 1, :, 1], jnp.int8(2), jnp.int8(3))
    return _larger(above, below, above_at, below_at)


def _larger(one, other, at, other_at):
    """The larger of two values, the first on a tie, and its position, `at` or `other_at`."""
    return jnp.maximum(one, other), jnp.where(one >= other, at, other_at)


def _windows(x):
    """[B, H, W, C] -> [B, H // 2, 2, W // 2, 2, C], without an odd last row or column."""
    B, H, W, C = x.shape
    return x[:, : H // 2 * 2, : W // 2 * 2].reshape(B, H // 2, 2, W // 2, 2, C)
