"""How networks are called: with JAX's arrays, bytes as numbers, a mask for those that take one, and a key or none."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jmeta.checks import check_model
from jmeta.types import Array, as_float, Model, PyTree


def model_of_width(name: str, make: Callable[[int], Model], outputs: int) -> Model:
    """The `Model` that a function from the width of its outputs makes.

    Raises:
        ValueError: for what is no such function, a `Model` itself say, by its name.
    """
    if not callable(make) or hasattr(make, "apply"):  # a module of Linen can be called too
        raise ValueError(
            f"{name} is of type {type(make).__name__}; it must be a function from the number of outputs to a "
            "jmeta.Model, as models.transformer is."
        )
    model = make(outputs)
    check_model(**{f"what {name} makes": model})
    return model


def init_model(model: Model, key: Array, inputs: Array) -> tuple[PyTree, PyTree]:
    """`model.init`, with the inputs that `apply_model` would give it.

    Raises:
        ValueError: for what is no `Model`, a Flax module say.
    """
    check_model(model=model)
    return model.init(key, as_float(inputs))


def apply_model(
    model: Model,
    params: PyTree,
    state: PyTree,
    inputs: PyTree,
    *,
    mask: Array | None = None,
    train: bool = False,
    key: Array | None = None,
) -> tuple[Array, PyTree]:
    """`model.apply`, with JAX's arrays, bytes as numbers from 0 to 1, and the mask only if the model takes one."""
    # NumPy's may have a precision that JAX is told not to use.
    inputs, mask = jax.tree.map(jnp.asarray, (inputs, mask))
    inputs = as_float(inputs) if isinstance(inputs, Array) else inputs
    extra = {"mask": mask} if takes_mask(model.apply) else {}
    return model.apply(params, state, inputs, train=train, key=key, **extra)


def takes_mask(function: Callable) -> bool:
    """Whether a `Model.apply` or `Learner.predict` asks to be told which rows are padding."""
    return accepts(function, "mask")


def accepts(function: Callable, keyword: str) -> bool:
    """Whether a function takes a keyword, by its name or among any."""
    parameters = inspect.signature(function).parameters.values()
    return any(one.name == keyword or one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)


def split_key(key: Array | None, number: int = 2) -> Any:
    """So many keys of one, to be unpacked; of None, as many Nones."""
    return (None,) * number if key is None else jax.random.split(key, number)
