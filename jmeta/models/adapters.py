"""Adapters that make a `Model` of a Flax module."""

import functools
import inspect
from collections.abc import Callable

import flax.linen as nn
import jax

from jmeta.types import Model, Normalisation


def from_linen(module: nn.Module) -> Model:
    """A `Model` of a Linen module.

    Args:
        module: its `__call__` takes the inputs [K, ...] and, if it wants them,
            the keywords `train` and `mask`. A key reaches it as the streams
            `dropout` and `default`. Collections other than `params` become the
            state; a field `norm` names its normalisation policy in reports.

    Example:
        >>> model = from_linen(nn.Dense(3))
        >>> params, state = model.init(jax.random.key(0), jax.numpy.ones((2, 4)))
        >>> model.apply(params, state, jax.numpy.ones((2, 4)))[0].shape
        (2, 3)
    """
    accepted = inspect.signature(type(module).__call__).parameters
    policy = getattr(module, "norm", None)

    def keywords(**given):
        return {name: value for name, value in given.items() if name in accepted}

    def streams(key):
        return None if key is None else {"dropout": key, "default": key}

    def init(key, inputs):
        variables = dict(module.init(key, inputs, **keywords(train=False)))
        params = variables.pop("params", {})
        return params, variables | ({"normalisation": Normalisation(policy)} if policy else {})

    def apply(params, state, inputs, *, train=False, key=None, mask=None):
        collections = {name: value for name, value in state.items() if name != "normalisation"}
        outputs, changed = module.apply(
            {"params": params, **collections},
            inputs,
            rngs=streams(key),
            mutable=list(collections) if train else [],
            **keywords(train=train, mask=mask),
        )
        return outputs, {**state, **changed}

    return Model(init, apply)


def from_nnx(constructor: Callable) -> Model:
    """A `Model` of an NNX module.

    Args:
        constructor: `(nnx.Rngs) -> nnx.Module`. `nnx.Param`s become the
            parameters and all other variables the state. The module is put in
            training or evaluation mode (`nnx.Module.train`, `.eval`) by `train`.

    Example:
        >>> from flax import nnx
        >>> model = from_nnx(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
        >>> params, state = model.init(jax.random.key(0), jax.numpy.ones((2, 4)))
        >>> model.apply(params, state, jax.numpy.ones((2, 4)))[0].shape
        (2, 3)
    """
    from flax import nnx  # a sixth of the time that `import jmeta` may take

    @functools.cache
    def definition():
        with jax.ensure_compile_time_eval():
            return nnx.split(nnx.eval_shape(lambda: constructor(nnx.Rngs(0))), nnx.Param, ...)[0]

    def init(key, inputs):
        del inputs  # an NNX module knows its sizes
        _, params, state = nnx.split(constructor(nnx.Rngs(key)), nnx.Param, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(state)

    def apply(params, state, inputs, *, train=False, key=None):
        module = nnx.merge(definition(), nnx.State(params), nnx.State(state), copy=True)
        module.train() if train else module.eval()
        if key is not None:
            nnx.reseed(module, default=key, dropout=key)
        outputs = module(inputs)
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param))) if train else state

    return Model(init, apply)
