"""Classes that a task does not have."""

import jax.numpy as jnp
import numpy as np

from jmeta.types import Array


def exclude_absent(outputs: Array, present: Array | None) -> Array:
    """Gives the classes that are not present zero probability.

    Absent classes are the padding of tasks with fewer ways than their arrays are wide.

    Args:
        outputs: [Q, N] logits.
        present: [N] whether a class has a support example; None for all.

    Returns:
        [Q, N], with half the most negative number of the dtype at absent classes: its
        softmax is exactly zero, and zero times it is not NaN.

    Raises:
        ValueError: if the outputs are not as wide as there are classes.
    """
    if present is None:
        return outputs
    if outputs.shape[-1] != present.size:
        width, remedy = outputs.shape[-1], ""
        if width > present.size:
            remedy = (
                f"; or widen the task's targets, as by jax.nn.one_hot(labels, {width}): classes without an example get "
                "no probability"
            )
        raise ValueError(
            f"the model's outputs have shape {outputs.shape}, but the task has {present.size} ways: "
            f"the model's output width must be {present.size}{remedy}."
        )
    return jnp.where(present[None, :], outputs, very_negative(outputs))


def present_in(outputs: Array) -> Array:
    """Which classes [N] are present, given outputs [Q, N] of `exclude_absent` in their original dtype.

    For losses that would count the others, such as label smoothing.

    Example:
        >>> print(present_in(exclude_absent(jnp.zeros((1, 3)), jnp.array([True, False, True]))))
        [ True False  True]
    """
    return (outputs > very_negative(outputs) / 2).any(0)


def very_negative(scores: Array) -> np.floating:
    """Half the most negative number of their dtype."""
    return jnp.finfo(jnp.result_type(scores)).min / 2
