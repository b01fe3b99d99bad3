"""Attention over a support set."""

import jax
import jax.numpy as jnp

from jmeta.functional.classes import very_negative
from jmeta.types import Array


def class_attention(scores: Array, targets: Array, mask: Array) -> Array:
    """Logits of the attention that the examples of each class receive together.

    Their softmax is the sum, over the real examples of a class, of the softmax of
    the scores over all real examples (Vinyals et al., 2016, "Matching Networks for
    One Shot Learning", equation 1).

    Args:
        scores: [Q, K] of queries with support examples.
        targets: [K, N] one-hot, or the weight of each example in each class.
        mask: [K].

    Returns:
        [Q, N]; very negative for a class without a real example.

    Example:
        >>> targets = jnp.array([[1, 0], [1, 0], [0, 1]])
        >>> print(jax.nn.softmax(class_attention(jnp.zeros((1, 3)), targets, jnp.ones(3))).round(2))
        [[0.67 0.33]]
    """
    return jax.nn.logsumexp(scores_by_class(scores, targets, mask), axis=1)


def scores_by_class(scores: Array, targets: Array, mask: Array) -> Array:
    """The scores [Q, K] for each class, [Q, K, N]: very negative where an example is of another class, or padding.

    An example that is half of a class has its score there reduced by log 2.
    """
    weights = targets * mask[:, None]
    of_class = weights > 0
    logs = jnp.log(jnp.where(of_class, weights, 1)).astype(jnp.result_type(scores))
    return jnp.where(of_class[None], scores[..., None] + logs[None], very_negative(scores))
