"""Meta-training: the state, one step, many steps in one dispatch, and the loop around them."""

import contextlib
import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

from jmeta import checkpoints
from jmeta.checks import as_key, check_counts, check_examples, check_transformation, is_count
from jmeta.evaluation import (
    as_argument,
    as_devices,
    check_episodes,
    default_chunk,
    device_count,
    evaluate,
    filled_up,
    map_tasks,
    on_each_device,
    over_devices,
    Report,
    TASKS,
    tells_accuracy,
)
from jmeta.files import sole_writer
from jmeta.metrics import MetricsLog
from jmeta.types import Array, at_least_single, by_path, Examples, first_difference, Learner, PyTree, Task, TrainState

# What a train step does with tasks whose loss or meta-gradient is not finite.
Nonfinite = Literal["skip", "raise"]

# How long a task's meta-gradient may be: docs/decisions/0006-nonfinite-tasks.md.
MAX_TASK_NORM = 100.0


def init_state(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    key: Array,
    task: Task,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """The state from which meta-training starts.

    Args:
        learner: what is to be trained.
        optimizer: the outer optimizer.
        key: PRNG key, for the initial parameters and for training.
        task: one task, for its shapes.
        devices: those of the train step, each of which gets a copy, so that a
            jitted step need not compile again for the state that it gives back.

    Raises:
        ValueError: if targets are labels and not one-hot, the model's output width
            is not the number of ways, a class has queries and no support example,
            targets are real numbers where the loss is over classes, the optimizer is
            none, or the devices cannot share tasks.

    Example:
        >>> from jmeta import data, learners, models
        >>> task = data.glyphs()(jax.random.key(0))
        >>> learner = learners.protonet(models.mlp(outputs=None))
        >>> print(init_state(learner, optax.adam(1e-3), jax.random.key(1), task).step)
        0
    """
    _check_task(task)
    check_transformation("optimizer", optimizer)
    devices = as_devices(devices)
    init_key, key = jax.random.split(as_key(key))
    # A function that runs once is not worth optimising: XLA's LLVM takes a quarter of the time at this level, for the
    # same numbers to rounding (benchmarks/README.md). JAX takes options of the outermost jit alone.
    is_outermost = jax.default_backend() == "cpu" and not isinstance(init_key, jax.core.Tracer)
    options = {"xla_backend_optimization_level": 1} if is_outermost else None
    if task.class_ids is not None:
        # Of the ids themselves, which it may refuse.
        jax.eval_shape(lambda key: learner.init(key, jax.tree.map(jnp.asarray, task)), init_key)
    params, state = jax.jit(learner.init, compiler_options=options)(init_key, task)
    _check_objective(learner, params, state, task)
    opt_state = _own(optimizer.init(params))
    return on_each_device(TrainState(params, state, opt_state, key, jnp.int32(0)), devices)


@jax.jit
def _own(tree: PyTree) -> PyTree:
    """The same arrays as nobody else's, to be donated: optimizers may keep one of the user's, or one twice."""
    return jax.tree.map(jnp.copy, tree)


def make_train_step(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    *,
    tasks_per_chunk: int | None = None,
    nonfinite: Nonfinite = "skip",
    max_task_norm: float = MAX_TASK_NORM,
    devices: Sequence[jax.Device] | None = None,
) -> Callable[[TrainState, Task], tuple[TrainState, dict[str, Array]]]:
    """One meta-step: the mean loss over tasks, its meta-gradient, one optimizer update.

    An inner loop may diverge on one task of many. A task whose loss, state or
    length of the meta-gradient is not finite never reaches the parameters, and one
    on its way there, of a huge meta-gradient, is bounded.

    Args:
        learner: what is trained.
        optimizer: the outer optimizer.
        tasks_per_chunk: how many tasks are vmapped at a time, the gradients of
            the chunks being added up. The result is the same to rounding; time
            and memory are not. None takes as many as keep their arrays within
            the backend's bound: the cache on a CPU, where that is often one.
        nonfinite: `"skip"` leaves such tasks out of the mean; a step without a
            finite task changes no parameter. `"raise"` gives the state back as it
            was if there is one such task, for the caller to stop, as `fit` does; a
            `make_train_loop` goes on with other tasks.
        max_task_norm: a longer meta-gradient of a task is scaled down to this
            length before the mean; `math.inf` for no bound. The default is meant
            to be out of the way of losses that are means over examples and of
            targets of order one; where losses are larger, set it.
        devices: those that the tasks are divided over, `jax.local_devices()` say;
            `tasks_per_chunk` is then of each. A batch that they do not divide is
            filled up with tasks that do not count. The result is the same to
            rounding. None: each device on which the state lies does all the work.

    Returns:
        `(state, tasks [T, ...]) -> (state, metrics)`, pure: jit it, and donate
        the state if you like. Metrics: the learner's own and the `"loss"`,
        averaged over finite tasks; the `"gradient_norm"` of the meta-gradient; both
        NaN without such a task; and the number of `"nonfinite_tasks"`.

    Raises:
        ValueError: for fewer than 1 task per chunk, an unknown policy, a bound
            that is not positive, or devices that cannot share tasks; from the step, for
            what is no batch of tasks, and for a loss that gives back another state than
            it was given, by shapes and dtypes.

    Example:
        >>> from jmeta import data, learners, models
        >>> sample, optimizer = data.glyphs(), optax.adam(1e-3)
        >>> learner = learners.protonet(models.mlp(outputs=None))
        >>> state = init_state(learner, optimizer, jax.random.key(0), sample(jax.random.key(1)))
        >>> tasks = jax.vmap(sample)(jax.random.split(jax.random.key(2), 4))
        >>> state, metrics = jax.jit(make_train_step(learner, optimizer))(state, tasks)
        >>> sorted(metrics)
        ['accuracy', 'gradient_norm', 'loss', 'nonfinite_tasks']
    """
    if tasks_per_chunk is not None:
        check_counts(least=1, tasks_per_chunk=tasks_per_chunk)
    check_policy(nonfinite, max_task_norm)
    devices = as_devices(devices)
    # A learner is pure, so that one trace of its loss serves `init`, the choice of a chunk and the gradient.
    task_loss = jax.jit(learner.loss)

    def contribution(shared, task, key, is_counted):
        """A task's weight, and what is added up: its gradient [P], times the weight, its state, metrics and itself.

        All are zeros if it is not finite, the gradient too, since zero times NaN is NaN.
        """
        params, state = shared
        differentiate = jax.value_and_grad(task_loss, has_aux=True)
        (loss, (after, metrics)), gradient = differentiate(params, state, task, key=key)
        _check_state(state, after)
        loss, state = jax.tree.map(_to_add_up, (loss, after))
        # As one vector it is measured and added up in two operations, not in two for each parameter. Behind a barrier,
        # or XLA computes it again in both.
        gradient = _to_add_up(ravel_pytree(lax.optimization_barrier(gradient))[0])
        length = jnp.linalg.norm(gradient)
        is_finite = _all_finite((loss, length, state)) & is_counted
        measured = jax.tree.map(lambda value: jnp.asarray(value, loss.dtype), {**metrics, "loss": loss})
        parts = gradient, state, measured, jnp.ones((), jnp.float32)
        parts = jax.tree.map(lambda leaf: jnp.where(is_finite, leaf, 0) if _is_summed(leaf) else leaf, parts)
        return jnp.where(is_finite, jnp.minimum(1, max_task_norm / length), 0), *parts

    def total_of_chunk(shared, batch):
        weight, gradient, *parts = map_tasks(functools.partial(contribution, shared), *batch)
        # A product is faster than to scale and reduce; an accelerator would round its operands.
        gradient = jnp.matmul(weight, gradient, precision="highest")
        return gradient, *jax.tree.map(lambda leaf: leaf.sum(0) if _is_summed(leaf) else leaf[-1], parts)

    def total_of_device(shared, batch):
        params, state = shared
        tasks, keys, _ = batch
        one = jax.eval_shape(lambda tasks: jax.tree.map(lambda leaf: leaf[0], tasks), tasks)
        loss = functools.partial(task_loss, params, state, key=keys[0])
        chunk = min(tasks_per_chunk or default_chunk(len(keys), loss, one), len(keys))
        return _sum_over_chunks(functools.partial(total_of_chunk, shared), batch, chunk)

    total = over_devices(total_of_device, devices, _sum_over_devices)

    def train_step(train_state, tasks):
        params, state, opt_state, key, step = train_state
        number = _number_of_tasks(tasks)
        keys = jax.random.split(key, number + 1)
        batch, is_counted = filled_up((tasks, keys[1:]), device_count(devices))
        gradient, new_state, metrics, finite = total((params, state), (*batch, is_counted))
        flat, unravel = ravel_pytree(params)
        gradient, new_state = jax.tree.map(
            lambda leaf, like: (leaf / jnp.maximum(finite, 1)).astype(like.dtype) if _is_summed(leaf) else leaf,
            (gradient, new_state),
            (gradient, state),
        )
        updates, opt_state = optimizer.update(unravel(gradient.astype(flat.dtype)), opt_state, params)
        after = TrainState(optax.apply_updates(params, updates), new_state, opt_state, keys[0], step + 1)
        if nonfinite == "raise":
            is_taken, before = finite == number, train_state
        else:
            is_taken, before = finite > 0, train_state._replace(key=keys[0], step=step + 1)
        metrics = {name: value / finite for name, value in metrics.items()}
        length = jnp.where(finite > 0, jnp.linalg.norm(gradient), jnp.nan)
        metrics |= {"gradient_norm": length, "nonfinite_tasks": jnp.int32(number - finite)}
        return jax.tree.map(functools.partial(jnp.where, is_taken), after, before), metrics

    return train_step


def _is_summed(leaf: Array) -> bool:
    """Whether tasks add up; integers, a count in a model's state say, are the same in all of them."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _to_add_up(leaf: Array) -> Array:
    """The numbers in a precision that can be added up."""
    return leaf.astype(at_least_single(leaf.dtype)) if _is_summed(leaf) else leaf


def _all_finite(tree: PyTree) -> Array:
    """Whether every number is finite, a scalar."""
    found = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree) if _is_summed(leaf)]
    return jnp.stack(found).all() if found else jnp.bool_(True)


def make_train_loop(
    train_step: Callable, sample: Callable[[Array], Task], *, batch_size: int, steps: int
) -> Callable[[TrainState], tuple[TrainState, dict[str, Array]]]:
    """Many meta-steps in one dispatch, their tasks sampled on the device.

    Args:
        train_step: from `make_train_step`, or one of your own.
        sample: `(key) -> Task`.
        batch_size: tasks in a meta-step.
        steps: meta-steps in the loop.

    Returns:
        `(state) -> (state, metrics [steps])`, pure.

    Raises:
        ValueError: for a batch of fewer than 1 task, or fewer than 0 steps.
    """
    check_counts(least=1, batch_size=batch_size)
    check_counts(steps=steps)

    def one(state, _):
        keys = jax.random.split(state.key, batch_size + 1)
        return train_step(state._replace(key=keys[0]), jax.vmap(sample)(keys[1:]))

    return lambda state: lax.scan(one, state, None, length=steps)


def fit(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    sample: Callable[[Array], Task],
    *,
    key: Array,
    steps: int,
    batch_size: int,
    validation: Callable[[Array], Task] | None = None,
    episodes: int = 200,
    out: str | os.PathLike | None = None,
    config: dict[str, Any] | None = None,
    log_every: int = 10,
    save_every: int = 500,
    tasks_per_chunk: int | None = None,
    nonfinite: Nonfinite = "skip",
    max_task_norm: float = MAX_TASK_NORM,
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """Meta-trains a learner: progress bar, validation, checkpoints, metrics, clean stop, exact resume.

    A run is resumed by calling `fit` again with the same arguments. Killed at
    any moment and resumed, it ends with the parameters of a run that was not.
    SIGINT and SIGTERM end it after the current dispatch, with a checkpoint. So does
    a validation that fails, out of memory say, and is not made up for on resuming.

    Args:
        learner: what is trained.
        optimizer: the outer optimizer.
        sample: `(key) -> Task`, the training tasks; called once as it is, and then compiled
            with the meta-step and used again in the next call: what it reads from outside
            is as it was then; make a new function if that changes.
        key: PRNG key, which alone decides initial parameters and tasks.
        steps: meta-steps in the whole run.
        batch_size: tasks in a meta-step.
        validation: `(key) -> Task`; the same tasks are evaluated each time.
        episodes: how many of them.
        out: the run's folder, for `checkpoints/`, `metrics.jsonl` and
            `tensorboard/`; None keeps nothing.
        config: a dict of what JSON can say that rebuilds the learner, saved with
            every checkpoint, with `key` and `batch_size`; a run with another
            config in `out` is refused.
        log_every: meta-steps in a dispatch, and between lines of metrics.
        save_every: meta-steps between checkpoints and evaluations, a multiple
            of `log_every`.
        tasks_per_chunk: as for `make_train_step`.
        nonfinite: as for `make_train_step`.
        max_task_norm: as for `make_train_step`.
        devices: as for `make_train_step`; validation is divided over all of them,
            a batch over no more than it has tasks. Each gets a copy of what the
            samplers hold. A run that goes on with another number of devices ends
            with the same parameters to rounding.

    Returns:
        The last state, on each device that batches were divided over; its `step` is
        below `steps` if a signal ended the run.

    Raises:
        ValueError: for numbers out of range, devices that cannot share tasks,
            `save_every` not a multiple of `log_every`, a `config` that JSON cannot say
            or whose `key` or `batch_size` is not this run's, another run in `out`,
            finished or under way, or `validation` of other ways than the learner's
            outputs.
        FloatingPointError: when a parameter is no longer finite, or there was no
            finite task from one line of metrics to the next; or, under
            `nonfinite="raise"`, at the first task that is not finite, when the
            state before it is saved. It names the step and the last good
            checkpoint, which is one that a finite step has followed; the metrics
            before it are written.
    """
    check_schedule(steps, batch_size, log_every, save_every, episodes)
    check_policy(nonfinite, max_task_norm)
    key = as_key(key)
    config = _config(config or {}, key=jax.random.key_data(key).tolist(), batch_size=int(batch_size))
    devices = as_devices(devices)
    step_devices = None if devices is None else devices[:batch_size]
    init_key, validation_key = jax.random.split(key)
    sampler = on_each_device(as_argument(sample), step_devices)
    if validation is not None:
        validation = on_each_device(as_argument(validation), devices)
    task = sample(validation_key)
    state = init_state(learner, optimizer, init_key, task, devices=step_devices)
    if validation is not None:
        check_episodes(learner, state, validation, episodes=episodes, devices=devices)
    with contextlib.ExitStack() as held:
        if out is not None:
            held.enter_context(sole_writer(out))
        folder, saved = None if out is None else Path(out) / "checkpoints", None
        if folder is not None and (saved := checkpoints.latest_step(folder)) is not None:
            checkpoints.check_config(folder, config)
            state = on_each_device(checkpoints.restore(folder, state), step_devices)
        state = _own(state)
        options = batch_size, tasks_per_chunk, nonfinite, float(max_task_norm), step_devices
        loop = _compiled_loop(learner, optimizer, *options, jax.tree.structure(sampler))
        dispatch = functools.partial(_dispatch, loop, sampler)

        done = last_finite = int(state.step)  # the last step with a finite task
        stopping = held.enter_context(_stop_signals())
        reporter = held.enter_context(_Reporter(out, steps, done, batch_size))
        while done < steps and not stopping.is_set():
            # Up to the next line of metrics, wherever the run was stopped before.
            before = state
            state, metrics, is_finite, seconds = dispatch(state, min(log_every - done % log_every, steps - done))
            last_finite = _last_finite(metrics, done, before=last_finite)
            good = _good_steps(metrics, is_finite, nonfinite)
            is_diverged = good < len(metrics["loss"])
            metrics = {name: values[:good] for name, values in metrics.items()}
            done += good
            if is_diverged:
                reporter.write(done, metrics, None, seconds)
                if folder is not None and nonfinite == "raise" and (saved or 0) < done:
                    checkpoints.save(folder, dispatch(before, good)[0], config=config)
                raise FloatingPointError(_diverged(min(done, last_finite) + 1, last_finite, folder))
            is_due = done % save_every == 0 or done == steps
            report = None
            with contextlib.ExitStack() as at_last:
                if folder is not None and is_due:  # what was trained is kept, also if its validation or metrics fail
                    at_last.callback(checkpoints.save, folder, state, config=config)
                    saved = done
                try:
                    if validation is not None and is_due:
                        report = evaluate(
                            learner, state, validation, key=validation_key, episodes=episodes, devices=devices
                        )
                finally:
                    reporter.write(done, metrics, report, seconds)
        if folder is not None and saved != done:
            checkpoints.save(folder, state, config=config)
    return state


def _config(told: dict[str, Any], **own: Any) -> dict[str, Any]:
    """What a user tells of a run, and what is its own."""
    if not isinstance(told, dict):
        raise ValueError(f"config is {told!r}; it must be a dict of what JSON can say.")
    try:
        json.dumps(told, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config is {told!r}; it must be what JSON can say, and {error}.") from error
    for name, value in own.items():
        if name in told and json.loads(json.dumps(told[name])) != value:
            raise ValueError(f"config says that {name} is {told[name]}, but fit was given {value}; leave it out.")
    return told | own


# Kept, so that another run of the same functions, as one that goes on, does not compile again; one for each
# sampler, so that a loop that is dropped frees what its sampler holds.
@functools.lru_cache(maxsize=16)
def _compiled_loop(
    learner, optimizer, batch_size, tasks_per_chunk, nonfinite, max_task_norm, devices, sampler_structure
):
    """`(state, sampler, steps) -> (state, metrics, whether parameters and state are finite)`."""
    train_step = make_train_step(
        learner,
        optimizer,
        tasks_per_chunk=tasks_per_chunk,
        nonfinite=nonfinite,
        max_task_norm=max_task_norm,
        devices=devices,
    )

    # Under "raise" the state before a dispatch is kept, so that the good steps of it can be run again.
    @functools.partial(jax.jit, static_argnames="steps", donate_argnames=() if nonfinite == "raise" else ("state",))
    def loop(state, sampler, steps):
        state, metrics = make_train_loop(train_step, sampler, batch_size=batch_size, steps=steps)(state)
        return state, metrics, _all_finite((state.params, state.state))

    return loop


def _dispatch(loop, sampler, state, steps):
    """So many meta-steps: the state, their metrics, whether parameters and state are finite, seconds."""
    start = time.perf_counter()
    state, metrics, is_finite = loop(state, sampler, steps)
    metrics = jax.tree.map(np.asarray, metrics)  # waits for the device
    return state, metrics, bool(is_finite), time.perf_counter() - start


class _Reporter:
    """Tells of a run's progress: a bar on a terminal, and metrics in the run's folder."""

    def __init__(self, out, steps, done, batch_size):
        self._log = None if out is None else MetricsLog(out, step=done)
        self._bar = tqdm(total=steps, initial=done, unit="step", disable=None)
        self._batch_size = batch_size

    def write(self, done: int, metrics: dict[str, np.ndarray], report: Report | None, seconds: float) -> None:
        """Tells of the steps up to `done`, that took `seconds`, and of the validation after them."""
        number = len(metrics["loss"])
        if number == 0:
            return
        # A step without a finite task has no loss.
        values = {name: float(np.nanmean(array)) for name, array in metrics.items()}
        values["nonfinite_tasks"] = int(metrics["nonfinite_tasks"].sum())
        if report is not None:
            values |= {"validation_loss": report.loss, "validation_loss_ci95": report.loss_ci95}
            if report.accuracy is not None and report.ci95 is not None:
                values |= {"validation_accuracy": report.accuracy, "validation_accuracy_ci95": report.ci95}
            if not self._bar.disable:
                self._bar.write(f"step {done}: validation {report}")
        if self._log is not None:
            self._log.write(done, values)
        rate = {"tasks/s": f"{number * self._batch_size / seconds:.3g}"}
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()} | rate)
        self._bar.update(number)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()
        if self._log is not None:
            self._log.close()


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set while the block runs; a second signal does what it always did."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number, _):
        stopping.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_schedule(steps: int, batch_size: int, log_every: int, save_every: int, episodes: int) -> None:
    """Raises a `ValueError` for numbers that `fit` cannot take."""
    check_counts(steps=steps)
    check_counts(least=1, batch_size=batch_size, log_every=log_every)
    check_counts(least=2, episodes=episodes)
    if not is_count(save_every, least=1) or save_every % log_every:
        raise ValueError(f"save_every is {save_every}; it must be a multiple of log_every, {log_every}.")


def _good_steps(metrics: dict[str, np.ndarray], is_finite: bool, nonfinite: Nonfinite) -> int:
    """How many meta-steps of a dispatch went well; the last one only if it left finite parameters."""
    if nonfinite == "raise":
        bad = metrics["nonfinite_tasks"] > 0
    else:
        # One step without a finite task may be bad luck; a whole dispatch is not.
        bad = np.full(len(metrics["loss"]), np.isnan(metrics["loss"]).all())
    bad[-1] |= not is_finite
    return int(bad.argmax()) if bad.any() else len(bad)


def _last_finite(metrics: dict[str, np.ndarray], done: int, *, before: int) -> int:
    """The last step with a finite task: of those that follow `done`, or that of `before`."""
    found = np.flatnonzero(~np.isnan(metrics["loss"]))
    return done + int(found[-1]) + 1 if len(found) else before


def _diverged(step: int, last_finite: int, folder: Path | None) -> str:
    """What is told of a run that is not finite at a step, and had no finite task after `last_finite`."""
    saved = [] if folder is None else sorted(checkpoints.saved_steps(folder))
    # A step may have a finite loss and ruin the parameters: only a finite step after it shows a checkpoint to be good.
    good = max((at for at in saved if at < last_finite), default=None)
    kept = "no checkpoint is known to be good" if good is None else f"the last good checkpoint is {folder}/{good}"
    if saved and saved[-1] != good:
        kept += f": no finite meta-step has followed {folder}/{saved[-1]}"
    return f"tasks' losses, states or meta-gradients, or a parameter, are not finite at meta-step {step}; {kept}."


def check_policy(nonfinite: str, max_task_norm: float) -> None:
    """Raises a `ValueError` for a policy on single tasks that `make_train_step` cannot take."""
    if nonfinite not in get_args(Nonfinite):
        raise ValueError(f"nonfinite is {nonfinite!r}; it must be one of {get_args(Nonfinite)}.")
    if not max_task_norm > 0:
        raise ValueError(f"max_task_norm is {max_task_norm}; it must be above 0, or infinite for no bound.")


def _sum_over_chunks(function: Callable, batch: PyTree, chunk: int) -> PyTree:
    """The sum of `function` over chunks of the leading axis of `batch`, the last one perhaps shorter.

    Leaves that do not add up are those of the last chunk.
    """
    number = len(jax.tree.leaves(batch)[0])
    if chunk == number:
        return function(batch)
    whole = number // chunk * chunk
    chunks = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, chunk, *leaf.shape[1:]), batch)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], chunks)),
    )

    def add(sums, one):
        return jax.tree.map(lambda a, b: a + b if _is_summed(b) else b, sums, function(one)), None

    sums, _ = lax.scan(add, zeros, chunks)
    if whole < number:
        sums, _ = add(sums, jax.tree.map(lambda leaf: leaf[whole:], batch))
    return sums


def _sum_over_devices(sums: PyTree) -> PyTree:
    """What leaves add up to over all devices; those that do not are one device's.

    Those of a dtype are summed as one vector: on a CPU each array costs all devices a wait for each other, and in a
    step of a small network they wait for a sixth of it (docs/decisions/0014-devices.md).
    """
    leaves, structure = jax.tree.flatten(sums)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves if _is_summed(leaf)):
        places = [place for place, leaf in enumerate(leaves) if leaf.dtype == dtype]
        vector, unravel = ravel_pytree([leaves[place] for place in places])
        for place, total in zip(places, unravel(lax.psum(vector, TASKS)), strict=True):
            leaves[place] = total
    return jax.tree.unflatten(structure, leaves)


def _number_of_tasks(tasks: Task) -> int:
    """How many tasks a batch has."""
    shape = jnp.shape(tasks.query.mask)
    if len(shape) != 2 or not shape[0]:
        raise ValueError(
            f"tasks.query.mask has shape {shape}; a step takes a batch of tasks, every array with one axis more: here "
            "[T, Q], with T at least 1."
        )
    for path, leaf in by_path(tasks).items():
        if jnp.shape(leaf)[:1] != shape[:1]:
            raise ValueError(
                f"tasks{path} has shape {jnp.shape(leaf)}, but tasks.query.mask {shape}; the first axis of all must be "
                f"the tasks, {shape[0]}."
            )
    return shape[0]


def _check_state(before: PyTree, after: PyTree) -> None:
    """Raises a `ValueError` if a learner's loss gives back another state than it was given."""
    if difference := first_difference(by_path(before), by_path(after)):
        name, given, found = difference
        raise ValueError(
            f"the learner's loss was given a state whose {name or 'array'} is {given}, and gave back one where it is "
            f"{found}."
        )


def _check_task(task: Task) -> None:
    """Raises a `ValueError` for labels as targets, or if a class has queries and no support example."""
    for name in ("support", "query"):
        check_examples(f"task.{name}", getattr(task, name))
    if _is_traced(task):
        return
    widths = [np.shape(part.targets)[1] for part in (task.support, task.query)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"task.support has targets of {widths[0]} columns and task.query of {widths[1]}; they must be the same."
        )
    targets = [_real_targets(part) for part in (task.support, task.query)]
    if not all(map(_is_one_hot, targets)):
        return
    support, query = (real.sum(0) for real in targets)
    for index in np.flatnonzero((support == 0) & (query > 0)):
        raise ValueError(f"class {index} of the task has queries but no support example; each class needs one.")


def _check_objective(learner: Learner, params: PyTree, state: PyTree, task: Task) -> None:
    """Raises a `ValueError` for real numbers as targets of a loss over classes."""
    if _is_traced(task):
        return
    is_over_classes = all(_is_distribution(_real_targets(part)) for part in (task.support, task.query))
    if not is_over_classes and tells_accuracy(learner, params, state, task):
        raise ValueError(
            "the learner's loss is over classes, but the task's targets are neither one-hot nor probabilities; if they "
            "are real numbers, take a loss of such, as loss_fn=losses.squared_error."
        )


def _is_traced(task: Task) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(task))


def _real_targets(examples: Examples) -> np.ndarray:
    """The targets of the examples that are not padding."""
    return np.asarray(examples.targets)[np.asarray(examples.mask) > 0]


def _is_distribution(targets: np.ndarray) -> bool:
    sums = targets.astype(np.float64).sum(1)
    return bool((targets >= 0).all() and np.allclose(sums, 1, atol=1e-2))  # as near as half precision is


def _is_one_hot(targets: np.ndarray) -> bool:
    return bool(np.isin(targets, (0, 1)).all() and (targets.sum(1) == 1).all())
