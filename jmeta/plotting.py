"""Plots of tasks, runs, reports and costs, on matplotlib axes.

Needs the extra `plot`. Each function draws on the axes it is given, or the current
ones, and returns them, so that titles and scales are left to the caller.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jmeta.evaluation import Report
from jmeta.types import Array, Task

try:
    from matplotlib import pyplot
    from matplotlib.axes import Axes
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "jmeta.plotting draws with matplotlib, which is missing; install jmeta with its extra plot: in a clone, "
        "pip install '.[plot]'."
    ) from error


def adaptation_curves(task: Task, inputs: Array, outputs: Mapping[str, Array], *, axes: Axes | None = None) -> Axes:
    """A regression task with one input, and predictions for it, such as before and after adaptation.

    Args:
        task: inputs and targets [K, 1]; its support set is drawn as points, its query
            set as crosses.
        inputs: [Q, 1], where predictions were made, in any order.
        outputs: predictions [Q, 1] by label.
        axes: to draw on.

    Returns:
        The axes.

    Raises:
        ValueError: for inputs or outputs that are not [Q, 1], or a task whose own are not [K, 1].

    Example:
        >>> import jax
        >>> from jmeta import data
        >>> x = np.linspace(-5, 5)[:, None]
        >>> task, axes = data.sinusoid()(jax.random.key(0)), pyplot.figure().gca()
        >>> axes = adaptation_curves(task, x, {"before": 0 * x}, axes=axes)
        >>> [text.get_text() for text in axes.get_legend().get_texts()]
        ['before', 'support', 'query']
    """
    axes = axes or pyplot.gca()
    for label, values in {"inputs": inputs, **outputs}.items():
        if np.shape(values) != (len(inputs), 1):
            raise ValueError(f"{label} has shape {np.shape(values)}; it must be [Q, 1], here ({len(inputs)}, 1).")
    for name, part in (("support", task.support), ("query", task.query)):
        if any(np.shape(values) != (*np.shape(part.mask), 1) for values in part[:2]) or np.ndim(part.mask) != 1:
            raise ValueError(
                f"task.{name} has inputs of shape {np.shape(part.inputs)} and targets of "
                f"{np.shape(part.targets)}; for a task with a curve they must be [K, 1]."
            )
    order = np.argsort(np.asarray(inputs)[:, 0])
    for label, values in outputs.items():
        axes.plot(np.asarray(inputs)[order, 0], np.asarray(values)[order, 0], label=label)
    for label, part, marker in (("support", task.support, "o"), ("query", task.query, "x")):
        is_real = np.asarray(part.mask) > 0
        x, y = (np.asarray(values)[is_real, 0] for values in part[:2])
        axes.plot(x, y, marker, color="black", label=label)
    axes.set(xlabel="input", ylabel="target")
    axes.legend(fontsize="small")
    return axes


def learning_curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]],
    *,
    metric: str = "validation_accuracy",
    axes: Axes | None = None,
) -> Axes:
    """A metric over meta-steps, with its 95 % interval where one was written.

    Args:
        runs: lines of metrics by label, as `metrics.read_metrics` reads them from a
            run's folder.
        metric: the name of the metric; lines without it are skipped.
        axes: to draw on.

    Returns:
        The axes.

    Raises:
        ValueError: for a run without the metric in any line.

    Example:
        >>> lines = [{"step": 10, "loss": 1.5}, {"step": 20, "loss": 1.2}]
        >>> learning_curves({"maml": lines}, metric="loss").get_ylabel()
        'loss'
    """
    axes = axes or pyplot.gca()
    for label, lines in runs.items():
        lines = [line for line in lines if metric in line]
        if not lines:
            raise ValueError(f"metric is {metric!r}; no line of the run {label!r} has it.")
        steps, values = ([line[name] for line in lines] for name in ("step", metric))
        (curve,) = axes.plot(steps, values, label=label)
        low, high = ([line[metric] + sign * line.get(f"{metric}_ci95", 0) for line in lines] for sign in (-1, 1))
        axes.fill_between(steps, low, high, alpha=0.2, color=curve.get_color())
    axes.set(xlabel="meta-steps", ylabel=metric.replace("_", " "))
    axes.legend(fontsize="small")
    return axes


def accuracies(reports: Mapping[str, Iterable[Report]], *, axes: Axes | None = None) -> Axes:
    """Accuracy by ways and shots, with mean and 95 % interval.

    Args:
        reports: evaluation reports by the learner's name; a learner may lack a shape
            that another has.
        axes: to draw on.

    Returns:
        The axes.

    Raises:
        ValueError: if there are no reports, two for the same learner and shape, one
            without accuracy, or one in which ways or shots vary.

    Example:
        >>> report = Report(0.5, 0.01, 1.0, 0.02, 600, 5, 1, 15, (), False, 0, {})
        >>> axes = accuracies({"maml": [report]}, axes=pyplot.figure().gca())
        >>> [label.get_text() for label in axes.get_xticklabels()]
        ['5-way 1-shot']
    """
    listed = {label: list(some) for label, some in reports.items()}
    if not any(listed.values()):
        raise ValueError(f"reports is {reports}; it must hold at least one report.")
    tested = {label: {_shape(report): report for report in some} for label, some in listed.items()}
    for label, found in tested.items():
        if len(found) < len(listed[label]):
            raise ValueError(f"reports of {label!r} has two for the same ways and shots; there must be one for each.")
    axes = axes or pyplot.gca()
    shapes = sorted({shape for some in tested.values() for shape in some})
    width = 0.8 / len(tested)
    for index, (label, found) in enumerate(tested.items()):
        places = [shapes.index(shape) + (index - (len(tested) - 1) / 2) * width for shape in found]
        means, intervals = ([getattr(report, name) for report in found.values()] for name in ("accuracy", "ci95"))
        axes.bar(places, means, 0.9 * width, yerr=intervals, capsize=2, label=label)
    axes.set_xticks(range(len(shapes)), [f"{ways}-way {shots}-shot" for ways, shots in shapes])
    axes.set(ylabel="accuracy", ylim=(0, 1))
    axes.legend(fontsize="small")
    return axes


def _shape(report):
    if report.accuracy is None or not isinstance(report.ways, int) or not isinstance(report.shots, int):
        raise ValueError(f"a report has {report.ways} ways, {report.shots} shots: it must be of classes and one shape.")
    return report.ways, report.shots


def costs(rows: Iterable[Mapping[str, Any]], *, x: str, y: str, by: str, axes: Axes | None = None, **line: Any) -> Axes:
    """A table of costs as curves: one column against another, with a curve for each value of a third and no legend.

    Args:
        rows: the rows of the table, such as those written by `jmeta bench order`.
        x: the column along the horizontal axis.
        y: the column along the vertical one.
        by: the column with a curve for each value, ordered and coloured by first
            appearance.
        axes: to draw on.
        line: keywords for `Axes.plot`.

    Returns:
        The axes.

    Raises:
        ValueError: for a column that a row lacks.

    Example:
        >>> rows = [{"mode": "exact", "steps": 1, "time": 1.1}, {"mode": "exact", "steps": 5, "time": 1.5}]
        >>> costs(rows, x="steps", y="time", by="mode").get_ylabel()
        'time'
    """
    axes, rows = axes or pyplot.gca(), list(rows)
    for column in (x, y, by):
        if any(column not in row for row in rows):
            raise ValueError(f"{column!r} is not a column of every row.")
    for index, value in enumerate(dict.fromkeys(row[by] for row in rows)):
        curve = [(row[x], row[y]) for row in rows if row[by] == value]
        axes.plot(*zip(*curve, strict=True), **{"marker": "o", "color": f"C{index}", "label": str(value), **line})
    axes.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "))
    return axes
