"""Metrics on disk."""

import math

import jax.numpy as jnp
import numpy as np

from jmeta.metrics import MetricsLog, read_metrics


def test_a_value_that_is_not_finite_is_null_in_the_lines_and_nan_when_read_also_after_resuming(tmp_path):
    for step in (1, 2):
        log = MetricsLog(tmp_path, step=step - 1)
        log.write(step, {"validation_loss": math.nan})
        log.close()
    written = '{"step": 1, "validation_loss": null}\n{"step": 2, "validation_loss": null}\n'
    assert (tmp_path / "metrics.jsonl").read_text() == written
    assert all(math.isnan(line["validation_loss"]) for line in read_metrics(tmp_path))


def test_a_run_that_begins_lays_the_lines_of_others_aside(tmp_path):
    for loss in (1, 2, 3):
        log = MetricsLog(tmp_path)
        log.write(5, {"loss": loss})
        log.close()
    found = {path.name: path.read_text() for path in tmp_path.glob("metrics*")}
    names = ("metrics.jsonl.1", "metrics.jsonl.2", "metrics.jsonl")
    assert found == {name: f'{{"step": 5, "loss": {loss}}}\n' for loss, name in enumerate(names, start=1)}


def test_numbers_of_numpy_and_jax_are_written_as_pythons(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": np.float32(0.5), "tasks": jnp.int32(3)})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5, "tasks": 3}\n'
