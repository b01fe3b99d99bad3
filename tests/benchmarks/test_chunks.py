"""The default number of tasks vmapped at a time rests on what was measured; and that it is measured."""

import json

import jax.numpy as jnp

from benchmarks import chunks
from benchmarks.record import RESULTS
from jmeta.batching import chunk_of


def test_the_default_chunk_is_within_a_tenth_of_the_best_that_was_measured():
    result = json.loads((RESULTS / "chunks-cpu.json").read_text())
    for row in result["rows"]:
        chunk = chunk_of(result["tasks"], None, lambda size=row["largest_array_bytes"]: jnp.zeros(size, jnp.int8))
        rates = row["tasks_per_second"]
        assert rates[str(chunk)] >= 0.9 * max(rates.values()), row["workload"]


def test_a_measurement_has_the_rate_of_every_chunk(tmp_path, monkeypatch):
    name = "MLP 40-40, sinusoid"
    monkeypatch.setattr(chunks, "WORKLOADS", {name: chunks.WORKLOADS[name]})
    monkeypatch.setattr(chunks, "LEAST_SECONDS", 0.001)
    monkeypatch.setattr(chunks, "REPEATS", 1)
    chunks.main(out=tmp_path)
    (row,) = json.loads((tmp_path / "chunks-cpu.json").read_text())["rows"]
    assert row["workload"] == name
    assert row["largest_array_bytes"] > 0
    assert list(row["tasks_per_second"]) == ["1", "2", "4", "8", "16"]
    assert min(row["tasks_per_second"].values()) > 0
