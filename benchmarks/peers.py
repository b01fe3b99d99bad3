"""jmeta beside what anyone would use instead: the same tasks, the same weights, the same meta-gradient, in turns.

    python -m benchmarks.peers
    python -m benchmarks.peers --workloads sinusoid omniglot --peers jmeta naive_vmap func_vmap

Before anything is timed, every peer's meta-gradient in float64, on two tasks and of up to two inner steps, must be
jmeta's to 1e-6; of an evaluation, its loss.
Each peer works in a process of its own, so that what one does to memory and threads does not slow another; they take
turns. Processes differ, as in where their memory lies, so that all of this is done anew in every round. They run where
JAX does, on the CPU or on a GPU that PyTorch sees too. A peer that fails is left out, and the result says why.
Peers that are not installed (`pip install '.[bench]'`) are left out, unless they are named. A result goes to
benchmarks/results/peers/DEVICE-WORKLOAD.json, before that every round to DEVICE-WORKLOAD.partial; a table and a figure
of all to DEVICE.md and DEVICE.png beside it. A workload that fails costs no other its result; the command fails after
the last.
"""

import contextlib
import functools
import importlib
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

from benchmarks import peers_jmeta
from benchmarks.names import check_names
from benchmarks.record import device_name, provenance, RESULTS, save, usable_cores
from benchmarks.tables import peer_table
from benchmarks.timing import mean_seconds, timed_in_turns
from benchmarks.workloads import Tasks, tasks_of, Workload, WORKLOADS
from jmeta.checks import check_positive
from jmeta.files import write_whole


class Peer(NamedTuple):
    """Where a peer is, the package it needs, and what it can do."""

    file: str
    package: str
    abilities: tuple[str, ...]


MAML = ("second order", "first order")
PEERS = {
    "jmeta": Peer("peers_jmeta", "jmeta", (*MAML, "protonet", "evaluation")),
    "jmeta_one_device": Peer("peers_jmeta", "jmeta", (*MAML, "evaluation")),
    "naive_vmap": Peer("peers_jax", "flax", (*MAML, "protonet")),
    "optax_loop": Peer("peers_jax", "optax", (*MAML, "evaluation")),
    "autograd_loop": Peer("peers_torch", "torch", (*MAML, "protonet", "evaluation")),
    "func_loop": Peer("peers_torch", "torch", MAML),
    "func_vmap": Peer("peers_torch", "torch", MAML),
    "higher_loop": Peer("peers_torch", "higher", ("second order",)),
    "torchopt_loop": Peer("peers_torch", "torchopt", ("second order",)),
    "learn2learn_loop": Peer("peers_torch", "learn2learn", MAML),
}
# What takes minutes a step or many GiB on a CPU, and is left out there unless it is named: workloads, and peers of one.
LARGE = ("resnet12",)
LARGE_FOR = {"omniglot-32": ("naive_vmap", "func_vmap"), "miniimagenet": ("naive_vmap", "func_vmap")}
TOLERANCE = 1e-6


class Measures(NamedTuple):
    """How long a timing is at least, in seconds, and the side of the matrices of a product that fills the machine."""

    seconds: float
    side: int


ON_CPU = Measures(1.0, 2048)
ON_ACCELERATOR = Measures(0.3, 8192)  # which other programs do not disturb

Weights = dict[str, np.ndarray]


def has(peer: str, workload: Workload) -> bool:
    """Whether a peer does such work and is installed for this device."""
    return does(peer, workload) and is_installed(peer)


def does(peer: str, workload: Workload) -> bool:
    """Whether it is the work of a peer."""
    if peer == "jmeta_one_device" and jax.default_backend() != "cpu":
        return False  # it is jmeta there
    needed = workload.work if workload.work == "evaluation" else workload.learner
    if needed == "maml":
        needed = "second order" if workload.second_order else "first order"
    return needed in PEERS[peer].abilities


def is_installed(peer: str) -> bool:
    """Whether its package is, for this device."""
    return imports(PEERS[peer].package) and (PEERS[peer].file != "peers_torch" or torch_sees_the_device())


def chosen(name: str, named: tuple[str, ...] | None) -> list[str]:
    """jmeta and the peers of a workload: those named, or all that are installed and not too large for the device.

    Raises:
        ValueError: for one that is named and not installed.
    """
    if named is None:
        large = LARGE_FOR.get(name, ()) if jax.default_backend() == "cpu" else ()
        return [peer for peer in PEERS if peer not in large and has(peer, WORKLOADS[name])]
    able = [peer for peer in PEERS if peer in ("jmeta", *named) and does(peer, WORKLOADS[name])]
    for peer in able:
        if not is_installed(peer):
            raise ValueError(f"peers names {peer!r}, but {PEERS[peer].package} is not installed for this device.")
    return able


def imports(package: str) -> bool:
    """Whether a package is installed with all that it needs."""
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


def torch_sees_the_device() -> bool:
    """Whether PyTorch works where JAX does: on the CPU, or on the same GPU."""
    if not imports("torch"):
        return False
    cuda = sys.modules["torch"].cuda
    return jax.default_backend() == "cpu" or (jax.default_backend() == "gpu" and cuda.is_available())


def begin(peer: str, workload: Workload, weights: Weights, tasks: Tasks, dtype: type) -> Callable:
    """A peer's step."""
    module = importlib.import_module(f"benchmarks.{PEERS[peer].file}")
    return getattr(module, workload.work)(peer, workload, weights, tasks, dtype)


def main(
    *,
    workloads: tuple[str, ...] | None = None,
    peers: tuple[str, ...] | None = None,
    rounds: int = 3,
    repeats: int = 3,
    out: Path = RESULTS / "peers",
) -> None:
    """Checks, measures, prints and saves.

    Args:
        workloads: which; None: all, on a CPU without the large ones.
        peers: which; jmeta is always one. None: all that are installed and not too large for a CPU.
        rounds: how often all peers begin anew, each in a fresh process.
        repeats: timings of each peer in a round.
        out: folder of the results.
    """
    share_memory()
    if workloads is None:
        workloads = tuple(name for name in WORKLOADS if jax.default_backend() != "cpu" or name not in LARGE)
    check_names("workloads", workloads, WORKLOADS)
    check_names("peers", peers or (), PEERS)
    check_positive(rounds=rounds, repeats=repeats)
    peers_of = {name: chosen(name, peers) for name in workloads}
    out.mkdir(parents=True, exist_ok=True)
    failures = []
    for name in workloads:
        result = {"workload": name, **WORKLOADS[name]._asdict(), **provenance()}
        # jmeta's version is the commit; PyTorch's counts for what is built on it.
        packages = {PEERS[peer].package for peer in peers_of[name]} - {"jmeta"}
        packages |= {"torch" for peer in peers_of[name] if PEERS[peer].file == "peers_torch"}
        result["versions"] |= {package: version(package) for package in packages}
        try:
            partial = out / f"{device_name()}-{name}.partial"  # so that fewer rounds never take the place of more
            for figures in measure(WORKLOADS[name], peers_of[name], rounds, repeats):
                result |= figures
                save(result, partial)
            write(result, out)
            partial.unlink()
        except Exception as error:
            failures.append(error)
            traceback.print_exc()
    if failures:
        raise failures[0]


def write(result: dict[str, Any], out: Path) -> None:
    """Prints and saves the result of a workload, and the table and the figure of all on this device."""
    print(f"{result['workload']}:", *map(line, result["rows"]), sep="\n  ", flush=True)
    for peer, why in result["failed"].items():
        print(f"  {peer:16} failed: {why}", flush=True)
    device = device_name()
    save(result, out / f"{device}-{result['workload']}.json")
    files = [file for name in WORKLOADS if (file := out / f"{device}-{name}.json").exists()]
    results = [json.loads(file.read_text()) for file in files]
    write_whole(out / f"{device}.md", peer_table(results) + "\n")
    draw(results, out / f"{device}.png")


def measures() -> Measures:
    """Those of where JAX runs."""
    return ON_CPU if jax.default_backend() == "cpu" else ON_ACCELERATOR


def share_memory() -> None:
    """Has this process and those it starts take of an accelerator's memory what they need, and not nearly all.

    Raises:
        ValueError: on a TPU, which serves one process at a time; the others would go on on the CPU.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if jax.default_backend() == "tpu":
        raise ValueError("this benchmark has several processes, and a TPU serves one; run it on a CPU or a GPU.")


class Round(NamedTuple):
    """What was measured of processes that began together."""

    first: dict[str, dict[str, float]]  # of each peer, its first calls
    seconds: dict[str, list[float]]  # of a call of each peer, infinite if it failed, and of the machine's own product
    failed: dict[str, str]  # peers that could not begin or go on, and why


def measure(workload: Workload, peers: list[str], rounds: int, repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each peer, and the rate of the machine's own matrix product, all timed in turns; after each round."""
    errors, unchecked = checked(tuple(peers), of_check(workload))
    tasks = tasks_of(workload)
    weights = peers_jmeta.initial_weights(workload, tasks)
    found: list[Round] = []
    failed = dict(unchecked)
    side, operations = measures().side, peers_jmeta.operations(workload, tasks)
    for _ in range(rounds):
        peers = [peer for peer in peers if peer not in failed]
        found.append(one_round(workload, peers, weights, tasks, repeats))
        failed |= found[-1].failed
        product_rate = 2 * side**3 / float(np.median([one.seconds["product"] for one in found]))
        of_rate = operations / product_rate
        rows = [
            summary(found, peer, workload, of_rate) | {"error": errors[peer]} for peer in peers if peer not in failed
        ]
        yield {
            "rounds": len(found),
            "repeats": repeats,
            "product_gigaflops": round(product_rate / 1e9, 1),
            "rows": rows,
            "failed": failed,
        }


def one_round(workload: Workload, peers: list[str], weights: Weights, tasks: Tasks, repeats: int) -> Round:
    """First calls of all peers, each in a fresh process, and then their times, in turns.

    A peer that cannot begin or go on, for want of memory say, is left out, here and in the rounds that follow.
    """
    least, side = measures()
    first: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(process_of_its_own()) for name in (*peers, "product")}
        for peer in peers:
            with left_out_if_it_fails(peer, processes[peer], failed):
                first[peer] = first_calls(processes[peer], peer, workload, weights, tasks)
        processes["product"].submit(begin_product, side).result()
        timers = {name: functools.partial(timed_there, one, name, failed) for name, one in processes.items()}
        return Round(first, timed_in_turns(timers, repeats=repeats, least_seconds=least), failed)


@contextlib.contextmanager
def left_out_if_it_fails(peer: str, process: ProcessPoolExecutor, failed: dict[str, str]) -> Iterator[None]:
    """Ends the process of a peer that fails and tells why, so that the others go on; jmeta and the product may not."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        # Those of XLA and PyTorch, and of a process that ended.
        if peer in ("jmeta", "product"):
            raise
        failed[peer] = f"{type(error).__name__}: {error}"
        process.shutdown()  # and with it what it holds


def summary(found: list[Round], peer: str, workload: Workload, of_rate: float) -> dict[str, Any]:
    """What a peer does in a second, its first calls and its memory, the medians; and each round's own.

    How many times as fast jmeta is, is the median of what it is in each round. `of_rate` is what a task is of a
    second of the machine's own product.
    """
    seconds = [second for one in found for second in one.seconds[peer]]
    number = workload.tasks * workload.meta_steps
    high, median, low = (number / float(np.quantile(seconds, at)) for at in (0.25, 0.5, 0.75))
    times = [{name: float(np.median(one.seconds[name])) for name in ("jmeta", peer)} for one in found]
    of_rounds = {"jmeta_over_it": [round(time[peer] / time["jmeta"], 3) for time in times]}
    of_rounds |= {figure: [one.first[peer][figure] for one in found] for figure in found[0].first[peer]}
    medians = {figure: round(float(np.median(values)), 3) for figure, values in of_rounds.items()}
    return {
        "peer": peer,
        "tasks_per_second": round(median, 2),
        "quartiles": [round(low, 2), round(high, 2)],
        **medians,
        "of_rounds": of_rounds,
        "of_product_rate": round(median * of_rate, 3),
    }


def product(side: int, dtype: str = "float32") -> Callable:
    """A matrix product that nothing but the machine limits."""
    matrix, multiply = jax.random.normal(jax.random.key(0), (side, side), dtype), jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(multiply(matrix, matrix))


def of_check(workload: Workload) -> Workload:
    """What its peers are checked on: two tasks and inner steps; of training, where all draw their own, the gradient."""
    work = "evaluation" if workload.work == "evaluation" else "meta_gradient"
    tasks, steps = (min(number, 2) for number in (workload.tasks, workload.inner_steps))
    return workload._replace(tasks=tasks, inner_steps=steps, work=work, meta_steps=1)


@functools.cache
def checked(peers: tuple[str, ...], workload: Workload) -> tuple[dict[str, float], dict[str, str]]:
    """The errors of a check, and why a peer has none; workloads that differ in size alone share it."""
    found: dict[str, dict[str, np.ndarray]] = {}
    failed: dict[str, str] = {}
    for peer in peers:
        with process_of_its_own() as process, left_out_if_it_fails(peer, process, failed):
            process.submit(prepare, peer).result()
            found[peer] = process.submit(outcome, peer, workload).result()
    return check(found, workload), failed


def outcome(peer: str, workload: Workload) -> dict[str, np.ndarray]:
    """What a peer makes of the tasks, in float64."""
    tasks = tasks_of(workload)
    if workload.work == "evaluation":  # of which jmeta draws its own, so that all are the same
        tasks = [tuple(np.repeat(leaf[:1], len(leaf), 0) for leaf in part) for part in tasks]
    weights = peers_jmeta.initial_weights(workload, tasks)
    with jax.enable_x64(True):
        return on_host(begin(peer, workload, weights, tasks, np.float64)())


def check(found: Mapping[str, Mapping[str, np.ndarray]], workload: Workload) -> dict[str, float]:
    """How far what each peer makes of the tasks is from what jmeta makes, relative to its length."""
    errors = {peer: distance(result, found["jmeta"]) for peer, result in found.items()}
    for peer, error in errors.items():
        if not error < TOLERANCE:
            result = "query loss" if workload.work == "evaluation" else "meta-gradient"
            raise ValueError(f"{peer} has another {result}: its relative distance from jmeta's is {error:.1e}.")
    return errors


def on_host(result: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of any peer as NumPy's."""
    return {name: np.asarray(leaf.cpu() if hasattr(leaf, "cpu") else leaf) for name, leaf in result.items()}


def distance(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    """Relative to the length of the other."""
    difference = sum(np.square(one[name] - leaf).sum() for name, leaf in other.items())
    return float(np.sqrt(difference / sum(np.square(leaf).sum() for leaf in other.values())))


def process_of_its_own() -> ProcessPoolExecutor:
    """A fresh process, to which work is sent."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def prepare(peer: str) -> None:
    """Imports what a peer needs, some of which it would where it is used, and begins the device."""
    if peer == "jmeta":
        jax.config.update("jax_num_cpu_devices", usable_cores())
    importlib.import_module(f"benchmarks.{PEERS[peer].file}")
    importlib.import_module(PEERS[peer].package)
    jax.devices()
    if jax.default_backend() == "gpu" and (torch := sys.modules.get("torch")):
        torch.cuda.init()


def first_calls(
    process: ProcessPoolExecutor, peer: str, workload: Workload, weights: Weights, tasks: Tasks
) -> dict[str, float]:
    """The first step in this process, with what it compiles, and that of a second one with what was kept of that."""
    with tempfile.TemporaryDirectory() as folder, process_of_its_own() as second:
        for ready in [one.submit(prepare, peer) for one in (process, second)]:
            ready.result()
        (cold, peak), (kept, peak_from_cache) = (
            one.submit(first_call, folder, peer, workload, weights, tasks).result() for one in (process, second)
        )
    # On an accelerator XLA compares algorithms while it compiles, with memory that no step takes.
    peak = peak if jax.default_backend() == "cpu" else peak_from_cache
    return {"first_step_seconds": cold, "first_step_seconds_from_cache": kept, "peak_memory_mebibytes": peak}


_begun: list[Callable] = []  # in a process of its own: the one call that it times


def first_call(folder: str, peer: str, workload: Workload, weights: Weights, tasks: Tasks) -> tuple[float, int]:
    """Seconds of the first step, imports done, and the MiB that it takes; on a CPU by how much the process grew."""
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    before, start = memory("VmRSS"), time.perf_counter()
    step = begin(peer, workload, weights, tasks, np.float32)
    step()
    seconds = time.perf_counter() - start
    _begun.append(step)
    peak = memory("VmHWM") - before if jax.default_backend() == "cpu" else device_memory(step)
    return round(seconds, 2), round(peak)


def begin_product(side: int) -> None:
    """Makes the product the work of this process."""
    _begun.append(product(side))


def timed_there(process: ProcessPoolExecutor, peer: str, failed: dict[str, str], number: int) -> float:
    """Seconds of a call of what has begun in this process, the mean over so many; infinite once it has failed."""
    with left_out_if_it_fails(peer, process, failed):
        if peer not in failed:
            return process.submit(_mean_seconds_of_what_has_begun, number).result()
    return math.inf


def _mean_seconds_of_what_has_begun(number):
    (step,) = _begun
    return mean_seconds(step, number)


def memory(name: str) -> float:
    """MiB of this process, now ("VmRSS") or at most ("VmHWM"), as Linux tells."""
    # `resource.getrusage` would tell the parent's: what a process had before it became another program counts there.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def device_memory(step: Callable) -> float:
    """MiB of the accelerator's memory that JAX has taken at most, and PyTorch in one more step."""
    peak = sum(device.memory_stats()["peak_bytes_in_use"] for device in jax.local_devices())
    if torch := sys.modules.get("torch"):
        torch.cuda.reset_peak_memory_stats()  # which has cuDNN's trials in the first step
        step()
        peak += torch.cuda.max_memory_allocated()
    return peak / 2**20


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    return (
        f"{row['peer']:16} {row['tasks_per_second']:10.2f} tasks/s ({row['of_product_rate']:.0%} of a matrix product's "
        f"rate), jmeta {row['jmeta_over_it']:.2f} times that; first step {row['first_step_seconds']:.2f} s, "
        f"{row['first_step_seconds_from_cache']:.2f} s from the cache; {row['peak_memory_mebibytes']:.0f} MiB; "
        f"differs by {row['error']:.0e}"
    )


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Tasks per second of each peer over jmeta's, a panel of bars for each workload."""
    columns = min(len(results), 5)
    rows = math.ceil(len(results) / columns)
    figure = Figure(figsize=(2.2 * columns, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(results) :]:
        axis.set_visible(False)
    for axis, result in zip(axes.flat, results, strict=False):
        speeds = {row["peer"]: 1 / row["jmeta_over_it"] for row in result["rows"]}
        bars = axis.barh(list(PEERS), [speeds.get(peer, 0) for peer in PEERS])
        bars[0].set_color("tab:orange")
        axis.set_title(result["workload"], fontsize="small")
    axes[0, 0].set(xscale="log")
    axes[0, 0].invert_yaxis()
    figure.supxlabel("speed / jmeta's")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    tyro.cli(main)
