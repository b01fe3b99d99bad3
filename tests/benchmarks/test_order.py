"""What second order costs over first order, as far as it does not depend on the machine; and that it is measured."""

import functools
import json

import jax
import matplotlib.image
import pytest

from benchmarks import flops, order
from jmeta import cli, models
from jmeta.learners import anil, maml

TASK = jax.jit(order.images(28, 1))


@functools.cache
def operations(steps, factory=maml, **options):
    learner, task = factory(models.conv4(outputs=5), inner_steps=steps, **options), TASK(jax.random.key(0))
    params, state = jax.eval_shape(learner.init, jax.random.key(0), task)
    return flops.count(jax.grad(learner.loss, has_aux=True), params, state, task)


@pytest.mark.parametrize(("steps", "exact", "thrifty"), [(1, 1.12, 1.23), (5, 1.49, 1.86)])
def test_the_arithmetic_of_second_over_first_order(steps, exact, thrifty):
    first = operations(steps, meta_gradient="first_order")
    assert operations(steps, differentiation="reverse") / first == pytest.approx(exact, abs=0.005)
    assert operations(steps) / first == pytest.approx(exact, abs=0.01)  # and the first layer's again
    assert operations(steps, checkpoint=True) / first == pytest.approx(thrifty, abs=0.005)


@pytest.mark.parametrize("options", [{}, {"differentiation": "reverse"}, {"checkpoint": True}])
def test_an_inner_step_of_anil_costs_what_its_head_does(options):
    assert operations(20, anil, **options) / operations(1, anil, **options) < 1.01


def test_bench_order_writes_its_rows_a_table_and_a_figure(tmp_path, capsys):
    command = ["bench", "order", "--models", "mlp", "--steps", "1", "--repeats", "1", "--modes", "first order", "mixed"]
    assert cli.main([*command, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "cpu-mlp.json").read_text())
    first, mixed = result["rows"][:2]
    assert (first["mode"], first["flops_ratio"], mixed["mode"]) == ("first order", 1.0, "mixed")
    assert mixed["flops_ratio"] > 1
    assert mixed["milliseconds"] > 0
    assert "to first order: time" in capsys.readouterr().out
    assert (tmp_path / "cpu.md").read_text().count("| mlp | 1 |") == len(result["rows"])
    assert matplotlib.image.imread(tmp_path / "cpu.png").size


def test_an_unknown_benchmark_or_network_is_one_line(capsys):
    assert cli.main(["bench", "speed"]) == 2
    assert cli.main(["bench", "order", "--models", "vgg"]) == 2
    assert "models has 'vgg'; there are mlp" in capsys.readouterr().err
