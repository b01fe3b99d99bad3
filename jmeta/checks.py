"""Checks of the numbers, functions and examples that a user passes."""

import contextlib
import inspect
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmeta.trees import by_path, first_difference, shape
from jmeta.types import Array, Examples, Learner, Model, Task, TrainState


def check_positive(**numbers: float) -> None:
    """Raises a `ValueError` that names the argument unless each number is above 0."""
    for name, value in numbers.items():
        if value is None or isinstance(value, str) or not value > 0:
            raise ValueError(f"{name} is {value!r}; it must be above 0.")


def check_counts(*, least: int = 0, **counts: Any) -> None:
    """Raises a `ValueError` that names the argument unless each number is whole and at least `least`."""
    for name, value in counts.items():
        if not is_count(value, least):
            raise ValueError(f"{name} is {value!r}; it must be a whole number, at least {least}.")


def check_chunk(tasks_per_chunk: int | None) -> None:
    """Raises a `ValueError` unless so many tasks can be vmapped at once; None leaves the choice open."""
    if tasks_per_chunk is not None:
        check_counts(least=1, tasks_per_chunk=tasks_per_chunk)


def is_count(value: Any, least: int = 0) -> bool:
    """Whether `value` is an integer, Python's or NumPy's, and at least `least`."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def is_scalar(value: Any) -> bool:
    """Whether `value` is a number or an array of one without an axis, and not a tree of them."""
    return jax.tree_util.all_leaves([value]) and jnp.shape(value) == ()


def has_fields(value: Any, fields: Sequence[str]) -> bool:
    """Whether `value` has these fields, such as those of `Task`, whatever its type is."""
    return all(hasattr(value, field) for field in fields)


def check_model(**networks: Any) -> None:
    """Raises a `ValueError` that names the argument if it is not a `Model`."""
    for name, model in networks.items():
        if not isinstance(model, Model):
            raise ValueError(
                f"{name} is of type {type(model).__name__}; it must be a jmeta.Model, such as models.conv4(...), "
                "models.from_linen(module), models.from_nnx(constructor) or Model(init, apply)."
            )


def check_learner(learner: Any) -> None:
    """Raises a `ValueError` if `learner` is not a `Learner`."""
    if not isinstance(learner, Learner):
        raise ValueError(
            f"learner is of type {type(learner).__name__}; it must be a jmeta.Learner, such as learners.maml(...)."
        )


def check_functions(kind: str, /, **functions: Any) -> None:
    """Raises a `ValueError` naming the argument if it is not a function; `kind` completes 'it must be a function'."""
    for name, function in functions.items():
        if not callable(function):
            is_short = isinstance(function, str | float | int | None)  # an array or a task is not
            given = repr(function) if is_short else f"of type {type(function).__name__}"
            raise ValueError(f"{name} is {given}; it must be a function {kind}.")


def check_samplers(**samplers: Any) -> None:
    """Raises a `ValueError` that names the argument if it is not a sampler of tasks."""
    check_functions("from a key to a Task", **samplers)


def drawn(sample: Callable[[Array], Task], key: Array) -> Task:
    """A task from a sampler.

    Raises:
        ValueError: if the sampler cannot be called with only a key.
    """
    try:
        return sample(key)
    except TypeError as error:
        try:
            inspect.signature(sample).bind(key)
        except TypeError:
            name = getattr(sample, "__name__", type(sample).__name__)
            raise ValueError(
                f"the sampler is {name}{inspect.signature(sample)}; it must be a function from a key alone to a Task, "
                "such as data.glyphs(), not data.glyphs. functools.partial gives a function its other arguments."
            ) from error
        raise


def check_is_task(task: Any) -> None:
    """Raises a `ValueError` if `task` lacks a field of `Task`."""
    if not has_fields(task, Task._fields):
        raise ValueError(
            f"the task is of type {type(task).__name__}; it must be a jmeta.Task, and a sampler must return one."
        )


def check_examples(name: str, examples: Examples) -> None:
    """Raises a `ValueError` unless these are `Examples` of one length whose targets have two axes."""
    if not has_fields(examples, Examples._fields):
        raise ValueError(
            f"{name} is of type {type(examples).__name__}; it must be jmeta.Examples, with inputs, targets and a mask."
        )
    inputs, targets, mask = (np.shape(getattr(examples, field)) for field in Examples._fields)
    if not inputs[:1] == targets[:1] == mask:
        raise ValueError(
            f"{name} has inputs of shape {inputs}, targets of {targets} and a mask of {mask}; for one task they must "
            "be [K, ...], [K, N] and [K]."
        )
    if len(targets) != 2:
        raise ValueError(
            f"{name}.targets have shape {targets}; they must be [K, N] one-hot, such as "
            "jax.nn.one_hot(labels, ways), or [K, D] for regression."
        )


def as_examples(name: str, examples: Any) -> Examples:
    """The examples as `Examples` of NumPy or JAX arrays; raises a `ValueError` if they are not examples."""
    check_examples(name, examples)
    return Examples(*(as_array(getattr(examples, field)) for field in Examples._fields))


def as_array(values: Any) -> Any:
    """A JAX array as it is, else a copy: JAX may read a NumPy array after the call, when it may have been changed."""
    return values if isinstance(values, jax.Array) else np.array(values)


def warn(message: str) -> None:
    """Issues a warning at the line that called into the package."""
    package = os.path.join(os.path.dirname(__file__), "")
    inside = itertools.takewhile(lambda frame: frame.filename.startswith(package), inspect.stack())
    warnings.warn(message, stacklevel=len(list(inside)) + 1)


def check_task(task: Task) -> None:
    """Raises a `ValueError` unless this is a task whose targets, ways and classes fit together.

    Refused are labels as targets, a query set of other ways or without a real example, real targets with class ids,
    and queries of a class without support.
    """
    check_is_task(task)
    for name in ("support", "query"):
        check_examples(f"task.{name}", getattr(task, name))
    widths = [jnp.shape(part.targets)[1] for part in (task.support, task.query)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"task.support has targets of {widths[0]} columns and task.query of {widths[1]}; they must be the same."
        )
    if is_traced(task):
        return
    if not (np.asarray(task.query.mask) > 0).any():
        raise ValueError("task.query.mask is zero everywhere; at least one query example must be real, marked by 1.")
    if task.class_ids is not None and not is_task_of_classes(task):
        raise ValueError(
            "the task's classes are numbered, but its targets are neither one-hot nor probabilities; a task with "
            "real targets has no class_ids."
        )
    if not is_one_hot(task):
        return
    support, query = (_real_targets(part).sum(0) for part in (task.support, task.query))
    orphans = np.flatnonzero((support == 0) & (query > 0))
    if orphans.size:
        raise ValueError(f"class {orphans[0]} of the task has queries but no support example; each class needs one.")


def is_traced(task: Task) -> bool:
    """Whether only the shapes of its arrays are known."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(task))


def is_task_of_classes(task: Task) -> bool:
    """Whether its targets are probabilities of classes."""
    # On NumPy arrays, for which nothing is compiled.
    return all(is_of_classes(np.asarray(part.targets), np.asarray(part.mask)) for part in (task.support, task.query))


def is_one_hot(task: Task) -> bool:
    """Whether each of its targets, except padding, is one-hot, over at least two classes."""
    targets = np.concatenate([_real_targets(part) for part in (task.support, task.query)])
    return targets.shape[1] > 1 and bool(np.isin(targets, (0, 1)).all() and (targets.sum(1) == 1).all())


def is_of_classes(targets: Any, mask: Any) -> Any:
    """Whether all targets, except padding, are probabilities of classes; for NumPy and JAX arrays."""
    near_one = abs(targets.astype("float32").sum(-1) - 1) <= 1e-2  # the tolerance is for half precision
    return ((near_one & (targets >= 0).all(-1)) | (mask <= 0)).all()


def is_transformation(optimizer: Any) -> bool:
    """Whether it has an optimizer's functions, `init` and `update`."""
    return all(callable(getattr(optimizer, function, None)) for function in ("init", "update"))


@contextlib.contextmanager
def telling_of_another_state(learner: Learner, state: TrainState, sample: Callable[[Array], Task]) -> Iterator[None]:
    """Explains an error raised in the block, if the state is of another learner or model.

    Args:
        learner: the learner the state should be of.
        state: the training state.
        sample: a sampler of the tasks at hand, for their shapes.
    """
    try:
        yield
    except (OSError, RuntimeError, MemoryError):  # the machine's fault
        raise
    except Exception as error:
        given, expected = by_path((state.params, state.state)), None
        with contextlib.suppress(Exception):  # the first error is the one to report
            expected = by_path(jax.eval_shape(lambda key: learner.init(key, sample(key)), jax.random.key(0)))
        # A `ValueError` about shapes speaks for itself.
        if expected is None or (isinstance(error, ValueError) and given.keys() == expected.keys()):
            raise
        if (difference := first_difference(given, expected, kind=shape)) is None:
            raise
        name, found, needed = difference
        raise ValueError(
            f"(params, state){name} of the state is {found}, where this learner and these tasks need {needed}; "
            "the state is of another learner or model, or the tasks have inputs of another shape."
        ) from error


def check_transformation(name: str, optimizer: Any) -> None:
    """Raises a `ValueError` that names the argument if it is not an optimizer, with `init` and `update`.

    A `functional.InnerRule`, known by its `start`, is refused too: its parameters would never be learned.
    """
    if not is_transformation(optimizer) or hasattr(optimizer, "start"):
        raise ValueError(f"{name} is {optimizer!r}; it must be an optax transformation, such as optax.sgd(0.1).")


def as_key(key: Any) -> Array:
    """The key as a typed one, as made by `jax.random.key`, which a checkpoint restores; raw keys are wrapped.

    Under `vmap`, keys of kind `"rbg"` and `"unsafe_rbg"` draw other numbers than alone, so tasks would depend on
    how many are vmapped at once. Each is replaced by a key of the default kind made from its first half.

    Raises:
        ValueError: for anything else.
    """
    try:
        is_typed = jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key)
        typed = key if is_typed else jax.random.wrap_key_data(key)
    except TypeError:
        typed = None
    if typed is None or jnp.shape(typed) != ():
        raise ValueError(f"key is {key!r}; it must be one PRNG key, such as jax.random.key(0).")
    if jax.random.key_impl(typed) in ("rbg", "unsafe_rbg"):
        return jax.random.wrap_key_data(jax.random.key_data(typed)[:2], impl="threefry2x32")
    return typed


def _real_targets(examples: Examples) -> np.ndarray:
    """The targets of the examples that are not padding."""
    return np.asarray(examples.targets)[np.asarray(examples.mask) > 0]
