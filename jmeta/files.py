"""Files and JSON: written whole or not at all, by one run at a time, and readable by any program."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def to_json(value: Any, **options: Any) -> str:
    """Standard JSON, with null for numbers that are not finite. Options go to `json.dumps`."""
    return json.dumps(_with_null(value), **options)


def _with_null(value):
    match value:
        case dict():
            return {name: _with_null(part) for name, part in value.items()}
        case list() | tuple():
            return [_with_null(part) for part in value]
        case float() if not math.isfinite(value):
            return None
    return value


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all; a link is followed."""
    path = path.resolve()
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def sole_writer(folder: str | os.PathLike) -> Iterator[None]:
    """Locks a run's folder, created if missing, while the block runs; a process that ends releases it.

    Raises:
        ValueError: if another process, or another thread of this one, holds it; or if it is a file.
    """
    from filelock import FileLock, Timeout  # only runs that are saved need it

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a run needs a folder, which is created if missing.")
    folder.mkdir(parents=True, exist_ok=True)
    # One lock for each folder, which nested blocks share.
    lock = FileLock(folder.absolute() / ".lock", is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another run trains in {folder}; wait for it to end, or choose another folder.") from None
    try:
        yield
    finally:
        lock.release()
