"""How many tasks to vmap at a time: meta-steps timed at every chunk, beside the size of a task's largest array.

    python -m benchmarks.chunks

The result goes to benchmarks/results/chunks-PLATFORM.json; the default of
`make_train_step` rests on it (docs/decisions/0004-chunks.md).
"""

import json
import time

import jax
import numpy as np
import optax

import jmeta
from benchmarks.omniglot import machine, RESULTS
from jmeta import data, learners, losses, models
from jmeta.evaluation import largest_array

TASKS, REPEATS = 16, 5
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


def main() -> None:
    rows = []
    for name, (learner, sample) in WORKLOADS.items():
        optimizer = optax.sgd(0.01)
        state = jmeta.init_state(learner, optimizer, jax.random.key(0), sample(jax.random.key(1)))
        tasks = jax.vmap(sample)(jax.random.split(jax.random.key(2), TASKS))
        one = jax.tree.map(lambda leaf: leaf[0], tasks)
        largest = largest_array(learner.loss, state.params, state.state, one)
        steps = {
            chunk: jax.jit(jmeta.make_train_step(learner, optimizer, tasks_per_chunk=chunk))
            for chunk in (1, 2, 4, 8, 16)
        }
        seconds = {chunk: [] for chunk in steps}
        for repeat in range(REPEATS + 1):  # interleaved, so that drift of the machine cancels; the first compiles
            for chunk, step in steps.items():
                start = time.perf_counter()
                jax.block_until_ready(step(state, tasks))
                if repeat:
                    seconds[chunk].append(time.perf_counter() - start)
        rates = {chunk: round(TASKS / float(np.median(times)), 1) for chunk, times in seconds.items()}
        rows.append({"workload": name, "largest_array_bytes": largest, "tasks_per_second": rates})
        print(f"{name:24} {largest / 2**20:8.3f} MiB  {rates}", flush=True)
    result = {"machine": machine(), "jax": jax.__version__, "tasks": TASKS, "rows": rows}
    (RESULTS / f"chunks-{jax.default_backend()}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
