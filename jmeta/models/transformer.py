"""The Transformer that answers queries from a prompt."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from jmeta.checks import check_counts
from jmeta.models.adapters import from_linen
from jmeta.models.layers import check_widths, Dense
from jmeta.models.prompt_attention import prompt_attention
from jmeta.types import Array, Model


def transformer(outputs: int, *, width: int = 64, depth: int = 4, heads: int = 4) -> Model:
    """Pre-norm attention and feed-forward layers that answer each query from a prompt without positions.

    Vaswani et al., 2017, "Attention Is All You Need"; layer normalisation comes before
    each part, and feed-forward layers are four times as wide, as in GPT-2. A token of
    the prompt sees the prompt, and a query sees the prompt and itself; masked tokens
    are seen only by themselves.

    Args:
        outputs: width of the linear output layer.
        width: width of a token inside.
        depth: number of layers.
        heads: attention heads per layer, which share the width.

    Returns:
        A `Model` from `(queries [Q, D], prompt [K, D], mask [K])` to [Q, outputs].
        The order of the prompt does not matter.

    Raises:
        ValueError: for a width below 1, fewer than 1 layer or head, or heads that
            do not divide the width.

    Example:
        >>> import jax
        >>> model = transformer(5, width=8, depth=1)
        >>> inputs = jnp.zeros((2, 6)), jnp.zeros((3, 6)), jnp.ones(3)
        >>> params, state = model.init(jax.random.key(0), inputs)
        >>> model.apply(params, state, inputs)[0].shape
        (2, 5)
    """
    check_widths(outputs=outputs, width=width)
    check_counts(least=1, depth=depth, heads=heads)
    if width % heads:
        raise ValueError(f"heads is {heads}; it must divide the width, {width}.")
    return from_linen(Transformer(outputs, width, depth, heads))


class Transformer(nn.Module):
    """The module behind `transformer`."""

    outputs: int
    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(self, inputs: tuple[Array, Array, Array]) -> Array:
        """Outputs of queries [Q, D]."""
        queries, prompt, mask = inputs
        dtype = jnp.result_type(float)
        tokens = jnp.concatenate([prompt, queries])
        every = jnp.ones((len(prompt), len(prompt)), bool)
        attend = functools.partial(prompt_attention, seen=every, real=mask > 0)
        x = Dense(self.width)(tokens)
        for _ in range(self.depth):
            attention = nn.MultiHeadDotProductAttention(self.heads, param_dtype=dtype, attention_fn=attend)
            x += attention(nn.LayerNorm(param_dtype=dtype)(x))
            hidden = nn.gelu(Dense(4 * self.width)(nn.LayerNorm(param_dtype=dtype)(x)))
            x += Dense(self.width)(hidden)
        return Dense(self.outputs, name="head")(nn.LayerNorm(param_dtype=dtype)(x[len(prompt) :]))
