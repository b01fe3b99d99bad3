"""Meta-Curvature (Park & Oliva, 2019)."""

import math
from collections.abc import Callable
from typing import Unpack

import jax
import jax.numpy as jnp

from jmeta import losses
from jmeta.checks import check_positive
from jmeta.functional.fast_weights import descent, fast_weight_learner
from jmeta.functional.inner_loop import MetaGradientOptions
from jmeta.functional.inner_rule import InnerRule
from jmeta.types import Array, Learner, Model, PyTree


def meta_curvature(
    model: Model,
    *,
    inner_rate: float = 0.1,
    inner_steps: int = 1,
    test_steps: int | None = None,
    inner_batch: int | None = None,
    loss_fn: Callable = losses.cross_entropy,
    **options: Unpack[MetaGradientOptions],
) -> Learner:
    """MAML that learns a preconditioner for the inner gradient, with a matrix for each axis of a tensor.

    Park & Oliva, 2019, "Meta-Curvature", in the form the paper calls MC2. A kernel
    [H, W, C, F] has a matrix [H W, H W] over its window, [C, C] over inputs and [F, F]
    over outputs; a dense kernel has one for each of its two axes, and a vector one
    factor for each element. All start at the identity. Rate and number of steps are
    ours.

    Args:
        model: any network; its output width is the number of ways.
        inner_rate: the rate of the step along the preconditioned gradient.
        inner_steps: gradient steps on the support set in meta-training.
        test_steps: gradient steps in `adapt`; None for as many as in training.
        inner_batch: support examples per inner step; None for all.
        loss_fn: as for `maml`.
        options: how the meta-gradient is taken; see `functional.MetaGradientOptions`.

    Returns:
        A `Learner`; its parameters are `MetaParams`, whose `rule` holds the
        matrices of each of the model's parameters, and `adapt` gives `FastWeights`.

    Raises:
        ValueError: for numbers out of range or an unknown mode; from `init`, if
            the model's output width is not the number of ways, or for an implicit
            meta-gradient, under which the matrices have none.

    Example:
        >>> from jmeta import data, models
        >>> learner = meta_curvature(models.mlp(outputs=5))
        >>> params, state = learner.init(jax.random.key(1), data.glyphs()(jax.random.key(0)))
        >>> [matrix.shape for matrix in params.rule["head"]["kernel"]]  # one for each axis
        [(40, 40), (5, 5)]
    """
    objective = losses.objective(loss_fn)
    inner = descent(model, objective, rule=curvature(inner_rate), inner_batch=inner_batch, **options)
    return fast_weight_learner(inner, objective, inner_steps=inner_steps, test_steps=test_steps)


def curvature(rate: float) -> InnerRule:
    """Gradient descent along a gradient multiplied by learned matrices, axis by axis.

    Raises:
        ValueError: for a rate that is not positive.
    """
    check_positive(inner_rate=rate)

    def init(params):
        return jax.tree.map(_identities, params)

    def update(gradients, memory, params, matrices):
        return jax.tree.map(lambda gradient, of: -rate * _multiplied(gradient, of), gradients, matrices), memory

    return InnerRule(init, lambda matrices, params: (), update)


def _identities(leaf: Array) -> PyTree:
    """The identity matrices of a tensor, or factors of one for a vector or a scalar."""
    if leaf.ndim < 2:
        return jnp.ones_like(leaf)
    return [jnp.eye(size, dtype=leaf.dtype) for size in _matrix_axes(leaf)]


def _multiplied(gradient: Array, matrices: PyTree) -> Array:
    """The gradient multiplied along each of its axes."""
    if gradient.ndim < 2:
        return matrices * gradient
    product = gradient.reshape(_matrix_axes(gradient))
    for axis, matrix in enumerate(matrices):
        product = jnp.moveaxis(jnp.tensordot(matrix, product, axes=(1, axis)), 0, axis)
    return product.reshape(gradient.shape)


def _matrix_axes(leaf: Array) -> tuple[int, ...]:
    """The shape of a tensor with the axes of its window merged."""
    *window, inputs, outputs = leaf.shape
    return (math.prod(window), inputs, outputs) if window else (inputs, outputs)
