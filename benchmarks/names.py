"""Names that a benchmark is told on its command line."""

from collections.abc import Iterable


def check_names(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises a `ValueError` for a name that is not known."""
    for name in names:
        if name not in known:
            raise ValueError(f"{kind} has {name!r}; there are {', '.join(known)}.")
