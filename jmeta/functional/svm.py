"""The multi-class support vector machine, as a differentiable quadratic program."""

import jax
import jax.numpy as jnp
from jax import lax
from optax.projections import projection_simplex

from jmeta.functional.inverses import inverses
from jmeta.functional.precision import exact_product, in_one_precision
from jmeta.functional.varying import vary_over, varying
from jmeta.types import Array

RELAXATION = 1.7  # between the 1.5 and 1.8 of Boyd et al., 2011, section 3.4.3
LEAST_APART = 1e-3  # least trace of the centred Gram matrix, as a share of the uncentred one's; our choice


def crammer_singer(features: Array, targets: Array, mask: Array, *, cost: float, steps: int) -> Array:
    """The weights of the multi-class support vector machine, without a bias.

    Crammer & Singer, 2001, "On the Algorithmic Implementation of Multiclass
    Kernel-based Vector Machines": W minimises |W|^2 / 2 plus `cost` times the sum
    over examples of max_c (1 [c is wrong] + x W_c) - x W_y. Its dual, in A [K, N] with
    W = X'A, minimises |X'A|^2 / 2 - <A, Y> where the rows of A sum to zero and do not
    exceed `cost` times those of Y. The alternating direction method of multipliers
    (Boyd et al., 2011, section 5.2), over-relaxed, alternates between the quadratic,
    with the same small matrix for all classes and steps, and the constraints, a
    projection of each row onto a simplex. Derivatives go through the steps.

    Args:
        features: X, [K, D].
        targets: Y, [K, N] one-hot; a class with no real example is left out.
        mask: [K], a factor on each example's cost.
        cost: C, above 0.
        steps: number of steps of the method.

    Returns:
        W, [D, N]; zeros for a class with no real example.

    Example:
        >>> x, y = jnp.array([[1.0], [-1.0]]), jnp.eye(2)
        >>> print(crammer_singer(x, y, jnp.ones(2), cost=10.0, steps=100).round(3))
        [[ 0.5 -0.5]]
    """
    (features, targets, mask), dtype = in_one_precision(features, targets, mask)
    real = (mask > 0).astype(mask.dtype)[:, None]
    x, y = features * real, targets * real
    present = y.sum(0) > 0
    costs = jnp.where(mask > 0, cost * mask, cost).astype(mask.dtype)  # padding has no features: any cost
    gram = exact_product(x, x.T)
    # The mean eigenvalue of the centred Gram matrix: uncentred, a large mean feature would be one huge eigenvalue,
    # beside which the others would hardly move. Bounded below, so that single precision can invert the matrix.
    number, trace = jnp.maximum(real.sum(), 1), jnp.trace(gram)
    apart = jnp.maximum(trace - gram.sum() / number, LEAST_APART * trace)
    # For tiny features it would underflow to zero, and it is a divisor.
    penalty = jnp.maximum(jnp.where(trace > 0, apart, 1) / number, jnp.finfo(gram.dtype).eps ** 2)
    solution = inverses(gram / penalty + jnp.eye(len(gram), dtype=gram.dtype))
    linear = (y - real * present[None] / jnp.maximum(present.sum(), 1)) / penalty  # feasible rows sum to zero

    def step(carry, _):
        feasible, multipliers = carry
        free = exact_product(solution, linear + feasible - multipliers)
        free = RELAXATION * free + (1 - RELAXATION) * feasible
        feasible = _nearest_feasible(free + multipliers, y, present, costs)
        return (feasible, multipliers + free - feasible), None

    zeros = vary_over(jnp.zeros_like(y), varying((x, y, mask)))
    (feasible, _), _ = lax.scan(step, (zeros, zeros), length=steps)
    return exact_product(x.T, feasible).astype(dtype)


def _nearest_feasible(values, y, present, costs):
    """The nearest rows that are at most their bounds, and below them by their cost in sum; 0 at absent classes."""
    bounds = costs[:, None] * y
    lacking = jnp.where(present[None], bounds - values, -costs[:, None])
    # Optax returns double precision if JAX uses it.
    return bounds - jax.vmap(projection_simplex)(lacking, costs).astype(y.dtype)
