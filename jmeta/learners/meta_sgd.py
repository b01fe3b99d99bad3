"""Meta-SGD (Li et al., 2017)."""

from collections.abc import Callable
from typing import Unpack

import jax
import jax.numpy as jnp

from jmeta import losses
from jmeta.checks import check_positive
from jmeta.functional.fast_weights import descent, fast_weight_learner
from jmeta.functional.inner_loop import MetaGradientOptions
from jmeta.functional.inner_rule import InnerRule
from jmeta.types import Learner, Model


def meta_sgd(
    model: Model,
    *,
    inner_rate: float = 0.05,
    inner_steps: int = 1,
    test_steps: int | None = None,
    inner_batch: int | None = None,
    loss_fn: Callable = losses.cross_entropy,
    **options: Unpack[MetaGradientOptions],
) -> Learner:
    """MAML that learns an inner rate, including its sign, for each parameter.

    Li et al., 2017, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning".
    We depart from the paper in where the rates start: all at `inner_rate`, not at
    random between 0.005 and 0.1; the default is near the middle of that range.

    Args:
        model: any network; its output width is the number of ways.
        inner_rate: where each rate starts.
        inner_steps: gradient steps on the support set in meta-training.
        test_steps: gradient steps in `adapt`; None for as many as in training.
        inner_batch: support examples per inner step; None for all.
        loss_fn: as for `maml`.
        options: how the meta-gradient is taken; see `functional.MetaGradientOptions`.

    Returns:
        A `Learner`; its parameters are `MetaParams`, whose `rule` holds the
        rates, and `adapt` gives `FastWeights`.

    Raises:
        ValueError: for numbers out of range or an unknown mode; from `init`, if
            the model's output width is not the number of ways, or for an implicit
            meta-gradient, under which the rates have none.

    Example:
        >>> from jmeta import data, models
        >>> learner = meta_sgd(models.mlp(outputs=5))
        >>> params, state = learner.init(jax.random.key(1), data.glyphs()(jax.random.key(0)))
        >>> print(params.rule["head"]["bias"])
        [0.05 0.05 0.05 0.05 0.05]
    """
    objective = losses.objective(loss_fn)
    inner = descent(model, objective, rule=rate_per_parameter(inner_rate), inner_batch=inner_batch, **options)
    return fast_weight_learner(inner, objective, inner_steps=inner_steps, test_steps=test_steps)


def rate_per_parameter(rate: float) -> InnerRule:
    """Gradient descent whose rates, one for each parameter, are learned.

    Raises:
        ValueError: for a rate that is not positive.
    """
    check_positive(inner_rate=rate)

    def init(params):
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, rate), params)

    def update(gradients, memory, params, rates):
        return jax.tree.map(lambda rate, gradient: -rate * gradient, rates, gradients), memory

    return InnerRule(init, lambda rates, params: (), update)
