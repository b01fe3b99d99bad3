"""Encoders, which turn the examples of a task into features: one network for all, or one for each set."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jmeta.networks import apply_model, init_model, split_key
from jmeta.types import Model, together


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
    statistics, as in the code of Snell et al., 2017; at test time each alone.

    Args:
        model: a network from inputs [K, ...] to features [K, ...].

    Returns:
        An `Encoder` with the network's parameters and state.

    Example:
        >>> from jmeta import data, models
        >>> encoder, task = shared_encoder(models.mlp(outputs=None)), data.glyphs()(jax.random.key(0))
        >>> params, state = encoder.init(jax.random.key(1), task)
        >>> features, queries, _ = encoder.both(params, state, task)
        >>> features.shape, queries.shape
        ((5, 40), (75, 40))
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

    Args:
        query_model: the network for queries.
        support_model: the network for the support set, to features of the same width.

    Returns:
        An `Encoder` whose parameters and state are pairs, the query network's first.

    Example:
        >>> from jmeta import data, models
        >>> encoder = separate_encoders(models.conv4(width=40), models.mlp(outputs=160))
        >>> task = data.glyphs()(jax.random.key(0))
        >>> params, state = encoder.init(jax.random.key(1), task)
        >>> encoder.support(params, state, task.support.inputs).shape
        (5, 160)
    """

    def init(key, task):
        query_key, support_key = jax.random.split(key)
        query_params, query_state = init_model(query_model, query_key, task.query.inputs)
        support_params, support_state = init_model(support_model, support_key, task.support.inputs)
        return (query_params, support_params), (query_state, support_state)

    def query(params, state, inputs, *, mask=None):
        return apply_model(query_model, params[0], state[0], inputs, mask=mask)[0]

    def support(params, state, inputs, *, mask=None, key=None):
        return apply_model(support_model, params[1], state[1], inputs, mask=mask, key=key)[0]

    def both(params, state, task, *, key=None):
        query_key, support_key = split_key(key)
        queries, query_state = apply_model(
            query_model, params[0], state[0], task.query.inputs, mask=task.query.mask, train=True, key=query_key
        )
        features, support_state = apply_model(
            support_model, params[1], state[1], task.support.inputs, mask=task.support.mask, train=True, key=support_key
        )
        return features, queries, (query_state, support_state)

    return Encoder(init, support, query, both)
