"""Learners whose adaptation is gradient descent: what is specific to a task is its fast weights."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jmeta.functional.classes import exclude_absent
from jmeta.types import apply_model, Array, Learner, Model, Objective, PyTree


class FastWeights(NamedTuple):
    """What gradient-based learners adapt.

    Attributes:
        params: the model's parameters after the inner loop.
        present: [N] which classes the support set has, or None for regression.
    """

    params: PyTree
    present: Array | None


def fast_weight_learner(model: Model, objective: Objective, *, train_loop: Callable, test_loop: Callable) -> Learner:
    """The learner that descends on the support loss and is judged on the query loss.

    Args:
        model: any network; its output width is the number of ways.
        objective: the loss of the inner and the outer loop.
        train_loop: `(support_loss, params) -> fast params`, the inner loop inside `loss`.
        test_loop: the inner loop of `adapt`.

    Returns:
        A `Learner` whose `init` raises a `ValueError` if the model's output width
        is not that of the targets. Running statistics are updated by the query
        set under the fast weights.
    """

    def outputs_of(params, state, inputs, mask, present, **kwargs):
        outputs, state = apply_model(model, params, state, inputs, mask=mask, **kwargs)
        return exclude_absent(outputs, present), state

    def descend(loop, params, state, support, **kwargs):
        present = objective.present(support)

        def support_loss(fast):
            outputs, _ = outputs_of(fast, state, support.inputs, support.mask, present, **kwargs)
            return objective.loss(outputs, support.targets, support.mask)

        return FastWeights(loop(support_loss, params), present)

    def init(key, task):
        params, state = model.init(key, task.support.inputs)
        jax.eval_shape(loss, params, state, task, key=key)  # tells of a wrong output width before training compiles
        return params, state

    def adapt(params, state, support, *, key=None):
        return descend(test_loop, params, state, support, key=key)

    def predict(params, state, adapted, inputs, *, mask=None):
        return outputs_of(adapted.params, state, inputs, mask, adapted.present)[0]

    def loss(params, state, task, *, key=None):
        support_key, query_key = (None, None) if key is None else jax.random.split(key)
        fast, present = descend(train_loop, params, state, task.support, train=True, key=support_key)
        query = task.query
        outputs, state = outputs_of(fast, state, query.inputs, query.mask, present, train=True, key=query_key)
        labelled = (outputs, query.targets, query.mask)
        return objective.loss(*labelled), (state, objective.metrics(*labelled))

    return Learner(init, adapt, predict, loss)
