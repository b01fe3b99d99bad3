"""Class means, class covariances, and distances to them."""

from typing import NamedTuple

import jax.numpy as jnp

from jmeta.functional.inverses import inverses
from jmeta.functional.precision import exact_product, in_one_precision
from jmeta.types import Array, or_one

# Cosines lie between -1 and 1, and must be scaled up to serve as logits. The initial scale is that of Gidaris &
# Komodakis, 2018.
COSINE_SCALE = 10.0


def prototypes(features: Array, targets: Array, mask: Array) -> Array:
    """The mean of each class's real examples.

    Snell et al., 2017, "Prototypical Networks for Few-shot Learning", equation 1.

    Args:
        features: [K, D].
        targets: [K, N] one-hot, or the weight of each example in each class.
        mask: [K].

    Returns:
        [N, D]; zeros for a class with no real example.

    Example:
        >>> prototypes(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([[1, 0], [1, 0], [0, 1]]), jnp.ones(3))
        Array([[2.],
               [5.]], dtype=float32)
    """
    # In half precision the sum of a class may be infinite.
    (features, targets, mask), dtype = in_one_precision(features, targets, mask)
    weights = targets * mask[:, None]
    return (exact_product(weights.T, features) / or_one(weights.sum(0)[:, None])).astype(dtype)


class Gaussians(NamedTuple):
    """One normal distribution for each class.

    Attributes:
        points: [N, D] the means.
        precisions: [N, D, D] the inverses of the covariances.
    """

    points: Array
    precisions: Array


def gaussians(features: Array, targets: Array, mask: Array) -> Gaussians:
    """Class means, and class covariances shrunk towards that of all examples.

    The covariance of a class with n examples is w S_class + (1 - w) S_all + I with
    w = n / (n + 1), so that it can be inverted for any number of examples (Bateni et
    al., 2020, equation 2, with beta = 1). Its rounding error is added to I, so that
    this also holds for large features. Means and inverses are at least in single
    precision, whatever that of the features is.

    Args:
        features: [K, D].
        targets: [K, N] one-hot, or the weight of each example in each class.
        mask: [K].

    Returns:
        The `Gaussians` of the classes; the mean of a class with no real example is 0.

    Example:
        >>> features, targets = jnp.array([[0.0], [2.0], [4.0]]), jnp.array([[1, 0], [1, 0], [0, 1]])
        >>> print(gaussians(features, targets, jnp.ones(3)).points)
        [[1.]
         [4.]]
    """
    (features, targets, mask), _ = in_one_precision(features, targets, mask)
    points = prototypes(features, targets, mask)
    weights = (targets * mask[:, None]).T  # [N, K]
    everything = _covariances(features, prototypes(features, jnp.ones_like(targets[:, :1]), mask), mask[None])
    each = _covariances(features, points, weights)
    own = (weights.sum(1) / (weights.sum(1) + 1))[:, None, None]
    shrunk = own * each + (1 - own) * everything
    rounding = jnp.finfo(shrunk.dtype).eps * jnp.trace(shrunk, axis1=1, axis2=2)
    identity = jnp.eye(features.shape[1], dtype=shrunk.dtype)
    return Gaussians(points, inverses(shrunk + (1 + rounding)[:, None, None] * identity[None]))


def _covariances(features: Array, points: Array, weights: Array) -> Array:
    """The covariances [N, D, D] around `points` [N, D] of examples with `weights` [N, K]; zeros for fewer than two."""
    apart = features[None] - points[:, None]
    products = exact_product((apart * weights[..., None]).mT, apart)
    return products / jnp.maximum(weights.sum(1) - 1, 1)[:, None, None]


def squared_distances(queries: Array, points: Array) -> Array:
    """Squared Euclidean distances [Q, N], at least in single precision, between `queries` [Q, D] and `points` [N, D].

    Example:
        >>> print(squared_distances(jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2))))
        [[5.]]
    """
    (queries, points), _ = in_one_precision(queries, points)  # in half precision a distance above 256 is a whole number
    return jnp.square(queries[:, None, :] - points[None, :, :]).sum(-1)


def squared_mahalanobis_distances(queries: Array, classes: Gaussians) -> Array:
    """Squared Mahalanobis distances [Q, N] between `queries` [Q, D] and the classes' distributions.

    Example:
        >>> classes = Gaussians(jnp.zeros((1, 2)), 2 * jnp.eye(2)[None])
        >>> print(squared_mahalanobis_distances(jnp.array([[1.0, 2.0]]), classes))
        [[10.]]
    """
    apart = queries[:, None, :] - classes.points[None, :, :]
    return jnp.einsum("qni,nij,qnj->qn", apart, classes.precisions, apart, precision="highest")


def cosine_similarities(queries: Array, points: Array) -> Array:
    """Cosines [Q, N] between `queries` [Q, D] and `points` [N, D]; zero where the square of either's length is.

    Example:
        >>> print(cosine_similarities(jnp.array([[3.0, 4.0]]), jnp.array([[1.0, 0.0], [0.0, 2.0]])))
        [[0.6 0.8]]
    """
    return exact_product(_normalised(queries), _normalised(points).T)


def _normalised(x):
    (single,), dtype = in_one_precision(x)  # in half precision the square of a norm above 256 is infinite
    squared = jnp.square(single).sum(-1, keepdims=True)
    is_long = squared >= jnp.finfo(single.dtype).tiny  # the derivative of a shorter vector's would be infinite
    unit = single * jnp.where(is_long, 1 / jnp.sqrt(jnp.where(is_long, squared, 1)), 0)
    return unit.astype(dtype)
