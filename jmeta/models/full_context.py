"""The two networks of full-context embeddings (Vinyals et al., 2016, appendix A)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jmeta.checks import check_counts
from jmeta.functional.orders import real_first
from jmeta.functional.varying import vary_over, varying
from jmeta.models.adapters import from_linen
from jmeta.types import Array, Model


def bidirectional_lstm() -> Model:
    """Adds to each feature vector [K, D] what an LSTM from either side says of it.

    Returns:
        A `Model` from [K, D] to [K, D]; rows that the mask takes out stay as they
        are, and change nothing for others.
    """
    return from_linen(BidirectionalLSTM())


def attention_lstm(*, steps: int = 5) -> Model:
    """Reads a support set with an LSTM for each query, in several steps of attention.

    Args:
        steps: of reading; the default is ours.

    Returns:
        A `Model` from `(queries [Q, D], support [K, D], mask [K])` to [Q, D].

    Raises:
        ValueError: for fewer than 1 step.
    """
    check_counts(least=1, steps=steps)
    return from_linen(AttentionLSTM(steps))


class BidirectionalLSTM(nn.Module):
    """The module behind `bidirectional_lstm`."""

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        """Features [K, D] in the context of each other."""
        mask = jnp.ones(len(x), x.dtype) if mask is None else mask
        order = real_first(mask)  # padding last, where a length can leave it out
        both = nn.Bidirectional(
            nn.RNN(_lstm_cell(x.shape[-1])), nn.RNN(_lstm_cell(x.shape[-1])), merge_fn=lambda one, other: one + other
        )
        zeros = vary_over(jnp.zeros((1, x.shape[-1]), jnp.result_type(float)), varying(x))
        start = (zeros, zeros), (zeros, zeros)
        context = both(x[order][None], initial_carry=start, seq_lengths=(mask > 0).sum()[None])[0]
        return x + jnp.where(mask[:, None] > 0, context[jnp.argsort(order)], 0)


class AttentionLSTM(nn.Module):
    """The module behind `attention_lstm`."""

    steps: int

    @nn.compact
    def __call__(self, inputs: tuple[Array, Array, Array]) -> Array:
        """Queries [Q, D] in the context of a support set."""
        queries, support, mask = inputs
        cell = _lstm_cell(queries.shape[-1])
        hidden, memory = jnp.zeros_like(queries), jnp.zeros_like(queries)
        for _ in range(self.steps):
            weights = jax.nn.softmax(jnp.where(mask[None] > 0, hidden @ support.T, -jnp.inf))
            read = weights @ support
            (memory, hidden), _ = cell((memory, hidden), jnp.concatenate([queries, read], -1))
            hidden += queries
        return hidden


def _lstm_cell(features: int) -> nn.LSTMCell:
    """Flax's LSTM cell, with parameters in double precision where JAX is."""
    return nn.LSTMCell(features, param_dtype=jnp.result_type(float))
