"""The two networks of full-context embeddings (Vinyals et al., 2016, appendix A)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jmeta.checks import check_counts
from jmeta.functional.classes import very_negative
from jmeta.functional.orders import real_first
from jmeta.functional.varying import vary_over, varying
from jmeta.models.adapters import from_linen
from jmeta.types import Array, Model


def bidirectional_lstm() -> Model:
    """Adds the outputs of an LSTM in each direction to the feature vectors [K, D].

    Vinyals et al., 2016, "Matching Networks for One Shot Learning", appendix A.2.

    Returns:
        A `Model` from [K, D] to [K, D]; masked rows stay as they are, and do not
        affect the others.

    Example:
        >>> model = bidirectional_lstm()
        >>> params, state = model.init(jax.random.key(0), jnp.zeros((3, 4)))
        >>> model.apply(params, state, jnp.zeros((3, 4)))[0].shape
        (3, 4)
    """
    return from_linen(BidirectionalLSTM())


def attention_lstm(*, steps: int = 5) -> Model:
    """Reads a support set with an LSTM for each query, in several steps of attention.

    Vinyals et al., 2016, "Matching Networks for One Shot Learning", appendix A.1.

    Args:
        steps: number of reading steps; the default is ours.

    Returns:
        A `Model` from `(queries [Q, D], support [K, D], mask [K])` to [Q, D].

    Raises:
        ValueError: for fewer than 1 step.

    Example:
        >>> model = attention_lstm(steps=2)
        >>> inputs = jnp.zeros((2, 4)), jnp.zeros((3, 4)), jnp.ones(3)
        >>> params, state = model.init(jax.random.key(0), inputs)
        >>> model.apply(params, state, inputs)[0].shape
        (2, 4)
    """
    check_counts(least=1, steps=steps)
    return from_linen(AttentionLSTM(steps))


class BidirectionalLSTM(nn.Module):
    """The module behind `bidirectional_lstm`."""

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        """Features [K, D] in the context of each other."""
        mask = jnp.ones(len(x), x.dtype) if mask is None else mask
        order = real_first(mask)  # padding last, where a sequence length excludes it
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
        queries = queries.astype(jnp.result_type(queries, float))  # features may be integers
        cell = _lstm_cell(queries.shape[-1])
        hidden, memory = jnp.zeros_like(queries), jnp.zeros_like(queries)
        for _ in range(self.steps):
            scores = hidden @ support.T
            weights = jax.nn.softmax(jnp.where(mask[None] > 0, scores, very_negative(scores)))
            read = weights @ support
            (memory, hidden), _ = cell((memory, hidden), jnp.concatenate([queries, read], -1))
            hidden += queries
        return hidden


def _lstm_cell(features: int) -> nn.LSTMCell:
    """Flax's LSTM cell, with parameters in double precision if JAX uses it."""
    return nn.LSTMCell(features, param_dtype=jnp.result_type(float))
