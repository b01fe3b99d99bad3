"""That every entry of a suite is a learner, results are of the entries, and a suite runs."""

import json
import math

import numpy as np
import pytest

import jmeta
from benchmarks import learners
from jmeta import cli


def test_bench_learners_spends_its_budget_and_writes_the_test(tmp_path):
    assert (
        cli.main(["bench", "learners", "sinusoid", "--only", "fomaml", "--seconds", "5", "--out", str(tmp_path)]) == 0
    )
    result = json.loads((tmp_path / "sinusoid-fomaml.json").read_text())
    assert result["processor_seconds"] >= 5
    assert result["steps"] > 0
    assert np.isfinite(result["tests"][0]["loss"])


def test_the_budget_that_runs_out_first_ends_a_training():
    both = learners.Budget(seconds=10, steps=100)
    assert (both.spent(5, 20), both.spent(1, 90)) == (0.5, 0.9)
    assert learners.Budget(steps=100).spent(1e9, 50) == 0.5


@pytest.mark.parametrize("suite", learners.SUITES.values(), ids=learners.SUITES)
def test_every_entry_of_a_suite_is_a_learner(suite):
    for name in suite.entries:
        assert isinstance(learners.build(name, suite), jmeta.Learner)
        json.dumps(learners.in_words(suite.entries[name].options))


def test_at_full_length_every_learner_trains_for_meta_steps():
    assert all(entry.budget.seconds == math.inf for entry in learners.SUITES["omniglot-encoders-full"].entries.values())


def test_results_are_of_the_entries_as_they_are():
    paths = sorted((learners.RESULTS / "learners").glob("*.json"))
    assert paths
    for path in paths:
        result = json.loads(path.read_text())
        suite = learners.SUITES[result["tasks"]]
        entry = suite.entries[result["learner"]]
        options = {name: value for name, value in learners.in_words(entry.options).items() if name != "loss_fn"}
        expected = json.loads(json.dumps({"options": options, "model": dict(entry.model)}))
        result["options"].pop("loss_fn", None)
        assert {name: result[name] for name in expected} == expected, path.name
        tasks = {**suite.tasks, **entry.tasks}
        assert result.get("training_tasks", tasks) == tasks, path.name
        assert result["outer_rate"] == entry.rate, path.name
        tests = tuple((test["ways"] or 1, test["shots"], test["queries"]) for test in result["tests"])
        assert tests == (entry.tests or suite.tests), path.name
        assert result["budget"] == (entry.budget or suite.budget).limits(), path.name


def test_an_unknown_learner_is_one_line(capsys):
    assert cli.main(["bench", "learners", "sinusoid", "--only", "sgd"]) == 2
    assert "only has 'sgd'; there are maml" in capsys.readouterr().err
