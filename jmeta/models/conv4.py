"""The four-layer convolutional network of few-shot image classification."""

import flax.linen as nn
from jax import lax

from jmeta.checks import check_counts
from jmeta.functional.pooling import max_pool
from jmeta.models.adapters import from_linen
from jmeta.models.layers import check_images, check_norm, check_widths, conv_norm, Dense, Modulate
from jmeta.types import Array, Model


def conv4(
    *, outputs: int | None = None, width: int = 64, norm: str = "batch", strided: bool = False, context: int = 0
) -> Model:
    """Four blocks of 3 x 3 convolution, normalisation, ReLU and halving (Vinyals et al., 2016).

    Args:
        outputs: width of the linear output layer; None makes an encoder.
        width: filters of each block.
        norm: normalisation policy, see `models.layers.Normalise`.
        strided: halve by a stride of 2 instead of 2 x 2 max-pooling, and average the
            last feature map, as MAML does on Omniglot.
        context: number of parameters that modulate the third block, for `cavia`, as in
            its paper.

    Returns:
        A `Model` from images [K, H, W, C] of any size to [K, outputs], or to features
        [K, D]: D is 64 for 28 x 28 images and 64 filters. Max-pooling stops at maps one
        pixel high or wide.

    Raises:
        ValueError: for an unknown `norm`, a width below 1 or a context below 0; from
            `init` and `apply`, for inputs that are not images.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = conv4(width=8)
        >>> params, state = model.init(jax.random.key(0), jnp.zeros((2, 28, 28, 1)))
        >>> model.apply(params, state, jnp.zeros((2, 28, 28, 1)))[0].shape
        (2, 8)
    """
    check_norm(norm)
    check_widths(outputs=outputs, width=width)
    check_counts(context=context)
    return from_linen(Conv4(outputs, width, norm, strided, context))


class Conv4(nn.Module):
    """The module behind `conv4`."""

    outputs: int | None
    width: int
    norm: str
    strided: bool
    context: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """Features or outputs of images [K, H, W, C]."""
        check_images(x)
        stride = 2 if self.strided else 1
        for block in range(4):
            is_modulated = self.context > 0 and block == 2
            pool = not self.strided and not is_modulated
            x = conv_norm(x, self.width, stride=stride, norm=self.norm, train=train, mask=mask, pool=pool)
            if is_modulated:  # may reverse the order of pixels, so pooling comes after it
                x = Modulate(self.context)(x)
                x = x if self.strided else max_pool(x)
            x = nn.relu(x)  # monotone, so it may follow the pooling
        x = x.mean((1, 2)) if self.strided else lax.collapse(x, 1)
        return x if self.outputs is None else Dense(self.outputs, name="head")(x)
