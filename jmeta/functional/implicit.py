"""The implicit meta-gradient: that of a minimum, whatever way led there."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from jmeta.functional.hoisting import hoist, separate
from jmeta.types import Array, PyTree


def proximal_objective(objective: Callable, start: PyTree, weight: Array | float) -> Callable:
    """The objective plus `weight / 2 |params - start|^2`, which keeps the minimum near the start."""

    def regularised(params, data):
        squares = jax.tree.map(lambda one, other: jnp.square(one - other).sum(), params, start)
        return objective(params, data) + weight / 2 * sum(jax.tree.leaves(squares))

    return regularised


def implicit_minimum(
    objective: Callable,
    params: PyTree,
    *,
    minimise: Callable,
    data: PyTree,
    proximal: float,
    cg_steps: int,
    damping: float = 0.0,
) -> PyTree:
    """What `minimise` finds, differentiated as the exact minimum of the proximal objective.

    At the minimum f of L(f) + lambda / 2 |f - start|^2 the gradient is zero, so
    that a cotangent v of f is (H + lambda)^-1 v lambda for the start, with H the
    Hessian of L; and - d<grad L, u> for all else L depends on, with
    u = (H + lambda)^-1 v. Conjugate gradient finds u by Hessian-vector products,
    from v / lambda, which is the answer where H is zero. Memory does not depend
    on how the minimum was found. It can be differentiated in reverse mode, any
    number of times; forward mode is an error.

    Where L is not convex, H + lambda may be far from positive, and u of any size:
    damping stands beside lambda in all of this, though not in what is minimised.

    Rajeswaran et al., 2019, "Meta-Learning with Implicit Gradients".

    Args:
        objective: L, `(params, data) -> scalar`; it may close over anything.
        params: the start.
        minimise: `(objective, start, data) -> params`.
        data: any tree, handed to `minimise` and by it to L; the minimum is taken
            to be that of L on the last slice of its leading axis, or on None.
        proximal: lambda, above 0.
        cg_steps: most steps of conjugate gradient.
        damping: 0 for the derivative of the minimum.

    Returns:
        The parameters that `minimise` found.
    """
    stiffness = proximal + damping
    last = jax.tree.map(lambda leaf: leaf[-1], data)
    explicit, free = hoist(objective, params, last)
    smooth, others, join = separate((free, data))

    @jax.custom_vjp
    def minimum(start, smooth, others):
        free, data = join(smooth, others)
        return minimise(lambda params, data: explicit(free, params, data), start, data)

    def forward(start, smooth, others):
        found = minimum(start, smooth, others)
        return found, (found, smooth, others)

    def backward(where, cotangent):
        found, smooth, others = where

        def value(params, smooth):
            free, data = join(smooth, others)
            return explicit(free, params, jax.tree.map(lambda leaf: leaf[-1], data))

        def hessian_products(direction):
            """Of the Hessian, and of the mixed second derivatives with all else."""
            slopes = jax.grad(value, argnums=(0, 1))
            return jax.jvp(lambda params: slopes(params, smooth), (found,), (direction,))[1]

        def matrix(direction):
            return jax.tree.map(lambda hv, v: hv + stiffness * v, hessian_products(direction)[0], direction)

        guess = jax.tree.map(lambda leaf: leaf / stiffness, cotangent)
        # Below rounding there is nothing left to find, and its steps would divide zero by zero.
        rounding = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(cotangent))).eps)
        solution, _ = cg(matrix, cotangent, guess, tol=rounding, maxiter=cg_steps)
        rest = jax.tree.map(jnp.negative, hessian_products(solution)[1])
        return jax.tree.map(lambda leaf: stiffness * leaf, solution), rest, None

    minimum.defvjp(forward, backward)
    return minimum(params, smooth, others)
