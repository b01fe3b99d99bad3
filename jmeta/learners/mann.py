"""MANN: the memory-augmented neural network (Santoro et al., 2016)."""

from collections.abc import Callable

from jmeta import losses, models
from jmeta.functional.encoders import shared_encoder
from jmeta.functional.heads import head_learner
from jmeta.functional.sequences import recurrent
from jmeta.types import Learner, Model


def mann(
    model: Model, *, network: Callable[[int], Model] = models.mann, loss_fn: Callable = losses.cross_entropy
) -> Learner:
    """Reads the support set into a memory; each example's label comes one token later.

    Santoro et al., 2016, "Meta-Learning with Memory-Augmented Neural Networks".
    The support set is a sequence, in the given order, which affects predictions; with a
    key, as in training and evaluation, the order is random. Each query comes right
    after the support set, beside the label of the last support example, and finds the
    memory as the support set left it. We depart from the paper in two ways: there
    queries follow one another, here no query is in another's memory; and the loss is on
    the queries only, not on every step. For how the default network departs from it see
    `models.mann`.

    Args:
        model: an encoder to features [K, D]; the paper uses none:
            `models.mlp(hidden=(), outputs=None)`.
        network: `(outputs) -> Model`, a recurrent network from tokens [L, outputs + D]
            to [L, outputs], which takes a `mask`; see `functional.recurrent`.
        loss_fn: the loss on the query set, `(outputs, targets, mask) -> scalar`;
            `losses.squared_error` for regression.

    Returns:
        A `Learner` for the number of ways of the task it is initialised with and
        any number of shots; `adapt` gives `Fitted` with a `Past`.

    Raises:
        ValueError: from `init`, as for `functional.head_learner`, and if `network` does
            not return a `Model` that takes a `mask`.

    Example:
        >>> import functools, jax
        >>> from jmeta import data
        >>> small = functools.partial(models.mann, controller=8, slots=8, width=4, heads=2)
        >>> learner = mann(models.mlp(outputs=None), network=small)
        >>> task = data.glyphs(ways=5, shots=1, queries=2)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.adapt(params, state, task.support).head.carry.memory.slots.shape
        (8, 4)
    """
    return head_learner(shared_encoder(model), recurrent(network), losses.objective(loss_fn))
