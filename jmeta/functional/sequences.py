"""Heads that read the support set as a sequence: the prompt of a sequence model, or the past of a recurrent one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta.functional.heads import check_stateless, Head
from jmeta.functional.orders import real_last
from jmeta.networks import apply_model, model_of_width, split_key, takes_mask
from jmeta.types import Array, PyTree, take_rows


class Past(NamedTuple):
    """The support set as read by a recurrent head.

    Attributes:
        carry: the network's state after it.
        last: [N] the target of the last support example.
    """

    carry: PyTree
    last: Array


def prompted(sequence: Callable) -> Head:
    """Takes the support set as a prompt; each query comes right after it, and no query sees another.

    A token is a target, a flag and features: a support example has its own target and
    the flag 0, a query has zeros and the flag 1.

    Args:
        sequence: `(outputs) -> Model` from `(queries [Q, outputs + 1 + D], prompt
            [K, outputs + 1 + D], mask [K])` to [Q, outputs], like
            `models.transformer`. Masked tokens of the prompt come first.

    Returns:
        A `Head` that is fitted to the encoded support set itself, padding first;
        given a key, in a random order.

    Raises:
        ValueError: from `init`, if `sequence` does not return a `Model`, or returns one that
            normalises by batch statistics.

    Example:
        >>> from jmeta import Examples, models
        >>> head = prompted(lambda outputs: models.transformer(outputs, width=8, depth=1))
        >>> support = Examples(jnp.ones((3, 4)), jnp.ones((3, 2)), jnp.ones(3))
        >>> params = head.init(jax.random.key(0), support)
        >>> head.score(params, head.fit(params, support), jnp.ones((5, 4))).shape
        (5, 2)
    """

    def init(key, support):
        network = model_of_width("sequence", sequence, support.targets.shape[-1])
        params, state = network.init(key, _prompt(support, support.inputs))
        check_stateless("the sequence model", state)
        return params

    def fit(params, support, *, train=False, key=None):
        return _in_order(support, key)

    def score(params, support, features, *, train=False, key=None):
        network = sequence(support.targets.shape[-1])
        return apply_model(network, params, {}, _prompt(support, features), train=train, key=key)[0]

    return Head(init, fit, score)


def recurrent(network: Callable) -> Head:
    """Reads the support set once; each query comes next, as if there were no other query.

    A token is the previous example's target (zeros for the first) beside this example's
    features; a query has the last support target beside it.

    Args:
        network: `(outputs) -> Model`, recurrent: its `state` is what it carries between
            tokens, None before the first. It maps tokens [L, outputs + D] to
            [L, outputs] and takes a `mask` [L]; masked tokens leave the state as it is.

    Returns:
        A `Head` that is fitted to a `Past`; given a key, the support set is in a
        random order.

    Raises:
        ValueError: from `init`, if `network` does not return a `Model`, or one that
            takes no `mask`.

    Example:
        >>> from jmeta import Examples, models
        >>> head = recurrent(lambda outputs: models.mann(outputs, controller=8, slots=8, width=4, heads=2))
        >>> support = Examples(jnp.ones((3, 4)), jnp.ones((3, 2)), jnp.ones(3))
        >>> params = head.init(jax.random.key(0), support)
        >>> head.score(params, head.fit(params, support), jnp.ones((5, 4))).shape
        (5, 2)
    """

    def init(key, support):
        model = model_of_width("network", network, support.targets.shape[-1])
        if not takes_mask(model.apply):
            raise ValueError("network gives a Model whose apply takes no `mask`, without which padding is read too.")
        return model.init(key, _offset_tokens(support))[0]

    def fit(params, support, *, train=False, key=None):
        order_key, network_key = split_key(key)
        ordered, model = _in_order(support, order_key), network(support.targets.shape[-1])
        tokens = _offset_tokens(ordered)
        _, carry = apply_model(model, params, None, tokens, mask=ordered.mask, train=train, key=network_key)
        return Past(carry, _labels(ordered)[-1])

    def score(params, past, features, *, train=False, key=None):
        model = network(past.last.size)

        def answer(feature, key):
            token = jnp.concatenate([past.last, feature])[None]
            return apply_model(model, params, past.carry, token, mask=jnp.ones(1), train=train, key=key)[0][0]

        # Each query draws numbers of its own, whatever padding follows.
        keys = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(features)))
        return jax.vmap(answer)(features, keys)

    return Head(init, fit, score)


def _in_order(support, key):
    return take_rows(support, real_last(support.mask, key))


def _prompt(support, features):
    """The query tokens of features [Q, D], the tokens of the support set, and its mask."""
    unknown = jnp.zeros_like(support.targets, shape=(len(features), support.targets.shape[1]))
    return _tokens(unknown, features, 1), _tokens(support.targets, support.inputs, 0), support.mask


def _tokens(targets, features, flag):
    return jnp.concatenate([targets, jnp.full((len(features), 1), flag, features.dtype), features], axis=1)


def _offset_tokens(support):
    """Tokens with the previous real example's target; padding, which comes first, has none."""
    labels = _labels(support)
    before = jnp.concatenate([jnp.zeros_like(labels[:1]), labels[:-1]])
    return jnp.concatenate([before, support.inputs], axis=1)


def _labels(support):
    """The targets of real examples, whatever these weigh, and zeros for padding."""
    return jnp.where(support.mask[:, None] > 0, support.targets, 0)
