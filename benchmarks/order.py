"""Second order against first order: what exact meta-gradients cost, in time, arithmetic and memory.

    python -m benchmarks.order
    python -m benchmarks.order --models mlp conv4-32 --steps 1 5
    JAX_NUM_CPU_DEVICES=2 python -m benchmarks.order    # each of two cores has tasks of its own

One meta-step of MAML is compiled for each network, number of inner steps, way of
differentiating and chunk of tasks, and timed in turns, so that drift of the
machine cancels. The tasks are divided over all devices that JAX sees. The result of each network goes to
benchmarks/results/order/PLATFORM-NETWORK.json, a table and a figure of all to PLATFORM.md and
PLATFORM.png beside it.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import jmeta
from benchmarks import flops
from benchmarks.names import check_names
from benchmarks.record import device_name, provenance, RESULTS, save
from benchmarks.tables import order_table
from benchmarks.timing import in_turns
from jmeta import data, learners, losses, models, plotting
from jmeta.batching import on_each_device
from jmeta.files import write_whole
from jmeta.types import Examples, Task


class Workload(NamedTuple):
    """Tasks and the network that learns them."""

    model: jmeta.Model
    sample: Callable
    tasks: int
    options: dict[str, Any]  # of the learner
    chunks: tuple[int | None, ...]  # None: the default


def images(size: int, channels: int) -> Callable:
    """A sampler of 5-way 1-shot tasks of 15 queries, of noise: what an image shows costs no time."""

    def sample(key):
        parts = []
        for part_key, shots in zip(jax.random.split(key), (1, 15), strict=True):
            inputs = jax.random.normal(part_key, (5 * shots, size, size, channels))
            parts.append(Examples(inputs, jnp.repeat(jnp.eye(5), shots, axis=0), jnp.ones(5 * shots)))
        return Task(*parts)

    return sample


IMAGES = {"inner_optimizer": optax.sgd(0.01)}
REGRESSION = {**IMAGES, "loss_fn": losses.squared_error}
WORKLOADS = {
    "mlp": Workload(models.mlp(), data.sinusoid(), 25, REGRESSION, (None, 1)),
    "conv4-32": Workload(models.conv4(outputs=5, width=32), images(28, 1), 8, IMAGES, (None, 8)),
    "conv4-64": Workload(models.conv4(outputs=5), images(28, 1), 8, IMAGES, (None, 8)),
    "resnet12": Workload(models.resnet12(outputs=5), images(28, 3), 1, IMAGES, (None,)),  # of one task
}
CG_STEPS = 5
MODES: dict[str, dict[str, Any]] = {
    "first order": {"meta_gradient": "first_order"},
    "reverse": {"differentiation": "reverse"},
    "reverse, checkpoint": {"differentiation": "reverse", "checkpoint": True},
    "mixed": {"differentiation": "mixed"},
    "mixed, checkpoint": {"differentiation": "mixed", "checkpoint": True},
    "implicit": {"meta_gradient": "implicit", "proximal": 2.0, "cg_steps": CG_STEPS},
}


def main(
    *,
    models: tuple[str, ...] = tuple(WORKLOADS),
    steps: tuple[int, ...] = (1, 5, 10, 20),
    modes: tuple[str, ...] = tuple(MODES),
    repeats: int = 7,
    out: Path = RESULTS / "order",
) -> None:
    """Measures, prints and saves.

    Args:
        models: which networks: mlp, conv4-32, conv4-64, resnet12.
        steps: numbers of inner steps.
        modes: ways to differentiate; first order is always one, with which the others are compared.
        repeats: timed meta-steps of each.
        out: folder of the result.
    """
    check_names("models", models, WORKLOADS)
    check_names("modes", modes, MODES)
    modes = ("first order", *(mode for mode in modes if mode != "first order"))
    out.mkdir(parents=True, exist_ok=True)
    for name in models:
        made_by, rows = provenance(), []
        for number in steps:
            rows += measure(name, number, modes, repeats)
            print("\n".join(map(line, rows[-len(modes) * len(WORKLOADS[name].chunks) :])), flush=True)
            save_and_draw(out, name, {**made_by, "repeats": repeats, "rows": rows})


def save_and_draw(out: Path, name: str, result: dict[str, Any]) -> None:
    """The result of a network, and the table and figure of all."""
    device = device_name()
    save(result, out / f"{device}-{name}.json")
    files = [file for network in WORKLOADS if (file := out / f"{device}-{network}.json").exists()]
    rows = [row for file in files for row in json.loads(file.read_text())["rows"]]
    write_whole(out / f"{device}.md", order_table(rows) + "\n")
    draw(rows, out / f"{device}.png")


class Compiled(NamedTuple):
    """A meta-step, compiled."""

    run: Callable[[], Any]
    row: dict[str, Any]


LEAST_SECONDS = 0.05  # of a timing; shorter meta-steps are run several times


def measure(name: str, steps: int, modes: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """The rows of a network at a number of inner steps."""
    workload = WORKLOADS[name]
    tasks = jax.jit(jax.vmap(workload.sample))(jax.random.split(jax.random.key(1), workload.tasks))
    subjects = [compile_step(name, workload, tasks, steps, mode, chunk) for chunk in workload.chunks for mode in modes]
    calls = {f"{subject.row['mode']}, {subject.row['chunk']}": subject.run for subject in subjects}
    seconds = in_turns(calls, repeats=repeats, least_seconds=LEAST_SECONDS, title=f"{name}, {steps} inner steps")
    rows = [
        subject.row | times(found, workload.tasks) for subject, found in zip(subjects, seconds.values(), strict=True)
    ]
    for row in rows:
        first = next(other for other in rows if other["chunk"] == row["chunk"])
        for figure in ("milliseconds", "flops", "temporary_bytes"):
            row[f"{figure}_ratio"] = round(row[figure] / max(first[figure], 1e-9), 3)
    return rows


def compile_step(name, workload, tasks, steps, mode, chunk) -> Compiled:
    """A meta-step, with what is known of it before it runs."""
    learner = learners.maml(workload.model, inner_steps=steps, **workload.options, **MODES[mode])
    optimizer = optax.adam(1e-3)
    task = jax.tree.map(lambda leaf: leaf[0], tasks)
    devices = tuple(jax.local_devices()[: workload.tasks])
    state = jmeta.init_state(learner, optimizer, jax.random.key(0), task, devices=devices)
    tasks = on_each_device(tasks, devices)
    train_step = jmeta.make_train_step(learner, optimizer, tasks_per_chunk=chunk, devices=devices)
    start = time.perf_counter()
    step = jax.jit(train_step).lower(state, tasks).compile()
    row = {
        "model": name,
        "tasks": workload.tasks,
        "devices": len(devices),
        "inner_steps": steps,
        "mode": mode,
        "chunk": chunk or "default",
        "compile_seconds": round(time.perf_counter() - start, 2),
        "flops": workload.tasks
        * flops.count(jax.grad(learner.loss, has_aux=True), state.params, state.state, task, iterations=CG_STEPS),
        "temporary_bytes": step.memory_analysis().temp_size_in_bytes,
    }
    return Compiled(lambda: jax.block_until_ready(step(state, tasks)), row)


def times(seconds: list[float], tasks: int) -> dict[str, Any]:
    """The times of a row."""
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    return {
        "milliseconds": round(1e3 * median, 3),
        "quartiles_milliseconds": [round(1e3 * low, 3), round(1e3 * high, 3)],
        "tasks_per_second": round(tasks / median, 2),
    }


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    return (
        f"{row['model']:9} {row['inner_steps']:3} steps  {row['mode']:20} chunk {row['chunk']!s:8}"
        f"compiled in {row['compile_seconds']:6.2f} s  {row['milliseconds']:9.2f} ms "
        f"({' to '.join(f'{at:.2f}' for at in row['quartiles_milliseconds'])})  "
        f"{row['tasks_per_second']:9.2f} tasks/s  {row['temporary_bytes'] / 2**20:8.2f} MiB  "
        f"to first order: time {row['milliseconds_ratio']:.2f}, arithmetic {row['flops_ratio']:.2f}, "
        f"memory {row['temporary_bytes_ratio']:.2f}"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time and memory beside those of first order, by inner steps; dashes are the arithmetic."""
    rows = [row for row in rows if row["chunk"] == "default"]
    names = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(3.4 * len(names), 6), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False)
    for (above, below), name in zip(axes.T, names, strict=True):
        some = [row for row in rows if row["model"] == name]
        plotting.costs(some, x="inner_steps", y="milliseconds_ratio", by="mode", axes=above)
        plotting.costs(some, x="inner_steps", y="temporary_bytes_ratio", by="mode", axes=below)
        if above is axes[0, 0]:
            above.legend(fontsize="small")
        plotting.costs(some, x="inner_steps", y="flops_ratio", by="mode", axes=above, linestyle="--", marker="")
        above.set(title=name, ylabel="time / first order")
        below.set(ylabel="temporary memory / first order", yscale="log")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    tyro.cli(main)
