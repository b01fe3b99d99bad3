"""Prototypical networks (Snell et al., 2017), by three distances."""

from jmeta import losses
from jmeta.checks import check_model
from jmeta.functional.encoders import separate_encoders, shared_encoder
from jmeta.functional.heads import head_learner, learned_scalars, plain_head
from jmeta.functional.prototypes import (
    COSINE_SCALE,
    cosine_similarities,
    gaussians,
    prototypes,
    squared_distances,
    squared_mahalanobis_distances,
)
from jmeta.types import Learner, Model


def protonet(model: Model, *, distance: str = "euclidean", support_encoder: Model | None = None) -> Learner:
    """Classifies a query by its distance to the mean feature of each class.

    Snell et al., 2017, "Prototypical Networks for Few-shot Learning". In training,
    one encoder of both sees support and query together, so that they share one set of
    batch statistics, as in the paper's code; at test time each alone.

    Args:
        model: an encoder to features [K, D] (`outputs=None` in `jmeta.models`). If it
            has batch statistics, `norm="running"` is the paper's.
        distance: `"euclidean"`, squared; `"cosine"`, similarities times a learned
            scale; or `"mahalanobis"`, half the squared distance, with the covariance of
            each class shrunk towards the task's (Bateni et al., 2020, "Improved
            Few-Shot Visual Classification").
        support_encoder: another encoder for the support set, to features of the same
            width; None for the same one. The support example of a class is then its
            description, such as a vector of attributes or a text, and no labelled
            example is needed (section 2.7 of the paper, which scales these features to
            unit length; that is left to the encoder).

    Returns:
        A `Learner` for any number of ways; its parameters are `HeadParams`, and
        `adapt` gives `Fitted` with prototypes [N, D], or `Gaussians`.

    Raises:
        ValueError: for an unknown `distance`, or a `support_encoder` that is not a
            `Model`; from `init`, as for `functional.head_learner`.

    Example:
        >>> import jax
        >>> from jmeta import data, models
        >>> learner = protonet(models.mlp(outputs=None))
        >>> task = data.glyphs(ways=5, shots=1, queries=2)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.adapt(params, state, task.support).head.shape
        (5, 40)
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}; it must be one of {', '.join(DISTANCES)}.")
    if support_encoder is not None:
        check_model(support_encoder=support_encoder)
    encoder = shared_encoder(model) if support_encoder is None else separate_encoders(model, support_encoder)
    return head_learner(encoder, DISTANCES[distance], losses.objective(losses.cross_entropy))


def _means(params, support):
    return prototypes(*support)


DISTANCES = {
    "euclidean": plain_head(
        learned_scalars(), _means, lambda params, points, queries: -squared_distances(queries, points)
    ),
    "cosine": plain_head(
        learned_scalars(scale=COSINE_SCALE),
        _means,
        lambda params, points, queries: params["scale"] * cosine_similarities(queries, points),
    ),
    "mahalanobis": plain_head(
        learned_scalars(),
        lambda params, support: gaussians(*support),
        lambda params, fitted, queries: -squared_mahalanobis_distances(queries, fitted) / 2,
    ),
}
