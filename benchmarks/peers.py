"""jmeta beside what anyone would use instead: the same tasks, the same weights, the same meta-gradient, in turns.

    python -m benchmarks.peers
    python -m benchmarks.peers --workloads sinusoid omniglot --peers jmeta naive_vmap func_vmap

Before anything is timed, every peer's meta-gradient in float64 must be jmeta's to 1e-6. Peers that are not installed
(`pip install '.[bench]'`) are left out. A result goes to benchmarks/results/peers/PLATFORM-WORKLOAD.json.
"""

import gc
import importlib.util
import json
import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from benchmarks import peers_jax
from benchmarks.omniglot import check_names, provenance, RESULTS


class Workload(NamedTuple):
    """Tasks, a network, and an inner loop."""

    tasks: int
    ways: int
    shots: int
    queries: int  # of a class
    inner_rate: float
    inner_steps: int = 5
    image: tuple[int, int, int] | None = None  # None: sinusoids, and a perceptron of 40-40
    width: int = 64
    strided: bool = False
    second_order: bool = True


OMNIGLOT = Workload(8, 5, 1, 15, 0.4, image=(28, 28, 1))
WORKLOADS = {
    "sinusoid": Workload(25, 1, 10, 10, 0.01),
    "omniglot": OMNIGLOT,
    "omniglot-first-order": OMNIGLOT._replace(second_order=False),
    "omniglot-32": OMNIGLOT._replace(tasks=32),
    "omniglot-strided": OMNIGLOT._replace(strided=True),
    "miniimagenet": Workload(2, 5, 5, 15, 0.01, image=(84, 84, 3), width=32),
}
# Each with the package that it needs.
PEERS = {
    "jmeta": "jmeta",
    "naive_vmap": "flax",
    "optax_loop": "optax",
    "autograd_loop": "torch",
    "func_loop": "torch",
    "func_vmap": "torch",
    "higher_loop": "higher",
    "torchopt_loop": "torchopt",
}
SECOND_ORDER_ALONE = {"higher_loop", "torchopt_loop"}  # they have no first-order meta-gradient
LEAST_SECONDS = 0.2  # of a timing
TOLERANCE = 1e-6

Tasks = list[tuple[np.ndarray, np.ndarray]]
Weights = dict[str, np.ndarray]


def module_of(peer: str) -> ModuleType:
    """The file of a peer, which may need PyTorch."""
    if PEERS[peer] in ("torch", "higher", "torchopt"):
        from benchmarks import peers_torch

        return peers_torch
    return peers_jax


def builder(peer: str) -> Callable:
    """The function of a peer: `(workload, weights, tasks, dtype) -> step`."""
    return getattr(module_of(peer), "jmeta_step" if peer == "jmeta" else peer)


def main(
    *,
    workloads: tuple[str, ...] = tuple(WORKLOADS),
    peers: tuple[str, ...] = tuple(PEERS),
    repeats: int = 5,
    out: Path = RESULTS / "peers",
) -> None:
    """Checks, measures, prints and saves.

    Args:
        workloads: which.
        peers: which; jmeta is always one.
        repeats: timings of each peer.
        out: folder of the results.
    """
    check_names("workloads", workloads, WORKLOADS)
    check_names("peers", peers, PEERS)
    out.mkdir(parents=True, exist_ok=True)
    for name in workloads:
        workload = WORKLOADS[name]
        installed = [peer for peer in PEERS if peer in (*peers, "jmeta") and has(peer, workload)]
        result = {"workload": name, **workload._asdict(), **provenance(), **measure(workload, installed, repeats)}
        print(f"{name}:", *map(line, result["rows"]), sep="\n  ", flush=True)
        (out / f"{jax.default_backend()}-{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def has(peer: str, workload: Workload) -> bool:
    """Whether a peer is installed and has such a meta-gradient."""
    is_installed = importlib.util.find_spec(PEERS[peer]) is not None
    return is_installed and (workload.second_order or peer not in SECOND_ORDER_ALONE)


def tasks_of(workload: Workload) -> Tasks:
    """Inputs and targets of support and query, [T, K, ...]: what they show costs no time."""
    rng, parts = np.random.default_rng(0), []
    for number in (workload.shots, workload.queries):
        shape = (workload.tasks, workload.ways * number)
        if workload.image is None:
            parts.append((rng.uniform(-5, 5, (*shape, 1)), rng.normal(size=(*shape, 1))))
        else:
            targets = np.tile(np.repeat(np.eye(workload.ways), number, axis=0), (workload.tasks, 1, 1))
            parts.append((rng.normal(size=(*shape, *workload.image)), targets))
    return parts


def measure(workload: Workload, peers: list[str], repeats: int) -> dict[str, Any]:
    """A row for each peer, and the rate of the machine's own matrix product, all timed in turns."""
    tasks = tasks_of(workload)
    weights = peers_jax.initial_weights(workload, tasks)
    errors = check(peers, workload, weights, tasks)
    begun = {peer: begin(peer, workload, weights, tasks) for peer in peers}
    steps = {peer: builder(peer)(workload, weights, tasks, np.float32) for peer in peers} | {"product": product}
    calls = {name: max(1, int(LEAST_SECONDS / min(timed(step, 1) for _ in range(2)))) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in tqdm(range(repeats), leave=False):
        for name, step in steps.items():
            seconds[name].append(timed(step, calls[name]))
    low, median, high = ({n: float(np.quantile(s, q)) for n, s in seconds.items()} for q in (0.25, 0.5, 0.75))
    operations, product_rate = peers_jax.operations(workload, tasks), 2 * SIDE**3 / median["product"]
    rows = [
        {
            "peer": peer,
            "tasks_per_second": round(workload.tasks / median[peer], 2),
            "quartiles": [round(workload.tasks / high[peer], 2), round(workload.tasks / low[peer], 2)],
            "jmeta_over_it": round(median[peer] / median["jmeta"], 3),
            "of_product_rate": round(workload.tasks * operations / median[peer] / product_rate, 3),
            **begun[peer],
            "meta_gradient_error": errors[peer],
        }
        for peer in peers
    ]
    return {"repeats": repeats, "product_gigaflops": round(product_rate / 1e9, 1), "rows": rows}


SIDE = 2048  # of the matrices


def product() -> jax.Array:
    """A matrix product that nothing but the machine limits."""
    return jax.block_until_ready(_product(jnp.ones((SIDE, SIDE))))


_product = jax.jit(lambda matrix: matrix @ matrix)


def check(peers: list[str], workload: Workload, weights: Weights, tasks: Tasks) -> dict[str, float]:
    """How far each meta-gradient of two tasks is from jmeta's in float64, relative to its length."""
    tasks, workload = [tuple(leaf[:2] for leaf in part) for part in tasks], workload._replace(tasks=2)
    with jax.enable_x64(True):
        found = {peer: gradient(peer, workload, weights, tasks) for peer in peers}
    errors = {peer: distance(gradient, found["jmeta"]) for peer, gradient in found.items()}
    for peer, error in errors.items():
        if not error < TOLERANCE:
            raise ValueError(f"{peer} has another meta-gradient: its relative distance from jmeta's is {error:.1e}.")
    return errors


def gradient(peer: str, workload: Workload, weights: Weights, tasks: Tasks) -> Weights:
    """A peer's meta-gradient in double precision, in the layout of the weights."""
    return module_of(peer).as_numpy(builder(peer)(workload, weights, tasks, np.float64)())


def distance(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    """Relative to the length of the other."""
    difference = sum(np.square(leaf - other[name]).sum() for name, leaf in one.items())
    return float(np.sqrt(difference / sum(np.square(leaf).sum() for leaf in other.values())))


def begin(peer: str, workload: Workload, weights: Weights, tasks: Tasks) -> dict[str, float]:
    """The first step of a peer in a process of its own: how long it takes, and the most memory that it holds."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(first_step, peer, workload, weights, tasks).result()


def first_step(peer: str, workload: Workload, weights: Weights, tasks: Tasks) -> dict[str, float]:
    """Of a peer, with what it compiles; imports are done."""
    build = builder(peer)
    start = time.perf_counter()
    build(workload, weights, tasks, np.float32)()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB on Linux
    return {"first_step_seconds": round(seconds, 2), "peak_memory_mebibytes": round(peak / 1024)}


def timed(step: Callable, calls: int) -> float:
    """Seconds of a call, the mean over so many."""
    gc.collect()
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    return (
        f"{row['peer']:14} {row['tasks_per_second']:10.2f} tasks/s ({row['of_product_rate']:.0%} of a matrix product's "
        f"rate), jmeta {row['jmeta_over_it']:.2f} times that; first step {row['first_step_seconds']:.2f} s, "
        f"{row['peak_memory_mebibytes']} MiB; {row['meta_gradient_error']:.0e} from jmeta's meta-gradient"
    )


if __name__ == "__main__":
    tyro.cli(main)
