"""Prototypical networks (Snell et al., 2017)."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jmeta import losses
from jmeta.functional.classes import exclude_absent
from jmeta.functional.prototypes import cosine_similarities, prototypes, squared_distances
from jmeta.types import apply_model, Array, Examples, Learner, Model

# Cosines lie between -1 and 1: as logits they must be sharpened. The scale is
# the initial value of Gidaris & Komodakis, 2018.
COSINE_SCALE = 10.0

SIMILARITIES: dict[str, Callable] = {
    "euclidean": lambda queries, points: -squared_distances(queries, points),
    "cosine": lambda queries, points: COSINE_SCALE * cosine_similarities(queries, points),
}


class Prototypes(NamedTuple):
    """What a prototypical network adapts.

    Attributes:
        points: [N, D] the mean feature of each class.
        present: [N] which classes the support set has.
    """

    points: Array
    present: Array


def protonet(model: Model, *, distance: str = "euclidean") -> Learner:
    """Classifies a query by its distance to the mean feature of each class.

    Snell et al., 2017, "Prototypical Networks for Few-shot Learning". In
    training, support and query are encoded together, so that they share one
    set of batch statistics, as in the paper's code; in test, each alone.

    Args:
        model: an encoder to features [K, D] (`outputs=None` in `jmeta.models`).
            With batch statistics in it, `norm="running"` is the paper's.
        distance: `"euclidean"`, squared; or `"cosine"`, similarities times 10.

    Returns:
        A `Learner` for any number of ways; `adapt` gives `Prototypes`.

    Raises:
        ValueError: for an unknown `distance`.

    Example:
        >>> import jax
        >>> from jmeta import data, models
        >>> learner = protonet(models.mlp(outputs=None))
        >>> task = data.glyphs(ways=5, shots=1, queries=2)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.adapt(params, state, task.support).points.shape
        (5, 40)
    """
    if distance not in SIMILARITIES:
        raise ValueError(f"distance is {distance!r}; it must be one of {', '.join(SIMILARITIES)}.")
    similarity = SIMILARITIES[distance]
    objective = losses.objective(losses.cross_entropy)

    def summarise(features, support):
        return Prototypes(prototypes(features, support.targets, support.mask), objective.present(support))

    def classify(features, adapted):
        return exclude_absent(similarity(features, adapted.points), adapted.present)

    def init(key, task):
        return model.init(key, task.support.inputs)

    def adapt(params, state, support, *, key=None):
        features, _ = apply_model(model, params, state, support.inputs, mask=support.mask, key=key)
        return summarise(features, support)

    def predict(params, state, adapted, inputs, *, mask=None):
        return classify(apply_model(model, params, state, inputs, mask=mask)[0], adapted)

    def loss(params, state, task, *, key=None):
        support, query = task.support, task.query
        both = Examples(*(jnp.concatenate(pair) for pair in zip(support, query, strict=True)))
        features, state = apply_model(model, params, state, both.inputs, mask=both.mask, train=True, key=key)
        shots = support.mask.size
        outputs = classify(features[shots:], summarise(features[:shots], support))
        labelled = (outputs, query.targets, query.mask)
        return objective.loss(*labelled), (state, objective.metrics(*labelled))

    return Learner(init, adapt, predict, loss)
