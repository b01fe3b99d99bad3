"""Signals that ask a run to end, noted for the run to end when it is ready."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """The signals SIGINT and SIGTERM that have come while the block runs; a second one of a kind acts as usual."""
    stopping: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A handler that was not installed from Python is None; a signal that is ignored, as for a job in the background,
    # is to stay so.
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}

    def stop(number, _):
        stopping.append(signal.Signals(number))
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
