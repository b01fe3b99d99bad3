"""The default number of tasks vmapped at a time rests on what was measured."""

import json

import jax.numpy as jnp

from benchmarks.record import RESULTS
from jmeta.batching import chunk_of


def test_the_default_chunk_is_within_a_tenth_of_the_best_that_was_measured():
    result = json.loads((RESULTS / "chunks-cpu.json").read_text())
    for row in result["rows"]:
        chunk = chunk_of(result["tasks"], None, lambda size=row["largest_array_bytes"]: jnp.zeros(size, jnp.int8))
        rates = row["tasks_per_second"]
        assert rates[str(chunk)] >= 0.9 * max(rates.values()), row["workload"]
