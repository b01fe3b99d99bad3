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
    check_chunk,
    check_counts,
    check_learner,
    check_task,
    check_transformation,
    has_fields,
    is_one_hot,
    is_scalar,
    is_task_of_classes,
    is_traced,
    telling_of_another_state,
    warn,
)
from jmeta.losses import tells_accuracy
from jmeta.networks import accepts
from jmeta.trees import by_path, first_difference
from jmeta.types import Array, at_least_single, is_inexact, Learner, or_one, PyTree, Task, TrainState

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

    Warns if targets are one-hot and the loss is not marked as one over classes.

    Args:
        learner: the learner to be trained.
        optimizer: the outer optimizer.
        key: PRNG key for the initial parameters and for training.
        task: any task of the right shapes.
        devices: those of the train step; the state is copied to each, or a jitted step
            would compile a second time for the state it returns.

    Raises:
        ValueError: if `learner`, `task` or `optimizer` is not of its kind, or the devices
            cannot share tasks; if targets are labels rather than one-hot, or of another
            width in the query set than in the support set; if the model's output width
            is not the number of ways; if a class has queries but no support example; or
            if targets are real numbers and the loss is over classes.

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
    # A function that runs once is not worth optimising: at this level XLA's LLVM takes a quarter of the time, for the
    # same numbers to rounding (benchmarks/README.md). JAX takes options only of the outermost jit.
    is_outermost = jax.default_backend() == "cpu" and not isinstance(init_key, jax.core.Tracer)
    options = {"xla_backend_optimization_level": 1} if is_outermost else None
    if task.class_ids is not None:
        # Traced with the task closed over, so that its class ids are numbers, which a transfer baseline checks. NumPy's
        # arrays would become tracers.
        arrays = jax.tree.map(jnp.asarray, task)
        jax.eval_shape(lambda key: learner.init(key, arrays), init_key)
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

    An inner loop may diverge on one task of many. A task whose loss, new state or
    meta-gradient norm is not finite never reaches the parameters, and the huge
    meta-gradient of one about to diverge is scaled down.

    Args:
        learner: the learner to be trained.
        optimizer: the outer optimizer. One that needs the loss, such as
            `optax.contrib.reduce_on_plateau`, is passed the mean as `value`.
        tasks_per_chunk: how many tasks to vmap at once, at most; gradients are
            accumulated over the chunks. It changes time and memory, and the result only
            by rounding. An incomplete last chunk is padded with tasks that do not
            count. None chooses a size whose largest array fits the backend's bound: on
            a CPU the cache, and often a single task.
        nonfinite: `"skip"` leaves such tasks out of the mean; a step without a finite
            task changes no parameter. `"raise"` returns the old state, `step` included, if
            any task is not finite, or if the update would make a parameter or running
            statistic so (then `"nonfinite_tasks"` may be 0). Stopping is left to the
            caller: `fit` stops, a loop of `make_train_loop` goes on with the next tasks.
        max_task_norm: a task's meta-gradient longer than this is scaled down to it
            before the mean; `math.inf` for no bound. The default is meant not to matter
            where losses are means over examples and targets are of order one; where
            losses are larger, set it.
        devices: devices to divide the tasks over, such as `jax.local_devices()`;
            `tasks_per_chunk` then applies to each. A batch that their number does not
            divide is padded in the same way. The result is the same to rounding. None:
            every device that holds the state does all the work.

    Returns:
        `(state, tasks [T, ...]) -> (state, metrics)`, pure: jit it, and donate the
        state if you like. Metrics are the learner's own and `"loss"`, averaged over the
        finite tasks, and `"gradient_norm"`, the norm of the meta-gradient, all NaN if
        no task is finite; and `"nonfinite_tasks"`, the number of the others.

    Raises:
        ValueError: for fewer than 1 task per chunk, an unknown policy, a bound that is
            not positive, something that is not a learner or an optimizer, or devices
            that cannot share tasks. The step raises it for something that is not a
            batch of tasks, for a state of another learner that this one cannot use, for
            a loss that returns a state of other shapes or dtypes, and for metrics that
            are not scalars or have a reserved name (`"loss"`, `"gradient_norm"`,
            `"nonfinite_tasks"`, `"step"`, `"validation_..."`).

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
    check_chunk(tasks_per_chunk)
    check_policy(nonfinite, max_task_norm)
    check_learner(learner)
    check_transformation("optimizer", optimizer)
    asks_for_loss = accepts(optimizer.update, "value")
    devices = as_devices(devices)
    # A learner is pure, so one trace of its loss serves `init`, the choice of a chunk and the gradient.
    task_loss = jax.jit(learner.loss)

    def total_of_chunk(shared, batch):
        contribution = functools.partial(_contribution, task_loss, max_task_norm, *shared)
        weight, each = map_tasks(contribution, *batch)
        # A product is faster than scaling and reducing. The precision keeps an accelerator from rounding its operands.
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
        finite, some = sums.finite, or_one(sums.finite)
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
            is_taken, before = (finite == number) & all_finite((after.params, after.state)), train_state
        else:
            is_taken, before = finite > 0, train_state._replace(key=keys[0], step=step + 1)
        length = jnp.where(finite > 0, jnp.linalg.norm(gradient), jnp.nan)
        metrics |= {"gradient_norm": length, "nonfinite_tasks": jnp.int32(number - finite)}
        return jax.tree.map(functools.partial(jnp.where, is_taken), after, before), metrics

    return train_step


def make_train_loop(
    train_step: Callable, sample: Callable[[Array], Task], *, batch_size: int, steps: int
) -> Callable[[TrainState], tuple[TrainState, dict[str, Array]]]:
    """Many meta-steps in one dispatch, with tasks sampled on the device.

    Compiled as in the example, the program holds what the sampler closes over as constants. Pass a sampler of a large
    table, such as the `jax.tree_util.Partial` from `data.episodes`, as an argument of the compiled function instead:
    `jax.jit(lambda state, sample: make_train_loop(step, sample, batch_size=4, steps=3)(state))(state, sample)`.

    Args:
        train_step: from `make_train_step`, or one of your own.
        sample: `(key) -> Task`.
        batch_size: tasks per meta-step.
        steps: meta-steps in the loop.

    Returns:
        `(state) -> (state, metrics [steps])`, pure.

    Raises:
        ValueError: for a batch of fewer than 1 task, or fewer than 0 steps.

    Example:
        >>> from jmeta import data, learners, models
        >>> sample, optimizer = data.glyphs(), optax.adam(1e-3)
        >>> learner = learners.protonet(models.mlp(outputs=None))
        >>> state = init_state(learner, optimizer, jax.random.key(0), sample(jax.random.key(1)))
        >>> loop = jax.jit(make_train_loop(make_train_step(learner, optimizer), sample, batch_size=4, steps=3))
        >>> state, metrics = loop(state)
        >>> metrics["loss"].shape
        (3,)
    """
    check_counts(least=1, batch_size=batch_size)
    check_counts(steps=steps)

    def one(state, _):
        keys = jax.random.split(state.key, batch_size + 1)
        return train_step(state._replace(key=keys[0]), jax.vmap(sample)(keys[1:]))

    return lambda state: lax.scan(one, state, None, length=steps)


def check_policy(nonfinite: str, max_task_norm: float) -> None:
    """Raises a `ValueError` unless both are a policy on single tasks that `make_train_step` knows."""
    if nonfinite not in get_args(Nonfinite):
        raise ValueError(f"nonfinite is {nonfinite!r}; it must be one of {get_args(Nonfinite)}.")
    if max_task_norm is None or isinstance(max_task_norm, str) or not max_task_norm > 0:
        raise ValueError(f"max_task_norm is {max_task_norm!r}; it must be above 0, or infinite for no bound.")


@jax.jit
def unshared(tree: PyTree) -> PyTree:
    """A copy that may be donated: an optimizer may hold one of the user's arrays, or the same array twice."""
    return jax.tree.map(jnp.copy, tree)


def all_finite(tree: PyTree) -> Array:
    """Whether every number is finite, as a scalar."""
    found = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
    return jnp.stack(found).all() if found else jnp.bool_(True)


class _Sums(NamedTuple):
    """What is summed over tasks.

    Attributes:
        gradient: [parameters] the meta-gradients as vectors, times the tasks' weights.
        state: the learner's states after the tasks.
        metrics: the learner's own, and the loss.
        finite: the number of finite tasks.
    """

    gradient: Array
    state: PyTree
    metrics: dict[str, Array]
    finite: Array


def _contribution(task_loss, max_task_norm, params, state, task, key, is_counted):
    """A task's weight and its `_Sums`; both zero if it is not finite, as zero times NaN is NaN."""
    differentiate = jax.value_and_grad(task_loss, has_aux=True)
    (loss, (after, metrics)), gradient = differentiate(params, state, task, key=key)
    _check_state(state, after)
    _check_metrics(metrics)
    loss, state = jax.tree.map(_to_add_up, (loss, after))
    # As one vector it is measured and summed in two operations, not two for each parameter. The barrier keeps XLA from
    # computing it again for each.
    gradient = _to_add_up(ravel_pytree(lax.optimization_barrier(gradient))[0])
    length = jnp.linalg.norm(gradient)
    is_finite = all_finite((loss, length, state)) & is_counted
    measured = jax.tree.map(lambda value: jnp.asarray(value, loss.dtype), {**metrics, "loss": loss})
    one = _Sums(gradient, state, measured, finite=jnp.ones((), jnp.float32))
    one = jax.tree.map(lambda leaf: jnp.where(is_finite, leaf, 0) if is_inexact(leaf) else leaf, one)
    return jnp.where(is_finite, jnp.minimum(1, max_task_norm / length), 0), one


def _to_add_up(leaf: Array) -> Array:
    """The numbers in a precision in which they can be summed."""
    return leaf.astype(at_least_single(leaf.dtype)) if is_inexact(leaf) else leaf


def _number_of_tasks(tasks: Task) -> int:
    """The number of tasks in a batch."""
    if not has_fields(tasks, Task._fields):
        raise ValueError(
            f"tasks is of type {type(tasks).__name__}; a step takes one jmeta.Task whose arrays have an axis of tasks, "
            "such as jax.vmap(sample)(keys)."
        )
    shape = jnp.shape(tasks.query.mask)
    if len(shape) != 2 or not shape[0]:
        raise ValueError(
            f"tasks.query.mask has shape {shape}; a step takes a batch of tasks, whose arrays have one axis more: here "
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
    """Raises a `ValueError` if a learner's loss returns a state unlike the one it was given."""
    if difference := first_difference(by_path(before), by_path(after)):
        name, given, found = difference
        raise ValueError(
            f"the learner's loss was given a state whose {name or 'array'} is {given}, but returned one where it is "
            f"{found}."
        )


def _check_metrics(metrics: dict[str, Array]) -> None:
    """Raises a `ValueError` for a learner's metrics that are not scalars, or whose names training reserves."""
    for name, value in metrics.items():
        if name in ("step", "loss", "gradient_norm", "nonfinite_tasks") or name.startswith("validation_"):
            raise ValueError(f"the learner's loss has a metric {name!r}, a name that training reserves; rename it.")
        if not is_scalar(value):
            raise ValueError(f"the learner's metric {name!r} is {value}; each must be a scalar.")


def _check_objective(learner: Learner, params: PyTree, state: PyTree, task: Task) -> None:
    """Raises a `ValueError` for real targets and a loss over classes; warns of the reverse."""
    if is_traced(task):
        return
    looks_real = not is_task_of_classes(task)
    looks_labelled = task.class_ids is None and is_one_hot(task)
    if not (looks_real or looks_labelled):  # as in most tasks, and then the loss need not be traced
        return
    is_over_classes = tells_accuracy(learner, params, state, task)
    if is_over_classes and looks_real:
        raise ValueError(
            "the learner's loss is over classes, but the task's targets are neither one-hot nor probabilities; if they "
            "are real numbers, give the learner a regression loss, such as loss_fn=losses.squared_error."
        )
    if not is_over_classes and looks_labelled:
        warn(
            "the task's targets are one-hot, but the learner's loss is not over classes, so no accuracy is reported "
            "and evaluation treats the task as regression; if they are classes, mark the loss with "
            "losses.classification."
        )
