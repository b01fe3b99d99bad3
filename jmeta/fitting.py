"""A whole run of meta-training: progress bar, validation, checkpoints, metrics, clean stop, exact resume."""

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jmeta import checkpoints
from jmeta.batching import as_argument, as_devices, on_each_device
from jmeta.checks import (
    as_key,
    check_chunk,
    check_counts,
    check_functions,
    check_learner,
    check_samplers,
    check_task,
    drawn,
    is_count,
    warn,
)
from jmeta.evaluation import check_episodes, evaluate, Report
from jmeta.files import sole_writer
from jmeta.reporting import Reporter
from jmeta.signals import stop_signals
from jmeta.training import (
    all_finite,
    check_policy,
    init_state,
    make_train_loop,
    make_train_step,
    MAX_TASK_NORM,
    Nonfinite,
    unshared,
)
from jmeta.types import Array, Learner, Task, TrainState

# A dispatch has room for the metrics of `log_every` meta-steps, or of the whole run if that is shorter. A run counts as
# at least this long, so that resuming it for more steps need not compile again; 10,000 rows are little memory.
LEAST_ROOM = 10_000
# Meta-steps in a row without a finite task that end a run, if a dispatch is shorter; our choice.
LEAST_PATIENCE = 10


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
    on_log: Callable[[int, dict[str, float]], None] | None = None,
    save_every: int = 500,
    tasks_per_chunk: int | None = None,
    nonfinite: Nonfinite = "skip",
    max_task_norm: float = MAX_TASK_NORM,
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """Meta-trains a learner: progress bar, validation, checkpoints, metrics, clean stop, exact resume.

    A run is resumed by calling `fit` again with the same arguments. Killed at any
    moment and resumed, it ends with the parameters of an uninterrupted run. In the main
    thread, SIGINT and SIGTERM end it after the current dispatch, with a checkpoint and a
    warning, and without a validation that is due. If a validation fails (out of memory,
    for example), the checkpoint is saved and the error raised. Resuming does not make
    up for a validation left out or failed. A warning is given the first time non-finite
    tasks are left out. Validations are printed, unless `on_log` is given; the progress
    bar shows only on a terminal.

    Args:
        learner: the learner to be trained.
        optimizer: the outer optimizer.
        sample: `(key) -> Task`, the training tasks. Called once as it is, then compiled
            with the meta-step and reused by later calls, so values it reads from
            outside are frozen at the first; to change them, pass a new function. Arrays
            it closes over stay in memory as long as the compiled function; pass large
            ones by `jax.tree_util.Partial(function, arrays)`, as `data.episodes` does.
        key: PRNG key, which alone determines the initial parameters and the tasks.
        steps: meta-steps in the whole run.
        batch_size: tasks per meta-step.
        validation: `(key) -> Task`. The same tasks are evaluated each time; their loss
            is that of a `Report`, whatever the learner's own is. The checkpoint with
            the highest accuracy, or lowest loss of regression, is kept beside the two
            newest: `checkpoints.best_step` finds it. A resumed run compares it with
            those saved before, so keep `validation` and `episodes` as they were.
        episodes: number of validation tasks.
        out: the run's folder, for `checkpoints/`, `metrics.jsonl` and `tensorboard/`;
            None saves nothing.
        config: a JSON-serialisable dict from which the learner can be rebuilt, saved
            with every checkpoint together with `key` and `batch_size`. A run in `out`
            that was saved with a different value of any entry is refused; saved entries
            not given here are kept. Nothing else detects changed hyperparameters of a
            learner or optimizer.
        log_every: meta-steps in a dispatch, and between lines of metrics.
        on_log: `(step, metrics)`, called for each line of metrics with what
            `metrics.jsonl` has, validation included: for a plot, or another tracker,
            which then tells of validations in place of `fit`.
            Steps after the last checkpoint of a killed run come again when it resumes.
        save_every: meta-steps between checkpoints and evaluations, a multiple
            of `log_every`.
        tasks_per_chunk: as for `make_train_step`; at most as many in validation, too.
        nonfinite: as for `make_train_step`.
        max_task_norm: as for `make_train_step`.
        devices: as for `make_train_step`; validation is divided over all of them, a
            batch over no more than it has tasks. Each gets a copy of what the samplers
            hold. A run resumed on another number of devices ends with the same
            parameters to rounding.

    Returns:
        The last state, on each device that batches were divided over; its `step` is
        less than `steps` if a signal ended the run.

    Raises:
        ValueError: for numbers out of range, devices that cannot share tasks,
            `save_every` not a multiple of `log_every`, a `config` that JSON cannot
            represent or whose `key` or `batch_size` is not this run's, another run in
            `out`, finished or under way, a run there that has already taken more steps,
            or `validation` with another number of ways than the learner has outputs.
        FloatingPointError: when a parameter is no longer finite, or no task was finite
            in a whole dispatch and in the last 10 meta-steps, since the run began or
            was resumed, or in all of a run of fewer; or, under `nonfinite="raise"`, at
            the first task that is not finite, after the state before that step is
            saved, if any step was taken. The error names the step and the last good
            checkpoint, one that a finite step has followed; the metrics before that
            step are written.

    Example:
        >>> from jmeta import data, learners, models
        >>> learner = learners.protonet(models.mlp(outputs=None))
        >>> state = fit(learner, optax.adam(1e-3), data.glyphs(), key=jax.random.key(0), steps=2, batch_size=4)
        >>> print(state.step)
        2
    """
    check_schedule(steps, batch_size, log_every, save_every, episodes)
    check_policy(nonfinite, max_task_norm)
    check_chunk(tasks_per_chunk)
    check_learner(learner)
    check_samplers(sample=sample)
    if validation is not None:
        check_samplers(validation=validation)
    if on_log is not None:
        check_functions("of a meta-step and its metrics", on_log=on_log)
    key = as_key(key)
    config = _config(config or {}, key=jax.random.key_data(key).tolist(), batch_size=int(batch_size))
    devices = as_devices(devices)
    step_devices = None if devices is None else devices[:batch_size]
    init_key, validation_key = jax.random.split(key)
    sampler = on_each_device(as_argument(sample), step_devices)
    task = drawn(sample, validation_key)
    state = init_state(learner, optimizer, init_key, task, devices=step_devices)
    validate = _validator(learner, state, validation, validation_key, episodes, tasks_per_chunk, devices)
    with contextlib.ExitStack() as held:
        if out is not None:
            held.enter_context(sole_writer(out))
        kept = _Kept(out, config, steps)
        state = unshared(on_each_device(kept.newest(state), step_devices))
        room = min(log_every, max(LEAST_ROOM, steps))
        options = room, batch_size, tasks_per_chunk, nonfinite, float(max_task_norm), step_devices
        loop = _compiled_loop(learner, optimizer, *options, jax.tree.structure(sampler))
        dispatch = functools.partial(_dispatch, loop, sampler)

        done = last_finite = int(state.step)  # the last step that had a finite task
        stopping = held.enter_context(stop_signals())
        reporter = held.enter_context(Reporter(out, on_log, steps, done, batch_size))
        report: Report | None = None  # of the last dispatch
        while done < steps and not stopping:
            # Up to the next line of metrics, wherever the run was stopped before.
            ran = dispatch(state, begun=done, steps=min(log_every - done % log_every, steps - done))
            state, report = ran.state, None
            last_finite = _last_finite(ran, before=last_finite)
            good = _good_steps(ran, last_finite, patience=min(LEAST_PATIENCE, steps))
            done += good
            if good < ran.tried:
                try:
                    reporter.write(done, {name: values[:good] for name, values in ran.metrics.items()}, ran.seconds)
                finally:
                    if nonfinite == "raise" and done > 0:
                        kept.save(state)
                raise FloatingPointError(_diverged(ran, done, last_finite, batch_size, nonfinite, kept.folder))
            is_due = done % save_every == 0 or done == steps
            try:
                try:
                    # Whoever sends a signal may not wait for a validation: first the checkpoint.
                    report = validate(state) if is_due and not stopping else None
                finally:
                    reporter.write(done, ran.metrics, ran.seconds, report)
            finally:
                # Saved even if its validation or metrics fail. A dispatch without a finite task changed no parameter:
                # its checkpoint would take the place of one that may be needed.
                if is_due and last_finite > ran.begun:
                    kept.save(state, report)
            reporter.warn(done, ran.metrics)
        kept.save(state, report)
    if done < steps:
        goes_on = "" if out is None else f"; fit with the same arguments goes on from {out}"
        warn(f"{stopping[0].name} ended the run at meta-step {done} of {steps}{goes_on}.")
    elif stopping:
        warn(f"{stopping[0].name} came in the last dispatch of the run, which is complete.")
    return state


def check_schedule(steps: int, batch_size: int, log_every: int, save_every: int, episodes: int) -> None:
    """Raises a `ValueError` unless these numbers make a schedule that `fit` can run."""
    check_counts(steps=steps)
    check_counts(least=1, batch_size=batch_size, log_every=log_every)
    check_counts(least=2, episodes=episodes)
    if not is_count(save_every, least=1) or save_every % log_every:
        raise ValueError(f"save_every is {save_every}; it must be a multiple of log_every, {log_every}.")


def check_taken(folder: Path, taken: int, steps: int) -> None:
    """Raises a `ValueError` if the run in a folder has already taken more meta-steps than `steps`."""
    if steps < taken:
        raise ValueError(
            f"steps is {steps}, but the run in {folder} has already taken {taken}; it must be at least {taken}."
        )


def _validator(learner, first, sample, key, episodes, tasks_per_chunk, devices):
    """`(state) -> Report` of the validation tasks, which are tried on the first state; `-> None` if there are none."""
    if sample is None:
        return lambda state: None
    check_task(drawn(sample, key))
    sample = on_each_device(as_argument(sample), devices)
    check_episodes(learner, first, sample, episodes=episodes, devices=devices)
    options = {"episodes": episodes, "tasks_per_chunk": tasks_per_chunk, "devices": devices}
    return lambda state: evaluate(learner, state, sample, key=key, **options)


class _Kept:
    """The checkpoints of a run, if it has a folder.

    Entries that only an earlier configuration has are kept: rebuilding the run still needs them.
    """

    def __init__(self, out, config, steps):
        self.folder = None if out is None else Path(out) / "checkpoints"
        self._step = None if self.folder is None else checkpoints.latest_step(self.folder)
        self._config = config
        if self.folder is not None and self._step is not None:
            self._config = checkpoints.check_config(self.folder, config) | config
            check_taken(self.folder.parent, self._step, steps)

    def newest(self, start: TrainState) -> TrainState:
        """The state saved last, or the start if there is none."""
        if self.folder is None or self._step is None:
            return start
        return checkpoints.restore(self.folder, start)

    def save(self, state: TrainState, report: Report | None = None) -> None:
        """Saves a state, unless it already is, with the score that its validation gave it."""
        if self.folder is not None and state.step != self._step:
            checkpoints.save(self.folder, state, config=self._config, score=_score(report))
            self._step = int(state.step)


def _score(report: Report | None) -> float | None:
    """The accuracy, or for regression the negative error; None without a report."""
    if report is None:
        return None
    return -report.loss if report.accuracy is None else report.accuracy


def _config(given: dict[str, Any], **own: Any) -> dict[str, Any]:
    """The user's configuration merged with the run's own entries."""
    if not isinstance(given, dict):
        raise ValueError(f"config is {given!r}; it must be a dict that JSON can represent.")
    try:
        json.dumps(given, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config is {given!r}; it must be a dict that JSON can represent: {error}.") from error
    for name, value in own.items():
        if name in given and json.loads(json.dumps(given[name])) != value:
            raise ValueError(f"config says that {name} is {given[name]}, but fit was given {value}; leave it out.")
    return given | own


# Cached, so that another run of the same functions, such as a resumed one, does not compile again. One for each
# sampler, so that a loop that is dropped frees what its sampler holds. The size is our choice.
@functools.lru_cache(maxsize=16)
def _compiled_loop(
    learner, optimizer, room, batch_size, tasks_per_chunk, nonfinite, max_task_norm, devices, sampler_structure
):
    """`(state, sampler, steps) -> (state, steps tried, metrics [room], whether parameters and state are finite)`.

    One compiled function serves any number of steps up to `room`. A step that `"raise"` refuses is the last.
    """
    train_step = make_train_step(
        learner,
        optimizer,
        tasks_per_chunk=tasks_per_chunk,
        nonfinite=nonfinite,
        max_task_norm=max_task_norm,
        devices=devices,
    )

    @functools.partial(jax.jit, donate_argnames="state")
    def loop(state, sampler, steps):
        one_step = jax.jit(make_train_loop(train_step, sampler, batch_size=batch_size, steps=1))
        start = state.step

        def goes_on(carry):
            tried, state, _ = carry
            return (tried < steps) & (state.step == start + tried)

        def add(carry):
            tried, before, metrics = carry
            state, found = one_step(before)
            # The loop has split the key even if the step was refused. Such a run, resumed, meets the same tasks again.
            state = state._replace(key=jnp.where(state.step == before.step, before.key, state.key))
            return tried + 1, state, jax.tree.map(lambda values, new: values.at[tried].set(new[0]), metrics, found)

        _, shapes = jax.eval_shape(one_step, state)
        metrics = jax.tree.map(lambda leaf: jnp.zeros(room, leaf.dtype), shapes)
        tried, state, metrics = lax.while_loop(goes_on, add, (jnp.int32(0), state, metrics))
        return state, tried, metrics, all_finite((state.params, state.state))

    return loop


class _Dispatch(NamedTuple):
    """What came of the meta-steps of one dispatch.

    Attributes:
        state: the state after the last step that was taken.
        begun: the step before the first.
        tried: the number of steps tried: those taken, and perhaps one that `"raise"` refused.
        metrics: [tried] those of each step.
        is_finite: whether parameters and running statistics are finite.
        seconds: how long it took.
    """

    state: TrainState
    begun: int
    tried: int
    metrics: dict[str, np.ndarray]
    is_finite: bool
    seconds: float


def _dispatch(loop, sampler, state, *, begun, steps):
    """Tries up to `steps` meta-steps after step `begun`, that of the state."""
    start = time.perf_counter()
    # A number of one type, or the loop would be compiled again for steps that the user counts in NumPy's.
    state, tried, metrics, is_finite = loop(state, sampler, np.int32(steps))
    tried = int(tried)  # waits for the device
    metrics = jax.tree.map(lambda values: np.asarray(values)[:tried], metrics)
    return _Dispatch(state, begun, tried, metrics, bool(is_finite), time.perf_counter() - start)


def _last_finite(ran: _Dispatch, *, before: int) -> int:
    """The last step with a finite task, which was `before` up to this dispatch."""
    found = np.flatnonzero(~np.isnan(ran.metrics["loss"]))
    return ran.begun + int(found[-1]) + 1 if len(found) else before


def _good_steps(ran: _Dispatch, last_finite: int, patience: int) -> int:
    """How many steps of a dispatch went well: of those taken, the last only if it left finite parameters.

    None did if no task was finite in it, nor for `patience` steps.
    """
    taken = int(ran.state.step) - ran.begun
    if taken < ran.tried:
        return taken
    is_hopeless = ran.begun + ran.tried - last_finite >= max(patience, ran.tried)
    return 0 if is_hopeless else taken - (not ran.is_finite)


def _diverged(
    ran: _Dispatch, done: int, last_finite: int, batch_size: int, nonfinite: Nonfinite, folder: Path | None
) -> str:
    """The error message for a run that went well up to `done`, without a finite task after `last_finite`."""
    step = min(done, last_finite) + 1
    # A step of an earlier dispatch is one that no finite task has followed.
    bad = batch_size if step <= ran.begun else int(ran.metrics["nonfinite_tasks"][step - 1 - ran.begun])
    # Under "skip", some bad tasks stop nothing: it was all of them, or else the parameters.
    is_of_tasks = bad > 0 if nonfinite == "raise" else bad == batch_size
    what = f"{bad} of {batch_size} tasks are" if is_of_tasks else "a parameter or running statistic is"
    saved = [] if folder is None else sorted(checkpoints.saved_steps(folder))
    # A step may have a finite loss and still ruin the parameters: only a finite step after it proves a checkpoint good.
    good = max((at for at in saved if at < last_finite), default=None)
    kept = "no checkpoint is known to be good" if good is None else f"the last good checkpoint is {folder}/{good}"
    if saved and saved[-1] != good:
        kept += f": no finite meta-step has followed {folder}/{saved[-1]}"
    return (
        f"{what} not finite at meta-step {step}; {kept}. A task is not finite if its loss, state or meta-gradient is "
        "not: at the first step check the data, padding included, later the rates, inner steps and max_task_norm."
    )
