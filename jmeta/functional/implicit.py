"""The implicit meta-gradient: the derivative of a minimum, however it was found."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.sparse.linalg import cg

from jmeta.functional.hoisting import hoist
from jmeta.functional.partition import join, smooth_part
from jmeta.types import Array, at_least_single, PyTree


def proximal_objective(objective: Callable, start: PyTree, weight: Array | float) -> Callable:
    """The objective plus `weight / 2 |params - start|^2`, which keeps the minimum near the start.

    Args:
        objective: `(params, data) -> scalar`.
        start: parameters.
        weight: 0 or more.

    Returns:
        `(params, data) -> scalar`.

    Example:
        >>> regularised = proximal_objective(lambda w, _: w**2, 1.0, weight=2.0)
        >>> print(regularised(3.0, None))
        13.0
    """

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
    """The result of `minimise`, differentiated as the exact minimum of the proximal objective.

    At the minimum f of L(f) + lambda / 2 |f - start|^2 the gradient is zero. A
    cotangent v of f therefore becomes (H + lambda)^-1 v lambda for the start, with H
    the Hessian of L, and - d<grad L, u> for everything else L depends on, with
    u = (H + lambda)^-1 v. Conjugate gradient finds u by Hessian-vector products,
    starting from v / lambda, which is the answer where H is zero. Memory does not
    depend on how the minimum was found. The result can be differentiated in reverse
    mode, any number of times; forward mode is an error.

    Where L is not convex, H + lambda may be far from positive definite and u
    arbitrarily large, so damping is added to lambda in all of this, but not in the
    objective that is minimised.

    Rajeswaran et al., 2019, "Meta-Learning with Implicit Gradients".

    Args:
        objective: L, `(params, data) -> scalar`; it may close over anything.
        params: the start.
        minimise: `(objective, start, data) -> params`.
        data: any tree, passed to `minimise` and by it to L; the minimum is taken to be
            that of L on the last slice of its leading axis, or on None.
        proximal: lambda, above 0.
        cg_steps: maximum number of conjugate gradient steps.
        damping: 0 for the exact derivative of the minimum.

    Returns:
        The parameters that `minimise` found.

    Example:
        >>> def minimum(start):  # of (w - 3)^2 / 2 + (w - start)^2 / 2
        ...     return implicit_minimum(
        ...         lambda w, _: (w - 3) ** 2 / 2,
        ...         start,
        ...         minimise=lambda objective, start, data: (start + 3) / 2,
        ...         data=None,
        ...         proximal=1.0,
        ...         cg_steps=1,
        ...     )
        >>> print(jax.grad(minimum)(1.0))
        0.5
    """
    stiffness = proximal + damping
    last = jax.tree.map(lambda leaf: leaf[-1], data)
    explicit, free = hoist(objective, params, last)
    smooth, others = smooth_part((free, data))

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
            """Products with the Hessian, and with the mixed second derivatives."""
            slopes = jax.grad(value, argnums=(0, 1))
            return jax.jvp(lambda params: slopes(params, smooth), (found,), (direction,))[1]

        solution = _solve(lambda v: hessian_products(v)[0], cotangent, stiffness, steps=cg_steps)
        rest = jax.tree.map(jnp.negative, hessian_products(solution)[1])
        return jax.tree.map(lambda leaf: (stiffness * leaf).astype(leaf.dtype), solution), rest, None

    minimum.defvjp(forward, backward)
    return minimum(params, smooth, others)


def _solve(product, vector, stiffness, *, steps):
    """(H + stiffness)^-1 times a vector, by conjugate gradient with products with H, in at least single precision."""
    dtype = at_least_single(jnp.result_type(*jax.tree.leaves(vector)))
    stiffness = jnp.asarray(stiffness, dtype)

    def as_given(tree):
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), tree, vector)

    @jax.jit  # traced once for all that the solvers make of it
    def matrix(direction):
        return jax.tree.map(lambda hv, v: hv.astype(dtype) + stiffness * v, product(as_given(direction)), direction)

    def solve(matrix, vector):
        # Squares of small numbers underflow, so the largest is made one.
        largest = jnp.stack([jnp.abs(leaf).max(initial=0) for leaf in jax.tree.leaves(vector)]).max()
        scale = jnp.where(largest > 0, largest, 1)
        scaled = jax.tree.map(lambda leaf: leaf / scale, vector)
        guess = jax.tree.map(lambda leaf: leaf / stiffness, scaled)
        # Below rounding there is nothing left to find, and further steps would divide zero by zero.
        found, _ = cg(matrix, scaled, guess, tol=float(jnp.finfo(dtype).eps), maxiter=steps)
        return jax.tree.map(lambda leaf: scale * leaf, found)

    # `cg` by itself would start the solves of its own derivatives, for other vectors, from the guess for this one.
    lifted = jax.tree.map(lambda leaf: leaf.astype(dtype), vector)
    return as_given(lax.custom_linear_solve(matrix, lifted, solve, symmetric=True))
