"""Compiled adaptation, for callers outside of a compiled function."""

from collections.abc import Callable

import jax

from jmeta.checks import as_examples


def compiled_adapt(adapt: Callable) -> Callable:
    """A `Learner.adapt` that is compiled once for all support sets of a shape.

    Otherwise each call would compile the loops in it again.

    Args:
        adapt: `(params, state, support, *, key=None) -> adapted`.

    Returns:
        The same function, which also takes a support set of NumPy arrays or lists, and
        raises a `ValueError` if it is not `Examples`.
    """
    compiled = jax.jit(adapt)

    def checked(params, state, support, *, key=None):
        return compiled(params, state, as_examples("support", support), key=key)

    return checked
