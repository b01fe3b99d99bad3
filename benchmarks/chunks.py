"""How many tasks to vmap at a time: meta-steps timed at every chunk, beside the size of a task's largest array.

    python -m benchmarks.chunks

The result goes to benchmarks/results/chunks-PLATFORM.json; the default of
`make_train_step` rests on it (docs/decisions/0004-chunks.md).
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
import tyro

import jmeta
from benchmarks.record import device_name, provenance, RESULTS, save
from benchmarks.timing import in_turns
from jmeta import data, learners, losses, models
from jmeta.batching import largest_array

TASKS, REPEATS = 16, 7
LEAST_SECONDS = 0.05  # of a timing; shorter meta-steps are run several times
REGRESSION = {"inner_optimizer": optax.sgd(0.01), "loss_fn": losses.squared_error}
IMAGES = data.glyphs(ways=5, shots=1, queries=15)

WORKLOADS = {
    "MLP 40-40, sinusoid": (learners.maml(models.mlp(), **REGRESSION), data.sinusoid()),
    "MLP 256-256, sinusoid": (learners.maml(models.mlp(hidden=(256, 256)), **REGRESSION), data.sinusoid()),
    "MLP 256-256, images": (learners.maml(models.mlp(hidden=(256, 256), outputs=5)), IMAGES),
    "Conv4-8 strided": (learners.maml(models.conv4(outputs=5, width=8, strided=True)), IMAGES),
    "Conv4-64 strided": (learners.maml(models.conv4(outputs=5, strided=True)), IMAGES),
    "Conv4-64": (learners.maml(models.conv4(outputs=5)), IMAGES),
}


def main(*, out: Path = RESULTS) -> None:
    """Measures, prints and saves.

    Args:
        out: folder of the result.
    """
    out.mkdir(parents=True, exist_ok=True)
    made_by, rows = provenance(), []
    for name, (learner, sample) in WORKLOADS.items():
        optimizer = optax.sgd(0.01)
        state = jmeta.init_state(learner, optimizer, jax.random.key(0), sample(jax.random.key(1)))
        tasks = jax.vmap(sample)(jax.random.split(jax.random.key(2), TASKS))
        one = jax.tree.map(lambda leaf: leaf[0], tasks)
        largest = largest_array(learner.loss, state.params, state.state, one)
        steps = {str(chunk): meta_step(learner, optimizer, state, tasks, chunk) for chunk in (1, 2, 4, 8, 16)}
        seconds = in_turns(steps, repeats=REPEATS, least_seconds=LEAST_SECONDS, title=name)
        rates = {chunk: round(TASKS / float(np.median(times)), 1) for chunk, times in seconds.items()}
        rows.append({"workload": name, "largest_array_bytes": largest, "tasks_per_second": rates})
        print(f"{name:24} {largest / 2**20:8.3f} MiB  {rates}", flush=True)
    save({**made_by, "tasks": TASKS, "rows": rows}, out / f"chunks-{device_name()}.json")


def meta_step(learner, optimizer, state, tasks, chunk) -> Callable:
    """A meta-step of so many tasks at a time; its first call compiles it."""
    step = jax.jit(jmeta.make_train_step(learner, optimizer, tasks_per_chunk=chunk))
    return lambda: jax.block_until_ready(step(state, tasks))


if __name__ == "__main__":
    tyro.cli(main)
