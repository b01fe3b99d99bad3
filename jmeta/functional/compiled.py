"""Adaptation compiled, for whoever calls it outside of a compiled function."""

from collections.abc import Callable

import jax

from jmeta.checks import as_examples


def compiled_adapt(adapt: Callable) -> Callable:
    """A `Learner.adapt` that is compiled once for all support sets of a shape.

    Without it each call would compile the loops in it again.

    Args:
        adapt: `(params, state, support, *, key=None) -> adapted`.

    Returns:
        The same function, whose support set may be NumPy's arrays or lists; it raises
        a `ValueError` for what are no `Examples`.
    """
    compiled = jax.jit(adapt)

    def checked(params, state, support, *, key=None):
        return compiled(params, state, as_examples("support", support), key=key)

    return checked
