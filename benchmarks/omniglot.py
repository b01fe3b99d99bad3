"""Meta-trains a learner on Omniglot and tests it on characters it has never seen.

    python -m benchmarks.omniglot protonet
    python -m benchmarks.omniglot maml --data-dir ~/tensorflow_datasets

The protocol is the published one: the 1028/172/423 characters of Vinyals et al.,
2016, turned by multiples of 90 degrees, 1000 test episodes. The result goes to
benchmarks/results/omniglot-NAME.json.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import optax
import tyro

import jmeta
from benchmarks.record import provenance, RESULTS, save
from jmeta import data, learners, models

TEST_EPISODES = 1000
VALIDATIONS = 20  # in a training


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One training run and the tests that follow it; the optimizer is Adam."""

    learner: str
    model: dict[str, Any]
    options: dict[str, Any]
    ways: int
    shots: int
    queries: int
    batch_size: int
    steps: int
    schedule: str
    tests: tuple[tuple[int, int], ...]  # (ways, shots)


PROTONET = Configuration(
    learner="protonet",
    model={"norm": "running"},
    options={},
    ways=60,
    shots=1,
    queries=5,
    batch_size=1,
    steps=4000,
    schedule="cosine",
    tests=((5, 1), (5, 5), (20, 1), (20, 5)),
)
MAML = Configuration(
    learner="maml",
    model={"outputs": 5, "strided": True},
    options={"inner_rate": 0.4, "inner_steps": 1, "test_steps": 3, "meta_gradient": "second_order"},
    ways=5,
    shots=1,
    queries=5,
    batch_size=16,
    steps=20_000,
    schedule="cosine",
    tests=((5, 1),),
)
CONFIGURATIONS = {
    # For two cores: under an hour each.
    "protonet": PROTONET,
    "maml": MAML,
    # As long as the papers'. Snell et al. halve the rate every 2000 episodes; Finn et al. train 60,000
    # meta-steps of 32 tasks.
    "protonet-paper": dataclasses.replace(PROTONET, steps=20_000, schedule="halving"),
    "maml-paper": dataclasses.replace(MAML, steps=60_000, batch_size=32, queries=15, schedule="constant"),
}
SCHEDULES = {
    "constant": lambda steps: 1e-3,
    "cosine": lambda steps: optax.cosine_decay_schedule(1e-3, steps),
    "halving": lambda steps: optax.exponential_decay(1e-3, 2000, 0.5, staircase=True),
}


def build(configuration: Configuration) -> tuple[jmeta.Learner, optax.GradientTransformation]:
    """The learner and its optimizer."""
    learner = build_learner(configuration.learner, models.conv4(**configuration.model), configuration.options)
    return learner, optax.adam(SCHEDULES[configuration.schedule](configuration.steps))


def build_learner(name: str, model: jmeta.Model, options: Mapping[str, Any]) -> jmeta.Learner:
    """A learner.

    Args:
        name: of the factory.
        model: as for the factory.
        options: of the factory, but that `inner_optimizer` is a call of optax yet to be
            made (`functools.partial`), so that a result can name it. `inner_rate` is
            short for gradient descent of that rate.
    """
    options, factory = dict(options), getattr(learners, name)
    if "inner_optimizer" in options:
        options["inner_optimizer"] = options["inner_optimizer"]()
    elif "inner_rate" in options and "inner_optimizer" in factory.__kwdefaults__:
        options["inner_optimizer"] = optax.sgd(options.pop("inner_rate"))
    return factory(model, **options)


def main(
    name: Literal["protonet", "maml", "protonet-paper", "maml-paper"],
    /,
    *,
    data_dir: str | None = None,
    seed: int = 0,
    out: Path = RESULTS,
) -> None:
    """Trains and tests one configuration.

    Args:
        name: which.
        data_dir: where TensorFlow Datasets keeps its data.
        seed: of the initial parameters, the training tasks and the test episodes.
        out: folder of the result.
    """
    made_by, configuration = provenance(), CONFIGURATIONS[name]
    train_key, test_key = jax.random.split(jax.random.key(seed))
    learner, optimizer = build(configuration)
    state, seconds, curve = train(configuration, learner, optimizer, data_dir, train_key)
    table = data.omniglot("test", data_dir=data_dir)
    result = {
        "name": name,
        "configuration": dataclasses.asdict(configuration),
        "seed": seed,
        **made_by,
        "training_seconds": round(seconds, 1),
        "validation": curve,
        "tests": [test(learner, state, table, ways, shots, test_key) for ways, shots in configuration.tests],
    }
    out.mkdir(parents=True, exist_ok=True)
    save(result, out / f"omniglot-{name}.json")


def train(
    configuration: Configuration,
    learner: jmeta.Learner,
    optimizer: optax.GradientTransformation,
    data_dir: str | None,
    key: jax.Array,
) -> tuple[jmeta.TrainState, float, list[dict[str, Any]]]:
    """The trained state, the seconds it took (compilation and validation included), and validation accuracies."""
    ways, shots, queries = configuration.ways, configuration.shots, configuration.queries
    sample = data.episodes(data.omniglot("train", data_dir=data_dir), ways=ways, shots=shots, queries=queries)
    validation = data.episodes(data.omniglot("val", data_dir=data_dir), ways=5, shots=1, queries=15)
    start, curve = time.perf_counter(), []

    def note(step, metrics):
        if (accuracy := metrics.get("validation_accuracy")) is not None:
            print(f"step {step}: validation accuracy {100 * accuracy:.1f} %", flush=True)
            curve.append({"step": step, "seconds": round(time.perf_counter() - start, 1), "accuracy": accuracy})

    state = jmeta.fit(
        learner,
        optimizer,
        sample,
        key=key,
        steps=configuration.steps,
        batch_size=configuration.batch_size,
        validation=validation,
        save_every=configuration.steps // VALIDATIONS,
        on_log=note,
    )
    if state.step < configuration.steps:
        raise KeyboardInterrupt  # a signal ended it: this is not the state that a result would be of
    return state, time.perf_counter() - start, curve


def test(learner, state, table, ways, shots, key) -> dict[str, Any]:
    """The report of 1000 test episodes, without the single episodes."""
    sample = data.episodes(table, ways=ways, shots=shots, queries=15)
    report = jmeta.evaluate(learner, state, sample, key=key, episodes=TEST_EPISODES)
    print(f"{ways}-way {shots}-shot: {report}", flush=True)
    return summary(report)


def summary(report: jmeta.Report) -> dict[str, Any]:
    """The report without the single episodes."""
    return {name: value for name, value in json.loads(report.to_json()).items() if name != "per_episode"}


if __name__ == "__main__":
    tyro.cli(main)
