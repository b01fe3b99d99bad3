"""Learners that adapt by a forward pass: a head reads the features of the support set and answers queries."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta.checks import check_examples
from jmeta.functional.classes import exclude_absent
from jmeta.functional.compiled import compiled_adapt, compiled_predict
from jmeta.functional.encoders import Encoder
from jmeta.networks import split_key
from jmeta.types import Array, at_least_single, Examples, Learner, normalisations, Objective, or_one, PyTree


class Head(NamedTuple):
    """A head, which reads an encoded support set and answers encoded queries.

    The support set is `Examples` whose inputs are features [K, D].

    Attributes:
        init: `(key, support) -> params`, its meta-learned parameters.
        fit: `(params, support, *, train=False, key=None) -> fitted`, any tree.
        score: `(params, fitted, features [Q, D], *, train=False, key=None) -> outputs
            [Q, N]`, each row of which depends on its query alone.
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


def plain_head(init: Callable, fit: Callable, score: Callable) -> Head:
    """A head that does the same in training and at test time, and draws no random numbers.

    Args:
        init: `(key, features [K, D]) -> params`.
        fit: `(params, support) -> fitted`.
        score: `(params, fitted, features [Q, D]) -> outputs [Q, N]`.

    Returns:
        A `Head`.

    Example:
        >>> from jmeta import functional
        >>> head = plain_head(
        ...     init=lambda key, features: (),
        ...     fit=lambda params, support: functional.prototypes(*support),
        ...     score=lambda params, points, features: features @ points.T,
        ... )
        >>> support = Examples(jnp.eye(2), jnp.eye(2), jnp.ones(2))
        >>> print(head.score((), head.fit((), support), jnp.eye(2)))
        [[1. 0.]
         [0. 1.]]
    """
    return Head(
        lambda key, support: init(key, support.inputs),
        lambda params, support, **mode: fit(params, support),
        lambda params, fitted, features, **mode: score(params, fitted, features),
    )


def head_learner(encoder: Encoder, head: Head, objective: Objective) -> Learner:
    """The learner that encodes a task and fits a head on its support set.

    Args:
        encoder: the encoder of support and query.
        head: the head, fitted anew for each task.
        objective: the loss on the queries.

    Returns:
        A `Learner` whose parameters are `HeadParams`, whose `adapt` gives `Fitted`, and
        whose state is the encoder's.

    Raises:
        ValueError: from `init`, for labels in place of one-hot targets, features that
            are not vectors or differ in width between support and query, and outputs of
            a wrong width; from `adapt` and `loss`, for targets or features of other
            widths than those a head was initialised for.

    Example:
        >>> from jmeta import data, functional, losses, models
        >>> head = plain_head(
        ...     lambda key, features: (),
        ...     lambda params, support: functional.prototypes(*support),
        ...     lambda params, points, queries: -functional.squared_distances(queries, points),
        ... )
        >>> encoder = functional.shared_encoder(models.mlp(outputs=None))
        >>> learner = head_learner(encoder, head, losses.objective(losses.cross_entropy))
        >>> task = data.glyphs()(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.predict(params, state, learner.adapt(params, state, task.support), task.query.inputs).shape
        (75, 5)
    """

    @jax.jit  # so that features are not computed if a head only uses their shapes
    def init(key, task):
        check_examples("task.support", task.support)
        encoder_key, head_key = jax.random.split(key)
        params, state = encoder.init(encoder_key, task)
        features = encoder.support(params, state, task.support.inputs, mask=task.support.mask)
        queries = jax.eval_shape(encoder.query, params, state, task.query.inputs)
        for name, found in {"support": features, "query": queries}.items():
            if found.ndim != 2:
                raise ValueError(
                    f"the encoder's {name} features have shape {found.shape}; they must be vectors, [K, D]."
                )
        if features.shape[1] != queries.shape[1]:
            raise ValueError(
                f"support features have width {features.shape[1]}, query features {queries.shape[1]}; they must agree."
            )
        params = HeadParams(params, head.init(head_key, task.support._replace(inputs=features)))
        jax.eval_shape(loss, params, state, task, key=key)  # reports a wrong output width before training compiles
        return params, state

    def fit(params, features, support, **mode):
        check_examples("support", support)
        encoded = support._replace(inputs=features)
        _check_widths(head, params.head, encoded)
        return Fitted(head.fit(params.head, encoded, **mode), objective.present(support))

    def score(params, adapted, features, **mode):
        return exclude_absent(head.score(params.head, adapted.head, features, **mode), adapted.present)

    @compiled_adapt
    def adapt(params, state, support, *, key=None):
        encoder_key, fit_key = split_key(key)
        features = encoder.support(params.encoder, state, support.inputs, mask=support.mask, key=encoder_key)
        return fit(params, features, support, key=fit_key)

    @compiled_predict
    def predict(params, state, adapted, inputs, *, mask=None):
        return score(params, adapted, encoder.query(params.encoder, state, inputs, mask=mask))

    def loss(params, state, task, *, key=None):
        encoder_key, fit_key, score_key = split_key(key, 3)
        features, queries, state = encoder.both(params.encoder, state, task, key=encoder_key)
        adapted = fit(params, features, task.support, train=True, key=fit_key)
        outputs = score(params, adapted, queries, train=True, key=score_key)
        return objective.judge(outputs, task.query, state)

    return Learner(init, adapt, predict, loss)


def _check_widths(head, params, support):
    fitting = jax.eval_shape(lambda: head.init(jax.random.key(0), support))
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, fitting):
        raise ValueError(
            f"the support set has targets of width {support.targets.shape[-1]} and features of width "
            f"{support.inputs.shape[-1]}, but the head was initialised for others, which it keeps; "
            "initialise a learner for tasks of these ways."
        )


def learned_scalars(**start: float) -> Callable:
    """The `init` of a plain head whose meta-learned parameters are these scalars, starting at the given values.

    At least float32: in half precision the steps of a small learning rate would be rounded away.
    """

    def init(key, features):
        return {name: jnp.asarray(value, at_least_single(features.dtype)) for name, value in start.items()}

    return init


def learned_regularisation(params: dict[str, Array], support: Examples) -> Array:
    """Lambda, stored as its logarithm, times the number of real examples, so that it means the same for any number."""
    number = support.mask.sum(dtype=at_least_single(support.mask.dtype))
    return jnp.exp(params["log_regularisation"]) * or_one(number)


def check_stateless(name: str, state: PyTree) -> None:
    """Raises a `ValueError` if a head's network has batch statistics, which queries would share, or another state."""
    if jax.tree.leaves(state) or "batch" in normalisations(state):
        raise ValueError(
            f"{name} has statistics of a batch, or another state that a head would not keep; it must have none, and "
            'normalise each example by itself, as with norm="layer".'
        )
