"""Class means and distances to them."""

import jax.numpy as jnp

from jmeta.types import Array


def prototypes(features: Array, targets: Array, mask: Array) -> Array:
    """The mean of each class's real examples.

    Args:
        features: [K, D].
        targets: [K, N] one-hot.
        mask: [K].

    Returns:
        [N, D]; zeros for a class with no real example.

    Example:
        >>> prototypes(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([[1, 0], [1, 0], [0, 1]]), jnp.ones(3))
        Array([[2.],
               [5.]], dtype=float32)
    """
    weights = targets * mask[:, None]
    return weights.T @ features / jnp.maximum(weights.sum(0), 1)[:, None]


def squared_distances(queries: Array, points: Array) -> Array:
    """Squared Euclidean distances [Q, N] between `queries` [Q, D] and `points` [N, D]."""
    return jnp.square(queries[:, None, :] - points[None, :, :]).sum(-1)


def cosine_similarities(queries: Array, points: Array) -> Array:
    """Cosines [Q, N] between `queries` [Q, D] and `points` [N, D]; zero where either is zero."""
    return _normalised(queries) @ _normalised(points).T


def _normalised(x):
    squared = jnp.square(x).sum(-1, keepdims=True)
    return x * jnp.where(squared > 0, 1 / jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
