"""In-context learning by a Transformer (Garg et al., 2022; Kirsch et al., 2022)."""

from collections.abc import Callable

from jmeta import losses, models
from jmeta.functional.encoders import shared_encoder
from jmeta.functional.heads import head_learner
from jmeta.functional.sequences import prompted
from jmeta.types import Learner, Model


def in_context(
    model: Model, *, sequence: Callable[[int], Model] = models.transformer, loss_fn: Callable = losses.cross_entropy
) -> Learner:
    """A Transformer whose prompt is the support set, with each query right after it.

    Garg et al., 2022, "What Can Transformers Learn In-Context?"; Kirsch et al.,
    2022, "General-Purpose In-Context Learning by Meta-Learning Transformers".
    As in the latter, a token is an example beside its target. We depart from both in
    three ways: tokens have no positions, and examples see each other, so the order of
    the support set does not matter; the loss is on the queries only, not on every
    prefix; and the default Transformer is smaller, for a CPU (4 layers of width 64,
    where Garg et al. have 12 of 256).

    Args:
        model: an encoder to features [K, D] (`outputs=None` in `jmeta.models`);
            `models.mlp(hidden=(), outputs=None)` leaves inputs as they are.
        sequence: `(outputs) -> Model` from `(queries [Q, outputs + 1 + D], prompt
            [K, outputs + 1 + D], mask [K])` to [Q, outputs]; see `functional.prompted`.
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
        >>> small = functools.partial(models.transformer, width=8, depth=1)
        >>> learner = in_context(models.mlp(outputs=None), sequence=small, loss_fn=losses.squared_error)
        >>> task = data.sinusoid(shots=5, queries=3)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.predict(params, state, learner.adapt(params, state, task.support), task.query.inputs).shape
        (3, 1)
    """
    return head_learner(shared_encoder(model), prompted(sequence), losses.objective(loss_fn))
