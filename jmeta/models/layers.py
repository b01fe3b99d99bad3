"""Flax layers: `jmeta.functional`'s convolution and products, the five normalisation policies, and modulation."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jmeta.checks import is_count
from jmeta.functional.conv import conv
from jmeta.functional.linear import linear
from jmeta.functional.moments import conv_moments, moments
from jmeta.functional.pooling import max_pool
from jmeta.types import Array

BY_CHANNEL = ("batch", "running")  # these subtract each channel's mean, so a bias before them has no effect
NORMS = (*BY_CHANNEL, "group", "layer", "none")
GROUPS, LEAST_IN_GROUP = 32, 8  # 32 is that of Wu & He, 2018; at least 8 channels per group is our choice
MOMENTUM = 0.9  # share of the old running statistics that an update keeps; PyTorch's default, which it calls 0.1
EPSILON = 1e-5  # added to the variance; PyTorch's default


def check_norm(norm: str) -> None:
    """Raises a `ValueError` unless `norm` is one of the normalisation policies."""
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; it must be one of {', '.join(NORMS)}.")


def check_widths(**widths: Any) -> None:
    """Raises a `ValueError` that names the argument if a width is below 1; None stands for no layer."""
    for name, given in widths.items():
        if not all(is_count(width, least=1) for width in jax.tree.leaves(given)):
            raise ValueError(f"{name} is {given}; a layer's width must be a whole number, at least 1.")


def check_images(x: Array) -> None:
    """Raises a `ValueError` unless `x` is images [K, H, W, C]."""
    if x.ndim != 4:
        raise ValueError(f"inputs have shape {x.shape}; a convolutional network needs images [K, H, W, C].")


class Conv(nn.Module):
    """Convolution with "SAME" padding by `jmeta.functional.conv`.

    Attributes:
        features: output channels.
        size: side of the kernel, odd.
        stride: pixels between outputs.
        use_bias: False before a normalisation by channel, which would remove the bias.
    """

    features: int
    size: int = 3
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Convolves images [B, H, W, C]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        y = conv(x, self.param("kernel", nn.initializers.he_normal(), shape), stride=self.stride)
        if self.use_bias:
            y += _per_channel(self.param("bias", nn.initializers.zeros, (self.features,)), y)
        return y

    def moments_of(self, x: Array) -> Callable:
        """`(y, mask) -> (mean, variance)` of the output `y` of this layer for `x`; call the layer first."""
        if self.use_bias:
            return moments
        return functools.partial(conv_moments, x, self.get_variable("params", "kernel"), stride=self.stride)


class Dense(nn.Module):
    """Fully connected layer by `jmeta.functional.linear`, with parameters in double precision if JAX uses it.

    Attributes:
        features: output width.
        use_bias: False before a normalisation by channel, which would remove the bias.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` [..., D] to [..., features]."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        return linear(x, kernel, bias)


class Normalise(nn.Module):
    """Normalisation by a named policy, then a learned scale and bias per channel.

    Attributes:
        policy: `"batch"`, the statistics of the current set, both in training and at
            test time (transductive, as in MAML); `"running"`, those of the current set
            in training and running ones at test time; `"group"` (Wu & He, 2018; up to
            32 groups, of at least 8 channels if there are so many); `"layer"`;
            `"none"`, no layer at all.
        pool: also take the maximum over 2 x 2 pixels. With the by-channel policies
            pooling comes first: the same values from a quarter of the pixels. Where a
            scale is exactly zero, pooling afterwards would have no derivative; here it
            is the limit from positive scales.
    """

    policy: str
    pool: bool = False

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, mask: Array | None = None, moments_of: Callable = moments
    ) -> Array:
        """Normalises `x` [K, ..., C]; `mask` [K] keeps padding out of the statistics.

        The by-channel policies take the statistics from `moments_of`, `(x, mask) -> (mean, variance)`.

        Returns:
            An array of the shape of `x`; with `pool`, [K, H // 2, W // 2, C] from [K, H, W, C].
        """
        if self.policy in BY_CHANNEL:
            return self._by_channel(x, train, functools.partial(moments_of, mask=mask))
        x = self._by_example(x)
        return max_pool(x) if self.pool else x

    def _by_example(self, x):
        options: dict[str, Any] = {"epsilon": EPSILON, "param_dtype": jnp.result_type(float)}
        if self.policy == "layer":
            return nn.LayerNorm(reduction_axes=range(1, x.ndim), **options)(x)
        if self.policy == "group":
            return nn.GroupNorm(_groups(x.shape[-1]), **options)(x)
        return x

    def _by_channel(self, x, train, moments_of):
        mean, variance = self._statistics(x, train, moments_of)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        if self.pool:  # where the scale is negative, the largest output comes from the smallest input
            sign = _per_channel(jnp.where(scale < 0, -1, 1).astype(x.dtype), x)
            x = sign * max_pool(sign * x)
        factor = scale * lax.rsqrt(variance + EPSILON)
        return (x - _per_channel(mean, x)) * _per_channel(factor, x) + _per_channel(bias, x)

    def _statistics(self, x, train, moments_of):
        if self.policy == "batch":
            return moments_of(x)
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, x.dtype)
        variance = self.variable("batch_stats", "variance", jnp.ones, shape, x.dtype)
        if not train:
            return mean.value, variance.value
        current = moments_of(x)
        if not self.is_initializing():
            for running, new in zip((mean, variance), current, strict=True):
                running.value = MOMENTUM * running.value + (1 - MOMENTUM) * lax.stop_gradient(new)
        return current


def _groups(channels: int) -> int:
    """The number of groups; with one channel each, only the bias would be left where a map has at most one pixel."""
    sizes = (groups for groups in range(1, GROUPS + 1) if channels % groups == 0)
    return max(groups for groups in sizes if groups == 1 or channels // groups >= LEAST_IN_GROUP)


def conv_norm(
    x: Array,
    features: int,
    *,
    size: int = 3,
    stride: int = 1,
    norm: str,
    train: bool,
    mask: Array | None,
    pool: bool = False,
) -> Array:
    """Convolution and normalisation, as children of the calling module.

    Args:
        x: images [K, H, W, C].
        features: output channels.
        size: as for `Conv`.
        stride: as for `Conv`.
        norm: the policy; one by channel leaves the convolution without a bias.
        train: as for `Normalise`.
        mask: as for `Normalise`.
        pool: as for `Normalise`.
    """
    layer = Conv(features, size=size, stride=stride, use_bias=norm not in BY_CHANNEL)
    y = layer(x)
    return Normalise(norm, pool=pool)(y, train=train, mask=mask, moments_of=layer.moments_of(x))


class Modulate(nn.Module):
    """Scales and shifts channels by a linear function of a context (FiLM; Perez et al., 2018).

    The context is a parameter `context` [size], for a learner that adapts it. It starts
    at zero, where it initially leaves the channels as they are.

    Attributes:
        size: the size of the context.
    """

    size: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Modulates `x` [K, ..., C]."""
        context = self.param("context", nn.initializers.zeros, (self.size,))
        scale, shift = jnp.split(Dense(2 * x.shape[-1])(context), 2)
        return x * _per_channel(1 + scale, x) + _per_channel(shift, x)


def _per_channel(values: Array, like: Array) -> Any:
    return values.reshape((1,) * (like.ndim - 1) + (-1,))
