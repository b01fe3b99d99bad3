"""The implicit meta-gradient: that of a minimum, whatever way led there."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.sparse.linalg import cg

from jmeta.functional.hoisting import hoist, separate
from jmeta.types import Array, at_least_single, PyTree


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

        solution = _solve(lambda v: hessian_products(v)[0], cotangent, stiffness, steps=cg_steps)
        rest = jax.tree.map(jnp.negative, hessian_products(solution)[1])
        return jax.tree.map(lambda leaf: stiffness * leaf, solution), rest, None

    minimum.defvjp(forward, backward)
    return minimum(params, smooth, others)


def _solve(product, vector, stiffness, *, steps):
    """(H + stiffness)^-1 times a vector, by conjugate gradient and products with H.

    In one precision, at least single, and scaled to a largest number of one, for squares of small numbers are zero.
    """
    leaves = jax.tree.leaves(vector)
    dtype = at_least_single(jnp.result_type(*leaves))
    largest = jnp.stack([jnp.abs(leaf).max(initial=0).astype(dtype) for leaf in leaves]).max()
    scale = lax.stop_gradient(jnp.where(largest > 0, largest, 1))  # whatever it is, the solution is the same

    def as_given(tree):
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), tree, vector)

    def matrix(direction):
        return jax.tree.map(lambda hv, v: hv.astype(dtype) + stiffness * v, product(as_given(direction)), direction)

    scaled = jax.tree.map(lambda leaf: leaf.astype(dtype) / scale, vector)
    guess = jax.tree.map(lambda leaf: leaf / stiffness, scaled)
    # Below rounding there is nothing left to find, and steps there would divide zero by zero.
    found, _ = cg(matrix, scaled, guess, tol=float(jnp.finfo(dtype).eps), maxiter=steps)
    return as_given(jax.tree.map(lambda leaf: scale * leaf, found))
