"""Products of examples with a matrix, fast where tasks are many and their examples few.

As convolution, the product is bilinear, and three operations are closed under
differentiation of every order:

    linear(x, w)   x w, the product itself,
    dx(y, w)       y w^T, its gradient of the examples, and
    dw(x, y)       x^T y, that of the matrix: a sum of outer products over examples.

Under vmap each task has fast weights of its own, and the matrix gradient of each
is a product that contracts a handful of examples. A matrix product for so few
costs more to begin than to do, so that on the CPU they are added up outright.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad

from jmeta.functional.bilinear import alike, batch_tasks, bilinear_primitive
from jmeta.types import Array

# With so many examples the sum takes between a fifth of a product's time and all of it, on two x86 cores
# (docs/decisions/0009-linear.md). The XLA of jax 0.10 removes the barriers around it: there it is always a product.
FEW_EXAMPLES = range(2, 17) if jax.__version_info__ >= (0, 12) else range(0)


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
    rows = x.reshape(1, math.prod(x.shape[:-1]), x.shape[-1])
    return linear_p.bind(*alike(rows, w[None])).reshape(*x.shape[:-1], w.shape[1])


# The forms: x [T, K, D], w [T, D, E], y [T, K, E].


def _product(a_axis, b_axis):
    """The product of each task that contracts these axes."""
    return lambda a, b: lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((0,), (0,))))


_dw_as_product = _product(1, 1)


def _dw_as_sum(x, y):
    # Between barriers, or XLA computes the sum again, and what it is made of for each term, in all that uses it.
    x, y = lax.optimization_barrier((x, y))
    terms = (x[:, example, :, None] * y[:, example, None, :] for example in range(x.shape[1]))
    return lax.optimization_barrier(functools.reduce(jnp.add, terms))


def _dw_on_cpu(x, y):
    is_precise = x.dtype.itemsize >= 4  # a product of half precision adds up in single
    return (_dw_as_sum if is_precise and x.shape[1] in FEW_EXAMPLES else _dw_as_product)(x, y)


linear_p = bilinear_primitive(
    "linear", lambda x, w: (*x.shape[:2], w.shape[2]), terms=lambda x, w: x.shape[2], cpu=_product(2, 1)
)
dx_p = bilinear_primitive(
    "linear_dx", lambda y, w: (*y.shape[:2], w.shape[1]), terms=lambda y, w: y.shape[2], cpu=_product(2, 2)
)
dw_p = bilinear_primitive(
    "linear_dw",
    lambda x, y: (x.shape[0], x.shape[2], y.shape[2]),
    terms=lambda x, y: x.shape[1],
    cpu=_dw_on_cpu,
    accelerator=_dw_as_product,
)

ad.defbilinear(linear_p, lambda ct, x, w: dx_p.bind(ct, w), lambda ct, x, w: dw_p.bind(x, ct))
ad.defbilinear(dx_p, lambda ct, y, w: linear_p.bind(ct, w), lambda ct, y, w: dw_p.bind(ct, y))
ad.defbilinear(dw_p, lambda ct, x, y: dx_p.bind(y, ct), lambda ct, x, y: linear_p.bind(x, ct))

batch_tasks(linear_p, a_axis=1, b_axis=2, a_out=1, b_out=2)  # examples join the examples, matrices the outputs
batch_tasks(dx_p, a_axis=1, b_axis=1, a_out=1, b_out=2)  # or the inputs
batch_tasks(dw_p, a_axis=2, b_axis=2, a_out=1, b_out=2)  # each joins the numbers of its own
