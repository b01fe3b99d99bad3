"""Learners that adapt by gradient descent: what is specific to a task is its fast weights."""

from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jmeta.checks import check_counts, check_examples
from jmeta.functional.classes import exclude_absent
from jmeta.functional.compiled import compiled_adapt, compiled_predict
from jmeta.functional.hoisting import compute_invariants
from jmeta.functional.inner_loop import axes_of, checked_options, first_step, inner_loop, MetaGradientOptions
from jmeta.functional.inner_rule import as_rule, InnerOptimizer
from jmeta.functional.orders import real_first
from jmeta.functional.partition import check_parts, join, part
from jmeta.functional.varying import vary_over
from jmeta.networks import apply_model, init_model, split_key
from jmeta.types import Array, Examples, Learner, Model, Objective, PyTree, take_rows

# At most this many steps of a network with at most this many parameters run without a loop: XLA's CPU would copy what
# each step stores into the loop's stacks (docs/decisions/0005-differentiation.md).
MOST_UNROLLED_STEPS, MOST_UNROLLED_PARAMETERS = 5, 2**15


class MetaParams(NamedTuple):
    """What gradient-based learners meta-learn.

    Attributes:
        model: the model's parameters, where the inner loop starts.
        rule: the inner rule's own parameters; empty for an optax transformation.
    """

    model: PyTree
    rule: PyTree


class FastWeights(NamedTuple):
    """What gradient-based learners adapt.

    Attributes:
        params: the model's parameters that the inner loop moved, where it left them;
            None in place of each of the others.
        present: [N] which classes the support set has, or None for regression.
    """

    params: PyTree
    present: Array | None


class Descent(NamedTuple):
    """A model with its inner loop; the parts of a gradient-based learner.

    Attributes:
        init: `(key, task) -> (params, state)`, with `MetaParams`.
        run: `(params, state, examples, *, steps, train=False, key=None) -> FastWeights`.
        outputs: `(params, state, adapted, inputs, *, mask=None, train=False, key=None)
            -> (outputs, state)`, of the model with the fast weights in place.
    """

    init: Callable
    run: Callable
    outputs: Callable


def descent(
    model: Model,
    objective: Objective,
    *,
    rule: InnerOptimizer,
    moves: Callable[[str], bool] | None = None,
    start: Callable | None = None,
    inner_batch: int | None = None,
    **options: Unpack[MetaGradientOptions],
) -> Descent:
    """The inner loop on a model's loss over a set of examples.

    Args:
        model: any network; its output width is the number of ways.
        objective: its loss.
        rule: how an inner step turns a gradient into an update.
        moves: `(path) -> bool`, which of the model's parameters the inner loop
            moves, by paths such as `"head/kernel"`; None for all.
        start: `(model params, state, examples, *, train, key) -> params`, where the
            inner loop starts; None for the model's parameters themselves. With `moves`
            it may change only those that move.
        inner_batch: examples per inner step, taken in turn from one random order
            (without a key, from the given order); None for all in each step.
        options: how the meta-gradient is taken.

    Returns:
        A `Descent`. Its `init` raises a `ValueError` for labels in place of one-hot
        targets, and if `moves` chooses no parameter or all.

    Raises:
        ValueError: if `rule` is not a rule, for inconsistent options, and for minibatches
            of fewer than one example or under `"implicit"`.

    Example:
        >>> import optax
        >>> from jmeta import data, losses, models
        >>> objective = losses.objective(losses.cross_entropy)
        >>> inner = descent(models.mlp(outputs=5), objective, rule=optax.sgd(0.1))
        >>> task = data.glyphs()(jax.random.key(0))
        >>> params, state = inner.init(jax.random.key(1), task)
        >>> inner.run(params, state, task.support, steps=2).params["head"]["bias"].shape
        (5,)
    """
    chosen, rule = checked_options(**options), as_rule(rule)
    if inner_batch is not None:
        check_counts(least=1, inner_batch=inner_batch)
    if inner_batch is not None and chosen["meta_gradient"] == "implicit":
        raise ValueError(f"inner_batch is {inner_batch}; an implicit meta-gradient needs None, all examples each step.")
    # Running without a loop was not measured where only some of the parameters move.
    may_unroll = chosen["meta_gradient"] == "second_order" and not chosen["checkpoint"] and moves is None
    start = start or (lambda params, state, examples, **mode: params)

    def begin(params, state, examples, **mode):
        """Where the parameters that move start, and the others."""
        return part(start(params, state, examples, **mode), moves)

    def init(key, task):
        check_examples("task.support", task.support)
        params, state = init_model(model, key, task.support.inputs)
        moving, fixed = begin(params, state, task.support, train=False, key=None)
        if moves is not None:
            check_parts(moving, fixed)
        return MetaParams(params, rule.init(moving)), state

    def run(params, state, examples, *, steps, train=False, key=None):
        check_examples("support", examples)
        start_key, order_key, step_key = split_key(key, 3)
        present = objective.present(examples)
        moving, fixed = begin(params.model, state, examples, train=train, key=start_key)

        def loss_on(moving, data):
            rows, key = data
            some = examples if rows is None else minibatch(examples, rows)
            outputs, _ = apply_model(
                model, join(moving, fixed), state, some.inputs, mask=some.mask, train=train, key=key
            )
            return objective.loss(exclude_absent(outputs, present), some.targets, some.mask)

        is_unrolled = may_unroll and train and 1 < steps <= MOST_UNROLLED_STEPS and _is_small_and_dense(moving)
        rows = None if inner_batch is None else minibatches(examples.mask, steps, inner_batch, order_key)
        keys = None if step_key is None else jax.random.split(step_key, steps)
        if moves is not None and steps:
            # What depends on neither these nor the step's minibatch and key is computed, and differentiated, once.
            moving = vary_over(moving, axes_of(loss_on, moving, (rows, keys)))  # as the inner loop will have it
            loss_on = compute_invariants(loss_on, moving, first_step((rows, keys)))
        fast = inner_loop(
            loss_on,
            moving,
            rule=rule,
            steps=steps,
            rule_params=params.rule,
            data=(rows, keys),
            unroll=steps if is_unrolled else 1,
            **options,
        )
        return FastWeights(fast, present)

    def outputs(params, state, adapted, inputs, *, mask=None, train=False, key=None):
        whole = join(adapted.params, part(params.model, moves)[1])
        values, state = apply_model(model, whole, state, inputs, mask=mask, train=train, key=key)
        return exclude_absent(values, adapted.present), state

    return Descent(init, run, outputs)


def _is_small_and_dense(params):
    """Whether there are few parameters, all matrices and vectors; convolutions would only take longer to compile."""
    leaves = jax.tree.leaves(params)
    return sum(map(jnp.size, leaves)) <= MOST_UNROLLED_PARAMETERS and all(jnp.ndim(leaf) <= 2 for leaf in leaves)


def fast_weight_learner(inner: Descent, objective: Objective, *, inner_steps: int, test_steps: int | None) -> Learner:
    """The learner that descends on the support set and is judged on the query set.

    Args:
        inner: the model and its inner loop.
        objective: the loss of the outer loop.
        inner_steps: number of steps in `loss`, that is in meta-training.
        test_steps: number of steps in `adapt`; None for `inner_steps`.

    Returns:
        A `Learner` whose `init` raises a `ValueError` if the model's output width is
        not that of the targets. Running statistics are updated by the query set under
        the fast weights.

    Raises:
        ValueError: for a negative number of steps.

    Example:
        >>> import optax
        >>> from jmeta import data, losses, models
        >>> objective = losses.objective(losses.cross_entropy)
        >>> inner = descent(models.mlp(outputs=5), objective, rule=optax.sgd(0.1))
        >>> learner = fast_weight_learner(inner, objective, inner_steps=1, test_steps=None)
        >>> task = data.glyphs()(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.predict(params, state, learner.adapt(params, state, task.support), task.query.inputs).shape
        (75, 5)
    """
    test_steps = inner_steps if test_steps is None else test_steps
    check_counts(inner_steps=inner_steps, test_steps=test_steps)

    def init(key, task):
        params, state = inner.init(key, task)
        jax.eval_shape(loss, params, state, task, key=key)  # reports a wrong output width before training compiles
        return params, state

    @compiled_adapt
    def adapt(params, state, support, *, key=None):
        return inner.run(params, state, support, steps=test_steps, key=key)

    @compiled_predict
    def predict(params, state, adapted, inputs, *, mask=None):
        return inner.outputs(params, state, adapted, inputs, mask=mask)[0]

    def loss(params, state, task, *, key=None):
        support_key, query_key = split_key(key)
        adapted = inner.run(params, state, task.support, steps=inner_steps, train=True, key=support_key)
        query = task.query
        outputs, state = inner.outputs(params, state, adapted, query.inputs, mask=query.mask, train=True, key=query_key)
        return objective.judge(outputs, query, state)

    return Learner(init, adapt, predict, loss)


def minibatches(mask: Array, steps: int, size: int, key: Array | None) -> Array:
    """Rows [steps, size] of the examples each step sees: one order of the real ones, repeated.

    No example comes twice in a minibatch: if one is larger than the set, its surplus
    rows are -1. Padding does not change the rest.

    Args:
        mask: [K], 1 for a real example.
        steps: number of minibatches.
        size: rows of each; at most K.
        key: PRNG key for a random order; None for the given order.

    Example:
        >>> minibatches(jnp.array([1, 0, 1, 1]), steps=2, size=2, key=None).tolist()
        [[0, 2], [3, 0]]
    """
    size = min(size, mask.size)
    order = real_first(mask, key)
    real = jnp.maximum((mask > 0).sum(), 1)
    used = jnp.minimum(size, real)
    rows = order[(jnp.arange(steps)[:, None] * used + jnp.arange(size)[None]) % real]
    return jnp.where(jnp.arange(size)[None] < used, rows, -1)


def minibatch(examples: Examples, rows: Array) -> Examples:
    """The chosen rows of the examples; -1 is padding."""
    some = take_rows(examples, rows)
    return some._replace(mask=jnp.where(rows < 0, 0, some.mask))
