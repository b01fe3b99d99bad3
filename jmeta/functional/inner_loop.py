"""The inner loop: gradient descent on a support set, differentiable in where it starts."""

import functools
from collections.abc import Callable
from typing import get_args, Literal

import jax
import optax
from jax import lax

from jmeta.types import PyTree

MetaGradient = Literal["second_order", "first_order"]


def inner_loop(
    objective: Callable,
    params: PyTree,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    meta_gradient: MetaGradient = "second_order",
) -> PyTree:
    """Takes `steps` optimizer steps on `objective` from `params`.

    Args:
        objective: `(params) -> scalar`, the loss on the support set.
        params: where to start.
        optimizer: any optax transformation; its state starts afresh.
        steps: how many, 0 or more.
        meta_gradient: `"second_order"` differentiates through the whole loop;
            `"first_order"` takes inner gradients for constants.

    Returns:
        The fast weights, of the structure of `params`.

    Example:
        >>> halve = inner_loop(lambda w: w**2 / 2, 8.0, optimizer=optax.sgd(0.5), steps=2)
        >>> print(halve)
        2.0
    """
    gradient = jax.grad(objective)

    def step(carry, _):
        fast, opt_state = carry
        gradients = gradient(fast)
        if meta_gradient == "first_order":
            gradients = lax.stop_gradient(gradients)
        updates, opt_state = optimizer.update(gradients, opt_state, fast)
        return (optax.apply_updates(fast, updates), opt_state), None

    (fast, _), _ = lax.scan(step, (params, optimizer.init(params)), None, length=steps)
    return fast


def train_and_test_loops(
    optimizer: optax.GradientTransformation, *, inner_steps: int, test_steps: int | None, meta_gradient: MetaGradient
) -> tuple[Callable, Callable]:
    """The inner loop of meta-training and that of `adapt`, each `(objective, params) -> fast params`.

    Args:
        optimizer: any optax transformation.
        inner_steps: in meta-training.
        test_steps: in `adapt`; None for as many.
        meta_gradient: as for `inner_loop`.

    Raises:
        ValueError: for a negative number of steps or an unknown `meta_gradient`.
    """
    test_steps = inner_steps if test_steps is None else test_steps
    for name, value in (("inner_steps", inner_steps), ("test_steps", test_steps)):
        if value < 0:
            raise ValueError(f"{name} is {value}; it must be 0 or more.")
    if meta_gradient not in get_args(MetaGradient):
        raise ValueError(f"meta_gradient is {meta_gradient!r}; it must be one of {get_args(MetaGradient)}.")
    loop = functools.partial(inner_loop, optimizer=optimizer, meta_gradient=meta_gradient)
    return functools.partial(loop, steps=inner_steps), functools.partial(loop, steps=test_steps)
