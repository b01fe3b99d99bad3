"""The multi-layer perceptron of few-shot regression."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jmeta.checks import check_counts
from jmeta.models.adapters import from_linen
from jmeta.models.layers import BY_CHANNEL, check_norm, check_widths, Dense, Normalise
from jmeta.types import Array, Model


def mlp(*, hidden: Sequence[int] = (40, 40), outputs: int | None = 1, norm: str = "none", context: int = 0) -> Model:
    """Fully connected layers with ReLU; 40-40 as on the sinusoids of Finn et al., 2017.

    Args:
        hidden: widths of the hidden layers.
        outputs: width of the linear output layer; None makes an encoder, whose
            features are the last hidden layer.
        norm: normalisation policy, see `models.layers.Normalise`.
        context: number of parameters appended to each input, for `cavia`.

    Returns:
        A `Model` from inputs [K, ...], flattened, to [K, outputs].

    Raises:
        ValueError: for an unknown `norm`, a width below 1 or a context below 0.

    Example:
        >>> import jax
        >>> model = mlp(outputs=3)
        >>> params, state = model.init(jax.random.key(0), jnp.zeros((2, 5)))
        >>> model.apply(params, state, jnp.zeros((2, 5)))[0].shape
        (2, 3)
    """
    check_norm(norm)
    hidden = tuple(hidden)
    check_widths(outputs=outputs, hidden=hidden)
    check_counts(context=context)
    return from_linen(MLP(hidden, outputs, norm, context))


class MLP(nn.Module):
    """The module behind `mlp`."""

    hidden: tuple[int, ...]
    outputs: int | None
    norm: str
    context: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """Features or outputs of inputs [K, ...]."""
        x = lax.collapse(x, 1)
        if self.context:
            context = self.param("context", nn.initializers.zeros, (self.context,))
            x = jnp.concatenate([x, jnp.broadcast_to(context, (x.shape[0], self.context))], axis=1)
        for width in self.hidden:
            x = Dense(width, use_bias=self.norm not in BY_CHANNEL)(x)
            x = nn.relu(Normalise(self.norm)(x, train=train, mask=mask))
        return x if self.outputs is None else Dense(self.outputs, name="head")(x)
