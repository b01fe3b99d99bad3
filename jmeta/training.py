"""Meta-training: the state, one step, and many steps in one dispatch."""

import functools
from collections.abc import Callable, Sequence
from typing import get_args, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from jmeta.batching import (
    as_devices,
    chunk_of,
    device_count,
    filled_up,
    map_tasks,
    on_each_device,
    over_devices,
    sum_over_chunks,
    sum_over_devices,
)
from jmeta.checks import (
    as_key,
    check_counts,
    check_learner,
    check_task,
    check_transformation,
    is_one_hot,
    is_task_of_classes,
    is_traced,
    telling_of_another_state,
    warn,
)
from jmeta.losses import tells_accuracy
from jmeta.networks import accepts
from jmeta.trees import by_path, first_difference
from jmeta.types import Array, at_least_single, is_inexact, Learner, PyTree, Task, TrainState

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

    Warns of one-hot targets under a loss that is not marked as one over classes.

    Args:
        learner: what is to be trained.
        optimizer: the outer optimizer.
        key: PRNG key, for the initial parameters and for training.
        task: one task, for its shapes.
        devices: those of the train step, each of which gets a copy, so that a
            jitted step need not compile again for the state that it gives back.

    Raises:
        ValueError: for what is no learner or no task; if targets are labels and not
            one-hot, or of other ways in the query set than in the support set, the
            model's output width is not the number of ways, a class has queries and no
            support example, targets are real numbers where the loss is over classes,
            the optimizer is no optax transformation, or the devices cannot share tasks.

    Example:
        >>> from jmeta import data, learners, models
        >>> task = data.glyphs()(jax.random.key(0))
        >>> learner = learners.protonet(models.mlp(outputs=None))
        >>> print(init_state(learner, optax.adam(1e-3), jax.random.key(1), task).step)
        0
    """
    check_learner(learner)
    check_task(task)
    check_transformation("optimizer", optimizer)
    devices = as_devices(devices)
    init_key, key = jax.random.split(as_key(key))
    # A function that runs once is not worth optimising: XLA's LLVM takes a quarter of the time at this level, for the
    # same numbers to rounding (benchmarks/README.md). JAX takes options of the outermost jit alone.
    is_outermost = jax.default_backend() == "cpu" and not isinstance(init_key, jax.core.Tracer)
    options = {"xla_backend_optimization_level": 1} if is_outermost else None
    if task.class_ids is not None:
        # Traced with the task closed over: its class ids are then numbers, which a transfer baseline checks.
        jax.eval_shape(lambda key: learner.init(key, jax.tree.map(jnp.asarray, task)), init_key)
    params, state = jax.jit(learner.init, compiler_options=options)(init_key, task)
    _check_objective(learner, params, state, task)
    opt_state = unshared(optimizer.init(params))
    return on_each_device(TrainState(params, state, opt_state, key, jnp.int32(0)), devices)


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
        optimizer: the outer optimizer. One that asks for a loss, as
            `optax.contrib.reduce_on_plateau` does, is given the mean as `value`.
        tasks_per_chunk: how many tasks are vmapped at a time, at most, the gradients
            of the chunks being accumulated. The result is the same to rounding; time and
            memory are not. What the last chunk lacks is filled up with tasks that do not
            count. None takes about as many as keep their arrays within the backend's
            bound: the cache on a CPU, where that is often one.
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
            filled up in the same way. The result is the same to rounding. None:
            each device on which the state lies does all the work.

    Returns:
        `(state, tasks [T, ...]) -> (state, metrics)`, pure: jit it, and donate
        the state if you like. Metrics: the learner's own and the `"loss"`,
        averaged over finite tasks; the `"gradient_norm"` of the meta-gradient; both
        NaN without such a task; and the number of `"nonfinite_tasks"`.

    Raises:
        ValueError: for fewer than 1 task per chunk, an unknown policy, a bound
            that is not positive, what is no learner or optimizer, or devices that cannot
            share tasks; from the step, for what is no batch of tasks, a state of another
            learner that this one cannot use, a loss that gives back another state than it was given, by shapes and
            dtypes, and for metrics of a learner that are no scalars, or are named
            `"loss"`, `"gradient_norm"`, `"nonfinite_tasks"`, `"step"` or
            `"validation_..."`.

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
    check_learner(learner)
    check_transformation("optimizer", optimizer)
    asks_for_loss = accepts(optimizer.update, "value")
    devices = as_devices(devices)
    # A learner is pure, so that one trace of its loss serves `init`, the choice of a chunk and the gradient.
    task_loss = jax.jit(learner.loss)

    def total_of_chunk(shared, batch):
        contribution = functools.partial(_contribution, task_loss, max_task_norm, *shared)
        weight, each = map_tasks(contribution, *batch)
        # A product is faster than to scale and reduce; an accelerator would round its operands.
        gradient = jnp.matmul(weight, each.gradient, precision="highest")
        others = each._replace(gradient=None)
        sums = jax.tree.map(lambda leaf: leaf.sum(0) if is_inexact(leaf) else leaf[-1], others)
        return sums._replace(gradient=gradient)

    def total_of_device(shared, batch):
        tasks, keys, _ = batch
        one = jax.eval_shape(lambda tasks: jax.tree.map(lambda leaf: leaf[0], tasks), tasks)
        loss = functools.partial(task_loss, *shared, key=keys[0])
        chunk = chunk_of(len(keys), tasks_per_chunk, loss, one, devices=devices)
        (tasks, keys, is_counted), is_real = filled_up(batch, chunk)
        return sum_over_chunks(functools.partial(total_of_chunk, shared), (tasks, keys, is_counted & is_real), chunk)

    total = over_devices(total_of_device, devices, sum_over_devices)

    def train_step(train_state, tasks):
        params, state, opt_state, key, step = train_state
        number = _number_of_tasks(tasks)
        keys = jax.random.split(key, number + 1)
        batch, is_counted = filled_up((tasks, keys[1:]), device_count(devices))
        with telling_of_another_state(learner, train_state, lambda _: jax.tree.map(lambda leaf: leaf[0], tasks)):
            sums = total((params, state), (*batch, is_counted))
        finite, some = sums.finite, jnp.maximum(sums.finite, 1)
        new_state = jax.tree.map(
            lambda leaf, like: (leaf / some).astype(like.dtype) if is_inexact(leaf) else leaf, sums.state, state
        )
        metrics = {name: value / finite for name, value in sums.metrics.items()}
        flat, unravel = ravel_pytree(params)
        gradient = sums.gradient / some
        extra = {"value": metrics["loss"]} if asks_for_loss else {}
        updates, opt_state = optimizer.update(unravel(gradient.astype(flat.dtype)), opt_state, params, **extra)
        after = TrainState(optax.apply_updates(params, updates), new_state, opt_state, keys[0], step + 1)
        if nonfinite == "raise":
            is_taken, before = finite == number, train_state
        else:
            is_taken, before = finite > 0, train_state._replace(key=keys[0], step=step + 1)
        length = jnp.where(finite > 0, jnp.linalg.norm(gradient), jnp.nan)
        metrics |= {"gradient_norm": length, "nonfinite_tasks": jnp.int32(number - finite)}
        return jax.tree.map(functools.partial(jnp.where, is_taken), after, before), metrics

    return train_step


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


def check_policy(nonfinite: str, max_task_norm: float) -> None:
    """Raises a `ValueError` for a policy on single tasks that `make_train_step` cannot take."""
    if nonfinite not in get_args(Nonfinite):
        raise ValueError(f"nonfinite is {nonfinite!r}; it must be one of {get_args(Nonfinite)}.")
    if max_task_norm is None or isinstance(max_task_norm, str) or not max_task_norm > 0:
        raise ValueError(f"max_task_norm is {max_task_norm!r}; it must be above 0, or infinite for no bound.")


@jax.jit
def unshared(tree: PyTree) -> PyTree:
    """A copy that may be donated: an optimizer may keep an array of the user's, or one array twice."""
    return jax.tree.map(jnp.copy, tree)


def all_finite(tree: PyTree) -> Array:
    """Whether every number is finite, a scalar."""
    found = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
    return jnp.stack(found).all() if found else jnp.bool_(True)


class _Sums(NamedTuple):
    """What is added up over tasks.

    Attributes:
        gradient: [P] the meta-gradients as vectors, times the tasks' weights.
        state: the states after the tasks.
        metrics: the learner's own, and the loss.
        finite: how many tasks are finite.
    """

    gradient: Array
    state: PyTree
    metrics: dict[str, Array]
    finite: Array


def _contribution(task_loss, max_task_norm, params, state, task, key, is_counted):
    """A task's weight and its `_Sums`: zeros if it is not finite, the gradient too, since zero times NaN is NaN."""
    differentiate = jax.value_and_grad(task_loss, has_aux=True)
    (loss, (after, metrics)), gradient = differentiate(params, state, task, key=key)
    _check_state(state, after)
    _check_metrics(metrics)
    loss, state = jax.tree.map(_to_add_up, (loss, after))
    # As one vector it is measured and added up in two operations, not in two for each parameter. Behind a barrier, or
    # XLA computes it again in both.
    gradient = _to_add_up(ravel_pytree(lax.optimization_barrier(gradient))[0])
    length = jnp.linalg.norm(gradient)
    is_finite = all_finite((loss, length, state)) & is_counted
    measured = jax.tree.map(lambda value: jnp.asarray(value, loss.dtype), {**metrics, "loss": loss})
    one = _Sums(gradient, state, measured, finite=jnp.ones((), jnp.float32))
    one = jax.tree.map(lambda leaf: jnp.where(is_finite, leaf, 0) if is_inexact(leaf) else leaf, one)
    return jnp.where(is_finite, jnp.minimum(1, max_task_norm / length), 0), one


def _to_add_up(leaf: Array) -> Array:
    """The numbers in a precision that can be added up."""
    return leaf.astype(at_least_single(leaf.dtype)) if is_inexact(leaf) else leaf


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


def _check_metrics(metrics: dict[str, Array]) -> None:
    """Raises a `ValueError` for a learner's metrics that are no scalars, or take the name of a train step's own."""
    for name, value in metrics.items():
        if name in ("step", "loss", "gradient_norm", "nonfinite_tasks") or name.startswith("validation_"):
            raise ValueError(f"the learner's loss has a metric {name!r}, which training has itself; name it otherwise.")
        if not jax.tree_util.all_leaves([value]) or jnp.shape(value):
            raise ValueError(f"the learner's metric {name!r} is {value}; each must be a scalar.")


def _check_objective(learner: Learner, params: PyTree, state: PyTree, task: Task) -> None:
    """Raises a `ValueError` for real numbers as targets of a loss over classes; warns of the reverse."""
    if is_traced(task):
        return
    looks_real = not is_task_of_classes(task)
    looks_labelled = task.class_ids is None and is_one_hot(task)
    if not (looks_real or looks_labelled):  # as most are, and the loss need not be traced
        return
    is_over_classes = tells_accuracy(learner, params, state, task)
    if is_over_classes and looks_real:
        raise ValueError(
            "the learner's loss is over classes, but the task's targets are neither one-hot nor probabilities; if they "
            "are real numbers, take a loss of such, as loss_fn=losses.squared_error."
        )
    if not is_over_classes and looks_labelled:
        warn(
            "the task's targets are one-hot, but the learner's loss is not over classes, so that no accuracy is told "
            "and evaluation is that of regression; if they are classes, mark the loss by losses.classification."
        )
