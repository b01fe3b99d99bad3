"""Metrics on disk: JSON lines to read back, and TensorBoard events to look at."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np

from jmeta.files import to_json, write_whole

LINES = "metrics.jsonl"


class MetricsLog:
    """Appends scalars to `metrics.jsonl` and `tensorboard/` in a run's folder.

    Args:
        directory: the run's folder, created if missing.
        step: the step from which the run continues. What a run that was then killed had
            logged after it is removed, since it will be logged again. A new run, at
            step 0, moves an existing file aside, to `metrics.jsonl.1`, `.2` and so on.

    Raises:
        ValueError: if there is a `metrics.jsonl` that no run has written.
    """

    def __init__(self, directory: str | os.PathLike, *, step: int = 0) -> None:
        from tensorboardX import SummaryWriter  # only runs that log need it

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        _keep_until(directory, step)
        self._lines = (directory / LINES).open("a")
        # Of events, a kill loses those that are not yet on disk; 10 s of them here, not tensorboardX's 120. If its
        # thread dies, of a full disk for example, a queue with a bound would fill up, and training would wait for ever.
        self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1, flush_secs=10, max_queue=0)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs the values of one step."""
        values = {name: np.asarray(value).item() for name, value in values.items()}  # JSON only knows Python's numbers
        self._lines.write(_line({"step": step, **values}))
        self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes both files."""
        try:
            self._lines.close()
        finally:
            self._events.close()


def read_metrics(directory: str | os.PathLike) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl`, oldest first, with NaN for null; an incomplete last line is left out.

    Raises:
        ValueError: for a damaged line; it gives the line's number.
    """
    path = Path(directory) / LINES
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [_values(path, number, line) for number, line in enumerate(lines, start=1)]


def _values(path, number, line):
    try:
        return {name: math.nan if value is None else value for name, value in json.loads(line).items()}
    except (ValueError, AttributeError) as error:  # not JSON, or not an object
        raise ValueError(
            f"line {number} of {path} is damaged, {line[:40]!r}; remove it, or move the file aside."
        ) from error


def _line(values):
    return to_json(values) + "\n"


def _keep_until(directory, step):
    path, lines = directory / LINES, read_metrics(directory)
    if not all("step" in values for values in lines):
        raise ValueError(f"{path} has lines without a step, so no run has written it; give the run another folder.")
    if step == 0 and lines:  # from a run without a checkpoint: this one before it was killed, or another
        numbered = (path.with_name(f"{LINES}.{number}") for number in itertools.count(1))
        path.rename(next(name for name in numbered if not name.exists()))
    write_whole(path, "".join(_line(values) for values in lines if values["step"] <= step))
