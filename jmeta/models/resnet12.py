"""The twelve-layer residual network of few-shot image classification."""

import functools
from collections.abc import Sequence

import flax.linen as nn

from jmeta.functional.pooling import max_pool
from jmeta.models.adapters import from_linen
from jmeta.models.layers import check_images, check_norm, check_widths, conv_norm, Dense
from jmeta.types import Array, Model

leaky_relu = functools.partial(nn.leaky_relu, negative_slope=0.1)


def resnet12(*, outputs: int | None = None, widths: Sequence[int] = (64, 160, 320, 640), norm: str = "batch") -> Model:
    """Four residual blocks of three convolutions each (MetaOptNet; Lee et al., 2019).

    We depart from the paper in two ways: the last feature map is averaged over its
    pixels, not flattened, and there is no DropBlock.

    Args:
        outputs: width of the linear output layer; None makes an encoder.
        widths: filters of each block.
        norm: normalisation policy, see `models.layers.Normalise`.

    Returns:
        A `Model` from images [K, H, W, C] to [K, outputs], or to features [K, widths[-1]].

    Raises:
        ValueError: for an unknown `norm` or a width below 1; from `init` and `apply`,
            for inputs that are not images.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = resnet12(widths=(4, 4, 8, 8))
        >>> params, state = model.init(jax.random.key(0), jnp.zeros((2, 16, 16, 3)))
        >>> model.apply(params, state, jnp.zeros((2, 16, 16, 3)))[0].shape
        (2, 8)
    """
    check_norm(norm)
    widths = tuple(widths)
    check_widths(outputs=outputs, widths=widths)
    return from_linen(ResNet12(outputs, widths, norm))


class ResNet12(nn.Module):
    """The module behind `resnet12`."""

    outputs: int | None
    widths: tuple[int, ...]
    norm: str

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """Features or outputs of images [K, H, W, C]."""
        check_images(x)
        for width in self.widths:
            x = self._block(x, width, train, mask)
        x = x.mean((1, 2))
        return x if self.outputs is None else Dense(self.outputs, name="head")(x)

    def _block(self, x, width, train, mask):
        layer = functools.partial(conv_norm, features=width, norm=self.norm, train=train, mask=mask)
        y = leaky_relu(layer(x))
        y = leaky_relu(layer(y))
        y = layer(y) + layer(x, size=1)
        # Leaky ReLU is monotone, so it may follow the pooling.
        return leaky_relu(max_pool(y))
