"""How networks are called: with JAX arrays, scaled uint8 inputs, a mask if they take one, and a key or none."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jmeta.checks import check_model
from jmeta.types import Array, as_float, Model, PyTree


def model_of_width(name: str, make: Callable[[int], Model], outputs: int) -> Model:
    """The `Model` that `make` returns for `outputs` outputs.

    Raises:
        ValueError: if `make` is not such a function (but a `Model`, for example); it names the argument.
    """
    if not callable(make) or hasattr(make, "apply"):  # a Linen module is callable too
        raise ValueError(
            f"{name} is of type {type(make).__name__}; it must be a function from the number of outputs to a "
            "jmeta.Model, such as models.transformer."
        )
    model = make(outputs)
    check_model(**{f"what {name} makes": model})
    return model


def init_model(model: Model, key: Array, inputs: Array) -> tuple[PyTree, PyTree]:
    """`model.init`, with the inputs prepared as by `apply_model`.

    Raises:
        ValueError: if `model` is not a `Model`; a Flax module, for example.
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
    """`model.apply` on JAX arrays, with uint8 inputs scaled to [0, 1], and `mask` only if the model takes it."""
    # NumPy arrays may be of a precision that JAX has disabled.
    inputs, mask = jax.tree.map(jnp.asarray, (inputs, mask))
    inputs = as_float(inputs) if isinstance(inputs, Array) else inputs
    extra = {"mask": mask} if takes_mask(model.apply) else {}
    return model.apply(params, state, inputs, train=train, key=key, **extra)


def takes_mask(function: Callable) -> bool:
    """Whether a `Model.apply` or `Learner.predict` takes a mask of padding."""
    return accepts(function, "mask")


def accepts(function: Callable, keyword: str) -> bool:
    """Whether a function takes a keyword, by name or through `**kwargs`."""
    parameters = inspect.signature(function).parameters.values()
    return any(one.name == keyword or one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)


def split_key(key: Array | None, number: int = 2) -> Any:
    """`number` keys split from one, to be unpacked; as many Nones if there is none."""
    return (None,) * number if key is None else jax.random.split(key, number)
