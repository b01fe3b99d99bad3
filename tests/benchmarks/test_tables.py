"""What the tables make of several rounds, and of results that are not all numbers; and that the documents have them."""

import pytest

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


def test_a_table_has_a_row_for_each_peer():
    row = {
        "peer": "one",
        "tasks_per_second": 20.0,
        "quartiles": [19.0, 21.0],
        "of_rounds": {"jmeta_over_it": [2.0, 3.0, 2.5]},
        "of_product_rate": 0.5,
        "first_step_seconds": 7.0,
        "first_step_seconds_from_cache": 2.0,
        "peak_memory_mebibytes": 1000.0,
    }
    table = peer_table([{"workload": "some", "rows": [row]}])
    cells = "| some | `one` | 20 | 19 to 21 | 2.50 (2.00 to 3.00) | 50.0% | 7.0 s | 2.0 s | 1,000 MiB |"
    assert table.splitlines()[-1] == cells


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_tables_are_those_of_the_committed_results(document):
    assert with_tables(document.read_text()) == document.read_text()
