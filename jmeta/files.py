"""Files and their JSON: written whole or not at all, and readable by any program."""

import json
import math
from pathlib import Path
from typing import Any


def to_json(value: Any, **options: Any) -> str:
    """JSON as its standard has it: null for numbers that are not finite. Options go to `json.dumps`."""
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
    """Writes a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
