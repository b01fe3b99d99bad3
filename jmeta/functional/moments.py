"""Mean and variance of channels over a set of examples, for normalisation."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jmeta.functional.conv import columns
from jmeta.functional.precision import exact_product, in_one_precision
from jmeta.functional.primitives import alike
from jmeta.types import Array, at_least_single, or_one

# Measured on two x86 cores (docs/decisions/0013-moments.md): 3 x 3 pixels of three channels, as a first layer has.
FEW_TERMS = 27


def moments(x: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """Mean and variance of each channel over real examples and their pixels.

    Args:
        x: [K, ..., C].
        mask: [K], 1 for a real example; None if all are. Both moments are 0 if none is.

    Returns:
        Two arrays [C], computed in at least single precision and of the dtype of `x`.

    Example:
        >>> moments(jnp.array([[1.0], [3.0], [9.0]]), jnp.array([1, 1, 0]))
        (Array([2.], dtype=float32), Array([1.], dtype=float32))
    """
    (x,), dtype = in_one_precision(x)
    # Pixels are averaged first, so that the mask multiplies only [K, C] numbers and costs nothing.
    weights, pixels = _weights(x, mask), tuple(range(1, x.ndim - 1))
    mean = exact_product(weights, x.mean(pixels))
    apart = x - mean.reshape((1,) * (x.ndim - 1) + (-1,))
    return mean.astype(dtype), exact_product(weights, jnp.square(apart).mean(pixels)).astype(dtype)


def conv_moments(x: Array, w: Array, y: Array, mask: Array | None = None, *, stride: int = 1) -> tuple[Array, Array]:
    """`moments(y, mask)` of `y = conv(x, w, stride=stride)`, on the CPU from `x` and `w` alone where terms are few.

    A convolution is linear in the numbers under its window. With their mean m and covariance S, its mean is m w
    and its variance w^T S w; there are only as many numbers as the window has, where `y` has one per channel for
    every pixel. So neither the moments nor their gradients touch `y`, which in a first layer is the largest array
    of a network.

    Args:
        x: [K, H, W, C] images.
        w: [h, w, C, O] kernel.
        y: [K, H', W', O], their convolution.
        mask: [K], 1 for a real example; None if all are.
        stride: the convolution's stride.

    Returns:
        Two arrays [O].

    Example:
        >>> from jmeta.functional import conv
        >>> x, w = jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 64))
        >>> mean, _ = conv_moments(x, w, conv(x, w))
        >>> print(mean[:1].round(3))
        [5.444]
    """
    x, w = alike(x, w)
    kernel = w.reshape(-1, w.shape[3])
    terms, channels = kernel.shape
    # Half precision would lose most of the variance, and accelerators may round the convolution, unseen by this.
    is_exact = x.dtype.itemsize >= 4 and jax.default_backend() == "cpu"
    if terms > FEW_TERMS or terms >= channels or not is_exact:
        return moments(y, mask)
    windows = columns(x, (w.shape[0], w.shape[1]), stride)
    windows = windows.reshape(len(x), math.prod(windows.shape[1:3]), terms)
    weights = _weights(x, mask).astype(x.dtype)
    center = weights @ windows.mean(1)
    apart = windows - center[None, None]
    products = apart.mT @ apart / apart.shape[1]  # for each image, which rounds less than one long sum
    variance = (kernel * (jnp.tensordot(weights, products, 1) @ kernel)).sum(0)
    # Rounding may make it negative. Its derivatives are right even then, and no maximum halves them at zero.
    return center @ kernel, variance + lax.stop_gradient(jnp.maximum(-variance, 0))


def _weights(x, mask):
    """The weight of each example in a mean, [K]."""
    if mask is None:
        return jnp.full(x.shape[:1], 1 / max(x.shape[0], 1), x.dtype)
    dtype = jnp.result_type(x, mask)
    counted = mask.astype(at_least_single(dtype))  # a third rounded to float32 is not one in float64
    return (counted / or_one(counted.sum())).astype(dtype)
