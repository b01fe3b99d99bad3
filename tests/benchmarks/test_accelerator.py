"""That forms of convolution compute the same, and that a measurement of them says what it is."""

import json
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from benchmarks import accelerator, peers, peers_jmeta
from benchmarks.tables import accelerator_table
from benchmarks.workloads import OMNIGLOT, SINUSOID, tasks_of, WORKLOADS

# Images of enough pixels that jmeta, too, convolves them by `lax`.
SMALL = OMNIGLOT._replace(tasks=2, queries=1, inner_steps=1, width=9, image=(16, 16, 1))


def meta_gradient(form):
    """In float64, with convolutions in this form."""
    accelerator.convolve_as(accelerator.FORMS[form])
    tasks = tasks_of(SMALL)
    weights = peers_jmeta.initial_weights(SMALL, tasks)
    with jax.enable_x64(True):
        return peers.on_host(peers_jmeta.meta_gradient("jmeta", SMALL, weights, tasks, np.float64)())


def has_convolutions(form):
    """Whether a meta-step in this form is made of any."""
    accelerator.convolve_as(accelerator.FORMS[form])
    step, state, batch = accelerator.step_of(SMALL, "float32")
    return "stablehlo.convolution" in step.lower(state, batch).as_text()


def elsewhere(function, *arguments):
    """In a process of its own: the form of a convolution is that of all of a process."""
    with peers.process_of_its_own() as process:
        return process.submit(function, *arguments).result()


@pytest.mark.long
def test_every_form_of_convolution_has_the_same_meta_gradient():
    found = {form: elsewhere(meta_gradient, form) for form in accelerator.FORMS}
    for gradient in found.values():
        assert peers.distance(gradient, found["jmeta"]) < 1e-10


def test_a_form_of_convolution_is_what_it_says():
    assert elsewhere(has_convolutions, "jmeta")
    assert not elsewhere(has_convolutions, "columns")


@pytest.mark.long
def test_a_measurement_has_a_row_for_each_form_precision_and_number_of_tasks(tmp_path, monkeypatch):
    monkeypatch.setitem(WORKLOADS, "omniglot", SMALL)
    accelerator.main(workloads=("omniglot",), forms=("columns",), sizes=(1,), out=tmp_path)
    result = json.loads((tmp_path / "cpu-omniglot-columns-default.json").read_text())
    found = [(row["form"], row["dtype"], row["tasks"]) for row in result["rows"]]
    assert found == [("columns", "float32", 1), ("columns", "bfloat16", 1)]
    assert all(row["tasks_per_second"] > 0 and 0 < row["of_product_rate"] < 1 for row in result["rows"])


def test_a_measurement_writes_what_its_table_reads(tmp_path, monkeypatch, in_this_process):
    monkeypatch.setitem(WORKLOADS, "sinusoid", SINUSOID._replace(inner_steps=1))
    accelerator.main(workloads=("sinusoid",), dtypes=("float32",), sizes=(2,), out=tmp_path)
    result = json.loads((tmp_path / "cpu-sinusoid-jmeta-default.json").read_text())
    assert accelerator_table([result]).splitlines()[-1].startswith("| sinusoid | jmeta | default | float32 | 2 | ")


FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand where")


@pytest.mark.parametrize(
    ("rates", "tried"),
    [
        ([10.0, 20.0, 30.0], [8, 32, 128]),
        ([10.0, 10.1, 30.0], [8, 32]),
        ([10.0, FULL, 30.0], [8, 32]),
        ([FULL] * 3, [8]),
    ],
    ids=["gains", "no gain", "no memory", "no memory at all"],
)
def test_tasks_are_added_while_a_step_gains_by_them_and_has_memory(monkeypatch, rates, tried):
    step = Mock(side_effect=[{"tasks_per_second": rate} if isinstance(rate, float) else rate for rate in rates])
    monkeypatch.setattr(accelerator, "measure_step", step)
    rows = accelerator.measure(SINUSOID, "jmeta", "default", ("float32",), (8, 32, 128))
    assert [row["tasks"] for row in rows] == tried
    failed = {row["tasks"]: row["failed"] for row in rows if "failed" in row}
    assert failed == ({tried[-1]: "RESOURCE_EXHAUSTED: Out of memory"} if FULL in rates else {})


def test_unknown_names_and_empty_batches_are_refused():
    with pytest.raises(ValueError, match="sizes is 0; it must be a whole number, at least 1"):
        accelerator.main(sizes=(8, 0))
    with pytest.raises(ValueError, match="forms has 'winograd'; there are jmeta, columns"):
        accelerator.main(forms=("winograd",))
    with pytest.raises(ValueError, match="dtypes has 'int8'; there are float32, bfloat16"):
        accelerator.main(dtypes=("int8",))
