"""SNAIL: causal convolutions interleaved with causal attention (Mishra et al., 2018)."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from jmeta.checks import check_counts
from jmeta.models.adapters import from_linen
from jmeta.models.layers import check_widths, Dense
from jmeta.models.prompt_attention import prompt_attention
from jmeta.types import Array, Model

# Widths of keys and values of each attention layer, as in the paper.
ATTENTION = ((64, 32), (256, 128), (512, 256))


def snail(
    outputs: int, *, filters: int = 128, attention: Sequence[tuple[int, int]] = ATTENTION, length: int = 26
) -> Model:
    """Attention layers with stacks of dilated convolutions between them, all causal and densely connected.

    Each query comes right after the prompt, which is read once for all of them.

    Mishra et al., 2018, "A Simple Neural Attentive Meta-Learner". The paper derives the
    number of convolutions from the length of its sequences; here it follows from
    `length`, whatever the sequences are, so that one network reads any number of shots:
    what is further back only attention sees. Dilations are 1, 2, 4, ..., so that a
    stack sees every token in its span; the paper's are 2, 4, 8, ....

    Args:
        outputs: width of the linear output layer.
        filters: filters of each convolution, over two tokens.
        attention: widths of keys and values of each attention layer.
        length: the least number of tokens that a stack of convolutions spans; 26 is a
            5-way 5-shot support set and one query.

    Returns:
        A `Model` from `(queries [Q, D], prompt [K, D], mask [K])` to [Q, outputs]. A
        token sees itself and the prompt before it. Masked tokens must come first.

    Raises:
        ValueError: for a width below 1, no attention, or a length below 2.

    Example:
        >>> import jax
        >>> model = snail(5, filters=4, attention=[(4, 4)], length=6)
        >>> inputs = jnp.zeros((2, 6)), jnp.zeros((3, 6)), jnp.ones(3)
        >>> params, state = model.init(jax.random.key(0), inputs)
        >>> model.apply(params, state, inputs)[0].shape
        (2, 5)
    """
    attention = tuple((keys, values) for keys, values in attention)
    check_widths(outputs=outputs, filters=filters, attention=attention)
    if not attention:
        raise ValueError("attention is empty; it must have the widths of at least one.")
    check_counts(least=2, length=length)
    return from_linen(SNAIL(outputs, filters, attention, math.ceil(math.log2(length))))


class SNAIL(nn.Module):
    """The module behind `snail`, with `depth` convolutions in a stack."""

    outputs: int
    filters: int
    attention: tuple[tuple[int, int], ...]
    depth: int

    @nn.compact
    def __call__(self, inputs: tuple[Array, Array, Array]) -> Array:
        """Outputs of queries [Q, D]."""
        queries, prompt, mask = inputs
        real = jnp.concatenate([mask > 0, jnp.ones(len(queries), bool)])
        # Tokens before the first are zero, so padding must be zero in every layer.
        x = _only(real, jnp.concatenate([prompt, queries]))
        for block, (keys, values) in enumerate(self.attention):
            for level in range(self.depth if block else 0):
                x = jnp.concatenate([x, _only(real, self._convolve(x, len(prompt), 2**level))], axis=1)
            x = jnp.concatenate([x, _only(real, self._attend(x, mask > 0, keys, values))], axis=1)
        return Dense(self.outputs, name="head")(x[len(prompt) :])

    def _convolve(self, x, start, dilation):
        """The gated causal convolution: a dense layer on each token and the one `dilation` before it.

        Tokens from `start` on are queries, whose position is `start`.
        """
        shifted = jnp.concatenate([jnp.zeros((dilation, x.shape[1]), x.dtype), x[:start]])
        before_queries = jnp.broadcast_to(shifted[start], x[start:].shape)
        earlier = jnp.concatenate([shifted[:start], before_queries])
        signal, gate = jnp.split(Dense(2 * self.filters)(jnp.concatenate([earlier, x], axis=1)), 2, axis=1)
        return jnp.tanh(signal) * nn.sigmoid(gate)

    def _attend(self, x, real, keys, values):
        query, key, value = (Dense(width)(x)[:, None] for width in (keys, keys, values))
        return prompt_attention(query, key, value, seen=jnp.tri(len(real), dtype=bool), real=real)[:, 0]


def _only(real, x):
    return jnp.where(real[:, None], x, 0)
