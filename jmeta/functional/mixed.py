"""Mixed-mode meta-gradients: a gradient whose backward pass is a forward-over-reverse Hessian-vector product."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive

from jmeta.functional.hoisting import hoist
from jmeta.functional.partition import join, smooth_part
from jmeta.functional.primitives import terms
from jmeta.types import Array

# Among the layers of a Conv4 only the first falls below this: storing its result would take more memory than all the
# others together and save no time (docs/decisions/0005-differentiation.md).
LEAST_TERMS = 32


def products_saveable(primitive: Primitive, /, *operands: Array, **params: Any) -> bool:
    """A policy for `jax.checkpoint`: stores matrix products and convolutions of at least 32 terms.

    A result takes the same memory however many terms it sums, but costs more to
    recompute the more there are.
    """
    return terms(primitive, *operands, **params) >= LEAST_TERMS


def mixed_gradient(objective: Callable, *, policy: Callable = products_saveable) -> Callable:
    """`jax.grad(objective)`, cheaper to differentiate.

    Reverse over reverse stores all that every inner gradient computes. Because second
    derivatives commute, the vector-Jacobian product of the gradient is a
    Jacobian-vector product of it, which only needs the point at which the gradient was
    taken. From there the backward pass recomputes what `policy` does not store.

    Kemaev et al., 2025, "Scalable Meta-Learning via Mixed-Mode Differentiation".
    They store no intermediate results of the gradient; here, matrix products and
    convolutions of many terms are stored by default.

    Args:
        objective: `(params, data) -> scalar`. It may close over anything, including
            keys and traced values; derivatives reach all of it.
        policy: which intermediate results are stored, a policy of `jax.checkpoint`.

    Returns:
        `(params, data) -> gradient`. It can be differentiated in reverse mode, any
        number of times, and then in forward mode; forward mode first is an error.

    Example:
        >>> import jax.numpy as jnp
        >>> gradient = mixed_gradient(lambda w, x: jnp.sum(x * w**3))
        >>> print(jax.grad(gradient)(2.0, 1.0))
        12.0
    """

    def gradient(params, data):
        explicit, free = hoist(objective, params, data)
        smooth, others = smooth_part((free, data))

        def value(params, smooth, others):
            free, data = join(smooth, others)
            return explicit(free, params, data)

        return _of_closed(value, policy)(params, smooth, others)

    return gradient


def _of_closed(value: Callable, policy: Callable) -> Callable:
    """`mixed_gradient` of a `value(params, smooth, others)` without free variables; `others` are not differentiated."""

    @jax.custom_vjp
    def gradient(params, smooth, others):
        return jax.grad(value)(params, smooth, others)

    def forward(params, smooth, others):
        def slopes(params):
            return jax.grad(value, argnums=(0, 1))(params, smooth, others)

        # The checkpoint holds its second pass behind a barrier until the direction is known. Otherwise XLA may merge it
        # with the first, or start it early, and store its results.
        (slope, _), product = jax.linearize(jax.checkpoint(slopes, policy=policy), params)
        return slope, product

    def backward(product, direction):
        return (*product(direction), None)

    gradient.defvjp(forward, backward)
    return gradient
