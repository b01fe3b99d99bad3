"""The demonstration behind `make demo`: accuracy before and after meta-training, and a picture of both."""

import importlib.util
import os
from pathlib import Path

import jax
import numpy as np
import optax

from jmeta import data, learners, models
from jmeta.evaluation import evaluate
from jmeta.fitting import fit

STEPS, EPISODES = 600, 600
BINS = (np.arange(27) - 0.5) / 25  # a bin for each possible accuracy on 25 queries


def run(out: str | os.PathLike) -> None:
    """Meta-trains MAML on glyphs, prints its accuracy before and after, and draws one test task.

    Args:
        out: file for the picture; its extension determines the format.

    Raises:
        ModuleNotFoundError: if matplotlib, the extra `plot`, is missing.
        ValueError: if the folder of `out` does not exist, or its format is unknown.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            "the demo draws with matplotlib, which is missing; install jmeta with its extra plot: in a clone, "
            "pip install '.[plot]'."
        )
    import matplotlib.figure

    _check_picture(Path(out), matplotlib.figure.Figure().canvas.get_supported_filetypes())
    sample = data.glyphs(ways=5, shots=1, queries=5)
    learner = learners.maml(models.conv4(outputs=5, width=32, strided=True))
    optimizer = optax.adam(2e-3)
    key, test_key = jax.random.split(jax.random.key(0))
    before = fit(learner, optimizer, sample, key=key, steps=0, batch_size=16)
    reports = [evaluate(learner, before, sample, key=test_key, episodes=EPISODES)]
    print(f"before meta-training: {reports[0]}", flush=True)
    after = fit(learner, optimizer, sample, key=key, steps=STEPS, batch_size=16)
    reports.append(evaluate(learner, after, sample, key=test_key, episodes=EPISODES))
    print(f"after meta-training:  {reports[1]}", flush=True)
    _draw(matplotlib.figure.Figure(figsize=(9, 3.5), layout="constrained"), sample(test_key), reports).savefig(
        out, dpi=150
    )
    print(f"picture: {out}")


def _check_picture(out, formats):
    if not out.parent.is_dir():
        raise ValueError(f"out is {out}; its folder does not exist.")
    if out.suffix[1:].lower() not in formats:
        raise ValueError(f"out is {out}; it must end in one of {', '.join(f'.{name}' for name in sorted(formats))}.")


def _draw(figure, task, reports):
    """One task on the left, the distribution of accuracy over episodes on the right."""
    pictures, histogram = figure.subplots(1, 2, width_ratios=(1, 1.4))
    ways, size = task.support.targets.shape[1], task.support.inputs.shape[1]
    drawings = np.concatenate([np.reshape(part.inputs, (ways, -1, size, size)) for part in task[:2]], axis=1)
    pictures.imshow(drawings.swapaxes(1, 2).reshape(ways * size, -1), cmap="gray_r")  # a row for each class
    pictures.axvline(size - 0.5, color="tab:red")
    pictures.set(title="one task: support | query", xticks=[], yticks=[])
    for report, label in zip(reports, ("before", "after"), strict=True):
        histogram.hist(report.per_episode["accuracy"], bins=BINS, alpha=0.7, label=f"{label}: {report}")
    histogram.axvline(0.2, color="grey", linestyle=":", label="chance")
    histogram.set(title=f"accuracy over {EPISODES} tasks never seen", xlabel="accuracy", ylabel="episodes")
    histogram.legend(fontsize="x-small")
    return figure
