"""What is asked of the numbers and examples that a user gives."""

from typing import Any

import numpy as np

from jmeta.types import Examples


def check_positive(**numbers: float) -> None:
    """Raises a `ValueError` for a number, by its name, that is not above 0."""
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be above 0.")


def check_counts(*, least: int = 0, **counts: Any) -> None:
    """Raises a `ValueError` for a number, by its name, that is not whole or below the least."""
    for name, value in counts.items():
        if not is_count(value, least):
            raise ValueError(f"{name} is {value}; it must be a whole number, at least {least}.")


def is_count(value: Any, least: int = 0) -> bool:
    """Whether it is an integer, of Python or NumPy, and not below the least."""
    return isinstance(value, int | np.integer) and bool(value >= least)


def check_targets(name: str, examples: Examples) -> None:
    """Raises a `ValueError` for targets without an axis of classes or dimensions, as labels are."""
    if examples.targets.ndim < 2:
        raise ValueError(
            f"{name}.targets have shape {examples.targets.shape}; they must be [K, N] one-hot, as "
            "jax.nn.one_hot(labels, ways) makes them, or [K, D] for regression."
        )
