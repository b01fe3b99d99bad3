"""Products of examples with a matrix, fast where tasks are many and their examples few.

As convolution, the product is bilinear, and two operations are closed under
differentiation of every order:

    linear(x, w)   the product itself, and
    outer(x, dy)   its matrix gradient, a sum of outer products over examples.

Under vmap each task has fast weights of its own, and the gradient of each is a
product that contracts a handful of examples. A matrix product for so few costs
more to begin than to do, so that on the CPU they are added up outright.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad

from jmeta.functional.bilinear import batch_tasks, bilinear_primitive
from jmeta.types import Array

# Up to so many examples the sum is as fast or up to five times as fast, at widths from 5 to 512, on two x86 cores
# (docs/decisions/0009-linear.md).
FEW_EXAMPLES = 16


def linear(x: Array, w: Array) -> Array:
    """The product of `x` [..., D] and `w` [D, E].

    Args:
        x: examples.
        w: a matrix; dtypes promote as in a product.

    Returns:
        [..., E], equal to `x @ w`.

    Raises:
        ValueError: for shapes that do not match.

    Example:
        >>> linear(jnp.ones((7, 2)), jnp.ones((2, 3))).shape
        (7, 3)
    """
    if x.ndim < 1 or w.ndim != 2 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"x has shape {x.shape} and w {w.shape}; they must be [..., D] and [D, E].")
    dtype = jnp.promote_types(x.dtype, w.dtype)
    rows = x.reshape(1, -1, x.shape[-1]).astype(dtype)
    return linear_p.bind(rows, w[None].astype(dtype)).reshape(*x.shape[:-1], w.shape[1])


# The forms: x [T, K, D], w [T, D, E], dy [T, K, E].


def _product(x, w):
    return lax.dot_general(x, w, (((2,), (1,)), ((0,), (0,))))


def _outer_as_product(x, dy):
    return lax.dot_general(x, dy, (((1,), (1,)), ((0,), (0,))))


def _outer_as_sum(x, dy):
    # Written out and not reduced: XLA adds them, and what else is done to each element, in one pass.
    terms = (x[:, example, :, None] * dy[:, example, None, :] for example in range(x.shape[1]))
    return functools.reduce(jnp.add, terms)


def _outer_on_cpu(x, dy):
    return (_outer_as_sum if 1 <= x.shape[1] <= FEW_EXAMPLES else _outer_as_product)(x, dy)


linear_p = bilinear_primitive("linear", lambda x, w: (*x.shape[:2], w.shape[2]), cpu=_product, accelerator=_product)
outer_p = bilinear_primitive(
    "outer",
    lambda x, dy: (x.shape[0], x.shape[2], dy.shape[2]),
    cpu=_outer_on_cpu,
    accelerator=_outer_as_product,
)

ad.defbilinear(linear_p, lambda ct, x, w: linear_p.bind(ct, w.swapaxes(1, 2)), lambda ct, x, w: outer_p.bind(x, ct))
ad.defbilinear(outer_p, lambda ct, x, dy: linear_p.bind(dy, ct.swapaxes(1, 2)), lambda ct, x, dy: linear_p.bind(x, ct))

batch_tasks(linear_p, a_axis=1, b_axis=2, a_out=1, b_out=2)  # examples join the examples, matrices the outputs
batch_tasks(outer_p, a_axis=2, b_axis=2, a_out=1, b_out=2)  # each joins the numbers of its own
