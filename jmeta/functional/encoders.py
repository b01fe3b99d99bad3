"""What turns the examples of a task into features: one network for all, or one for each set."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jmeta.types import apply_model, init_model, Model, together


class Encoder(NamedTuple):
    """A task's examples as features.

    Attributes:
        init: `(key, task) -> (params, state)`.
        support: `(params, state, inputs [K, ...], *, mask=None, key=None) -> features [K, ...]`.
        query: `(params, state, inputs [Q, ...], *, mask=None) -> features [Q, ...]`.
        both: `(params, state, task, *, key=None) -> (support features, query
            features, state)`, in training.
    """

    init: Callable
    support: Callable
    query: Callable
    both: Callable


def shared_encoder(model: Model) -> Encoder:
    """One network for support and query.

    In training they are encoded together, so that they share one set of batch
    statistics, as in the code of Snell et al., 2017; in test, each alone.
    """

    def init(key, task):
        return init_model(model, key, task.support.inputs)

    def encode(params, state, inputs, *, mask=None, key=None):
        return apply_model(model, params, state, inputs, mask=mask, key=key)[0]

    def both(params, state, task, *, key=None):
        inputs, _, mask = together(task)
        features, state = apply_model(model, params, state, inputs, mask=mask, train=True, key=key)
        shots = task.support.mask.size
        return features[:shots], features[shots:], state

    return Encoder(init, encode, encode, both)


def separate_encoders(query_model: Model, support_model: Model) -> Encoder:
    """One network for queries and another for the support set, whose inputs may be of another kind.

    Parameters and state are pairs, the query network's first.
    """

    def init(key, task):
        parts = zip(jax.random.split(key), (query_model, support_model), (task.query, task.support), strict=True)
        params, states = zip(*(init_model(model, key, examples.inputs) for key, model, examples in parts), strict=True)
        return params, states

    def query(params, state, inputs, *, mask=None):
        return apply_model(query_model, params[0], state[0], inputs, mask=mask)[0]

    def support(params, state, inputs, *, mask=None, key=None):
        return apply_model(support_model, params[1], state[1], inputs, mask=mask, key=key)[0]

    def both(params, state, task, *, key=None):
        keys = (None, None) if key is None else jax.random.split(key)
        parts = zip((query_model, support_model), params, state, (task.query, task.support), keys, strict=True)
        (queries, query_state), (features, support_state) = (
            apply_model(model, params, state, examples.inputs, mask=examples.mask, train=True, key=key)
            for model, params, state, examples, key in parts
        )
        return features, queries, (query_state, support_state)

    return Encoder(init, support, query, both)
