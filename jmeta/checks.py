"""What is asked of the numbers and examples that a user gives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmeta.types import Array, Examples, Learner, Task


def check_positive(**numbers: float) -> None:
    """Raises a `ValueError` for a number, by its name, that is not above 0."""
    for name, value in numbers.items():
        if value is None or isinstance(value, str) or not value > 0:
            raise ValueError(f"{name} is {value!r}; it must be above 0.")


def check_counts(*, least: int = 0, **counts: Any) -> None:
    """Raises a `ValueError` for a number, by its name, that is not whole or below the least."""
    for name, value in counts.items():
        if not is_count(value, least):
            raise ValueError(f"{name} is {value!r}; it must be a whole number, at least {least}.")


def is_count(value: Any, least: int = 0) -> bool:
    """Whether it is an integer, of Python or NumPy, and not below the least."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def check_learner(learner: Any) -> None:
    """Raises a `ValueError` for what is no `Learner`."""
    if not isinstance(learner, Learner):
        raise ValueError(
            f"learner is of {type(learner).__name__}; it must be a jmeta.Learner, as learners.maml(...) makes it."
        )


def check_sampler(**samplers: Any) -> None:
    """Raises a `ValueError` for what is, by its name, no function."""
    for name, sampler in samplers.items():
        if not callable(sampler):
            raise ValueError(f"{name} is {sampler!r}; it must be a function from a key to a Task.")


def check_is_task(task: Any) -> None:
    """Raises a `ValueError` for what is no `Task`, nor anything of such fields."""
    if not all(hasattr(task, name) for name in Task._fields):
        raise ValueError(f"the task is of {type(task).__name__}; it must be a jmeta.Task, and a sampler must give one.")


def check_examples(name: str, examples: Examples) -> None:
    """Raises a `ValueError` for labels in place of targets, and for arrays that are not of so many examples each."""
    inputs, targets, mask = map(np.shape, examples)
    if len(targets) < 2:
        raise ValueError(
            f"{name}.targets have shape {targets}; they must be [K, N] one-hot, as "
            "jax.nn.one_hot(labels, ways) makes them, or [K, D] for regression."
        )
    if not inputs[:1] == targets[:1] == mask:
        raise ValueError(
            f"{name} has inputs of shape {inputs}, targets of {targets} and a mask of {mask}; of one task they must be "
            "[K, ...], [K, N] and [K]."
        )


def is_of_classes(targets: Any, mask: Any) -> Any:
    """Whether the targets of all examples but padding are probabilities of classes; NumPy's arrays or JAX's."""
    near_one = abs(targets.astype("float32").sum(-1) - 1) <= 1e-2  # as near as half precision is
    return ((near_one & (targets >= 0).all(-1)) | (mask <= 0)).all()


def check_transformation(name: str, optimizer: Any) -> None:
    """Raises a `ValueError` for what is no optimizer: has no `init` and no `update`."""
    if not all(callable(getattr(optimizer, function, None)) for function in ("init", "update")):
        raise ValueError(f"{name} is {optimizer!r}; it must be an optax transformation, as optax.sgd(0.1) makes it.")


def as_key(key: Any) -> Array:
    """The key as a typed one, `jax.random.key`, which a checkpoint restores; raw ones are wrapped.

    Raises:
        ValueError: for anything else.
    """
    try:
        is_typed = jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key)
        typed = key if is_typed else jax.random.wrap_key_data(key)
    except TypeError:
        typed = None
    if typed is None or jnp.shape(typed) != ():
        raise ValueError(f"key is {key!r}; it must be one PRNG key, as jax.random.key(0) makes it.")
    return typed
