"""What is drawn is what was given, and what cannot be drawn is refused by name."""

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from jmeta import data, plotting
from jmeta.evaluation import Report

REPORT = Report(0.5, 0.01, 1.0, 0.02, 600, 5, 1, 15, (), False, 0, {})
REGRESSION = Report(None, None, 1.0, 0.02, 600, None, 10, 10, (), False, 0, {})
LINES = [{"step": 10, "accuracy": 0.5, "accuracy_ci95": 0.1}, {"step": 20, "loss": 1.0}, {"step": 30, "accuracy": 0.7}]


@pytest.fixture
def axes():
    return Figure().add_subplot()


def test_predictions_are_drawn_in_order_of_their_inputs(axes):
    x = np.array([[2.0], [1.0], [3.0]])
    plotting.adaptation_curves(data.sinusoid()(jax.random.key(0)), x, {"before": 10 * x}, axes=axes)
    assert axes.get_lines()[0].get_xydata().tolist() == [[1, 10], [2, 20], [3, 30]]


def test_padding_of_a_task_is_not_drawn(axes):
    task = data.sinusoid(shots=3)(jax.random.key(0))
    task = task._replace(support=task.support._replace(mask=np.array([1, 0, 1])))
    plotting.adaptation_curves(task, np.zeros((1, 1)), {}, axes=axes)
    assert len(axes.get_lines()[0].get_xdata()) == 2


def test_a_learning_curve_passes_over_lines_without_the_metric_and_shades_the_interval(axes):
    plotting.learning_curves({"maml": LINES}, metric="accuracy", axes=axes)
    assert axes.get_lines()[0].get_xydata().tolist() == [[10, 0.5], [30, 0.7]]
    shaded = axes.collections[0].get_paths()[0].vertices
    assert {(10, 0.4), (10, 0.6), (30, 0.7)} <= {(x, round(y, 6)) for x, y in shaded}


def test_a_learner_may_lack_a_shape_that_another_has(axes):
    plotting.accuracies({"maml": [REPORT], "protonet": [REPORT, five_shots()]}, axes=axes)
    assert [len(bars) for bars in axes.containers if hasattr(bars, "patches")] == [1, 2]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5-way 1-shot", "5-way 5-shot"]


def five_shots():
    return Report(0.8, 0.01, 0.5, 0.02, 600, 5, 5, 15, (), False, 0, {})


def test_each_value_of_a_column_has_its_curve(axes):
    rows = [{"mode": mode, "steps": steps, "time": steps} for steps in (1, 5) for mode in ("first", "second")]
    plotting.costs(rows, x="steps", y="time", by="mode", axes=axes, linestyle="--")
    assert [curve.get_label() for curve in axes.get_lines()] == ["first", "second"]
    assert {curve.get_linestyle() for curve in axes.get_lines()} == {"--"}


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda axes: plotting.adaptation_curves(None, np.zeros((4, 1)), {"after": np.zeros(4)}, axes=axes),
            r"after has shape \(4,\); it must be \[Q, 1\], here \(4, 1\)",
        ),
        (lambda axes: plotting.learning_curves({"maml": LINES}, metric="f1", axes=axes), "metric is 'f1'; no line of"),
        (
            lambda axes: plotting.accuracies({"maml": [REGRESSION]}, axes=axes),
            "a report has None ways, 10 shots",
        ),
        (
            lambda axes: plotting.adaptation_curves(
                jax.vmap(data.sinusoid())(jax.random.split(jax.random.key(0), 1)), np.zeros((4, 1)), {}, axes=axes
            ),
            r"task.support has inputs of shape \(1, 10, 1\) and targets of \(1, 10, 1\); for a task with",
        ),
        (
            lambda axes: plotting.accuracies({"maml": [REPORT, REPORT]}, axes=axes),
            "reports of 'maml' has two for the same ways and shots",
        ),
        (lambda axes: plotting.costs([{"a": 1}], x="a", y="b", by="a", axes=axes), "'b' is not a column of every row"),
    ],
    ids=["shape", "metric", "regression", "tasks", "two reports", "column"],
)
def test_what_cannot_be_drawn_is_refused(draw, message, axes):
    with pytest.raises(ValueError, match=message):
        draw(axes)


@pytest.mark.parametrize("reports", [{}, {"maml": []}])
def test_no_reports_are_refused(axes, reports):
    with pytest.raises(ValueError, match=r"reports is \{.*\}; it must hold at least one report"):
        plotting.accuracies(reports, axes=axes)
