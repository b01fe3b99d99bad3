"""SNAIL: the simple neural attentive meta-learner (Mishra et al., 2018)."""

from collections.abc import Callable

from jmeta import losses, models
from jmeta.functional.encoders import shared_encoder
from jmeta.functional.heads import head_learner
from jmeta.functional.sequences import prompted
from jmeta.types import Learner, Model


def snail(
    model: Model, *, sequence: Callable[[int], Model] = models.snail, loss_fn: Callable = losses.cross_entropy
) -> Learner:
    """Causal convolutions and attention over the support set, with each query right after it.

    Mishra et al., 2018, "A Simple Neural Attentive Meta-Learner". The support set
    is a sequence, in the given order, which affects predictions. With a key, as in
    training and evaluation, the order is random, as in the paper, so that no class is
    known by its position. Beside the paper's target, a token has a flag that marks the
    query. For how the default network departs from it see `models.snail`.

    Args:
        model: an encoder to features [K, D] (`outputs=None` in `jmeta.models`).
        sequence: `(outputs) -> Model` from `(queries [Q, outputs + 1 + D], prompt
            [K, outputs + 1 + D], mask [K])` to [Q, outputs]; see `functional.prompted`.
            The convolutions of `models.snail` reach over 26 tokens, 5-way 5-shot and a
            query; for other tasks set its `length` to one more than the number of
            support examples. A longer one costs layers; what a shorter one does not
            reach is left to attention.
        loss_fn: the loss on the query set, `(outputs, targets, mask) -> scalar`;
            `losses.squared_error` for regression.

    Returns:
        A `Learner` for the number of ways of the task it is initialised with and
        any number of shots; `adapt` gives `Fitted` with the encoded support set.

    Raises:
        ValueError: from `init`, as for `functional.head_learner`, and if `sequence`
            does not return a `Model`, or returns one that normalises by batch
            statistics.

    Example:
        >>> import functools, jax
        >>> from jmeta import data
        >>> small = functools.partial(models.snail, filters=4, attention=[(4, 4)], length=6)
        >>> learner = snail(models.mlp(outputs=None), sequence=small)
        >>> task = data.glyphs(ways=5, shots=1, queries=2)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.predict(params, state, learner.adapt(params, state, task.support), task.query.inputs).shape
        (10, 5)
    """
    return head_learner(shared_encoder(model), prompted(sequence), losses.objective(loss_fn))
