"""Reptile (Nichol et al., 2018)."""

from collections.abc import Callable

import jax
import optax
from jax import lax

from jmeta import losses
from jmeta.functional.fast_weights import descent, fast_weight_learner
from jmeta.functional.inner_rule import InnerOptimizer
from jmeta.networks import split_key
from jmeta.types import Learner, Model, together


def reptile(
    model: Model,
    *,
    inner_optimizer: InnerOptimizer = optax.adam(1e-3, b1=0.0),
    inner_steps: int = 5,
    test_steps: int | None = 50,
    inner_batch: int | None = 10,
    loss_fn: Callable = losses.cross_entropy,
) -> Learner:
    """Moves the initialisation towards the fast weights; takes no derivative of the inner loop.

    Nichol et al., 2018, "On First-Order Meta-Learning Algorithms". There a task needs
    no query set: in meta-training we descend on support and query together. `loss` is
    half the squared distance from the initialisation to the fast weights, so that its
    gradient is the step the paper takes: an outer `optax.sgd` with a rate that falls
    from 1 to 0 is the paper's; one task per batch is its serial form, many the batched
    one. The defaults are the paper's for 5-way Omniglot, with three exceptions: Adam's
    state is reset for each task; tests use training's minibatch size, not 5; and
    minibatches repeat one random order of a task's examples, where the authors' code
    shuffles again on each pass.

    Args:
        model: any network; its output width is the number of ways.
        inner_optimizer: any optax transformation, or a rule without parameters of its own.
        inner_steps: gradient steps in meta-training.
        test_steps: gradient steps in `adapt`; None for as many as in training.
        inner_batch: examples per inner step; None for all.
        loss_fn: as for `maml`.

    Returns:
        A `Learner`; its parameters are `MetaParams`, and `adapt` gives
        `FastWeights`. Its metrics are on the query set, on which it has also descended.

    Raises:
        ValueError: for numbers out of range; from `init`, if the model's output
            width is not the number of ways, or for an inner rule with parameters of
            its own.

    Example:
        >>> from jmeta import data, models
        >>> learner = reptile(models.mlp(outputs=5), inner_optimizer=optax.sgd(0.1), inner_steps=1, inner_batch=None)
        >>> task = data.glyphs()(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.adapt(params, state, task.support).params["head"]["bias"].shape
        (5,)
    """
    objective = losses.objective(loss_fn)
    inner = descent(model, objective, rule=inner_optimizer, inner_batch=inner_batch, meta_gradient="first_order")
    learner = fast_weight_learner(inner, objective, inner_steps=inner_steps, test_steps=test_steps)

    def init(key, task):
        params, state = learner.init(key, task)
        if jax.tree.leaves(params.rule):
            raise ValueError(
                "inner_optimizer has meta-learned parameters, which Reptile cannot learn, since it takes no derivative "
                "of the inner loop; give it an optax transformation."
            )
        return params, state

    def loss(params, state, task, *, key=None):
        inner_key, query_key = split_key(key)
        query = task.query
        adapted = inner.run(params, state, together(task), steps=inner_steps, train=True, key=inner_key)
        target = lax.stop_gradient(adapted.params)
        outputs, state = inner.outputs(params, state, adapted, query.inputs, mask=query.mask, train=True, key=query_key)
        distance = optax.tree.norm(optax.tree.sub(params.model, target), squared=True) / 2
        return distance, (state, objective.metrics(outputs, query.targets, query.mask))

    return learner._replace(init=init, loss=loss)
