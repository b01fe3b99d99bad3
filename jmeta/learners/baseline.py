"""The transfer baseline (Chen et al., 2019)."""

import jax.numpy as jnp
import optax

from jmeta import losses
from jmeta.functional.transfer import Classifier, FINE_TUNING, transfer_learner, uniform_kernel
from jmeta.types import Learner, Model


def baseline(
    model: Model, *, classes: int, optimizer: optax.GradientTransformation = FINE_TUNING, fine_tuning_steps: int = 100
) -> Learner:
    """Classifies all training classes; in a task, fits a new linear head to the features.

    Chen et al., 2019, "A Closer Look at Few-shot Classification", Baseline. Training
    treats support and query examples alike, as labelled examples of the classes
    `task.class_ids`, so a training batch is T tasks of a few classes each, where the
    paper draws examples of any class. A new head starts at zero, not at random, and
    each step uses the whole support set, where the paper's code takes minibatches of 4
    for 100 epochs: an episode has one answer, whatever the order of its examples. The
    optimizer's running mean of gradients starts at zero, not at the first gradient, so
    its first steps are shorter.

    Args:
        model: an encoder to features [K, D] (`outputs=None` in `jmeta.models`), with
            `norm="running"` as in the paper: the statistics of the training set are
            part of what is transferred.
        classes: number of classes in the training source, `len(table)`.
        optimizer: the new head's optimizer, any optax transformation.
        fine_tuning_steps: number of steps it takes.

    Returns:
        A `Learner` for any number of ways; its parameters are `HeadParams`, and
        `adapt` gives `Fitted`. Accuracy in training is over all classes.

    Raises:
        ValueError: for fewer than 2 classes or a negative number of steps; from `init`
            and `loss`, for a task without `class_ids` or with one that is not below
            `classes`. Under `jit` class ids cannot be checked; the loss of such a task
            is then NaN.

    Example:
        >>> import jax, numpy as np
        >>> from jmeta import data, models
        >>> table = data.class_table(np.arange(60.0).reshape(30, 2), np.repeat(np.arange(6), 5))
        >>> task = data.episodes(table, ways=3, shots=1, queries=2)(jax.random.key(0))
        >>> learner = baseline(models.mlp(outputs=None, norm="running"), classes=len(table))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.adapt(params, state, task.support).head["kernel"].shape
        (40, 3)
    """
    objective = losses.objective(losses.cross_entropy)
    return transfer_learner(model, objective, LINEAR, classes=classes, optimizer=optimizer, steps=fine_tuning_steps)


def _init(key, width, classes):
    return {"kernel": uniform_kernel(key, width, classes), "bias": jnp.zeros(classes)}


def _start(features, targets, mask):
    return {
        "kernel": jnp.zeros((features.shape[1], targets.shape[1]), features.dtype),
        "bias": jnp.zeros(targets.shape[1], features.dtype),
    }


def _outputs(head, features):
    return features @ head["kernel"] + head["bias"][None]


LINEAR = Classifier(_init, _start, _outputs)
