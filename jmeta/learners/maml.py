"""MAML: Model-Agnostic Meta-Learning (Finn et al., 2017)."""

from collections.abc import Callable

import optax

from jmeta import losses
from jmeta.functional.fast_weights import fast_weight_learner
from jmeta.functional.inner_loop import MetaGradient, train_and_test_loops
from jmeta.types import Learner, Model


def maml(
    model: Model,
    *,
    inner_optimizer: optax.GradientTransformation = optax.sgd(0.4),
    inner_steps: int = 1,
    test_steps: int | None = None,
    meta_gradient: MetaGradient = "second_order",
    loss_fn: Callable = losses.cross_entropy,
) -> Learner:
    """Learns an initialisation from which a few gradient steps solve a task.

    Finn et al., 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks". The defaults are the paper's for 5-way Omniglot, but for
    `test_steps`, which is 3 there.

    Args:
        model: any network; its output width is the number of ways.
        inner_optimizer: any optax transformation.
        inner_steps: gradient steps on the support set in meta-training.
        test_steps: gradient steps in `adapt`; None for as many as in training.
        meta_gradient: `"second_order"` is exact; `"first_order"` takes inner
            gradients for constants (FOMAML).
        loss_fn: `losses.cross_entropy`, `losses.squared_error` or your own
            `(outputs [K, N], targets [K, N], mask [K]) -> scalar`; mark one over
            classes with `losses.classification`.

    Returns:
        A `Learner`; `adapt` gives `FastWeights`.

    Raises:
        ValueError: for a negative number of steps or an unknown `meta_gradient`;
            from `init`, if the model's output width is not the number of ways.

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
    train_loop, test_loop = train_and_test_loops(
        inner_optimizer, inner_steps=inner_steps, test_steps=test_steps, meta_gradient=meta_gradient
    )
    return fast_weight_learner(model, losses.objective(loss_fn), train_loop=train_loop, test_loop=test_loop)
