"""Inner rules: how one inner step turns a gradient into an update."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jmeta.checks import is_transformation
from jmeta.types import PyTree


class InnerRule(NamedTuple):
    """Like an optax transformation, but for the inner loop, and with meta-learned parameters of its own.

    Attributes:
        init: `(params) -> rule_params`, the rule's parameters, which the outer loop learns.
        start: `(rule_params, params) -> memory`, before the first inner step.
        update: `(gradients, memory, params, rule_params) -> (updates, memory)`;
            updates are added to the parameters.
    """

    init: Callable
    start: Callable
    update: Callable


# What an inner loop accepts as a rule.
InnerOptimizer: TypeAlias = optax.GradientTransformation | InnerRule


def as_rule(optimizer: InnerOptimizer, name: str = "inner_optimizer") -> InnerRule:
    """An optax transformation as a rule with nothing to learn; a rule is returned as it is.

    Raises:
        ValueError: if `optimizer` is neither; from `update`, if the optimizer needs
            more than gradients, such as the loss for `optax.polyak_sgd`.

    Example:
        >>> rule = as_rule(optax.sgd(0.5))
        >>> updates, _ = rule.update(2.0, rule.start((), 8.0), 8.0, rule.init(8.0))
        >>> print(updates)
        -1.0
    """
    if isinstance(optimizer, InnerRule):
        return optimizer
    if not is_transformation(optimizer):
        raise ValueError(
            f"{name} is {optimizer!r}; it must be an optax transformation, such as optax.sgd(0.1), "
            "or a functional.InnerRule."
        )

    def update(gradients, memory, params, rule_params):
        try:
            return optimizer.update(gradients, memory, params)
        except TypeError as error:
            if "required keyword-only argument" not in str(error):
                raise
            raise ValueError(
                f"{name} needs more than gradients, which are all that an inner step provides: {error}."
            ) from error

    return InnerRule(init=lambda params: (), start=lambda rule_params, params: optimizer.init(params), update=update)


def check_at_zero(optimizer: InnerOptimizer, params: PyTree) -> None:
    """Refuses a rule whose update has no derivative where a gradient element or a bias is zero.

    The square root of a second moment, as in Adam, has none unless `eps_root` is above
    zero, and a single unit that is inactive on the whole support set makes a gradient
    element zero. The norm of a parameter has none at zero, where biases start.

    Args:
        optimizer: the rule or optax transformation.
        params: parameters of the structure and shapes it will update. Their values do
            not matter: vectors are taken to be zero, where biases start, and everything
            else one.

    Raises:
        ValueError: if the derivative is not finite.
    """
    with jax.ensure_compile_time_eval():
        slopes = jax.tree.leaves(_slopes_at_zero(as_rule(optimizer), params))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in slopes):
            return  # a rule made inside a transformation, with a traced rate for example: unknown as yet
        is_finite = all(np.isfinite(leaf).all() for leaf in slopes)
    if not is_finite:
        raise ValueError(
            "the inner optimizer's update has no finite derivative at a gradient, or a bias, of zero, so that "
            "meta-gradients through it become NaN; give it eps_root above 0, as in optax.adam(1e-3, eps_root=1e-8), or "
            'use meta_gradient="first_order".'
        )


def _slopes_at_zero(rule: InnerRule, params: PyTree) -> PyTree:
    """The gradient of the summed updated parameters, where biases and all but one element of each gradient are zero."""
    # One element of each gradient is not zero: a rule that divides by the norm of a whole gradient has no derivative
    # where all of it is zero, and is not refused for that. If every gradient is a single number, that number is zero
    # instead, or zero would not be tried at all.
    has_more = any(jnp.size(leaf) > 1 for leaf in jax.tree.leaves(params))

    def zeros_but_one(leaf):
        zeros = np.zeros(jnp.shape(leaf), jnp.result_type(leaf))
        if zeros.size and has_more:
            zeros.flat[-1] = 1
        return zeros

    def zero_if_bias(leaf):
        return np.full(jnp.shape(leaf), jnp.ndim(leaf) > 1, jnp.result_type(leaf))

    def updated(gradients, params):
        rule_params = lax.stop_gradient(rule.init(params))  # the inner loop does not differentiate it
        updates, _ = rule.update(gradients, rule.start(rule_params, params), params, rule_params)
        return optax.apply_updates(params, updates)

    @jax.jit
    def slopes(at, one):  # both are arguments, for JAX would compile at once what depends on constants alone
        after, pull = jax.vjp(updated, *at)
        return pull(jax.tree.map(lambda leaf: jnp.full_like(leaf, one), after))

    return slopes((jax.tree.map(zeros_but_one, params), jax.tree.map(zero_if_bias, params)), 1.0)
