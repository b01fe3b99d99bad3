"""What an accelerator makes of a meta-step: by how many tasks there are, in which precision, and how it convolves.

    python -m benchmarks.accelerator
    python -m benchmarks.accelerator --workloads omniglot --sizes 32 128

Each workload, form of convolution and set of XLA's options is measured in a process of its own. All tasks of a step
are vmapped at once, and more are added until it does not gain by them or fails, for want of memory for example. The
result of a process goes to benchmarks/results/accelerator/DEVICE-WORKLOAD-FORM-OPTIONS.json.
"""

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.interpreters import mlir

import jmeta
from benchmarks import peers, peers_jmeta
from benchmarks.names import check_names
from benchmarks.record import device_name, provenance, RESULTS, save
from benchmarks.timing import in_turns
from benchmarks.workloads import tasks_of, Workload, WORKLOADS
from jmeta.checks import check_counts
from jmeta.functional.conv import columns, conv_p, dw_p

NAMES = ("omniglot", "omniglot-first-order", "miniimagenet", "resnet12", "sinusoid")  # of workloads
DTYPES = ("float32", "bfloat16")
SIZES = (8, 32, 128, 512)  # numbers of tasks
GAIN = 1.05  # of tasks a second, below which more tasks are not tried
REPEATS = 5  # of a timing


def as_product(x, w):
    """A convolution as the product of columns, the pixels under each place of the kernel, and the kernel."""
    return columns(x, w.shape[:2]) @ w.reshape(-1, w.shape[3])


# None is what jmeta does: on an accelerator a convolution of `lax`, vmapped tasks being groups of its channels.
FORMS: dict[str, Callable | None] = {"jmeta": None, "columns": as_product}
# On a GPU XLA records what it launches in CUDA graphs.
OPTIONS: dict[str, dict[str, Any]] = {"default": {}, "no-graphs": {"xla_gpu_enable_command_buffer": ""}}


def main(
    *,
    workloads: tuple[str, ...] = NAMES,
    forms: tuple[str, ...] = tuple(FORMS),
    options: tuple[str, ...] | None = None,
    dtypes: tuple[str, ...] = DTYPES,
    sizes: tuple[int, ...] = SIZES,
    out: Path = RESULTS / "accelerator",
) -> None:
    """Measures, prints and saves.

    Args:
        workloads: which, of those of benchmarks/workloads.py.
        forms: how stride-1 convolutions and their kernel gradients are computed.
        options: of XLA, by their names; None: on a GPU all of them, elsewhere the default.
        dtypes: of parameters and inputs.
        sizes: numbers of tasks, growing.
        out: folder of the results.
    """
    check_names("workloads", workloads, NAMES)
    check_names("forms", forms, FORMS)
    check_names("options", options or (), OPTIONS)
    check_names("dtypes", dtypes, DTYPES)
    for size in sizes:
        check_counts(least=1, sizes=size)
    peers.share_memory()
    options = options or (tuple(OPTIONS) if jax.default_backend() == "gpu" else ("default",))
    out.mkdir(parents=True, exist_ok=True)
    for name in workloads:
        workload, made_by = WORKLOADS[name], provenance()
        for form, option in itertools.product(forms if workload.image else forms[:1], options):
            with peers.process_of_its_own() as process:
                rows = process.submit(measure, workload, form, option, dtypes, sizes).result()
            save({"workload": name, **made_by, "rows": rows}, out / f"{device_name()}-{name}-{form}-{option}.json")


def measure(
    workload: Workload, form: str, option: str, dtypes: Sequence[str], sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for each precision and number of tasks."""
    convolve_as(FORMS[form])
    operations = peers_jmeta.operations(workload, tasks_of(workload._replace(tasks=1)))
    rows: list[dict[str, Any]] = []
    for dtype in dtypes:
        rate = 0.0
        for size in sizes:
            try:
                row = measure_step(workload._replace(tasks=size), dtype, OPTIONS[option], operations)
            except jax.errors.JaxRuntimeError as error:
                row = {"tasks_per_second": 0.0, "failed": str(error).partition("\n")[0]}
            rows.append({"form": form, "xla": option, "dtype": dtype, "tasks": size, **row})
            print(*(f"{key} {value}" for key, value in rows[-1].items()), sep=", ", flush=True)
            if "failed" in row or row["tasks_per_second"] < GAIN * rate:
                break
            rate = row["tasks_per_second"]
    return rows


def convolve_as(form: Callable | None) -> None:
    """Computes jmeta's convolutions, and their kernel gradients, in this form from now on; None as it does anyway."""
    if form is None:
        return

    def kernel_gradient(x, dy, *, size):
        kernel = jax.ShapeDtypeStruct((*size, x.shape[-1], dy.shape[-1]), x.dtype)
        return jax.linear_transpose(functools.partial(form, x), kernel)(dy)[0]

    def of_all_tasks(one):
        return lambda a, b, **params: jax.vmap(functools.partial(one, **params))(a, b)

    for primitive, one in ((conv_p, form), (dw_p, kernel_gradient)):
        lowering = mlir.lower_fun(of_all_tasks(one), multiple_results=False)
        mlir.register_lowering(primitive, lowering, platform=jax.default_backend())


def measure_step(workload: Workload, dtype: str, options: dict[str, Any], operations: int) -> dict[str, Any]:
    """A meta-step beside a matrix product of the same precision, in turns."""
    step, state, batch = step_of(workload, dtype)
    start = time.perf_counter()
    compiled = step.lower(state, batch).compile(compiler_options=options)
    compile_seconds = time.perf_counter() - start
    least, side = peers.measures()
    calls = {"step": lambda: jax.block_until_ready(compiled(state, batch)), "product": peers.product(side, dtype)}
    seconds = in_turns(calls, repeats=REPEATS, least_seconds=least)
    median = {name: float(np.median(some)) for name, some in seconds.items()}
    rate, product_rate = operations * workload.tasks / median["step"], 2 * side**3 / median["product"]
    return {
        "milliseconds": round(1e3 * median["step"], 3),
        "tasks_per_second": round(workload.tasks / median["step"], 2),
        "teraflops": round(rate / 1e12, 4),
        "of_product_rate": round(rate / product_rate, 4),
        "temporary_mebibytes": round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1),
        "compile_seconds": round(compile_seconds, 1),
    }


def step_of(workload: Workload, dtype: str) -> tuple[Callable, jmeta.TrainState, jmeta.Task]:
    """A jitted train step of all tasks at once, and what it is called with; parameters and inputs have this dtype."""
    batch = peers_jmeta.as_tasks(tasks_of(workload), jnp.dtype(dtype))
    step, state = peers_jmeta.train_step_and_state(workload, batch, tasks_per_chunk=workload.tasks)
    return step, state._replace(params=jax.tree.map(lambda leaf: leaf.astype(dtype), state.params)), batch


if __name__ == "__main__":
    tyro.cli(main)
