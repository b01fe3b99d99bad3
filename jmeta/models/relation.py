"""The two networks of relation networks (Sung et al., 2018)."""

import flax.linen as nn
from jax import lax

from jmeta.models.adapters import from_linen, without_policy
from jmeta.models.layers import check_images, check_norm, check_widths, conv_norm, Dense
from jmeta.types import Array, Model


def relation_encoder(*, width: int = 64, norm: str = "batch") -> Model:
    """Encodes images to feature maps by four convolutional blocks, of which the first two halve the image.

    Sung et al., 2018, "Learning to Compare: Relation Network for Few-Shot Learning",
    but with "SAME" padding, so that images of 28 x 28 give maps of 7 x 7.

    Args:
        width: filters of each block.
        norm: normalisation policy, see `models.layers.Normalise`.

    Returns:
        A `Model` from images [K, H, W, C] to maps [K, H / 4, W / 4, width].

    Raises:
        ValueError: for an unknown `norm` or a width below 1; from `init` and
            `apply`, for inputs that are not images.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model, images = relation_encoder(width=4), jnp.zeros((2, 28, 28, 1))
        >>> params, state = model.init(jax.random.key(0), images)
        >>> model.apply(params, state, images)[0].shape
        (2, 7, 7, 4)
    """
    check_norm(norm)
    check_widths(width=width)
    return from_linen(RelationEncoder(width, norm))


def relation_module(*, width: int = 64, hidden: int = 8, norm: str = "batch") -> Model:
    """Scores how related two examples are, from their joined features.

    Sung et al., 2018, "Learning to Compare: Relation Network for Few-Shot Learning".

    Args:
        width: filters of the two convolutional blocks that feature maps pass through
            first.
        hidden: units of the fully connected layer before the last.
        norm: normalisation policy of the blocks, see `models.layers.Normalise`. Vectors
            are not normalised, and reports then state no policy of this network.

    Returns:
        A `Model` from pairs [P, H, W, C] or [P, D] to scores [P, 1], without the
        paper's sigmoid, which `learners.relation` applies.

    Raises:
        ValueError: for an unknown `norm` or a width below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model, pairs = relation_module(), jnp.zeros((3, 10))
        >>> params, state = model.init(jax.random.key(0), pairs)
        >>> model.apply(params, state, pairs)[0].shape
        (3, 1)
    """
    check_norm(norm)
    check_widths(width=width, hidden=hidden)
    model = from_linen(RelationModule(width, hidden, norm))

    def init(key, inputs):
        params, state = model.init(key, inputs)
        return params, state if inputs.ndim == 4 else without_policy(state)

    return model._replace(init=init)


class Block(nn.Module):
    """Convolution, normalisation, pooling if it is asked for, ReLU."""

    width: int
    norm: str
    pool: bool

    @nn.compact
    def __call__(self, x: Array, *, train: bool, mask: Array | None) -> Array:
        """Feature maps of inputs [K, H, W, C]."""
        return nn.relu(conv_norm(x, self.width, norm=self.norm, train=train, mask=mask, pool=self.pool))


class RelationEncoder(nn.Module):
    """The module behind `relation_encoder`."""

    width: int
    norm: str

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """Feature maps of images [K, H, W, C]."""
        check_images(x)
        for block in range(4):
            x = Block(self.width, self.norm, pool=block < 2)(x, train=train, mask=mask)
        return x


class RelationModule(nn.Module):
    """The module behind `relation_module`."""

    width: int
    hidden: int
    norm: str

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """Scores of pairs [P, ...]."""
        for _ in range(2 if x.ndim == 4 else 0):
            x = Block(self.width, self.norm, pool=True)(x, train=train, mask=mask)
        x = nn.relu(Dense(self.hidden)(lax.collapse(x, 1)))
        return Dense(1)(x)
