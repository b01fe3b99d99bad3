"""Proto-MAML (Triantafillou et al., 2020)."""

from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax.numpy as jnp
import optax

from jmeta import losses
from jmeta.checks import check_model
from jmeta.functional.fast_weights import descent, fast_weight_learner
from jmeta.functional.inner_loop import MetaGradientOptions
from jmeta.functional.inner_rule import InnerOptimizer
from jmeta.functional.precision import in_one_precision
from jmeta.functional.prototypes import prototypes
from jmeta.networks import apply_model
from jmeta.types import Array, Learner, Model, PyTree


class PrototypeHead(NamedTuple):
    """The parameters of Proto-MAML's network within a task.

    Attributes:
        encoder: the encoder's parameters.
        kernel: [D, N] of the linear head, initially twice the prototypes.
        bias: [N], initially minus their squared norms.
    """

    encoder: PyTree
    kernel: Array
    bias: Array


def proto_maml(
    model: Model,
    *,
    inner_optimizer: InnerOptimizer = optax.sgd(0.01),
    inner_steps: int = 10,
    test_steps: int | None = None,
    inner_batch: int | None = None,
    loss_fn: Callable = losses.cross_entropy,
    **options: Unpack[MetaGradientOptions],
) -> Learner:
    """MAML with a linear head that starts as the prototypical network of the support set.

    Triantafillou et al., 2020, "Meta-Dataset: A Dataset of Datasets for Learning to
    Learn from Few Examples". The squared distance to a prototype c is linear in the
    features except for a term that all classes share: weights 2c, bias -|c|^2. The
    meta-gradient flows through that start. Inner gradients are constants, as in the
    paper, unless `meta_gradient="second_order"`. Ten steps are those of the authors'
    first configuration for ImageNet. The rate is ours, for networks that are not
    pre-trained, where theirs is 1e-4; and tests take as many steps as training, where
    theirs take five more.

    Args:
        model: an encoder to features [K, D] (`outputs=None` in `jmeta.models`).
        inner_optimizer: as for `maml`.
        inner_steps: gradient steps on the support set in meta-training.
        test_steps: gradient steps in `adapt`; None for as many as in training.
        inner_batch: support examples per inner step; None for all.
        loss_fn: a loss over classes, as for `maml`.
        options: how the meta-gradient is taken; see `functional.MetaGradientOptions`.

    Returns:
        A `Learner` for any number of ways; its parameters are `MetaParams`, and
        `adapt` gives `FastWeights`, a `PrototypeHead`.

    Raises:
        ValueError: as for `maml`, and for a loss that is not over classes.

    Example:
        >>> import jax
        >>> from jmeta import data, models
        >>> learner = proto_maml(models.mlp(outputs=None))
        >>> task = data.glyphs(ways=7)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.adapt(params, state, task.support).params.kernel.shape
        (40, 7)
    """
    if not losses.is_classification(loss_fn):
        raise ValueError(
            "loss_fn is not over classes, but Proto-MAML needs their prototypes; see losses.classification."
        )
    check_model(model=model)
    options.setdefault("meta_gradient", "first_order")
    objective = losses.objective(loss_fn)

    def start(params, state, support, *, train, key):
        features, _ = apply_model(model, params, state, support.inputs, mask=support.mask, train=train, key=key)
        # In half precision squares would overflow, and steps of a small rate be rounded away.
        (features, targets, mask), _ = in_one_precision(features, support.targets, support.mask)
        points = prototypes(features, targets, mask)
        return PrototypeHead(params, 2 * points.T, -jnp.square(points).sum(-1))

    def apply(params, state, inputs, *, train=False, key=None, mask=None):
        features, state = apply_model(model, params.encoder, state, inputs, mask=mask, train=train, key=key)
        (features,), _ = in_one_precision(features)
        return features @ params.kernel + params.bias[None], state

    inner = descent(
        Model(model.init, apply),
        objective,
        rule=inner_optimizer,
        start=start,
        inner_batch=inner_batch,
        **options,
    )
    return fast_weight_learner(inner, objective, inner_steps=inner_steps, test_steps=test_steps)
