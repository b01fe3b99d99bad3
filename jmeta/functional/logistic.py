"""Regularised logistic regression at its optimum, differentiated implicitly."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.sparse.linalg import cg

from jmeta.functional.classes import exclude_absent
from jmeta.functional.implicit import implicit_minimum, proximal_objective
from jmeta.functional.precision import exact_product, in_one_precision
from jmeta.functional.varying import vary_over, varying
from jmeta.types import Array

# Lengths tried for a Newton step; the first not to lead uphill is taken, and zero never does. Our choice.
LENGTHS = (1.0, 0.5, 0.25, 0.125, 0.0)


def logistic_regression(
    features: Array, targets: Array, mask: Array, regularisation: Array | float, *, steps: int, cg_steps: int
) -> Array:
    """The weights W that minimise the cross-entropy of X W, summed over real examples, plus lambda / 2 |W|^2.

    Newton's method finds them, with directions by conjugate gradient; derivatives are
    those of the minimum, by `implicit_minimum`. Both work on V = W sqrt(lambda), whose
    regulariser is |V|^2 / 2: lambda is then part of the loss, and no Hessian has an
    eigenvalue below 1. The rounding error of an example's largest squared norm is added
    to lambda, so that no eigenvalue is so large that rounding alone would exceed 1: in
    single precision that is one part in ten million.

    Args:
        features: X, [K, D].
        targets: [K, N] one-hot; a class with no real example is left out.
        mask: [K], the weight of each example's cross-entropy.
        regularisation: lambda, above 0.
        steps: number of steps of Newton's method.
        cg_steps: maximum number of conjugate gradient steps, in each of those and in
            the derivative; exact from the smaller of K (N - 1) and D (N - 1) on.

    Returns:
        W, [D, N]; zeros for a class with no real example.

    Example:
        >>> x, y = jnp.array([[1.0], [-1.0]]), jnp.eye(2)
        >>> weights = logistic_regression(x, y, jnp.ones(2), 0.5, steps=8, cg_steps=2)
        >>> print(abs(weights - 2 * x.T @ (y - jax.nn.softmax(x @ weights))).max() < 1e-6)
        True
    """
    (features, targets, mask), dtype = in_one_precision(features, targets, mask)
    x, y = jnp.where(mask[:, None] > 0, features, 0), targets * mask[:, None]
    present = y.sum(0) > 0
    rounding = jnp.finfo(x.dtype).eps * lax.stop_gradient(jnp.square(x).sum(1).max(initial=0))
    scale = jnp.sqrt(regularisation + rounding)
    scaled = x / scale

    def loss(weights, _):
        return -(y * jax.nn.log_softmax(exclude_absent(exact_product(scaled, weights), present))).sum()

    def minimise(loss, start, data):
        return _newton(proximal_objective(loss, start, 1.0), start, data, steps=steps, cg_steps=cg_steps)

    start = vary_over(jnp.zeros((x.shape[1], y.shape[1]), scaled.dtype), varying((scaled, y)))
    found = implicit_minimum(loss, start, minimise=minimise, data=None, proximal=1.0, cg_steps=cg_steps)
    return (found / scale).astype(dtype)


def _newton(objective, start, data, *, steps, cg_steps):
    gradient = jax.grad(objective)

    def step(params, _):
        slope, product = jax.linearize(lambda params: gradient(params, data), params)
        direction, _ = cg(product, slope, maxiter=cg_steps)
        tried = jax.vmap(lambda length: objective(params - length * direction, data))(jnp.asarray(LENGTHS, slope.dtype))
        # A rise within rounding does not count as uphill; the bound, 10 eps, is our choice.
        is_lower = tried <= tried[-1] * (1 + 10 * jnp.finfo(tried.dtype).eps)
        return params - jnp.asarray(LENGTHS, slope.dtype)[is_lower.argmax()] * direction, None

    return lax.scan(step, start, length=steps)[0]
