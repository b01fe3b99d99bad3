"""Matching networks (Vinyals et al., 2016)."""

import jax
import jax.numpy as jnp

from jmeta import losses
from jmeta.checks import check_model, check_positive
from jmeta.functional.attention import class_attention
from jmeta.functional.encoders import shared_encoder
from jmeta.functional.heads import check_stateless, head_learner, learned_scalars, plain_head
from jmeta.functional.prototypes import COSINE_SCALE, cosine_similarities
from jmeta.networks import apply_model
from jmeta.types import Learner, Model


def matching(
    model: Model,
    *,
    scale: float = COSINE_SCALE,
    support_context: Model | None = None,
    query_context: Model | None = None,
) -> Learner:
    """Classifies a query by its attention to each support example, a softmax of cosines.

    Vinyals et al., 2016, "Matching Networks for One Shot Learning". Full-context
    embeddings (section 2.1.2) are two more networks: the features of a support example
    may depend on the others, and those of a query on the support set. No query sees
    another. Support and query are encoded as in `protonet`. We depart from the paper in
    multiplying cosines by a learned scale: where features are not negative, the softmax
    of bare cosines gives no class of 20 more than an eighth of the probability. Both
    networks always run in evaluation mode, without dropout.

    Args:
        model: an encoder to features [K, D] (`outputs=None` in `jmeta.models`).
        scale: the scale of the cosines, where its learning starts.
        support_context: a network from support features [K, D] to as many, which is
            passed a `mask` of the real ones; `models.bidirectional_lstm()` is the
            paper's, for which the order of the support set matters. None leaves the
            features unchanged.
        query_context: a network from
            `(query features [Q, D], support features [K, D], mask [K])` to [Q, D];
            `models.attention_lstm()` is the paper's. None leaves the features
            unchanged.

    Returns:
        A `Learner` for any number of ways; its parameters are `HeadParams`, and
        `adapt` gives `Fitted` with the encoded support set.

    Raises:
        ValueError: for a scale that is not positive, or if a context is not a `Model`;
            from `init`, as for `functional.head_learner`, and if a context normalises
            by batch statistics or changes the width of only one set.

    Example:
        >>> from jmeta import data, models
        >>> learner = matching(models.mlp(outputs=None))
        >>> task = data.glyphs(ways=5, shots=1, queries=2)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> adapted = learner.adapt(params, state, task.support)
        >>> learner.predict(params, state, adapted, task.query.inputs).shape
        (10, 5)
    """
    check_positive(scale=scale)
    support_context = SUPPORT_ALONE if support_context is None else support_context
    query_context = QUERY_ALONE if query_context is None else query_context
    check_model(support_context=support_context, query_context=query_context)

    def init(key, features):
        support_key, query_key = jax.random.split(key)
        mask = jnp.ones(len(features), features.dtype)
        support_params, support_state = support_context.init(support_key, features)
        query_params, query_state = query_context.init(query_key, (features, features, mask))
        check_stateless("support_context or query_context", (support_state, query_state))
        scale_params = learned_scalars(scale=scale)(key, features)
        return scale_params | {"support": support_params, "query": query_params}

    def fit(params, support):
        features, _ = apply_model(support_context, params["support"], {}, support.inputs, mask=support.mask)
        return support._replace(inputs=features)

    def score(params, support, queries):
        queries, _ = apply_model(query_context, params["query"], {}, (queries, support.inputs, support.mask))
        if queries.shape[-1] != support.inputs.shape[-1]:
            raise ValueError(
                f"query_context gives features of width {queries.shape[-1]}, support_context of "
                f"{support.inputs.shape[-1]}; they must be the same."
            )
        similarities = params["scale"] * cosine_similarities(queries, support.inputs)
        return class_attention(similarities, support.targets, support.mask)

    return head_learner(shared_encoder(model), plain_head(init, fit, score), losses.objective(losses.cross_entropy))


def _no_params(key, inputs):
    return (), ()


SUPPORT_ALONE = Model(_no_params, lambda params, state, features, **mode: (features, state))
QUERY_ALONE = Model(_no_params, lambda params, state, inputs, **mode: (inputs[0], state))
