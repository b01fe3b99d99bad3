"""The transfer baseline with a cosine head, Baseline++ (Chen et al., 2019)."""

import jax.numpy as jnp
import optax

from jmeta import losses
from jmeta.functional.prototypes import cosine_similarities
from jmeta.functional.transfer import Classifier, FINE_TUNING, transfer_learner, uniform_kernel
from jmeta.types import Learner, Model

# Scales of the cosines in the paper's code: 2, or 10 for a head with more than 200 classes.
FEW_CLASSES, SCALE, SCALE_OF_MANY = 200, 2.0, 10.0


def baseline_pp(
    model: Model, *, classes: int, optimizer: optax.GradientTransformation = FINE_TUNING, fine_tuning_steps: int = 100
) -> Learner:
    """Like `baseline`, with heads whose outputs are scaled cosines of features and weights.

    Chen et al., 2019, "A Closer Look at Few-shot Classification", Baseline++. As in the
    paper's code, weights are normalised by reparametrisation, as a direction and a
    length for each class, both learned, and cosines are multiplied by 2, or by 10 for
    more than 200 classes. In a new head all classes start in one direction, that of the
    mean support feature, where the paper draws them at random. For batches, steps and
    `norm` see `baseline`.

    Args:
        model: an encoder to features [K, D], with `norm="running"`, as for `baseline`.
        classes: number of classes in the training source, `len(table)`.
        optimizer: the new head's optimizer, any optax transformation.
        fine_tuning_steps: number of steps it takes.

    Returns:
        A `Learner` for any number of ways, as for `baseline`.

    Raises:
        ValueError: as for `baseline`.

    Example:
        >>> import jax, numpy as np
        >>> from jmeta import data, models
        >>> table = data.class_table(np.arange(60.0).reshape(30, 2), np.repeat(np.arange(6), 5))
        >>> task = data.episodes(table, ways=3, shots=1, queries=2)(jax.random.key(0))
        >>> learner = baseline_pp(models.mlp(outputs=None, norm="running"), classes=len(table))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.adapt(params, state, task.support).head["kernel"].shape
        (40, 3)
    """
    objective = losses.objective(losses.cross_entropy)
    return transfer_learner(model, objective, COSINE, classes=classes, optimizer=optimizer, steps=fine_tuning_steps)


def _init(key, width, classes):
    kernel = uniform_kernel(key, width, classes)
    return {"kernel": kernel, "length": jnp.linalg.norm(kernel, axis=0)}


def _start(features, targets, mask):
    """Weights in the direction of the mean feature, of length 1 / sqrt(3), which determines how fast directions turn.

    It is the mean length of random weights.

    Where features add up to zero, which has no direction, it is that of a vector of ones.
    """
    total = (features * mask[:, None]).sum(0)
    total = jnp.where(jnp.square(total).sum() == 0, 1, total)
    direction = total / jnp.linalg.norm(total)
    length = jnp.full(targets.shape[1], 3**-0.5, features.dtype)
    return {"kernel": direction[:, None] * length[None], "length": length}


def _outputs(head, features):
    classes = head["length"].size
    scale = SCALE if classes <= FEW_CLASSES else SCALE_OF_MANY
    return scale * head["length"][None] * cosine_similarities(features, head["kernel"].T)


COSINE = Classifier(_init, _start, _outputs)
