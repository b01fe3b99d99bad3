"""Transfer: features learned by classifying all training classes, and a new head for each task."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jmeta.checks import check_counts, check_transformation
from jmeta.functional.classes import exclude_absent
from jmeta.functional.encoders import shared_encoder
from jmeta.functional.heads import head_learner, plain_head
from jmeta.functional.inner_loop import inner_loop
from jmeta.functional.inner_rule import as_rule
from jmeta.functional.precision import in_one_precision
from jmeta.networks import apply_model
from jmeta.types import Array, Examples, Learner, Model, Objective, together

# Stochastic gradient descent with momentum, dampening and weight decay, as Chen et al., 2019, fit a head; here the
# running mean of gradients starts at zero, there at the first gradient.
FINE_TUNING = optax.chain(optax.add_decayed_weights(1e-3), optax.ema(0.9, debias=False), optax.scale(-0.01))


class Classifier(NamedTuple):
    """A kind of head.

    Attributes:
        init: `(key, width, classes) -> params`, where training starts.
        start: `(features [K, D], targets [K, N], mask [K]) -> params`, where a task's
            head starts, the same for all its classes.
        outputs: `(params, features [Q, D]) -> [Q, N]`.
    """

    init: Callable
    start: Callable
    outputs: Callable


def transfer_learner(
    model: Model,
    objective: Objective,
    classifier: Classifier,
    *,
    classes: int,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> Learner:
    """A learner trained by ordinary classification; in a task it fits a new head to the support features.

    Args:
        model: an encoder to features [K, D].
        objective: the loss, over classes, of training and of fitting.
        classifier: the kind of head.
        classes: number of classes in the training source.
        optimizer: the optimizer of a task's head.
        steps: number of steps it takes.

    Returns:
        A `Learner`; its parameters are `HeadParams`, with the head of all training
        classes, and `adapt` gives `Fitted`, with the task's. Its metrics are over all
        training classes.

    Raises:
        ValueError: for fewer than 2 classes, a negative number of steps or something that
            is no optimizer; from `init`, for an optimizer that needs more than gradients;
            from `init` and `loss`, for a task without `class_ids`, or with one that is not
            below `classes`. Under `jit` class ids cannot be checked; the loss of such a task
            is then NaN.

    Example:
        >>> from jmeta import data, functional, losses, models
        >>> classifier = functional.Classifier(
        ...     lambda key, width, classes: jnp.zeros((width, classes)),
        ...     lambda features, targets, mask: jnp.zeros((features.shape[1], targets.shape[1])),
        ...     lambda kernel, features: features @ kernel,
        ... )
        >>> objective, options = losses.objective(losses.cross_entropy), {"optimizer": optax.sgd(0.1), "steps": 3}
        >>> learner = transfer_learner(models.mlp(outputs=None), objective, classifier, classes=6, **options)
        >>> table = data.class_table(np.arange(60.0).reshape(30, 2), np.repeat(np.arange(6), 5))
        >>> task = data.episodes(table, ways=3, shots=1, queries=2)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> params.head.shape, learner.adapt(params, state, task.support).head.shape
        ((40, 6), (40, 3))
    """
    check_counts(least=2, classes=classes)
    check_counts(steps=steps)
    check_transformation("optimizer", optimizer)
    rule = as_rule(optimizer, "optimizer")

    def fit(params, support):
        present = objective.present(support)
        (features,), _ = in_one_precision(support.inputs)  # in half precision small steps would be rounded away
        support = support._replace(inputs=features)

        def support_loss(head, _):
            outputs = exclude_absent(classifier.outputs(head, support.inputs), present)
            return objective.loss(outputs, support.targets, support.mask)

        return inner_loop(support_loss, classifier.start(*support), rule=rule, steps=steps, meta_gradient="first_order")

    head = plain_head(
        lambda key, features: classifier.init(key, features.shape[-1], classes),
        fit,
        lambda params, fitted, features: classifier.outputs(fitted, features),
    )
    learner = head_learner(shared_encoder(model), head, objective)

    def init(key, task):
        _check_class_ids(task.class_ids, classes)
        return learner.init(key, task)

    def loss(params, state, task, *, key=None):
        _check_class_ids(task.class_ids, classes)
        inputs, targets, mask = together(task)
        features, state = apply_model(model, params.encoder, state, inputs, mask=mask, train=True, key=key)
        outputs = classifier.outputs(params.head, features)
        targets = targets @ jax.nn.one_hot(task.class_ids, classes, dtype=targets.dtype)
        value, aux = objective.judge(outputs, Examples(inputs, targets, mask), state)
        # A class id out of range would have no column and silently count for nothing.
        is_known = (task.class_ids < classes).all()
        return jnp.where(is_known, value, jnp.nan), aux

    return learner._replace(init=init, loss=loss)


def uniform_kernel(key: Array, width: int, classes: int) -> Array:
    """Weights [D, N] drawn uniformly between plus and minus 1 / sqrt(D)."""
    bound = 1 / math.sqrt(width)
    return jax.random.uniform(key, (width, classes), float, -bound, bound)


def _check_class_ids(class_ids, classes):
    if class_ids is None:
        raise ValueError(
            "task.class_ids is None; a transfer baseline needs to know which training class each column is, as "
            "data.episodes states."
        )
    if not isinstance(class_ids, jax.core.Tracer) and (highest := np.asarray(class_ids).max()) >= classes:
        raise ValueError(f"the task has class id {highest}, but classes is {classes}; classes must exceed every id.")
