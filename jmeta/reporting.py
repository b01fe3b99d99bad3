"""What a run of meta-training tells while it goes on: a bar, validations, metrics on disk and to a function."""

import contextlib

import numpy as np
from tqdm import tqdm

from jmeta.checks import warn
from jmeta.evaluation import Report
from jmeta.metrics import MetricsLog


class Reporter:
    """Reports a run's progress: a bar on a terminal, validations in print, metrics in a folder and to a function."""

    def __init__(self, out, on_log, steps, done, batch_size):
        self._on_log = on_log
        self._log = None if out is None else MetricsLog(out, step=done)
        self._bar = tqdm(total=steps, initial=done, unit="step", disable=None)
        self._batch_size = batch_size
        self._has_warned = False

    def write(self, done: int, metrics: dict[str, np.ndarray], seconds: float, report: Report | None = None) -> None:
        """Reports the steps up to `done`, which took `seconds`, and the validation after them."""
        number = len(metrics["loss"])
        if number == 0:
            return
        # A step without a finite task has no loss.
        values = {name: _mean(array[~np.isnan(array)]) for name, array in metrics.items()}
        values["nonfinite_tasks"] = int(metrics["nonfinite_tasks"].sum())
        if report is not None:
            values |= {"validation_loss": report.loss, "validation_loss_ci95": report.loss_ci95}
            values["validation_nonfinite"] = report.nonfinite
            if report.accuracy is not None and report.ci95 is not None:
                values |= {"validation_accuracy": report.accuracy, "validation_accuracy_ci95": report.ci95}
            if self._on_log is None:
                self._print(f"step {done}: validation {report}")
        if self._log is not None:
            self._log.write(done, values)
        if self._on_log is not None:
            self._on_log(done, dict(values))
        rate = {"tasks/s": f"{number * self._batch_size / seconds:.3g}"}
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()} | rate)
        self._bar.update(number)

    def _print(self, line: str) -> None:
        """Prints above the bar; output that cannot be written does not end the training."""
        with contextlib.suppress(OSError, ValueError), self._bar.external_write_mode():
            print(line, flush=True)

    def warn(self, done: int, metrics: dict[str, np.ndarray]) -> None:
        """Warns, once, when tasks are first left out."""
        skipped, number = int(metrics["nonfinite_tasks"].sum()), len(metrics["loss"]) * self._batch_size
        if skipped and not self._has_warned:
            self._has_warned = True
            warn(
                f"{skipped} of the last {number} tasks before meta-step {done} was over were left out because their "
                "loss, state or meta-gradient is not finite; later ones are only counted in the metrics."
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()
        if self._log is not None:
            self._log.close()


def _mean(numbers):
    """The mean, NaN if there are no numbers."""
    return float(numbers.mean()) if len(numbers) else float("nan")
