"""Relation networks (Sung et al., 2018)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta import losses, models
from jmeta.checks import check_examples, check_model
from jmeta.functional.classes import exclude_absent, present_in
from jmeta.functional.compiled import compiled_adapt, compiled_predict
from jmeta.functional.encoders import shared_encoder
from jmeta.functional.prototypes import prototypes
from jmeta.networks import apply_model, split_key
from jmeta.types import Array, Learner, Model, PyTree


class RelationParams(NamedTuple):
    """The parameters, or the state, of the two networks.

    Attributes:
        encoder: those of the network for examples.
        comparator: those of the network for pairs.
    """

    encoder: PyTree
    comparator: PyTree


class ClassFeatures(NamedTuple):
    """What a relation network adapts.

    Attributes:
        points: [N, ...] the mean features of each class.
        present: [N] which classes the support set has.
    """

    points: Array
    present: Array


def relation(model: Model, *, comparator: Model | None = None) -> Learner:
    """Learns how to compare a query with a class, where others fix a distance.

    Sung et al., 2018, "Learning to Compare: Relation Network for Few-Shot Learning".
    The features of a class are the mean over its examples (the paper adds them up,
    which ties a network to its number of shots), joined to those of the query along the
    last axis. The loss is the squared error of the scores' sigmoid against 1 for the
    right class and 0 for the others.

    Args:
        model: an encoder to feature maps (`models.relation_encoder()` is the
            paper's) or vectors.
        comparator: a network from pairs of these, of twice the width, to scores [P, 1];
            None for the paper's, `models.relation_module()`.

    Returns:
        A `Learner` for any number of ways; its parameters and state are
        `RelationParams`, and `adapt` gives `ClassFeatures`. Outputs are scores
        before the sigmoid.

    Raises:
        ValueError: if `comparator` is not a `Model`; from `init`, for labels in place
            of one-hot targets, and if its scores are not [P, 1].

    Example:
        >>> from jmeta import data
        >>> learner = relation(models.mlp(outputs=None))
        >>> task = data.glyphs(ways=5, shots=1, queries=2)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.adapt(params, state, task.support).points.shape
        (5, 40)
    """
    comparator = models.relation_module() if comparator is None else comparator
    check_model(comparator=comparator)
    encoder, objective = shared_encoder(model), losses.objective(one_against_rest)

    def summarise(features, support):
        check_examples("support", support)
        points = prototypes(features.reshape(len(features), -1), support.targets, support.mask)
        return ClassFeatures(points.reshape(-1, *features.shape[1:]), objective.present(support))

    def compare(params, state, adapted, queries, *, mask=None, train=False, key=None):
        shape = (len(queries), *adapted.points.shape)
        pairs = jnp.concatenate(
            [jnp.broadcast_to(adapted.points, shape), jnp.broadcast_to(queries[:, None], shape)], -1
        )
        real = (jnp.ones(shape[0]) if mask is None else mask)[:, None] * adapted.present[None]
        pairs, real = (leaf.reshape(-1, *leaf.shape[2:]) for leaf in (pairs, real))
        scores, state = apply_model(comparator, params, state, pairs, mask=real, train=train, key=key)
        if scores.shape != (len(pairs), 1):
            raise ValueError(f"the comparator's scores have shape {scores.shape}; they must be {(len(pairs), 1)}.")
        return exclude_absent(scores.reshape(shape[:2]), adapted.present), state

    @jax.jit  # so that features are not computed if the comparator only uses their shapes
    def init(key, task):
        check_examples("task.support", task.support)
        encoder_key, comparator_key = jax.random.split(key)
        params, state = encoder.init(encoder_key, task)
        features = encoder.support(params, state, task.support.inputs, mask=task.support.mask)
        pairs = jnp.concatenate([features, features], -1)
        comparator_params, comparator_state = comparator.init(comparator_key, pairs)
        params, state = RelationParams(params, comparator_params), RelationParams(state, comparator_state)
        jax.eval_shape(loss, params, state, task, key=key)  # reports wrong scores before training compiles
        return params, state

    @compiled_adapt
    def adapt(params, state, support, *, key=None):
        features = encoder.support(params.encoder, state.encoder, support.inputs, mask=support.mask, key=key)
        return summarise(features, support)

    @compiled_predict
    def predict(params, state, adapted, inputs, *, mask=None):
        queries = encoder.query(params.encoder, state.encoder, inputs, mask=mask)
        return compare(params.comparator, state.comparator, adapted, queries, mask=mask)[0]

    def loss(params, state, task, *, key=None):
        encoder_key, comparator_key = split_key(key)
        features, queries, encoder_state = encoder.both(params.encoder, state.encoder, task, key=encoder_key)
        query, adapted = task.query, summarise(features, task.support)
        outputs, comparator_state = compare(
            params.comparator, state.comparator, adapted, queries, mask=query.mask, train=True, key=comparator_key
        )
        return objective.judge(outputs, query, RelationParams(encoder_state, comparator_state))

    return Learner(init, adapt, predict, loss)


@losses.classification
def one_against_rest(outputs: Array, targets: Array, mask: Array) -> Array:
    """Squared error of the outputs' sigmoid against one-hot targets, averaged over real examples and present classes.

    Outputs of absent classes are very negative: their sigmoid is zero and adds nothing, and they are not counted,
    so a task padded to more ways has the same loss.
    """
    losses.check_classes(targets)
    share = targets.shape[1] / jnp.maximum(present_in(outputs).sum(), 1)
    return share * losses.squared_error(jax.nn.sigmoid(outputs), targets, mask)
