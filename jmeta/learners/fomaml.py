"""First-order MAML (Finn et al., 2017, section 5.2)."""

from collections.abc import Callable

import optax

from jmeta import losses
from jmeta.functional.fast_weights import descent, fast_weight_learner
from jmeta.functional.inner_rule import InnerOptimizer
from jmeta.types import Learner, Model


def fomaml(
    model: Model,
    *,
    inner_optimizer: InnerOptimizer = optax.sgd(0.4),
    inner_steps: int = 1,
    test_steps: int | None = None,
    inner_batch: int | None = None,
    loss_fn: Callable = losses.cross_entropy,
) -> Learner:
    """MAML whose meta-gradient is the query gradient at the fast weights.

    Finn et al., 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks", section 5.2; analysed by Nichol et al., 2018. The same as `maml` with
    `meta_gradient="first_order"`, under its usual name.

    Args:
        model: any network; its output width is the number of ways.
        inner_optimizer: as for `maml`.
        inner_steps: gradient steps on the support set in meta-training.
        test_steps: gradient steps in `adapt`; None for as many as in training.
        inner_batch: support examples per inner step; None for all.
        loss_fn: as for `maml`.

    Returns:
        A `Learner`; its parameters are `MetaParams`, and `adapt` gives `FastWeights`.

    Raises:
        ValueError: for numbers out of range; from `init`, if the model's output
            width is not the number of ways.

    Example:
        >>> import jax
        >>> from jmeta import data, models
        >>> learner = fomaml(models.mlp(), inner_optimizer=optax.sgd(0.01), loss_fn=losses.squared_error)
        >>> task = data.sinusoid(shots=10, queries=10)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> gradient, _ = jax.grad(learner.loss, has_aux=True)(params, state, task)  # through no inner gradient
        >>> gradient.model["head"]["bias"].shape
        (1,)
    """
    objective = losses.objective(loss_fn)
    inner = descent(model, objective, rule=inner_optimizer, inner_batch=inner_batch, meta_gradient="first_order")
    return fast_weight_learner(inner, objective, inner_steps=inner_steps, test_steps=test_steps)
