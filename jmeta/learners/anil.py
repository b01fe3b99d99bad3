"""ANIL: Almost No Inner Loop (Raghu et al., 2020)."""

from collections.abc import Callable
from typing import Unpack

import optax

from jmeta import losses
from jmeta.functional.fast_weights import descent, fast_weight_learner
from jmeta.functional.inner_loop import MetaGradientOptions
from jmeta.functional.inner_rule import InnerOptimizer
from jmeta.functional.partition import check_predicates, in_layer
from jmeta.types import Learner, Model


def anil(
    model: Model,
    *,
    head: Callable[[str], bool] = in_layer("head"),
    inner_optimizer: InnerOptimizer = optax.sgd(0.4),
    inner_steps: int = 1,
    test_steps: int | None = None,
    inner_batch: int | None = None,
    loss_fn: Callable = losses.cross_entropy,
    **options: Unpack[MetaGradientOptions],
) -> Learner:
    """MAML whose inner loop moves only the last layer.

    Raghu et al., 2020, "Rapid Learning or Feature Reuse? Towards Understanding the
    Effectiveness of MAML". Rate and number of steps are those of `maml`, for 5-way
    Omniglot; the paper's experiments are on 20-way Omniglot and 5-way miniImageNet. The
    layers below the head run once, however many steps it takes, so more steps cost
    little and help (docs/decisions/0012-anil.md in the repository).

    Args:
        model: any network; its output width is the number of ways.
        head: `(path) -> bool`, which parameters are the last layer's, by paths such as
            `"head/kernel"`; the default suits `jmeta.models`.
        inner_optimizer: as for `maml`.
        inner_steps: gradient steps on the support set in meta-training.
        test_steps: gradient steps in `adapt`; None for as many as in training.
        inner_batch: support examples per inner step; None for all.
        loss_fn: as for `maml`.
        options: how the meta-gradient is taken; see `functional.MetaGradientOptions`.

    Returns:
        A `Learner`; its parameters are `MetaParams`, and `adapt` gives
        `FastWeights` of the head.

    Raises:
        ValueError: as for `maml`, and if `head` is not a function; from `init`, if it
            chooses no parameter or all.

    Example:
        >>> import jax
        >>> from jmeta import data, models
        >>> learner = anil(models.mlp(outputs=5))
        >>> task = data.glyphs()(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> jax.tree.map(lambda leaf: leaf.shape, learner.adapt(params, state, task.support).params["head"])
        {'bias': (5,), 'kernel': (40, 5)}
    """
    check_predicates(head=head)
    objective = losses.objective(loss_fn)
    inner = descent(model, objective, rule=inner_optimizer, moves=head, inner_batch=inner_batch, **options)
    return fast_weight_learner(inner, objective, inner_steps=inner_steps, test_steps=test_steps)
