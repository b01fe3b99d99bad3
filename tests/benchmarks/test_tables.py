"""What the tables make of several rounds, and of results that are not all numbers; and that the documents have them."""

import json

import pytest

from benchmarks import tables
from benchmarks.tables import (
    compared,
    DOCUMENTS,
    in_rounds,
    met_in,
    over_seeds,
    over_the_best,
    peer_table,
    second_order_targets,
    with_tables,
)


@pytest.mark.parametrize(
    ("errors", "cell"),
    [
        ([0.1, 0.3, 0.2], "0.200 (worst 0.300)"),
        ([0.1, None, 0.3], "0.300 (worst 0.300, 1 diverged)"),
        ([0.1, None, None], "diverged from 2 of 3"),
    ],
)
def test_a_diverged_seed_is_worse_than_any_other(errors, cell):
    assert over_seeds(errors) == cell


def test_the_best_peer_is_that_of_each_round():
    ratios = {"one": [3.0, 1.0], "other": [2.0, 4.0], "of another kind": [0.5, 0.5]}
    rows = [{"peer": peer, "of_rounds": {"jmeta_over_it": values}} for peer, values in ratios.items()]
    assert over_the_best({"rows": rows}, ("one", "other")) == [2.0, 1.0]
    assert over_the_best({"rows": rows}, ("none of them",)) == []


def test_a_target_without_a_peer_is_not_measured_and_one_that_lost_a_peer_says_so():
    result = {"rows": [{"peer": "one", "of_rounds": {"jmeta_over_it": [3.0]}}], "failed": {"other": "MemoryError"}}
    assert compared(result, ("one", "other"), 2.0) == ("3.00 x, `other` having failed", "yes")
    assert compared(result, ("one", "another"), 2.0) == ("3.00 x, `another` not measured", "not known")
    assert compared(result, ("one", "another"), 4.0) == ("3.00 x, `another` not measured", "no")
    assert compared(result, ("other",), 2.0) == compared(None, ("one",), 2.0) == ("not measured", "")


def test_rounds_are_told_by_their_median_and_range():
    assert in_rounds([2.0, 3.0, 2.5], "{:.1f}") == "2.5 (2.0 to 3.0)"
    assert in_rounds([2.0], "{:.1f}") == "2.0"


@pytest.mark.parametrize(("met", "cell"), [([True, True], "yes"), ([True, False], "in 1 of 2"), ([False], "no")])
def test_a_target_is_met_if_it_is_in_every_round(met, cell):
    assert met_in(met) == cell


@pytest.mark.parametrize(("steps", "met"), [(1, ["yes", "yes"]), (5, ["yes", "no", "yes"])])
def test_second_order_is_to_cost_its_arithmetic_and_at_five_steps_no_more_than_that_of_the_aim(steps, met):
    row = {"inner_steps": steps, "milliseconds_ratio": 1.5, "flops_ratio": 1.5, "temporary_bytes_ratio": 1.1}
    assert [cells[-1] for cells in second_order_targets(row)] == met


PEER = {
    "peer": "one",
    "tasks_per_second": 20.0,
    "quartiles": [19.0, 21.0],
    "of_rounds": {"jmeta_over_it": [2.0, 3.0, 2.5]},
    "of_product_rate": 0.5,
    "first_step_seconds": 7.0,
    "first_step_seconds_from_cache": 2.0,
    "peak_memory_mebibytes": 1000.0,
}


def test_a_table_has_a_row_for_each_peer():
    table = peer_table([{"workload": "some", "rows": [PEER]}])
    cells = "| some | `one` | 20 | 19 to 21 | 2.50 (2.00 to 3.00) | 50.0% | 7.0 s | 2.0 s | 1,000 MiB |"
    assert table.splitlines()[-1] == cells


ORDER = {
    "model": "conv4-64",
    "tasks": 8,
    "inner_steps": 5,
    "mode": "mixed",
    "chunk": "default",
    "compile_seconds": 3.0,
    "quartiles_milliseconds": [80.0, 160.0],
    "tasks_per_second": 80.0,
    "milliseconds_ratio": 1.5,
    "flops_ratio": 1.4,
    "temporary_bytes_ratio": 1.1,
}
CHUNKS = {"workload": "some", "largest_array_bytes": 2**20, "tasks_per_second": {"1": 10.0, "16": 400.0}}
STEP = {"form": "jmeta", "xla": "default", "dtype": "bfloat16", "tasks": 128}
RATES = {"tasks_per_second": 5000.0, "teraflops": 12.3, "of_product_rate": 0.25, "temporary_mebibytes": 900.0}
# Of each table: the file, less its platform, of which it is made; the rows there; and the last row that they make.
MADE_OF = {
    "peers": ("peers/{}-omniglot.json", [PEER], "| omniglot | `one` | 20 |"),
    "peers_in_short": (
        "peers/{}-omniglot.json",
        [PEER, PEER | {"peer": "func_vmap"}],
        "| omniglot | 190 | 20 |  |  | 2.50 (2.00 to 3.00) |",
    ),
    "order": ("order/{}-conv4-64.json", [ORDER], "| conv4-64 | 5 | default | mixed | 80 | 50 to 100 |"),
    "order_in_short": ("order/{}-conv4-64.json", [ORDER], "| 5 | 1.50 x | 1.10 x |"),
    "chunks": ("chunks-{}.json", [CHUNKS], "| some | 1.00 MiB | 10 | 400 |"),
    "accelerator": (
        "accelerator/{}-omniglot-jmeta-default.json",
        [STEP | {"tasks_per_second": 0.0, "failed": "no memory"}, STEP | RATES | {"compile_seconds": 7.0}],
        "| omniglot | jmeta | default | bfloat16 | 128 | 5,000 | 12.3 | 25.0% | 900 MiB | 7.0 s |",
    ),
}


@pytest.fixture
def results_of(tmp_path, monkeypatch):
    """`(path, platform, rows)` writes a result that was measured there."""
    monkeypatch.setattr(tables, "ROOT", tmp_path)

    def write(path, platform, rows):
        path = tmp_path / "benchmarks" / "results" / path.format(platform)
        path.parent.mkdir(parents=True, exist_ok=True)
        machine = {"platform": platform, "device": f"a {platform}", "cores": 2}
        result = {"workload": "omniglot", "machine": machine, "product_gigaflops": 190.4, "rows": rows}
        path.write_text(json.dumps(result))

    return write


@pytest.mark.parametrize("name", MADE_OF)
def test_a_table_of_another_platform_is_below_that_of_the_cpu_with_its_device(name, results_of):
    path, rows, last = MADE_OF[name]
    make = tables.TABLES[name]
    assert make() == "There are no results yet."
    results_of(path, "cpu", rows)
    of_cpu = make()
    assert any(line.startswith(last) for line in of_cpu.splitlines())
    results_of(path, "gpu", rows)
    results_of(path, "tpu", rows)
    assert make() == f"{of_cpu}\n\nOn a gpu:\n\n{of_cpu}\n\nOn a tpu:\n\n{of_cpu}"


def test_a_step_without_memory_has_a_row_that_says_so(results_of):
    path, rows, _ = MADE_OF["accelerator"]
    results_of(path, "gpu", rows)
    assert "| omniglot | jmeta | default | bfloat16 | 128 | failed: no memory |  |  |  |  |" in tables.accelerator()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_tables_are_those_of_the_committed_results(document):
    assert with_tables(document.read_text()) == document.read_text()
