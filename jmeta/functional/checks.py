"""What factories ask of the numbers they are given."""

import math


def check_positive(**numbers: float) -> None:
    """Raises a `ValueError` for a number, by its name, that is not above 0."""
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be above 0.")


def check_counts(*, least: int = 0, **counts: int) -> None:
    """Raises a `ValueError` for a number, by its name, that is not whole or below the least."""
    for name, value in counts.items():
        if not math.isfinite(value) or value != int(value) or value < least:
            raise ValueError(f"{name} is {value}; it must be a whole number, {least} or more.")
