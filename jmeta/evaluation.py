"""Evaluation: a learner's mean performance over a fixed list of episodes, with its interval."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun, subjaxprs
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jmeta import losses
from jmeta.checks import as_key, check_counts
from jmeta.files import to_json
from jmeta.types import Array, Learner, normalisations, PyTree, takes_mask, Task, TrainState

# Bytes that the largest array of the tasks vmapped together may take. On a CPU, beyond the
# cache one at a time is faster (docs/decisions/0004-chunks.md); elsewhere it bounds the memory.
CHUNK_BYTES = {"cpu": 2**21}
ACCELERATOR_CHUNK_BYTES = 2**30

TASKS = "tasks"  # the axis of a mesh of devices over which tasks are divided


@dataclass(frozen=True)
class Report:
    """What an evaluation found, and by which protocol.

    Attributes:
        accuracy: mean over episodes, a fraction; None for regression.
        ci95: half-width of its 95 % confidence interval, a fraction; None for regression.
        loss: mean query loss: cross-entropy in nats, or mean squared error.
        loss_ci95: half-width of its 95 % confidence interval.
        episodes: how many.
        ways: classes in an episode; (least, most) where it varied; None for regression.
        shots: support examples of a class, likewise; for regression of a task.
        queries: query examples of a class, likewise; for regression of a task.
        normalisation: the model's policies; empty if it states none.
        transductive: whether the prediction of one query changed when the others did.
        nonfinite: episodes whose loss is not finite, as where adaptation diverged;
            the mean loss then is not finite either, and accuracy counts outputs
            that are not numbers as wrong.
        per_episode: `"accuracy"` (not for regression) and `"loss"`, arrays [episodes].
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
        """The whole report as JSON, null where a number is not finite; keywords go to `json.dumps`."""
        values = {name: array.tolist() for name, array in self.per_episode.items()}
        return to_json({**asdict(self), "per_episode": values}, **kwargs)


def evaluate(
    learner: Learner,
    state: TrainState,
    sample: Callable[[Array], Task],
    *,
    key: Array,
    episodes: int = 600,
    tasks_per_chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Report:
    """Adapts to the support set of each episode and predicts its query set.

    The episodes depend on `key` and `sample` alone: two learners see the same.
    Nothing is written: running statistics stay as they are.

    Args:
        learner: what is evaluated.
        state: its training state, of which `params` and `state` are used.
        sample: `(key) -> Task`. It is compiled once and used again in the next call: what
            it reads from outside is as it was then; make a new function if that changes.
        key: PRNG key of the list of episodes.
        episodes: how many, at least 2.
        tasks_per_chunk: how many are vmapped at a time, on each device; None chooses.
        devices: those that the episodes are divided over, `jax.local_devices()`
            say; None: each device on which the state lies does all the work.

    Returns:
        A `Report`; the mean and its normal 95 % interval are over episodes. Outputs that
        are a `losses.Gaussian` are judged by its mean.

    Raises:
        ValueError: for fewer than 2 episodes, fewer than 1 task per chunk, devices
            that cannot share episodes, what is no key or no state of training, a
            learner whose outputs are not as wide as the targets, or an episode with
            queries of a class that has no support example.

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
    if tasks_per_chunk is not None:
        check_counts(least=1, tasks_per_chunk=tasks_per_chunk)
    devices, key = as_devices(devices), as_key(key)
    if not isinstance(state, TrainState):
        raise ValueError(f"state is of {type(state).__name__}; it must be a TrainState, as init_state and fit give it.")
    arguments = on_each_device((as_argument(sample), state.params, state.state), devices)
    number = device_count(devices)
    each = math.ceil(episodes / number)
    chunk = number * min(tasks_per_chunk or _episodes_at_once(learner, arguments, each), each)
    # The last chunk is filled up with the first episodes, so that one compiled function does for all.
    keys, _ = filled_up(on_each_device(jax.random.split(key, episodes), devices), chunk)
    chunks = keys.reshape(-1, chunk, *keys.shape[1:])
    run = _evaluator(learner, devices)
    parts = [run((False, *arguments), keys) for keys in chunks]
    found = {name: np.concatenate([part[name] for part in parts])[:episodes] for name in parts[0]}
    if "orphans" in found and found["orphans"].any():
        raise ValueError(f"episode {found['orphans'].argmax()} has queries of a class without a support example.")
    alone = np.asarray(run((True, *arguments), chunks[0])["first"])[:episodes]
    return _report(found, _differ(found["first"][:chunk], alone), normalisations(state.state))


def check_episodes(
    learner: Learner,
    state: TrainState,
    sample: Callable[[Array], Task],
    *,
    episodes: int,
    devices: tuple[jax.Device, ...] | None,
) -> None:
    """Raises a `ValueError` unless the learner's outputs fit the episodes; traces one, computes none.

    The arguments are those of `evaluate`, which finds there how many episodes it vmaps at a time.
    """
    arguments = as_argument(sample), state.params, state.state
    _episodes_at_once(learner, arguments, math.ceil(episodes / device_count(devices)))


def device_count(devices: tuple[jax.Device, ...] | None) -> int:
    """How many devices share tasks."""
    return 1 if devices is None else len(devices)


def as_argument(sample: Callable[[Array], Task]) -> jax.tree_util.Partial:
    """The sampler as a pytree: passed to a compiled function, its table is an argument and not a constant."""
    return sample if isinstance(sample, jax.tree_util.Partial) else jax.tree_util.Partial(sample)


@functools.lru_cache(maxsize=16)
def _evaluator(learner: Learner, devices: tuple[jax.Device, ...] | None) -> Callable:
    """The compiled evaluation of a chunk of episodes, kept so that a second call does not compile again."""

    def run(shared, keys):
        return map_tasks(functools.partial(_episode, learner, *shared), keys)

    return jax.jit(over_devices(run, devices))


def _episodes_at_once(learner: Learner, arguments: PyTree, episodes: int) -> int:
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple(jax.eval_shape(lambda *leaves: leaves, *leaves))
    return _episodes_at_once_of_shapes(learner, structure, shapes, episodes)


@functools.lru_cache(maxsize=64)
def _episodes_at_once_of_shapes(learner, structure, shapes, episodes):
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = jax.tree.unflatten(structure, shapes)
    most = most_at_once(episodes, functools.partial(_episode, learner, False), *arguments, key)
    # As few chunks as possible, of nearly equal size, so that little is computed twice to fill up the last one.
    return math.ceil(episodes / math.ceil(episodes / most))


def _episode(learner, is_blanked, sample, params, state, key):
    """What is measured in one episode; `is_blanked`, all its queries but the first are blanked."""
    sample_key, adapt_key = jax.random.split(key)
    task = jax.tree.map(jnp.asarray, sample(sample_key))
    query, inputs = task.query, task.query.inputs
    inputs = jnp.where(is_blanked, inputs.at[1:].set(0), inputs)
    adapted = learner.adapt(params, state, task.support, key=adapt_key)
    extra = {"mask": query.mask} if takes_mask(learner.predict) else {}
    outputs = learner.predict(params, state, adapted, inputs, **extra)
    outputs = outputs.mean if isinstance(outputs, losses.Gaussian) else outputs
    labelled = (outputs, query.targets, query.mask)
    if not _classifies(learner, params, state, task):
        sizes = {"shots": task.support.mask.sum(), "queries": query.mask.sum()}
        return {"first": outputs[0], "loss": losses.squared_error(*labelled)} | sizes
    found = {"loss": losses.cross_entropy(*labelled), "accuracy": losses.accuracy(*labelled)}
    # At absent classes outputs are so large that beside them nothing would seem to change.
    first = jnp.where(losses.class_counts(task.support) > 0, outputs[0], 0)
    return found | {"first": first} | _protocol(task)


def _classifies(learner, params, state, task):
    """Whether a task is of classes to the learner: they are numbered, or it tells its accuracy."""
    return task.class_ids is not None or tells_accuracy(learner, params, state, task)


def tells_accuracy(learner: Learner, params: PyTree, state: PyTree, task: Task) -> bool:
    """Whether the learner's loss is over classes: its metrics have their accuracy."""
    # The function itself: its trace is then the one of `init` and of the train step.
    _, (_, metrics) = jax.eval_shape(learner.loss, params, state, task, key=jax.random.key(0))
    return "accuracy" in metrics


def _protocol(task):
    """Ways, and the fewest and most shots and queries of a class, of one task."""
    shots, queries = losses.class_counts(task.support), losses.class_counts(task.query)
    present = shots > 0
    extremes = {
        name: jnp.stack([jnp.where(present, counts, jnp.inf).min(), counts.max()])
        for name, counts in (("shots", shots), ("queries", queries))
    }
    return {"ways": present.sum(), "orphans": (~present & (queries > 0)).any()} | extremes


def _differ(outputs: np.ndarray, others: np.ndarray) -> bool:
    """Whether the first prediction [N] of [E, N] that is finite changed by more than rounding, or any diverged anew."""
    finite, others_finite = (np.isfinite(values).all(-1) for values in (outputs, others))
    if (finite != others_finite).any():
        return True
    first = finite.argmax()
    return bool(finite[first] and np.abs(outputs[first] - others[first]).max() > 1e-4 * np.abs(outputs[first]).max())


def _report(found: dict[str, np.ndarray], transductive: bool, policies: tuple[str, ...]) -> Report:
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
        per_episode={name: found[name] for name in ("accuracy", "loss") if name in found},
    )


def _interval(values: np.ndarray) -> tuple[float, float]:
    mean, ci95 = losses.mean_and_interval(values.astype(np.float64))
    return float(mean), float(ci95)


def _span(values: np.ndarray) -> int | tuple[int, int]:
    low, high = int(values.min()), int(values.max())
    return low if low == high else (low, high)


def map_tasks(function: Callable, *batches: PyTree) -> PyTree:
    """`jax.vmap(function)(*batches)`; of one task alone without the axis inside.

    That axis costs a third more in a meta-step (XLA on the CPU, Conv4-64, 10 inner steps).

    Args:
        function: of one task.
        batches: what it is called with, [T, ...].
    """
    if len(jax.tree.leaves(batches)[0]) > 1:
        return jax.vmap(function)(*batches)
    return jax.tree.map(lambda leaf: leaf[None], function(*jax.tree.map(lambda leaf: leaf[0], batches)))


def as_devices(devices: Sequence[jax.Device] | None) -> tuple[jax.Device, ...] | None:
    """The devices as a tuple, which can key a cache; raises a `ValueError` if tasks cannot be divided over them."""
    if devices is None:
        return None
    found = tuple(devices) if isinstance(devices, Iterable) else ()
    if not _can_share(found):
        raise ValueError(
            f"devices is {devices!r}; it must be a sequence of different devices of one kind and of this process, as "
            "jax.local_devices() is, or None."
        )
    return found


def _can_share(devices):
    if not devices or not all(isinstance(device, jax.Device) for device in devices):
        return False
    kinds = {(device.platform, device.process_index) for device in devices}
    return len(set(devices)) == len(devices) and kinds == {(devices[0].platform, jax.process_index())}


def over_devices(
    function: Callable, devices: tuple[jax.Device, ...] | None, add: Callable[[PyTree], PyTree] | None = None
) -> Callable:
    """A function `(shared, batch)` that each device runs on its part of the batch; itself, without devices.

    Args:
        function: what a device runs.
        devices: which; their number divides that of the tasks in a batch [T, ...].
        add: sums what the devices found, over the axis `TASKS`.

    Returns:
        A function that gives what `add` makes of it; without one, what all devices
        found end to end, [T, ...].
    """
    if devices is None:
        return function

    def divided(shared, batch):
        traced = _traced(function, shared, batch, len(devices))
        run_on_each = jax.shard_map(
            traced if add is None else lambda *arguments: add(traced(*arguments)),
            mesh=_mesh(devices),
            in_specs=(PartitionSpec(), PartitionSpec(TASKS)),
            out_specs=PartitionSpec(TASKS) if add is None else PartitionSpec(),
            check_vma=False,  # traced elsewhere, the function does not tell what varies over devices
        )
        return run_on_each(shared, batch)

    return divided


def _traced(function, shared, batch, number):
    """The function, traced for a batch of one of so many devices.

    Here, and for arrays that lie nowhere, it shares what JAX has traced before; inside `shard_map` it would not.
    """
    whole, batch = jax.eval_shape(lambda *arguments: arguments, shared, batch)
    whole = jax.tree.map(lambda leaf: _nowhere(leaf.shape, leaf), whole)
    part = jax.tree.map(lambda leaf: _nowhere((len(leaf) // number, *leaf.shape[1:]), leaf), batch)
    jaxpr, shapes = jax.make_jaxpr(jax.jit(function), return_shape=True)(whole, part)

    def run(*arguments):
        return jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(jaxpr)(*jax.tree.leaves(arguments)))

    return run


def _nowhere(shape, leaf):
    return jax.ShapeDtypeStruct(shape, leaf.dtype, weak_type=leaf.weak_type)


def on_each_device(tree: PyTree, devices: tuple[jax.Device, ...] | None) -> PyTree:
    """A copy on each of the devices; the tree itself, without devices."""
    return tree if devices is None else jax.device_put(tree, NamedSharding(_mesh(devices), PartitionSpec()))


def _mesh(devices):
    return Mesh(np.array(devices), (TASKS,))


def filled_up(batch: PyTree, multiple: int) -> tuple[PyTree, np.ndarray]:
    """A batch [T, ...] with its first tasks again, up to the next multiple; and a mask, False for those."""
    number = len(jax.tree.leaves(batch)[0])
    index = np.arange(-(-number // multiple) * multiple)
    if len(index) > number:
        batch = jax.tree.map(lambda leaf: leaf[index % number], batch)
    return batch, index < number


def default_chunk(number: int, function: Callable, *arguments: PyTree) -> int:
    """How many of `number` tasks to vmap a function over at a time.

    The largest divisor of `number` that is not above `most_at_once`, so that
    one compiled function does for all chunks.

    Args:
        number: of tasks.
        function: of one task.
        arguments: what it is called with, or their shapes.
    """
    most = most_at_once(number, function, *arguments)
    return max(chunk for chunk in range(1, most + 1) if number % chunk == 0)


def most_at_once(number: int, function: Callable, *arguments: PyTree) -> int:
    """The most tasks, up to `number`, that keep the function's largest array times their number within a bound.

    The arguments are those of `default_chunk`, the bound is the backend's.
    """
    bound = CHUNK_BYTES.get(jax.default_backend(), ACCELERATOR_CHUNK_BYTES)
    return max(1, min(number, bound // largest_array(function, *arguments)))


def largest_array(function: Callable, *arguments: PyTree) -> int:
    """Bytes of the largest array that a function makes on its way; it is traced, not run."""

    def largest(jaxpr):
        made = [var.aval for eqn in jaxpr.eqns for var in eqn.outvars if hasattr(var.aval, "dtype")]
        numbers = [aval for aval in made if jnp.issubdtype(aval.dtype, jnp.number)]
        return max([1, *(aval.size * aval.dtype.itemsize for aval in numbers), *map(largest, subjaxprs(jaxpr))])

    return largest(jax.make_jaxpr(function)(*arguments).jaxpr)
