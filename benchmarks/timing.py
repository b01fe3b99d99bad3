"""Times that compare: subjects take turns, so that the machine's drift falls on all alike."""

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

WARM_UP = 2  # calls of each subject; the first may compile


def in_turns(
    subjects: Mapping[str, Callable[[], Any]], *, repeats: int, least_seconds: float, title: str = ""
) -> dict[str, list[float]]:
    """Seconds of a call of each subject, so many times; a short call is the mean over `least_seconds` of calls."""
    calls = {
        name: max(1, int(least_seconds / min(_seconds(call, 1) for _ in range(WARM_UP))))
        for name, call in subjects.items()
    }
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in tqdm(range(repeats), desc=title, leave=False):
        for name, call in subjects.items():
            found[name].append(_seconds(call, calls[name]))
    return found


def _seconds(call, number):
    gc.collect()
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number
