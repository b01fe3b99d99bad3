"""Turns a function's free variables into arguments, so that a custom differentiation rule sees them all."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from jmeta.types import is_inexact, PyTree


def hoist(function: Callable, *examples: PyTree) -> tuple[Callable, list]:
    """A function of explicit arguments only, and the values it closes over.

    `jax.closure_convert` leaves integers and keys inside; if they are batched, a custom
    rule that runs after `vmap` has finished would meet leaked tracers.

    Args:
        function: any traceable function.
        examples: arguments to trace it with.

    Returns:
        `explicit(free, *arguments)`, equal to `function(*arguments)`, and `free`.

    Example:
        >>> scale = jnp.float32(3)
        >>> explicit, free = hoist(lambda x: scale * x, 1.0)
        >>> print(explicit(free, 2.0))
        6.0
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*examples)
    structure = jax.tree.structure(shape)

    def explicit(free, *arguments):
        outputs = jaxpr_as_fun(closed.replace(consts=free))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(structure, outputs)

    return explicit, [jnp.asarray(value) for value in closed.consts]  # NumPy doubles may become single precision


def separate(tree: PyTree) -> tuple[list, list, Callable]:
    """The differentiable leaves, the others, and a function `(differentiable, others) -> tree`.

    Example:
        >>> smooth, others, join = separate({"x": 1.0, "index": 2})
        >>> join([3.0], others)
        {'index': 2, 'x': 3.0}
    """
    leaves, structure = jax.tree.flatten(tree)
    is_smooth = [is_inexact(leaf) for leaf in leaves]
    smooth = [leaf for leaf, flag in zip(leaves, is_smooth, strict=True) if flag]
    others = [leaf for leaf, flag in zip(leaves, is_smooth, strict=True) if not flag]

    def join(smooth, others):
        parts = iter(smooth), iter(others)
        return jax.tree.unflatten(structure, [next(parts[0] if flag else parts[1]) for flag in is_smooth])

    return smooth, others, join
