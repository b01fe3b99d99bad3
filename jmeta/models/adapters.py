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

    Raises:
        ValueError: if `module` is no Linen module, but its class, for example.

    Example:
        >>> model = from_linen(nn.Dense(3))
        >>> params, state = model.init(jax.random.key(0), jax.numpy.ones((2, 4)))
        >>> model.apply(params, state, jax.numpy.ones((2, 4)))[0].shape
        (2, 3)
    """
    if not isinstance(module, nn.Module):
        name = getattr(module, "__name__", type(module).__name__)
        raise ValueError(f"module is {name}; it must be a Linen module with its sizes, such as nn.Dense(3).")
    first = _first_layer(module)
    called = type(first).__call__ if isinstance(first, nn.Module) else first
    forwarded = [name for name in ("train", "mask") if accepts(called, name)]
    keywords = [name for name in _keywords(called, forwarded) if getattr(first, name, None) is None]
    stated = _policy(module)

    def streams(key):
        return None if key is None else dict(zip(("params", "dropout"), jax.random.split(key), strict=True))

    @jax.jit  # or each operation of the network would be compiled and run by itself
    def init(key, inputs):
        variables = dict(module.init(key, inputs, **_told(keywords, train=False, mask=None)))
        params = variables.pop("params", {})
        return params, variables | stated

    def apply(params, state, inputs, *, train=False, key=None, mask=None):
        collections = without_policy(state)
        outputs, changed = module.apply(
            {"params": params, **collections},
            inputs,
            rngs=streams(key),
            mutable=list(collections),  # a layer that always takes the statistics of its inputs writes them always
            **_told(keywords, train=train, mask=mask),
        )
        return outputs, {**state, **changed} if train else state

    return Model(init, apply)


def _first_layer(module):
    """The layer that a module's keywords reach: an `nn.Sequential` passes them to its first."""
    while type(module).__call__ is nn.Sequential.__call__ and module.layers:
        module = module.layers[0]
    return module


def _keywords(called, forwarded=()):
    """The keywords by which a `__call__` is told of training and padding; none if it is Flax's own.

    They are those that it declares and, of `train` and `mask`, those that it passes on; `train` rather than another
    switch.
    """
    if _is_by_flax(called):
        return []
    names = {*inspect.signature(called).parameters, *forwarded}
    switches = ["train"] if "train" in names else [name for name in SWITCHES if name in names]
    return [*switches, *(names & {"mask"})]


def _told(keywords, *, train, mask):
    """The values of these keywords."""
    values = {name: value if train else not value for name, value in SWITCHES.items()} | {"mask": mask}
    return {name: values[name] for name in keywords}


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
            seeds every stream differently, and without a key they repeat. Its `train()`
            and `eval()` are called, which set `use_running_average` and `deterministic`
            of all layers, and its `__call__` is told by the keywords for it that it
            declares, as in `from_linen`. A keyword `mask` that it declares receives the
            padding mask [K], 1 for a real example, so an attention mask needs another
            name; `**kwargs`, which often go on to other modules, and Flax's own modules
            receive none. A string attribute `norm` names the normalisation policy in
            reports.

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
        """The module's definition, the shapes of its random streams, and the keywords that it takes."""
        with jax.ensure_compile_time_eval():
            module = nnx.eval_shape(lambda: constructor(nnx.Rngs(0)))
            definition, _, streams, _ = parts(module)
            return definition, streams, _keywords(type(module).__call__)

    def init(key, inputs):
        del inputs  # an NNX module knows its sizes
        module = constructor(nnx.Rngs(key))
        _, params, _, state = parts(module)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(state) | _policy(module)

    def apply(params, state, inputs, *, train=False, key=None, mask=None):
        definition, streams, keywords = skeleton()
        seeded = _seeded(streams, jax.random.key(0) if key is None else key)
        variables = nnx.State(without_policy(state))
        module = nnx.merge(definition, nnx.State(params), seeded, variables, copy=True)
        module.train() if train else module.eval()
        outputs = module(inputs, **_told(keywords, train=train, mask=mask))
        if not train:
            return outputs, state
        _, _, _, changed = parts(module)
        return outputs, {**state, **nnx.to_pure_dict(changed)}

    return Model(init, apply)


def _policy(module):
    """The state's entry for the module's normalisation policy, if it names one."""
    policy = getattr(module, "norm", None)
    return {POLICY: Normalisation(policy)} if isinstance(policy, str) else {}


def without_policy(state):
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
