"""Compiled adaptation and prediction, for callers outside of a compiled function."""

import functools
from collections.abc import Callable

import jax

from jmeta.checks import as_array, as_examples


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

    @functools.wraps(adapt)
    def checked(params, state, support, *, key=None):
        return compiled(params, state, as_examples("support", support), key=key)

    return checked


def compiled_predict(predict: Callable) -> Callable:
    """A `Learner.predict` that is compiled once for all query sets of a shape.

    Args:
        predict: `(params, state, adapted, inputs, *, mask=None) -> outputs`.

    Returns:
        The same function, which also takes inputs and a mask of NumPy arrays or lists.
    """
    compiled = jax.jit(predict)

    @functools.wraps(predict)
    def prepared(params, state, adapted, inputs, *, mask=None):
        mask = None if mask is None else as_array(mask)
        return compiled(params, state, adapted, as_array(inputs), mask=mask)

    return prepared
