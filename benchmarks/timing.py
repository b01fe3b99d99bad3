"""Times that compare: subjects take turns, so that the machine's drift falls on all alike."""

import functools
import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

WARM_UP = 2  # calls of each subject; the first may compile


def in_turns(
    calls: Mapping[str, Callable[[], Any]], *, repeats: int, least_seconds: float, title: str = ""
) -> dict[str, list[float]]:
    """Seconds of each call, so many times; of a short one the mean over `least_seconds` of calls."""
    timers = {name: functools.partial(mean_seconds, call) for name, call in calls.items()}
    return timed_in_turns(timers, repeats=repeats, least_seconds=least_seconds, title=title)


def timed_in_turns(
    timers: Mapping[str, Callable[[int], float]], *, repeats: int, least_seconds: float, title: str = ""
) -> dict[str, list[float]]:
    """The same of calls that are timed elsewhere, as in a process of their own: `number of calls -> mean seconds`."""
    numbers = {
        name: max(1, int(least_seconds / min(timer(1) for _ in range(WARM_UP)))) for name, timer in timers.items()
    }
    found: dict[str, list[float]] = {name: [] for name in timers}
    for _ in tqdm(range(repeats), desc=title, leave=False):
        for name, timer in timers.items():
            found[name].append(timer(numbers[name]))
    return found


def mean_seconds(call: Callable[[], Any], number: int) -> float:
    """Seconds of a call, the mean over so many."""
    gc.collect()
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number
