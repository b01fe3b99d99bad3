"""What factories ask of the numbers they are given."""


def check_positive(**numbers: float) -> None:
    """Raises a `ValueError` for a number, by its name, that is not above 0."""
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be above 0.")


def check_counts(**counts: int) -> None:
    """Raises a `ValueError` for a number of steps, by its name, that is not a whole number of 0 or more."""
    for name, value in counts.items():
        if value != int(value) or value < 0:
            raise ValueError(f"{name} is {value}; it must be a whole number, 0 or more.")
