"""Siamese networks (Koch et al., 2015)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta import losses
from jmeta.functional.attention import scores_by_class
from jmeta.functional.encoders import shared_encoder
from jmeta.functional.heads import head_learner, plain_head
from jmeta.types import Array, at_least_single, Learner, Model

# The initial logit at zero distance. With small steps an optimizer would need thousands to bring a bias there from
# zero, where no pair is surely alike, and meanwhile the encoder would shrink all distances.
CERTAINTY = 5.0


class Likeness(NamedTuple):
    """How alike two features are, as the logit of being of one class.

    Attributes:
        weights: [D] of the distance along each feature.
        bias: scalar, the logit at zero distance.
    """

    weights: Array
    bias: Array


def siamese(model: Model) -> Learner:
    """Learns whether two examples are of one class; a query is of the class of its best pair.

    Koch et al., 2015, "Siamese Neural Networks for One-shot Image Recognition": one
    encoder for both, the distance along each feature weighted, a sigmoid, and
    cross-entropy on pairs. The pairs are those of a support and a query example of a
    task; pairs of one class and pairs of two have equal weight in total, as in the
    paper, which draws half of each. Initially the log-odds of being alike are 5 at zero
    distance, and -5 where all features are one apart. We depart from the paper in that
    start, in the bias, and in allowing an encoder whose last layer is not a sigmoid;
    its regularisation and augmentation are left to the optimizer and the sampler.

    Args:
        model: an encoder to features [K, D] (`outputs=None` in `jmeta.models`).

    Returns:
        A `Learner` for any number of ways; its parameters are `HeadParams` with a
        `Likeness`, and `adapt` gives `Fitted` with the encoded support set. Outputs are
        the logits of the best pairs.

    Raises:
        ValueError: from `init`, if features are not [K, D].

    Example:
        >>> from jmeta import data, models
        >>> learner = siamese(models.mlp(outputs=None))
        >>> task = data.glyphs(ways=5, shots=1, queries=2)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> params.head.weights.shape
        (40,)
    """
    encoder, objective = shared_encoder(model), losses.objective(losses.cross_entropy)

    def init(key, features):
        # Alike at zero distance, and as surely not where all features are one apart.
        width, dtype = features.shape[-1], at_least_single(features.dtype)
        return Likeness(jnp.full(width, -2 * CERTAINTY / width, dtype), jnp.asarray(CERTAINTY, dtype))

    def pairs(params, queries, features):
        return params.bias + jnp.abs(queries[:, None] - features[None]) @ params.weights

    def score(params, support, queries):
        # An example of little weight is as good a match as any.
        return scores_by_class(pairs(params, queries, support.inputs), support.targets, support.mask > 0).max(1)

    learner = head_learner(encoder, plain_head(init, lambda params, support: support, score), objective)

    def loss(params, state, task, *, key=None):
        support, query = task.support, task.query
        features, queries, state = encoder.both(params.encoder, state, task, key=key)
        same = query.targets @ support.targets.T
        real = query.mask[:, None] * support.mask[None]
        outputs = score(params.head, support._replace(inputs=features), queries)
        metrics = objective.metrics(outputs, query.targets, query.mask)
        return pair_loss(pairs(params.head, queries, features), same, real), (state, metrics)

    return learner._replace(loss=loss)


def pair_loss(logits: Array, same: Array, mask: Array) -> Array:
    """Cross-entropy of pairs in nats: the average of the means over pairs of one class and over the others.

    Args:
        logits: [Q, K] of being of one class.
        same: [Q, K], 1 for pairs that are; with soft targets, the probability.
        mask: [Q, K], 1 for real pairs.
    """
    alike = losses.masked_mean(-jax.nn.log_sigmoid(logits), mask * same)
    other = losses.masked_mean(-jax.nn.log_sigmoid(-logits), mask * (1 - same))
    return (alike + other) / 2
