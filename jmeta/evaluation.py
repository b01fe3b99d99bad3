"""Evaluation: a learner's mean performance over a fixed list of episodes, with its interval."""

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmeta import losses
from jmeta.batching import (
    as_argument,
    as_devices,
    chunk_of,
    device_count,
    filled_up,
    hashable,
    map_tasks,
    on_each_device,
    over_devices,
)
from jmeta.checks import (
    as_key,
    check_chunk,
    check_counts,
    check_functions,
    check_is_task,
    check_learner,
    check_samplers,
    drawn,
    is_of_classes,
    is_scalar,
    telling_of_another_state,
)
from jmeta.files import to_json
from jmeta.losses import tells_accuracy
from jmeta.networks import takes_mask
from jmeta.types import Array, Learner, normalisations, PyTree, Task, TrainState

# A prediction counts as unchanged if its outputs change by at most this share, for `Report.transductive`. Our choice,
# far above the rounding of float32.
ROUNDING = 1e-4

# So many episodes are run again with all queries blank except the first, for `Report.transductive`; more than one, as a
# prediction may not be finite. Our choice.
BLANKED = 4

# What is measured in every episode.
MEASURED = ("loss", "accuracy", "ways", "shots", "queries", "first", "orphans", "unclassed")


@dataclass(frozen=True)
class Report:
    """The result of an evaluation, and its protocol.

    Attributes:
        accuracy: mean over episodes, a fraction; None for regression.
        ci95: half-width of its 95 % confidence interval, a fraction; None for regression.
        loss: mean query loss: cross-entropy in nats, or mean squared error, whatever
            the learner's own loss is.
        loss_ci95: half-width of its 95 % confidence interval.
        episodes: number of episodes.
        ways: classes per episode; (least, most) if it varied; None for regression.
        shots: support examples per class, likewise; per task for regression.
        queries: query examples per class, likewise; per task for regression.
        normalisation: the model's policies; empty if it states none.
        transductive: whether the prediction for one query changed when the others did, in
            the first of up to four episodes where it is finite; True, to be safe, if there
            is none, or if in any of them it is finite only with or only without the others.
        nonfinite: number of episodes whose loss is not finite, for example because
            adaptation diverged. The mean loss is then not finite either, and accuracy
            counts a query with a NaN among its outputs as wrong.
        per_episode: `"accuracy"` and `"ways"` (not for regression), `"loss"`, and the
            metrics that were asked for, arrays [episodes].
    """

    accuracy: float | None
    ci95: float | None
    loss: float
    loss_ci95: float
    episodes: int
    ways: int | tuple[int, int] | None
    shots: int | tuple[int, int]
    queries: int | tuple[int, int]
    normalisation: tuple[str, ...]
    transductive: bool
    nonfinite: int
    per_episode: dict[str, np.ndarray] = field(repr=False, compare=False)

    def __str__(self) -> str:
        if self.accuracy is None or self.ci95 is None:
            figure = f"mean squared error {self.loss:.4g} ± {self.loss_ci95:.2g}"
        else:
            figure = f"accuracy {100 * self.accuracy:.1f} ± {100 * self.ci95:.1f} %"
        diverged = f", {self.nonfinite} with a loss that is not finite" if self.nonfinite else ""
        return f"{figure} (95 % CI, {self.episodes} episodes{diverged})"

    def to_json(self, **kwargs: Any) -> str:
        """The whole report as JSON, with null for numbers that are not finite; keywords go to `json.dumps`."""
        values = {name: array.tolist() for name, array in self.per_episode.items()}
        return to_json({**asdict(self), "per_episode": values}, **kwargs)


def evaluate(
    learner: Learner,
    state: TrainState,
    sample: Callable[[Array], Task],
    *,
    key: Array,
    episodes: int = 600,
    metrics: Mapping[str, Callable] = MappingProxyType({}),
    tasks_per_chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Report:
    """Adapts to the support set of each episode and predicts its query set.

    The episodes depend only on `key` and `sample`, so two learners see the same. The
    state is not updated: running statistics stay as they are.

    Args:
        learner: the learner to be evaluated.
        state: its training state, of which `params` and `state` are used.
        sample: `(key) -> Task`. Compiled once and reused by later calls, so values it
            reads from outside are frozen at the first; to change them, pass a new
            function.
        key: PRNG key that fixes the episodes: they are `sample(jax.random.split(k)[0])`
            for each `k` in `jax.random.split(key, episodes)`. A key of kind `"rbg"` or
            `"unsafe_rbg"`, which draws other numbers under `vmap`, is replaced by
            `jax.random.wrap_key_data(jax.random.key_data(key)[:2],
            impl="threefry2x32")`, here, in `fit` and in `init_state`.
        episodes: number of episodes, at least 2.
        metrics: what else to measure in each episode, by name: functions of the outputs
            for the query set, as `predict` gives them, its targets and mask,
            `(outputs, targets, mask) -> scalar`, such as `losses.gaussian_nll`. They are
            compiled with the rest, so pass the same functions to later calls.
            (`losses.calibration_error` of the few queries of an episode is too high.)
        tasks_per_chunk: how many to vmap at once, at most, on each device; None
            chooses.
        devices: devices to divide the episodes over, such as `jax.local_devices()`;
            None: every device that holds the state does all the work.

    Returns:
        A `Report`; the mean and its normal 95 % interval are over episodes. Outputs
        that are a `losses.Gaussian` are judged by its mean. For the mean and interval of
        one of the `metrics`, take `losses.mean_and_interval` of its values in
        `per_episode`; to compare two learners on the same episodes, that of the
        difference of their `per_episode["accuracy"]`.

    Raises:
        ValueError: for fewer than 2 episodes, fewer than 1 task per chunk, or devices
            that cannot share episodes; for metrics that are no functions, give no scalar
            or have a name of evaluation's own; if `learner`, `state`, `sample` or `key`
            is not of its kind; if the outputs are not as wide as the targets, or the
            state is of another learner and this one cannot use it; for an episode of
            classes that has no support example, queries of a class without one, or real
            numbers as targets; and for one without a query example.

    Example:
        >>> import optax, jmeta
        >>> from jmeta import data, learners, models
        >>> sample, learner = data.glyphs(), learners.protonet(models.mlp(outputs=None, norm="batch"))
        >>> state = jmeta.init_state(learner, optax.sgd(0.0), jax.random.key(0), sample(jax.random.key(1)))
        >>> report = evaluate(learner, state, sample, key=jax.random.key(2), episodes=4)
        >>> report.episodes, report.ways, report.shots, report.normalisation
        (4, 5, 1, ('batch',))
    """
    check_counts(least=2, episodes=episodes)
    check_chunk(tasks_per_chunk)
    if not isinstance(metrics, Mapping):
        raise ValueError(f"metrics is of type {type(metrics).__name__}; it must be a dict of functions by their names.")
    check_functions("of outputs, targets and a mask", **metrics)
    if taken := metrics.keys() & set(MEASURED):
        raise ValueError(f"metrics has {min(taken)!r}, a name that evaluation uses itself; rename it.")
    devices, key = as_devices(devices), as_key(key)
    if not isinstance(state, TrainState):
        raise ValueError(
            f"state is of type {type(state).__name__}; it must be a TrainState, as returned by init_state and fit."
        )
    check_learner(learner)
    check_samplers(sample=sample)
    arguments = on_each_device((as_argument(sample), state.params, state.state), devices)
    structure, kind_of_key = jax.tree.structure(arguments[0]), jax.random.key_impl(key)
    asked = tuple((name, hashable(metric)) for name, metric in metrics.items())
    run = _evaluator(learner, asked, devices, structure, kind_of_key)
    again = _run_again(episodes)
    with telling_of_another_state(learner, state, sample):
        chunk = device_count(devices) * _chunk(learner, arguments, episodes, tasks_per_chunk, devices)
        # The last chunk is padded with the first episodes, so that one compiled function serves all chunks. The keys
        # are NumPy arrays: cutting JAX's keys into chunks would run a program for each chunk.
        keys = np.asarray(jax.random.key_data(jax.random.split(key, episodes)))
        # An episode that is run again has its place in the next chunk: elsewhere rounding may differ, and grow in an
        # inner loop.
        at = min(chunk, episodes)
        keys = np.insert(keys, at, keys[:again], axis=0)
        is_blanked = np.insert(np.zeros(episodes, bool), at, np.ones(again, bool))
        (keys, is_blanked), _ = filled_up((keys, is_blanked), chunk)
        chunks = [slice(start, start + chunk) for start in range(0, len(keys), chunk)]
        parts = [run(arguments, (keys[rows], is_blanked[rows])) for rows in chunks]
    everything = {name: np.concatenate([part[name] for part in parts])[: episodes + again] for name in parts[0]}
    found = {name: np.delete(values, slice(at, at + again), axis=0) for name, values in everything.items()}
    _check_found(found)
    alone = everything["first"][at : at + again]
    named = ("accuracy", "loss", "ways", *metrics)
    per_episode = {name: found[name] for name in named if name in found}
    return _report(found, per_episode, _differ(found["first"][:again], alone), normalisations(state.state))


def check_episodes(
    learner: Learner,
    state: TrainState,
    sample: Callable[[Array], Task],
    *,
    episodes: int,
    devices: tuple[jax.Device, ...] | None,
) -> None:
    """Raises a `ValueError` unless the learner's outputs fit the episodes; the arguments are those of `evaluate`.

    One episode is traced and none computed: choosing a chunk traces it, and `evaluate`, if it is to choose too, finds
    the choice in the cache.
    """
    _chunk(learner, (as_argument(sample), state.params, state.state), episodes, None, devices)


def _run_again(episodes: int) -> int:
    """How many episodes are run again."""
    return min(BLANKED, episodes)


@functools.lru_cache(maxsize=64)  # our choice: more than the protocols that one is likely to take turns with
def _evaluator(
    learner: Learner,
    metrics: tuple[tuple[str, Callable], ...],
    devices: tuple[jax.Device, ...] | None,
    sampler_structure: Hashable,  # only keys the cache: what is dropped from it frees what its sampler holds
    kind_of_key: Hashable,
) -> Callable:
    """The compiled evaluation of a chunk of episodes, cached so that a second call does not compile again."""

    def run(shared, batch):
        keys, is_blanked = batch
        keys = jax.random.wrap_key_data(keys, impl=kind_of_key)
        return map_tasks(functools.partial(_episode, learner, metrics, *shared), keys, is_blanked)

    return jax.jit(over_devices(run, devices))


def _chunk(
    learner: Learner, arguments: PyTree, episodes: int, most: int | None, devices: tuple[jax.Device, ...] | None
) -> int:
    """How many episodes a device vmaps at once: at most `most`, or what `chunk_of` chooses for None.

    With those that are run again they make two chunks or more.
    """
    each = math.ceil((episodes + _run_again(episodes)) / (2 * device_count(devices)))
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple(jax.eval_shape(lambda *leaves: leaves, *leaves))
    return _chunk_of_shapes(learner, structure, shapes, each, most, devices)


@functools.lru_cache(maxsize=64)  # as above
def _chunk_of_shapes(learner, structure, shapes, each, most, devices):
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = *jax.tree.unflatten(structure, shapes), key, False
    return chunk_of(each, most, functools.partial(_episode, learner, ()), *arguments, devices=devices)


def _episode(learner, metrics, sample, params, state, key, is_blanked):
    """What is measured in one episode, by name; if `is_blanked`, with all queries except the first set to zero."""
    sample_key, adapt_key = jax.random.split(key)
    task = drawn(sample, sample_key)
    check_is_task(task)
    task = jax.tree.map(jnp.asarray, task)
    query, inputs = task.query, task.query.inputs
    inputs = jnp.where(is_blanked, inputs.at[1:].set(jnp.zeros((), inputs.dtype)), inputs)
    adapted = learner.adapt(params, state, task.support, key=adapt_key)
    extra = {"mask": query.mask} if takes_mask(learner.predict) else {}
    outputs = learner.predict(params, state, adapted, inputs, **extra)
    asked = {name: _scalar(name, metric(outputs, query.targets, query.mask)) for name, metric in metrics}
    outputs = outputs.mean if isinstance(outputs, losses.Gaussian) else outputs
    labelled = (outputs, query.targets, query.mask)
    if not _classifies(learner, params, state, task):
        sizes = {"shots": (task.support.mask > 0).sum(), "queries": (query.mask > 0).sum()}
        return asked | {"first": outputs[0], "loss": losses.squared_error(*labelled)} | sizes
    found = {"loss": losses.cross_entropy(*labelled), "accuracy": losses.accuracy(*labelled)}
    # Outputs of absent classes are so large that beside them `_differ` would see no change.
    first = jnp.where(losses.class_counts(task.support) > 0, outputs[0], 0)
    return asked | found | {"first": first} | _protocol(task)


def _scalar(name, value):
    if not is_scalar(value):
        raise ValueError(f"metrics has {name!r}, which gives {value}; it must give a scalar.")
    return jnp.asarray(value)


def _classifies(learner, params, state, task):
    """Whether the learner classifies the task: its classes are numbered, or the learner reports an accuracy."""
    if task.class_ids is not None:
        return True
    # Any numbers will do: the loss, of which a transfer baseline's needs them, is only traced.
    numbered = task._replace(class_ids=jnp.arange(task.query.targets.shape[1]))
    return tells_accuracy(learner, params, state, numbered)


def _protocol(task):
    """The ways of a task, and the fewest and most shots and queries of a class."""
    shots, queries = losses.class_counts(task.support), losses.class_counts(task.query)
    present = shots > 0
    extremes = {
        name: jnp.stack([jnp.where(present, counts, jnp.inf).min(), counts.max()])
        for name, counts in (("shots", shots), ("queries", queries))
    }
    orphans = (~present & (queries > 0)).any()
    unclassed = ~(is_of_classes(*task.support[1:]) & is_of_classes(*task.query[1:]))
    return {"ways": present.sum(), "orphans": orphans, "unclassed": unclassed} | extremes


def _check_found(found: dict[str, np.ndarray]) -> None:
    """Raises a `ValueError` if any episode is not a valid one, given what was found in all of them."""
    if "ways" in found:
        _check_classes(found)
    most = found["queries"].reshape(len(found["queries"]), -1).max(1)  # of a class, or in regression of the task
    if (empty := most <= 0).any():
        raise ValueError(f"episode {empty.argmax()} has no query example; without one there is nothing to judge.")


def _check_classes(found: dict[str, np.ndarray]) -> None:
    if found["unclassed"].any():
        raise ValueError(
            f"episode {found['unclassed'].argmax()} has targets that are neither one-hot nor probabilities, but its "
            "classes are numbered or the learner's loss is over classes; tasks with real targets have no class_ids."
        )
    if (empty := found["ways"] == 0).any():
        raise ValueError(f"episode {empty.argmax()} has no support example; each needs one of every class.")
    if found["orphans"].any():
        raise ValueError(f"episode {found['orphans'].argmax()} has queries of a class without a support example.")


def _differ(outputs: np.ndarray, others: np.ndarray) -> bool:
    """Whether the first finite one of [episodes, N] predictions changed by more than rounding.

    True also if a prediction is finite in only one of the two, or if none is finite, when it cannot be known.
    """
    finite, others_finite = (np.isfinite(values).all(-1) for values in (outputs, others))
    if (finite != others_finite).any() or not finite.any():
        return True
    first = finite.argmax()
    return bool(np.abs(outputs[first] - others[first]).max() > ROUNDING * np.abs(outputs[first]).max())


def _report(
    found: dict[str, np.ndarray], per_episode: dict[str, np.ndarray], transductive: bool, policies: tuple[str, ...]
) -> Report:
    accuracy, ci95 = _interval(found["accuracy"]) if "accuracy" in found else (None, None)
    loss, loss_ci95 = _interval(found["loss"])
    return Report(
        accuracy=accuracy,
        ci95=ci95,
        loss=loss,
        loss_ci95=loss_ci95,
        episodes=len(found["loss"]),
        ways=_span(found["ways"]) if "ways" in found else None,
        shots=_span(found["shots"]),
        queries=_span(found["queries"]),
        normalisation=policies,
        transductive=transductive,
        nonfinite=int((~np.isfinite(found["loss"])).sum()),
        per_episode=per_episode,
    )


def _interval(values: np.ndarray) -> tuple[float, float]:
    mean, ci95 = losses.mean_and_interval(values.astype(np.float64))
    return float(mean), float(ci95)


def _span(values: np.ndarray) -> int | tuple[int, int]:
    low, high = round(float(values.min())), round(float(values.max()))  # with soft labels they are not whole
    return low if low == high else (low, high)
