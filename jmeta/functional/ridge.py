"""Ridge regression in closed form."""

import jax.numpy as jnp
from jax.scipy.linalg import solve

from jmeta.functional.precision import exact_product, in_one_precision
from jmeta.types import Array


def ridge_regression(features: Array, targets: Array, mask: Array, regularisation: Array | float) -> Array:
    """The weights W that minimise |X W - Y|^2 + lambda |W|^2, with the squared error summed over real examples.

    Solved in the smaller of two spaces: as (X'X + lambda)^-1 X'Y, with as many
    equations as features, or by the Woodbury identity as X'(XX' + lambda)^-1 Y, with as
    many as examples. The rounding error of the regularised matrix is added to lambda,
    which makes the matrix positive definite in every precision.

    Args:
        features: X, [K, D].
        targets: Y, [K, N].
        mask: [K], the weight of each example's squared error.
        regularisation: lambda, above 0.

    Returns:
        W, [D, N]; zeros if there is no real example.

    Example:
        >>> ridge_regression(jnp.array([[1.0], [9.0]]), jnp.array([[2.0], [9.0]]), jnp.array([1.0, 0.0]), 1.0)
        Array([[1.000]], dtype=float32)
    """
    (features, targets, mask), dtype = in_one_precision(features, targets, mask)
    root = jnp.where(mask > 0, jnp.sqrt(jnp.where(mask > 0, mask, 1)), 0)[:, None]  # a root has no derivative at zero
    x, y = features * root, targets * root
    if x.shape[0] < x.shape[1]:
        return exact_product(x.T, _solve(exact_product(x, x.T), y, regularisation)).astype(dtype)
    return _solve(exact_product(x.T, x), exact_product(x.T, y), regularisation).astype(dtype)


def _solve(gram, values, regularisation):
    rounding = jnp.finfo(gram.dtype).eps * jnp.trace(gram)
    return solve(gram + (regularisation + rounding) * jnp.eye(len(gram), dtype=gram.dtype), values, assume_a="pos")
