"""MAML: Model-Agnostic Meta-Learning (Finn et al., 2017)."""

from collections.abc import Callable
from typing import Unpack

import optax

from jmeta import losses
from jmeta.functional.fast_weights import descent, fast_weight_learner
from jmeta.functional.inner_loop import MetaGradientOptions
from jmeta.functional.inner_rule import InnerOptimizer
from jmeta.types import Learner, Model


def maml(
    model: Model,
    *,
    inner_optimizer: InnerOptimizer = optax.sgd(0.4),
    inner_steps: int = 1,
    test_steps: int | None = None,
    inner_batch: int | None = None,
    loss_fn: Callable = losses.cross_entropy,
    **options: Unpack[MetaGradientOptions],
) -> Learner:
    """Learns an initialisation from which a few gradient steps solve a task.

    Finn et al., 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks". The defaults are the paper's for 5-way Omniglot, except `test_steps`,
    which is 3 there.

    Args:
        model: any network; its output width is the number of ways.
        inner_optimizer: any optax transformation or `functional.InnerRule`.
        inner_steps: gradient steps on the support set in meta-training.
        test_steps: gradient steps in `adapt`; None for as many as in training.
        inner_batch: support examples per inner step; None for all.
        loss_fn: `losses.cross_entropy`, `losses.squared_error` or your own
            `(outputs [K, N], targets [K, N], mask [K]) -> scalar`; mark a loss over
            classes with `losses.classification`.
        options: how the meta-gradient is taken, such as `meta_gradient="truncated"`;
            see `functional.MetaGradientOptions`.

    Returns:
        A `Learner`; its parameters are `MetaParams`, and `adapt` gives `FastWeights`.

    Raises:
        ValueError: for numbers out of range or an unknown mode; from `init`, if
            the model's output width is not the number of ways, or the inner
            optimizer has no derivative at a gradient of zero (see `inner_loop`).

    Example:
        >>> import jax
        >>> from jmeta import data, models
        >>> learner = maml(models.mlp(), inner_optimizer=optax.sgd(0.01), loss_fn=losses.squared_error)
        >>> task = data.sinusoid(shots=10, queries=10)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> adapted = learner.adapt(params, state, task.support)
        >>> learner.predict(params, state, adapted, task.query.inputs).shape
        (10, 1)
    """
    objective = losses.objective(loss_fn)
    inner = descent(model, objective, rule=inner_optimizer, inner_batch=inner_batch, **options)
    return fast_weight_learner(inner, objective, inner_steps=inner_steps, test_steps=test_steps)
