"""A function's free variables made arguments, so that a custom rule of differentiation sees them all."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from jmeta.types import is_inexact, PyTree


def hoist(function: Callable, *examples: PyTree) -> tuple[Callable, list]:
    """A function of explicit arguments only, and the values it closed over.

    `jax.closure_convert` leaves integers and keys inside; where they are batched, a
    custom rule that runs after `vmap` has ended would meet its tracers.

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

    return explicit, [jnp.asarray(value) for value in closed.consts]  # NumPy's doubles may be single here


def separate(tree: PyTree) -> tuple[list, list, Callable]:
    """The leaves one can differentiate in, the others, and `(those, others) -> tree`.

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
