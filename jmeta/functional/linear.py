"""Fully connected layers, fast where tasks are many and their examples few.

Like convolution, the matrix product is bilinear, and three operations are closed
under differentiation of every order:

    linear(x, w)   x w,
    dx(y, w)       y w^T, its gradient with respect to the examples, and
    dw(x, y)       x^T y, its gradient with respect to the matrix, a sum of outer
                   products over examples.

Two linear operations do the same for the bias:

    repeat(b)      one copy per example, and
    add_up(y)      its gradient, the sum over examples.

Under vmap each task has its own fast weights, whose gradients are products and sums
over a handful of examples. So small an operation costs more to start than to do, so
on the CPU its terms are added up one by one.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad

from jmeta.functional.primitives import alike, batch_single, batch_tasks, task_primitive
from jmeta.types import Array

# With so many examples, adding up terms one by one takes between a fifth of the time of a product and all of it, and
# less than a reduction (docs/decisions/0009-linear.md).
FEW_EXAMPLES = range(2, 17)
# The XLA of jax 0.10 removes the barrier, without which a sum of outer products is slower than the product; plain
# additions are still faster than a reduction.
ADDS_PRODUCTS = jax.__version_info__ >= (0, 12)


def linear(x: Array, w: Array, b: Array | None = None) -> Array:
    """The product of `x` [..., D] and `w` [D, E], plus `b` [E].

    Args:
        x: examples.
        w: a matrix; dtypes are promoted as in a product.
        b: a bias; None adds nothing.

    Returns:
        [..., E], equal to `x @ w + b`.

    Raises:
        ValueError: for shapes that do not match.

    Example:
        >>> linear(jnp.ones((7, 2)), jnp.ones((2, 3))).shape
        (7, 3)
    """
    if x.ndim < 1 or w.ndim != 2 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"x has shape {x.shape} and w {w.shape}; they must be [..., D] and [D, E].")
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"b has shape {b.shape}; with w of shape {w.shape} it must be {w.shape[1:]}.")
    rows = x.reshape(1, math.prod(x.shape[:-1]), x.shape[-1])
    y = linear_p.bind(*alike(rows, w[None]))
    if b is not None:
        y, b = alike(y, b[None])  # before it is repeated, so that its gradient is summed in that precision
        y += repeat_p.bind(b, examples=y.shape[1])
    return y.reshape(*x.shape[:-1], w.shape[1])


# The forms: x [T, K, D], w [T, D, E], y [T, K, E], b [T, E].


def _product(a_axis, b_axis):
    """The product of each task that contracts these axes."""
    return lambda a, b: lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((0,), (0,))))


_dw_as_product = _product(1, 1)


def _outright(term):
    """A function of operands [T, K, ...] that adds up the results of `term` for each example."""

    def total(*operands):
        # The barrier keeps XLA, from jax 0.12 on, from recomputing the operands for each term. None follows the sum,
        # which may be fused with what it is added to; inner loops and train steps have barriers that keep it from being
        # computed twice.
        operands = lax.optimization_barrier(operands)
        examples = range(operands[0].shape[1])
        terms = (term(*(operand[:, example] for operand in operands)) for example in examples)
        return functools.reduce(jnp.add, terms)

    return total


_dw_as_sum = _outright(lambda x, y: x[:, :, None] * y[:, None, :])
_add_up_outright = _outright(lambda y: y)


def _adds_outright(y):
    # In half precision a product or a reduction accumulates in single precision; additions would not.
    return y.shape[1] in FEW_EXAMPLES and y.dtype.itemsize >= 4


def _dw_on_cpu(x, y):
    return (_dw_as_sum if ADDS_PRODUCTS and _adds_outright(y) else _dw_as_product)(x, y)


def _add_up(y):
    return y.sum(1)


def _add_up_on_cpu(y):
    return (_add_up_outright if _adds_outright(y) else _add_up)(y)


def _repeat(b, *, examples):
    return jnp.broadcast_to(b[:, None], (b.shape[0], examples, b.shape[1]))


linear_p = task_primitive(
    "linear", lambda x, w: (*x.shape[:2], w.shape[2]), terms=lambda x, w: x.shape[2], cpu=_product(2, 1)
)
dx_p = task_primitive(
    "linear_dx", lambda y, w: (*y.shape[:2], w.shape[1]), terms=lambda y, w: y.shape[2], cpu=_product(2, 2)
)
dw_p = task_primitive(
    "linear_dw",
    lambda x, y: (x.shape[0], x.shape[2], y.shape[2]),
    terms=lambda x, y: x.shape[1],
    cpu=_dw_on_cpu,
    accelerator=_dw_as_product,
)

add_up_p = task_primitive("add_up", lambda y: (y.shape[0], y.shape[2]), cpu=_add_up_on_cpu, accelerator=_add_up)
repeat_p = task_primitive(
    "repeat", lambda b, *, examples: (b.shape[0], examples, b.shape[1]), cpu=_repeat, static=("examples",)
)

ad.defbilinear(linear_p, lambda ct, x, w: dx_p.bind(ct, w), lambda ct, x, w: dw_p.bind(x, ct))
ad.defbilinear(dx_p, lambda ct, y, w: linear_p.bind(ct, w), lambda ct, y, w: dw_p.bind(ct, y))
ad.defbilinear(dw_p, lambda ct, x, y: dx_p.bind(y, ct), lambda ct, x, y: linear_p.bind(x, ct))

ad.deflinear2(add_up_p, lambda ct, y: [repeat_p.bind(ct, examples=y.aval.shape[1])])
ad.deflinear2(repeat_p, lambda ct, b, *, examples: [add_up_p.bind(ct)])

batch_single(add_up_p)
batch_single(repeat_p)
batch_tasks(linear_p, a_axis=1, b_axis=2, a_out=1, b_out=2)  # examples join the examples, matrices the outputs
batch_tasks(dx_p, a_axis=1, b_axis=1, a_out=1, b_out=2)  # or the inputs
batch_tasks(dw_p, a_axis=2, b_axis=2, a_out=1, b_out=2)  # each joins its own features
