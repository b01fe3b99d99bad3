"""CAVIA: fast context adaptation (Zintgraf et al., 2019)."""

from collections.abc import Callable
from typing import Unpack

import jax.numpy as jnp
import optax
from jax.tree_util import tree_map_with_path

from jmeta import losses
from jmeta.functional.fast_weights import descent, fast_weight_learner
from jmeta.functional.inner_loop import MetaGradientOptions
from jmeta.functional.inner_rule import InnerOptimizer
from jmeta.functional.partition import check_predicates, in_layer, path_name
from jmeta.types import Learner, Model


def cavia(
    model: Model,
    *,
    context: Callable[[str], bool] = in_layer("context"),
    inner_optimizer: InnerOptimizer = optax.sgd(1.0),
    inner_steps: int = 2,
    test_steps: int | None = None,
    inner_batch: int | None = None,
    loss_fn: Callable = losses.cross_entropy,
    **options: Unpack[MetaGradientOptions],
) -> Learner:
    """MAML whose inner loop moves only a context, which starts at zero in each task.

    Zintgraf et al., 2019, "Fast Context Adaptation via Meta-Learning". The context
    consists of parameters of the model, an input that all examples share: `context=4`
    of `models.mlp`, `context=100` of `models.conv4`. Rate and number of steps are the
    paper's for images; on sinusoids it takes one step.

    Args:
        model: any network with a context; its output width is the number of ways.
        context: `(path) -> bool`, which parameters are the context, by paths such as
            `"context"`; the default suits `jmeta.models`.
        inner_optimizer: as for `maml`.
        inner_steps: gradient steps on the support set in meta-training.
        test_steps: gradient steps in `adapt`; None for as many as in training.
        inner_batch: support examples per inner step; None for all.
        loss_fn: as for `maml`.
        options: how the meta-gradient is taken; see `functional.MetaGradientOptions`.

    Returns:
        A `Learner`; its parameters are `MetaParams`, and `adapt` gives
        `FastWeights` of the context.

    Raises:
        ValueError: as for `maml`, and if `context` is not a function; from `init`, if
            the model has no context, or nothing else.

    Example:
        >>> import jax
        >>> from jmeta import data, models
        >>> learner = cavia(models.mlp(context=4), inner_steps=1, loss_fn=losses.squared_error)
        >>> task = data.sinusoid()(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.adapt(params, state, task.support).params["context"].shape
        (4,)
    """
    check_predicates(context=context)
    objective = losses.objective(loss_fn)

    def start(params, state, examples, **unused):
        return tree_map_with_path(lambda path, leaf: jnp.zeros_like(leaf) if context(path_name(path)) else leaf, params)

    inner = descent(
        model, objective, rule=inner_optimizer, moves=context, start=start, inner_batch=inner_batch, **options
    )
    return fast_weight_learner(inner, objective, inner_steps=inner_steps, test_steps=test_steps)
