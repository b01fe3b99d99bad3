"""That forms of convolution compute the same, and that a measurement of them says what it is."""

import json

import jax
import numpy as np
import pytest

from benchmarks import accelerator, peers, peers_jmeta

SMALL = peers.OMNIGLOT._replace(tasks=2, queries=1, inner_steps=1, width=9, image=(8, 8, 1))


def meta_gradient(form):
    """In float64, with convolutions in this form."""
    accelerator.convolve_as(accelerator.FORMS[form])
    tasks = peers.tasks_of(SMALL)
    weights = peers_jmeta.initial_weights(SMALL, tasks)
    with jax.enable_x64(True):
        gradient = peers_jmeta.meta_gradient("jmeta", SMALL, weights, tasks, np.float64)()
        return {name: np.asarray(leaf) for name, leaf in gradient.items()}


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
    assert elsewhere(has_convolutions, "grouped")
    assert not elsewhere(has_convolutions, "columns")


@pytest.mark.long
def test_a_measurement_has_a_row_for_each_form_precision_and_number_of_tasks(tmp_path, monkeypatch):
    monkeypatch.setitem(peers.WORKLOADS, "omniglot", SMALL)
    accelerator.main(workloads=("omniglot",), forms=("columns",), sizes=(1,), out=tmp_path)
    result = json.loads((tmp_path / "cpu-omniglot.json").read_text())
    found = [(row["form"], row["dtype"], row["tasks"]) for row in result["rows"]]
    assert found == [("columns", "float32", 1), ("columns", "bfloat16", 1)]
    assert all(row["tasks_per_second"] > 0 and 0 < row["of_product_rate"] < 1 for row in result["rows"])


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="forms has 'winograd'; there are jmeta, grouped, columns"):
        accelerator.main(forms=("winograd",))
    with pytest.raises(ValueError, match="dtypes has 'int8'; there are float32, bfloat16"):
        accelerator.main(dtypes=("int8",))
