"""What tests of benchmarks share."""

from concurrent.futures import Executor, Future

import jax
import pytest

from benchmarks import peers


class ThisProcess(Executor):
    """In place of a process of its own, which would take seconds to import what is imported here."""

    def __init__(self):
        self.begun = []

    def submit(self, function, *arguments):
        peers._begun = self.begun
        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def in_this_process(monkeypatch):
    """Has benchmarks do here, and briefly, what they send to other processes; JAX keeps its settings."""
    monkeypatch.setattr(peers, "process_of_its_own", ThisProcess)
    monkeypatch.setattr(peers, "_begun", [])
    monkeypatch.setattr(peers, "ON_CPU", peers.Measures(0.001, 8))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    peers.checked.cache_clear()
    yield
    peers.checked.cache_clear()
