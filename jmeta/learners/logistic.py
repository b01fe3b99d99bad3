"""Logistic regression on learned features, at its optimum."""

import math

from jmeta import losses
from jmeta.checks import check_counts, check_positive
from jmeta.functional.encoders import shared_encoder
from jmeta.functional.heads import head_learner, learned_regularisation, learned_scalars, plain_head
from jmeta.functional.logistic import logistic_regression
from jmeta.types import Learner, Model


def logistic(model: Model, *, regularisation: float = 0.01, newton_steps: int = 10, cg_steps: int = 50) -> Learner:
    """Regularised logistic regression on the features of each task, differentiated at its optimum.

    Where ANIL (Raghu et al., 2020) takes a few gradient steps on the head, this trains
    the head to its optimum. On a separable support set the unregularised loss has no
    minimum; with the regulariser it has exactly one, wherever the steps start, so no
    part of the head needs to be meta-learned and any number of ways will do. Unlike
    ANIL's, the head has no bias. The meta-gradient is the implicit one of that minimum
    (Rajeswaran et al., 2019; Lee et al., 2019, for convex heads). Bertinetto et al.,
    2019, solve the binary case by Newton's method and differentiate through its steps.
    The cross-entropy is averaged over the support set, so that a regularisation means
    the same for any number of ways and shots; it is learned, through its logarithm.
    Where it starts, and the numbers of steps, are ours.

    Args:
        model: an encoder to features [K, D] (`outputs=None` in `jmeta.models`).
        regularisation: lambda in lambda / 2 |weights|^2, where its learning starts.
        newton_steps: steps of Newton's method, at least 1. The default suits features
            of order one. For 25 examples of 64 random features with standard deviation
            60, weights are off by up to 0.4 of the largest after 10 steps and 5e-4
            after 15, in double precision; in single precision they stay a tenth off,
            however many are taken.
        cg_steps: maximum number of conjugate gradient steps, in each of those and in
            the derivative, at least 1.

    Returns:
        A `Learner` for any number of ways; its parameters are `HeadParams`, and
        `adapt` gives `Fitted` with weights [D, N].

    Raises:
        ValueError: for numbers out of range; from `init`, as for `functional.head_learner`.

    Example:
        >>> import jax
        >>> from jmeta import data, models
        >>> learner = logistic(models.mlp(outputs=None))
        >>> task = data.glyphs(ways=5, shots=1, queries=2)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.adapt(params, state, task.support).head.shape
        (40, 5)
    """
    check_positive(regularisation=regularisation)
    check_counts(least=1, newton_steps=newton_steps, cg_steps=cg_steps)

    def fit(params, support):
        x, y, mask = support
        regularisation = learned_regularisation(params, support)
        return logistic_regression(x, y, mask, regularisation, steps=newton_steps, cg_steps=cg_steps)

    def score(params, weights, features):
        return features @ weights

    head = plain_head(learned_scalars(log_regularisation=math.log(regularisation)), fit, score)
    return head_learner(shared_encoder(model), head, losses.objective(losses.cross_entropy))
