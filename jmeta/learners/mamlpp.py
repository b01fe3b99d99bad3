"""MAML++: how to train your MAML (Antoniou et al., 2019)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jmeta import losses
from jmeta.checks import check_counts, check_examples, check_positive
from jmeta.functional.classes import exclude_absent
from jmeta.functional.compiled import compiled_adapt, compiled_predict
from jmeta.functional.fast_weights import FastWeights
from jmeta.functional.inner_loop import (
    checked_options,
    constant_gradient,
    descent_step,
    Differentiation,
    exact_gradient,
    scan_steps,
    start_descent,
)
from jmeta.functional.inner_rule import InnerRule
from jmeta.functional.partition import check_predicates, join, part
from jmeta.functional.varying import vary_over, varying
from jmeta.networks import apply_model, init_model
from jmeta.types import Array, Learner, Model, PyTree

# Minimum weight of an intermediate loss while annealing, times the number of steps (authors' code).
LEAST_WEIGHT = 0.03


class MamlppParams(NamedTuple):
    """What MAML++ meta-learns.

    Attributes:
        model: where the inner loop starts; None in place of each parameter of a
            normalisation.
        norms: [steps, ...] the parameters of the normalisations, at each inner step.
        rates: [steps] the rates of each tensor of `model`.
    """

    model: PyTree
    norms: PyTree
    rates: PyTree


class MamlppState(NamedTuple):
    """What MAML++ keeps beside its parameters.

    Attributes:
        model: [steps, ...] the model's state, at each inner step.
        meta_step: number of meta-steps taken, on which the annealing depends.
    """

    model: PyTree
    meta_step: Array


def of_a_norm(path: str) -> bool:
    """Whether a parameter is the scale or bias of a layer whose own name has "norm" in it.

    Example:
        >>> of_a_norm("ConvNorm_0/BatchNorm_0/scale"), of_a_norm("ConvNorm_0/Conv_0/bias")
        (True, False)
    """
    layer, _, name = path.rpartition("/")
    return "norm" in layer.rpartition("/")[2].lower() and name in ("scale", "bias")


def mamlpp(
    model: Model,
    *,
    norms: Callable[[str], bool] = of_a_norm,
    inner_rate: float = 0.1,
    inner_steps: int = 5,
    test_steps: int | None = None,
    multi_step_until: int = 5_000,
    first_order_until: int = 25_000,
    loss_fn: Callable = losses.cross_entropy,
    differentiation: Differentiation = "mixed",
    checkpoint: bool = False,
) -> Learner:
    """MAML made stable: rates and normalisations for each inner step, and a loss after each, annealed.

    Antoniou et al., 2019, "How to Train Your MAML". Each tensor has a learned rate for
    each inner step. Each inner step has its own scale and bias of the normalisations,
    which the inner loop does not move, and its own running statistics. Until
    `multi_step_until` the query loss after every step counts, the last one more and
    more; until `first_order_until` inner gradients are constants. The defaults are the
    paper's for Omniglot: 10 and 50 epochs of 500 meta-steps. Since it takes a loss after
    every step, it runs `functional.descent_step` in a loop of its own, and has only two of
    `inner_loop`'s options.

    We depart from the paper in three ways: loss weights fall with each meta-step, not
    each epoch; running statistics of an inner step are those of the query set after it,
    not of the support set, and `adapt` uses them for the support set at the start of that
    step, too; and steps beyond `inner_steps`, which tests may take, reuse the last step's
    rates, normalisations and statistics. The paper's cosine schedule belongs to the outer
    optimizer:
    `optax.adam(optax.cosine_decay_schedule(1e-3, meta_steps))`.

    Args:
        model: any network; its output width is the number of ways. With
            `norm="running"` each step has its own statistics.
        norms: `(path) -> bool`, which parameters are a normalisation's, by paths
            such as `"Normalise_0/scale"`. The default knows the `scale` and `bias` of
            layers whose own name has "norm" in it.
        inner_rate: where each rate starts.
        inner_steps: gradient steps on the support set in meta-training, at least 1.
        test_steps: gradient steps in `adapt`; None for as many as in training.
        multi_step_until: meta-steps in which the loss after every step counts.
        first_order_until: meta-steps in which inner gradients are constants.
        loss_fn: as for `maml`.
        differentiation: how exact steps are differentiated, as for `maml`.
        checkpoint: whether to store only the fast weights of each inner step; the step
            and its query loss are then recomputed in the backward pass.

    Returns:
        A `Learner`; its parameters are `MamlppParams`, its state `MamlppState`,
        and `adapt` gives `FastWeights`.

    Raises:
        ValueError: for numbers out of range, an unknown mode, or if `norms` is not a
            function; from `init`, if the model's output width is not the number of
            ways, or `norms` chooses every parameter.

    Example:
        >>> from jmeta import data, models
        >>> learner = mamlpp(models.mlp(outputs=5, norm="layer"), inner_steps=3)
        >>> params, state = learner.init(jax.random.key(1), data.glyphs()(jax.random.key(0)))
        >>> params.rates["head"]["bias"].shape  # a rate for each step
        (3,)
    """
    checked_options(differentiation=differentiation, checkpoint=checkpoint)
    check_counts(least=1, inner_steps=inner_steps)
    test_steps = inner_steps if test_steps is None else test_steps
    check_counts(test_steps=test_steps, multi_step_until=multi_step_until, first_order_until=first_order_until)
    check_predicates(norms=norms)
    objective = losses.objective(loss_fn)
    rule = rate_per_step(inner_rate, inner_steps)

    def every_step(tree):
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (inner_steps, *jnp.shape(leaf))), tree)

    def init(key, task):
        check_examples("task.support", task.support)
        params, state = init_model(model, key, task.support.inputs)
        scales, moving = part(params, norms)
        if not jax.tree.leaves(moving):
            raise ValueError(
                "norms chooses every parameter of the model; some must be left for the inner loop to move."
            )
        params = MamlppParams(moving, every_step(scales), rule.init(moving))
        state = MamlppState(every_step(state), jnp.int32(0))
        jax.eval_shape(loss, params, state, task, key=key)  # reports a wrong output width before training compiles
        return params, state

    def labelled_loss(fast, step, examples, present, key, train):
        """The loss on a set at an inner step, the labelled outputs, and the step's new state."""
        scales, state = step
        outputs, state = apply_model(
            model, join(fast, scales), state, examples.inputs, mask=examples.mask, train=train, key=key
        )
        labelled = (exclude_absent(outputs, present), examples.targets, examples.mask)
        return objective.loss(*labelled), (labelled, state)

    exact = functools.partial(exact_gradient, differentiation=differentiation, checkpoint=checkpoint)

    def step_on(support, present, rates, *, train, gradient_of):
        """The inner step on a support set, `((fast, memory), (step, key)) -> (fast, memory)`."""

        def support_loss(fast, data):
            step, key = data
            return labelled_loss(fast, step, support, present, key, train)[0]

        return descent_step(gradient_of(support_loss), rule, rates)

    def begin(params, *others):
        """The first carry, varying over devices if anything that its steps depend on does."""
        return start_descent(rule, params.rates, params.model, varying((params, others)))

    @compiled_adapt
    def adapt(params, state, support, *, key=None):
        present = objective.present(support)
        at = jnp.minimum(jnp.arange(test_steps), inner_steps - 1)
        steps = jax.tree.map(lambda leaf: leaf[at], (params.norms, state.model))
        keys = None if key is None else jax.random.split(key, test_steps)
        step = step_on(support, present, params.rates, train=False, gradient_of=exact)
        fast, _ = scan_steps(step, begin(params, state, support, keys), (steps, keys), test_steps)
        return FastWeights(fast, present)

    @compiled_predict
    def predict(params, state, adapted, inputs, *, mask=None):
        last = min(max(test_steps, 1), inner_steps) - 1
        scales, state = jax.tree.map(lambda leaf: leaf[last], (params.norms, state.model))
        outputs, _ = apply_model(model, join(adapted.params, scales), state, inputs, mask=mask)
        return exclude_absent(outputs, adapted.present)

    def loss(params, state, task, *, key=None):
        check_examples("task.support", task.support)
        present = objective.present(task.support)
        weights = step_weights(state.meta_step, inner_steps, multi_step_until)
        keys = None if key is None else jax.random.split(key, (inner_steps, 2))

        def annealed(objective):
            is_exact = state.meta_step >= first_order_until
            return lambda *at: lax.cond(is_exact, exact(objective), constant_gradient(objective), *at)

        step = step_on(task.support, present, params.rates, train=True, gradient_of=annealed)

        def query_pass(weight, fast, at, key):
            """The query loss after an inner step; one without a weight only serves its running statistics."""
            axes = varying((fast, at, task, key))

            def judged(fast, at):
                return vary_over(labelled_loss(fast, at, task.query, present, key, train=True), axes)

            def unweighted(fast, at):
                if jax.tree.leaves(state.model):
                    return lax.stop_gradient(judged(fast, at))
                return vary_over(jax.tree.map(jnp.zeros_like, jax.eval_shape(judged, fast, at)), axes)

            value, (labelled, after) = lax.cond(weight > 0, judged, unweighted, fast, at)
            # Zero times an infinite loss would be NaN.
            return jnp.where(weight > 0, weight * value, 0), objective.metrics(*labelled), after

        def one(carry, data):
            at, weight, keys = data
            support_key, query_key = (None, None) if keys is None else keys
            fast, memory = step(carry, (at, support_key))
            return (fast, memory), query_pass(weight, fast, at, query_key)

        if checkpoint:
            one = jax.checkpoint(one, prevent_cse=False)
        steps = (params.norms, state.model)
        _, (values, metrics, states) = lax.scan(
            one, begin(params, state, task.support, keys), (steps, weights, keys), length=inner_steps
        )
        last = jax.tree.map(lambda leaf: leaf[-1], metrics)
        return values.sum(), (MamlppState(states, state.meta_step + 1), last)

    return Learner(init, adapt, predict, loss)


def rate_per_step(rate: float, steps: int) -> InnerRule:
    """Gradient descent with a learned rate for each tensor and step; later steps reuse the last one's.

    Raises:
        ValueError: for a rate that is not positive.
    """
    check_positive(inner_rate=rate)

    def init(params):
        return jax.tree.map(lambda leaf: jnp.full(steps, rate, leaf.dtype), params)

    def update(gradients, step, params, rates):
        at = jnp.minimum(step, steps - 1)
        return jax.tree.map(lambda rates, gradient: -rates[at] * gradient, rates, gradients), step + 1

    return InnerRule(init, lambda rates, params: jnp.int32(0), update)


def step_weights(meta_step: Array, steps: int, until: int) -> Array:
    """The weights [steps] of the losses after each inner step: equal at first, then shifting to the last.

    Example:
        >>> print(step_weights(jnp.int32(0), 4, 100), step_weights(jnp.int32(100), 4, 100))
        [0.25 0.25 0.25 0.25] [0. 0. 0. 1.]
    """
    left = 1 - jnp.asarray(meta_step, float) / max(until, 1)
    early = jnp.where(meta_step < until, jnp.maximum(left, LEAST_WEIGHT) / steps, 0.0)
    return jnp.full(steps, early).at[-1].set(1 - (steps - 1) * early)
