"""Adapters that make a `Model` from a Flax module."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from jmeta.networks import accepts
from jmeta.types import Array, Model, Normalisation, PyTree

# Keywords by which networks are switched to training, and their value in it.
SWITCHES = {"train": True, "training": True, "is_training": True, "deterministic": False, "use_running_average": False}
POLICY = "normalisation policy"  # the entry of the state that names it, which no variable can be called


def from_linen(module: nn.Module) -> Model:
    """A `Model` from a Linen module.

    Args:
        module: its `__call__` takes the inputs [K, ...] and, if it declares them or has
            `**kwargs`, the keywords `train` and `mask` (for an `nn.Sequential`, its
            first layer's). In place of `train` it may declare `training`,
            `is_training`, or their opposites `deterministic` or `use_running_average`.
            A switch that the module has as a field, and is set, is left as it is. Flax's
            own layers are passed none of these: their fields say what they do, and
            their `mask` means something else. A key seeds the `dropout` and
            `params` streams; Linen draws other streams from `params`. Collections other
            than `params` become the state, whose shapes must not change, so do not sow
            values. A string field `norm` names the normalisation policy in reports.

    Returns:
        A `Model`.

    Example:
        >>> model = from_linen(nn.Dense(3))
        >>> params, state = model.init(jax.random.key(0), jax.numpy.ones((2, 4)))
        >>> model.apply(params, state, jax.numpy.ones((2, 4)))[0].shape
        (2, 3)
    """
    first = _first_layer(module)
    called = type(first).__call__ if isinstance(first, nn.Module) else first
    is_own = _is_by_flax(called)
    switches, has_mask = ({}, False) if is_own else (_switches(first, called), accepts(called, "mask"))
    stated = _policy(module)

    def switched(train):
        return {name: value if train else not value for name, value in switches.items()}

    def streams(key):
        return None if key is None else dict(zip(("params", "dropout"), jax.random.split(key), strict=True))

    @jax.jit  # or each operation of the network would be compiled and run by itself
    def init(key, inputs):
        variables = dict(module.init(key, inputs, **switched(train=False)))
        params = variables.pop("params", {})
        return params, variables | stated

    def apply(params, state, inputs, *, train=False, key=None, mask=None):
        collections = _without_policy(state)
        outputs, changed = module.apply(
            {"params": params, **collections},
            inputs,
            rngs=streams(key),
            mutable=list(collections) if train else [],
            **switched(train),
            **({"mask": mask} if has_mask else {}),
        )
        return outputs, {**state, **changed}

    return Model(init, apply)


def _first_layer(module):
    """The layer that a module's keywords reach: an `nn.Sequential` passes them to its first."""
    while type(module).__call__ is nn.Sequential.__call__ and module.layers:
        module = module.layers[0]
    return module


def _switches(layer, called):
    """`train` if the `__call__` takes it, or else the other switches that it declares; none that a field has set."""
    declared = ["train"] if accepts(called, "train") else inspect.signature(called).parameters
    return {name: on for name, on in SWITCHES.items() if name in declared and getattr(layer, name, None) is None}


def _is_by_flax(called):
    """Whether a `__call__` is Flax's own, whose masks have other shapes, dtypes and meanings.

    The `__call__` of `nn.jit(Network)` counts as the network's own.
    """
    return (getattr(called, "__module__", None) or "").startswith("flax.")


def from_nnx(constructor: Callable) -> Model:
    """A `Model` from an NNX module.

    Args:
        constructor: `(nnx.Rngs) -> nnx.Module`. `nnx.Param`s become the parameters and
            all other variables the state, except random streams: each call's `key`
            seeds every stream differently, and without a key they repeat. `train` puts
            the module in training or evaluation mode. A keyword `mask` that its
            `__call__` declares receives the padding mask [K], 1 for a real example, so an
            attention mask needs another name; `**kwargs`, which often go on to other
            modules, and Flax's own modules receive none. A string attribute `norm` names
            the normalisation policy in reports.

    Returns:
        A `Model`.

    Raises:
        ValueError: if `constructor` is not such a function, but a module, for example.

    Example:
        >>> from flax import nnx
        >>> model = from_nnx(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
        >>> params, state = model.init(jax.random.key(0), jax.numpy.ones((2, 4)))
        >>> model.apply(params, state, jax.numpy.ones((2, 4)))[0].shape
        (2, 3)
    """
    from flax import nnx  # slow to import; `import jmeta` does without it

    if isinstance(constructor, nnx.Module | nn.Module) or not callable(constructor):
        raise ValueError(
            f"constructor is of type {type(constructor).__name__}; it must be a function from nnx.Rngs to a module, "
            "such as lambda rngs: nnx.Linear(4, 3, rngs=rngs)."
        )

    def parts(module) -> Any:
        """The definition, parameters, random streams, and the rest."""
        return nnx.split(module, nnx.Param, nnx.RngState, ...)

    @functools.cache
    def skeleton():
        """The module's definition, the shapes of its random streams, and whether it takes a mask."""
        with jax.ensure_compile_time_eval():
            module = nnx.eval_shape(lambda: constructor(nnx.Rngs(0)))
            definition, _, streams, _ = parts(module)
            called = type(module).__call__
            wants_mask = not _is_by_flax(called) and "mask" in inspect.signature(called).parameters
            return definition, streams, wants_mask

    def init(key, inputs):
        del inputs  # an NNX module knows its sizes
        module = constructor(nnx.Rngs(key))
        _, params, _, state = parts(module)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(state) | _policy(module)

    def apply(params, state, inputs, *, train=False, key=None, mask=None):
        definition, streams, wants_mask = skeleton()
        seeded = _seeded(streams, jax.random.key(0) if key is None else key)
        variables = nnx.State(_without_policy(state))
        module = nnx.merge(definition, nnx.State(params), seeded, variables, copy=True)
        module.train() if train else module.eval()
        outputs = module(inputs, mask=mask) if wants_mask else module(inputs)
        if not train:
            return outputs, state
        _, _, _, changed = parts(module)
        return outputs, {**state, **nnx.to_pure_dict(changed)}

    return Model(init, apply)


def _policy(module):
    """The state's entry for the module's normalisation policy, if it names one."""
    policy = getattr(module, "norm", None)
    return {POLICY: Normalisation(policy)} if isinstance(policy, str) else {}


def _without_policy(state):
    """The state's variables alone."""
    return {name: value for name, value in state.items() if name != POLICY}


def _seeded(streams: PyTree, key: Array) -> PyTree:
    """Random streams, each with a key of its own from which nothing is drawn yet."""
    leaves, structure = jax.tree.flatten(streams)
    return jax.tree.unflatten(structure, [_begun(leaf, jax.random.fold_in(key, i)) for i, leaf in enumerate(leaves)])


def _begun(leaf, key):
    """A fresh leaf of a random stream: a key, one for each of stacked layers, or the count of keys drawn so far."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(key, leaf.shape) if leaf.shape else key
    return jax.numpy.zeros(leaf.shape, leaf.dtype)
