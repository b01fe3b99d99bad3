"""Mixed-mode meta-gradients: a gradient whose backward pass is a forward-over-reverse Hessian-vector product."""

from collections.abc import Callable

import jax
from jax import lax

from jmeta.functional.hoisting import hoist, separate


def mixed_gradient(objective: Callable) -> Callable:
    """`jax.grad(objective)`, cheaper to differentiate.

    Reverse over reverse stores the backward pass of every inner gradient.
    Because second derivatives commute, the vector-Jacobian product of the
    gradient is a Jacobian-vector product of it: what one stores is where the
    gradient was taken.

    Kemaev et al., 2025, "Scalable Meta-Learning via Mixed-Mode Differentiation".

    Args:
        objective: `(params, data) -> scalar`. It may close over anything, keys
            and traced values included; derivatives reach all of it.

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
        smooth, others, join = separate((free, data))

        def value(params, smooth, others):
            free, data = join(smooth, others)
            return explicit(free, params, data)

        return _mixed_gradient(value)(params, smooth, others)

    return gradient


def _mixed_gradient(value: Callable) -> Callable:
    """The same for `value(params, smooth, others)` without free variables, `others` not to be differentiated."""

    @jax.custom_vjp
    def gradient(params, smooth, others):
        return jax.grad(value)(params, smooth, others)

    def forward(params, smooth, others):
        return jax.grad(value)(params, smooth, others), (params, smooth, others)

    def backward(where, direction):
        # Else XLA may merge this pass with the forward one, or begin it before its turn, and store what it makes.
        (params, smooth, others), direction = lax.optimization_barrier((where, direction))
        slopes = jax.grad(value, argnums=(0, 1))
        _, products = jax.jvp(lambda params: slopes(params, smooth, others), (params,), (direction,))
        return (*products, None)

    gradient.defvjp(forward, backward)
    return gradient
