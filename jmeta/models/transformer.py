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
    """Pre-norm attention and feed-forward layers, which answer each query from a prompt without positions.

    Vaswani et al., 2017, "Attention Is All You Need"; layer normalisation comes
    before each part, and feed-forward layers are four times as wide, as in GPT-2.
    A token of the prompt sees the prompt, a query the prompt and itself; masked
    tokens are seen by none but themselves.

    Args:
        outputs: width of the linear output layer.
        width: of a token inside.
        depth: layers.
        heads: of attention in each; they share the width.

    Returns:
        A `Model` from `(queries [Q, D], prompt [K, D], mask [K])` to [Q, outputs].
        The order of the prompt changes nothing.

    Raises:
        ValueError: for a width below 1, fewer than 1 layer or head, or heads that
            do not divide the width.
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
