"""Learners that fit a head on features: all is theirs in common but the head."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jmeta.functional.classes import exclude_absent
from jmeta.functional.encoders import Encoder
from jmeta.types import Array, Learner, Objective, PyTree


class Head(NamedTuple):
    """How queries are told apart by the features of a support set.

    Attributes:
        init: `(key, features [K, D]) -> params`, what is meta-learned of it.
        fit: `(params, features [K, D], support) -> fitted`, any tree.
        score: `(params, fitted, features [Q, D]) -> outputs [Q, N]`.
    """

    init: Callable
    fit: Callable
    score: Callable


class HeadParams(NamedTuple):
    """What learners with a head meta-learn.

    Attributes:
        encoder: the encoder's parameters.
        head: the head's; empty for one that has none.
    """

    encoder: PyTree
    head: PyTree


class Fitted(NamedTuple):
    """What learners with a head adapt.

    Attributes:
        head: what the head made of the support set.
        present: [N] which classes the support set has, or None for regression.
    """

    head: PyTree
    present: Array | None


def head_learner(encoder: Encoder, head: Head, objective: Objective) -> Learner:
    """The learner that encodes a task and fits a head on its support set.

    Args:
        encoder: of support and query.
        head: fitted anew for each task.
        objective: the loss of the queries.

    Returns:
        A `Learner` whose parameters are `HeadParams`, and whose `adapt` gives
        `Fitted`. Its `init` raises a `ValueError` for an encoder whose features
        are not vectors.
    """

    def init(key, task):
        encoder_key, head_key = jax.random.split(key)
        params, state = encoder.init(encoder_key, task)
        features = encoder.support(params, state, task.support.inputs, mask=task.support.mask)
        check_vectors(features)
        return HeadParams(params, head.init(head_key, features)), state

    def fit(params, features, support):
        return Fitted(head.fit(params.head, features, support), objective.present(support))

    def score(params, adapted, features):
        return exclude_absent(head.score(params.head, adapted.head, features), adapted.present)

    def adapt(params, state, support, *, key=None):
        return fit(params, encoder.support(params.encoder, state, support.inputs, mask=support.mask, key=key), support)

    def predict(params, state, adapted, inputs, *, mask=None):
        return score(params, adapted, encoder.query(params.encoder, state, inputs, mask=mask))

    def loss(params, state, task, *, key=None):
        features, queries, state = encoder.both(params.encoder, state, task, key=key)
        labelled = (score(params, fit(params, features, task.support), queries), task.query.targets, task.query.mask)
        return objective.loss(*labelled), (state, objective.metrics(*labelled))

    return Learner(init, adapt, predict, loss)


def check_vectors(features: Array) -> None:
    """Raises a `ValueError` unless features are [K, D]."""
    if features.ndim != 2:
        raise ValueError(f"the encoder's features have shape {features.shape}; they must be vectors, [K, D].")
