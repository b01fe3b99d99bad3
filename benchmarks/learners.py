"""Every learner on the same tasks, with the same budget of processor time, or at full length.

    python -m benchmarks.learners sinusoid
    python -m benchmarks.learners omniglot --only maml anil --data-dir ~/tensorflow_datasets
    python -m benchmarks.learners omniglot-encoders-full --only protonet

A result goes to benchmarks/results/learners/TASKS-LEARNER.json, a figure of all to TASKS.png beside it.
"""

import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

import jmeta
from benchmarks.names import check_names
from benchmarks.omniglot import build_learner, summary, TEST_EPISODES
from benchmarks.record import provenance, RESULTS, save
from jmeta import data, losses, models
from jmeta.checks import check_positive


class Budget(NamedTuple):
    """What a training may spend; the first that runs out ends it."""

    seconds: float = math.inf  # of processor time, compilation included
    steps: float = math.inf  # meta-steps

    def spent(self, seconds: float, steps: int) -> float:
        """The share of it that this is."""
        return max(seconds / self.seconds, steps / self.steps)

    def limits(self) -> dict[str, float]:
        """Those there are, by their units."""
        return {unit: limit for unit, limit in self._asdict().items() if math.isfinite(limit)}


class Entry(NamedTuple):
    """How one learner is trained."""

    options: dict[str, Any]  # as `build_learner` takes them
    model: Mapping[str, Any] = MappingProxyType({})  # beside what all models share
    network: Callable | None = None  # in place of the suite's model
    outer: Callable = optax.adam
    rate: float = 1e-3  # of the outer optimizer; it falls to zero along a cosine
    tasks: Mapping[str, int] = MappingProxyType({})  # of training, where not as in all others
    tests: tuple[tuple[int, int, int], ...] | None = None  # where not those of all others
    budget: Budget | None = None  # where not that of all others


class Suite(NamedTuple):
    """Tasks, and the learners compared on them."""

    source: Literal["sinusoid", "omniglot"]
    model: Callable
    common: dict[str, Any]  # options of every learner
    tasks: dict[str, int]  # of training: ways, shots, queries and batch_size
    tests: tuple[tuple[int, int, int], ...]  # ways, shots, queries of a class
    dispatch: int  # meta-steps
    budget: Budget  # of each learner
    entries: dict[str, Entry]


def reptile_step(learning_rate):
    """Reptile's own outer step: the initialisation moves towards the fast weights."""
    return optax.sgd(learning_rate)


FIVE = {"inner_rate": 0.01, "inner_steps": 5, "test_steps": 5}
RAW = {"hidden": (), "outputs": None}  # inputs as they are
SINUSOID = Suite(
    source="sinusoid",
    model=models.mlp,
    common={"loss_fn": losses.squared_error},
    tasks={"ways": 1, "shots": 10, "queries": 10, "batch_size": 25},
    tests=((1, 10, 10),),
    dispatch=500,
    budget=Budget(seconds=60),
    entries={
        "maml": Entry(FIVE),
        "fomaml": Entry(FIVE),
        "anil": Entry(FIVE),
        "boil": Entry(FIVE),
        "meta_sgd": Entry({"inner_rate": 0.01, "inner_steps": 1, "test_steps": 1}),  # as in its paper
        "meta_curvature": Entry(FIVE),
        "reptile": Entry({**FIVE, "inner_batch": None}, outer=reptile_step, rate=0.5),
        # Gradient descent diverges in long training: docs/decisions/0011-imaml.md.
        "imaml": Entry(
            {
                "inner_optimizer": functools.partial(optax.adam, learning_rate=0.01),
                "inner_steps": 60,
                "test_steps": 60,
                "proximal": 20.0,
                "damping": 0.0,
            }
        ),
        "cavia": Entry({**FIVE, "inner_rate": 0.1}, model={"context": 4}),
        "mamlpp": Entry({**FIVE, "multi_step_until": 2_000, "first_order_until": 2_000}),
        "cnp": Entry({"loss_fn": losses.gaussian_nll}, model=RAW),
        "in_context": Entry({}, model=RAW),
    },
)
OMNIGLOT = Suite(
    source="omniglot",
    model=lambda **options: models.conv4(**{"outputs": 5, "width": 32, "strided": True} | options),
    common={},
    tasks={"ways": 5, "shots": 1, "queries": 5, "batch_size": 16},
    tests=((5, 1, 15),),
    dispatch=10,
    # As much as ten minutes of two cores; on a busy machine processor time is fairer than the clock's.
    budget=Budget(seconds=1200),
    entries={
        "maml": Entry({"inner_rate": 0.4, "test_steps": 3}),
        "fomaml": Entry({"inner_rate": 0.4, "test_steps": 3}),
        # Steps of the last layer alone cost little and gain much: docs/decisions/0012-anil.md.
        "anil": Entry({"inner_rate": 0.4, "inner_steps": 20}),
        "boil": Entry({"inner_rate": 0.5, "test_steps": 3}),
        "meta_sgd": Entry({"inner_rate": 0.4, "test_steps": 3}),
        "meta_curvature": Entry({"inner_rate": 0.4, "test_steps": 3}),
        # Ten examples of a class and five tasks in a meta-step, as in its paper; not its Adam at 0.001.
        "reptile": Entry({"inner_rate": 0.1}, outer=reptile_step, rate=1.0, tasks={"queries": 9, "batch_size": 5}),
        # Its outer rate: docs/decisions/0011-imaml.md.
        "imaml": Entry({"inner_rate": 0.4, "proximal": 0.5}, rate=3e-3),
        "cavia": Entry({"inner_rate": 1.0}, model={"context": 100}),
        "mamlpp": Entry({"inner_rate": 0.1, "multi_step_until": 1_000, "first_order_until": 1_000}),
        "proto_maml": Entry({"inner_rate": 0.1, "inner_steps": 5}, model={"outputs": None}),
    },
)
# For what stays at chance until it has discovered that the label beside an example belongs to it: many small tasks
# and a quarter of the arithmetic. In training it sees features normalised by the statistics of a few characters, and
# leans on it; so it is tested with those of the set at hand, as MAML is, and not with running ones.
STRIDED = {"strided": True, "norm": "batch"}
SMALL_TASKS = {"ways": 5, "queries": 2, "batch_size": 8}
FIVE_WAY_ONE_SHOT = ((5, 1, 15),)  # of what keeps its number of ways
FIFTEEN_QUERIES = ((5, 1, 15), (5, 5, 15), (20, 1, 15), (20, 5, 15))  # of two that compare them fast
ENCODERS = Suite(
    source="omniglot",
    model=lambda **options: models.conv4(**{"width": 64, "norm": "running"} | options),
    common={},
    tasks={"ways": 20, "shots": 1, "queries": 5, "batch_size": 1},  # more ways than at 5-way tests, as Snell et al.
    tests=((5, 1, 15), (5, 5, 15), (20, 1, 5), (20, 5, 5)),
    dispatch=10,
    budget=Budget(seconds=600),
    entries={
        "protonet": Entry({}, tasks={"ways": 60}, tests=FIFTEEN_QUERIES),
        "matching": Entry({}),
        # Its network compares every query with every class, which costs too much at 20 ways and many queries.
        "relation": Entry(
            {},
            network=models.relation_encoder,
            tasks={"ways": 5, "queries": 2, "batch_size": 4},
            tests=((5, 1, 15), (5, 5, 15), (20, 1, 1), (20, 5, 1)),
        ),
        "siamese": Entry({}),
        "r2d2": Entry({}, tests=FIFTEEN_QUERIES),
        "metaoptnet": Entry({}),
        "logistic": Entry({}),
        "baseline": Entry({"classes": 4112}, tasks={"ways": 64, "queries": 1}),  # a batch of 128 drawings
        "baseline_pp": Entry({"classes": 4112}, tasks={"ways": 64, "queries": 1}),
        # Their training losses still fall after ten minutes.
        "mann": Entry({}, STRIDED, tasks=SMALL_TASKS, tests=FIVE_WAY_ONE_SHOT, budget=Budget(seconds=1200)),
        "snail": Entry(
            {"sequence": functools.partial(models.snail, length=6)},
            STRIDED,
            tasks=SMALL_TASKS,
            tests=FIVE_WAY_ONE_SHOT,
            budget=Budget(seconds=1200),
        ),
        "cnp": Entry({}, STRIDED, tasks=SMALL_TASKS, tests=FIVE_WAY_ONE_SHOT),
        "in_context": Entry({}, STRIDED, tasks=SMALL_TASKS, tests=FIVE_WAY_ONE_SHOT),
    },
)
# Full length: meta-steps where a length is known, and for the others as many as MAML's (Finn et al., 2017).
FULL_STEPS = {
    "protonet": 20_000,  # as in benchmarks/omniglot.py
    "relation": 250_000,  # of four tasks; a million of one in the code of Sung et al., 2018
    "mann": 100_000,  # where figure 2 of Santoro et al., 2016, ends
}
ENCODERS_FULL = ENCODERS._replace(
    entries={
        name: entry._replace(budget=Budget(steps=FULL_STEPS.get(name, 60_000)))
        for name, entry in ENCODERS.entries.items()
    },
)
SUITES = {
    "sinusoid": SINUSOID,
    "omniglot": OMNIGLOT,
    "omniglot-encoders": ENCODERS,
    "omniglot-encoders-full": ENCODERS_FULL,
}


def main(
    tasks: Literal["sinusoid", "omniglot", "omniglot-encoders", "omniglot-encoders-full"],
    /,
    *,
    only: tuple[str, ...] = (),
    seconds: float = math.inf,
    steps: float = math.inf,
    data_dir: str | None = None,
    seed: int = 0,
    out: Path = RESULTS / "learners",
) -> None:
    """Trains and tests the learners one after another.

    Args:
        tasks: which suite.
        only: which learners; all of them if none is named.
        seconds: processor time for each, compilation included, in place of the suite's budget.
        steps: meta-steps for each, in place of it; the first of the two that runs out ends a training.
        data_dir: where TensorFlow Datasets keeps its data.
        seed: of the initial parameters, the training tasks and the test episodes.
        out: folder of the results.
    """
    suite = SUITES[tasks]
    check_names("only", only, suite.entries)
    check_positive(seconds=seconds, steps=steps)
    told = Budget(seconds, steps)
    out.mkdir(parents=True, exist_ok=True)
    for name in only or suite.entries:
        budget = told if told != Budget() else suite.entries[name].budget or suite.budget
        result = run(name, suite, data_dir, budget, seed)
        save({"tasks": tasks, **result}, out / f"{tasks}-{name}.json")
        found = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
        draw([result for result in found if result["tasks"] == tasks], out / f"{tasks}.png")


def sampler(source: str, split: str, data_dir: str | None, *, ways: int, shots: int, queries: int) -> Callable:
    """Of tasks, all of whose characters come from one split."""
    if source == "sinusoid":
        return data.sinusoid(shots=shots, queries=queries)
    return data.episodes(data.omniglot(split, data_dir=data_dir), ways=ways, shots=shots, queries=queries)


def build(name: str, suite: Suite) -> jmeta.Learner:
    """The learner of an entry."""
    entry = suite.entries[name]
    model = (entry.network or suite.model)(**entry.model)
    return build_learner(name, model, {**suite.common, **entry.options})


def run(name: str, suite: Suite, data_dir: str | None, budget: Budget, seed: int) -> dict[str, Any]:
    """What is reported of one learner."""
    made_by, entry = provenance(), suite.entries[name]
    tasks = {**suite.tasks, **entry.tasks}
    sample = sampler(suite.source, "train", data_dir, **{key: tasks[key] for key in ("ways", "shots", "queries")})
    init_key, test_key = jax.random.split(jax.random.key(seed))
    learner = build(name, suite)
    state, training = train(learner, entry, suite.dispatch, tasks["batch_size"], sample, budget, init_key)
    tests = []
    for ways, shots, queries in entry.tests or suite.tests:
        test = sampler(suite.source, "test", data_dir, ways=ways, shots=shots, queries=queries)
        report = jmeta.evaluate(learner, state, test, key=test_key, episodes=TEST_EPISODES)
        print(f"{name:16} {training['steps']:6} steps, {ways}-way {shots}-shot: {report}", flush=True)
        tests.append(summary(report) | {"adaptation_milliseconds": adaptation_time(learner, state, test, test_key)})
    return {
        "learner": name,
        "options": in_words({**suite.common, **entry.options}),
        "model": dict(entry.model),
        "network": getattr(entry.network, "__name__", None),
        "training_tasks": tasks,
        "outer_rate": entry.rate,
        "seed": seed,
        **made_by,
        "budget": budget.limits(),
        **training,
        "tests": tests,
    }


def in_words(options: dict[str, Any]) -> dict[str, Any]:
    """Options as a result file can hold them: a function by its name, and what it was given."""

    def words(option):
        if isinstance(option, functools.partial):
            return {option.func.__name__: option.keywords}
        return getattr(option, "__name__", option)

    return {name: words(option) for name, option in options.items()}


def train(learner, entry, dispatch, batch_size, sample, budget, key) -> tuple[jmeta.TrainState, dict[str, Any]]:
    """The state when the budget is spent, compilation included, and how it got there."""
    start, clock = time.process_time(), time.perf_counter()
    optimizer = optax.inject_hyperparams(entry.outer)(learning_rate=entry.rate)
    state = jmeta.init_state(learner, optimizer, key, sample(key))
    step = jmeta.make_train_step(learner, optimizer)
    loop = jax.jit(jmeta.make_train_loop(step, sample, batch_size=batch_size, steps=dispatch)).lower(state).compile()
    nonfinite = 0
    with tqdm(total=1.0, bar_format="{l_bar}{bar}| {elapsed}{postfix}", mininterval=10) as bar:
        while (spent := budget.spent(time.process_time() - start, int(state.step))) < 1:
            bar.update(spent - bar.n)
            state.opt_state.hyperparams["learning_rate"] = jnp.asarray(entry.rate * (1 + math.cos(math.pi * spent)) / 2)
            state, metrics = loop(state)
            nonfinite += int(metrics["nonfinite_tasks"].sum())
            bar.set_postfix(loss=float(np.nanmean(metrics["loss"])))
    return state, {
        "steps": int(state.step),
        "processor_seconds": round(time.process_time() - start, 1),
        "seconds": round(time.perf_counter() - clock, 1),
        "nonfinite_tasks": nonfinite,
        "temporary_bytes": loop.memory_analysis().temp_size_in_bytes,
    }


def adaptation_time(learner, state, sample, key, repeats=50) -> float:
    """Median milliseconds of one compiled call of `adapt` on one task."""
    support = sample(key).support
    adapt = jax.jit(learner.adapt)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(adapt(state.params, state.state, support))
        times.append(time.perf_counter() - start)
    return round(1e3 * float(np.median(times[1:])), 3)  # the first one compiled


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """How well each learner does in the first test, by how long it takes to adapt."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    measure, interval = (
        ("accuracy", "ci95") if results[0]["tests"][0]["accuracy"] is not None else ("loss", "loss_ci95")
    )
    for result in results:
        test = result["tests"][0]
        if test[measure] is None:
            continue  # diverged
        axis.errorbar(test["adaptation_milliseconds"], test[measure], test[interval], fmt="o", capsize=2)
        axis.annotate(result["learner"], (test["adaptation_milliseconds"], test[measure]), fontsize="small")
    axis.set(xscale="log", xlabel="milliseconds to adapt to one task", ylabel=measure, title=results[0]["tasks"])
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    tyro.cli(main)
