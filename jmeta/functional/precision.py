"""The precision in which small problems are solved and statistics computed."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from jmeta.types import Array, at_least_single


def in_one_precision(*arrays: Array) -> tuple[list[Array], DTypeLike]:
    """The arrays in their common precision, at least single, and that common precision, for the result.

    In half precision sums and squares overflow, small steps are rounded away, and JAX factorises nothing; labels may be
    integers.

    Args:
        arrays: features, targets and mask, of any dtypes.

    Example:
        >>> (features, mask), dtype = in_one_precision(jnp.ones(2, jnp.bfloat16), jnp.ones(2, int))
        >>> print(features.dtype, mask.dtype, dtype)
        float32 float32 bfloat16
    """
    dtype = jnp.result_type(*arrays, float)
    return [jnp.asarray(array, at_least_single(dtype)) for array in arrays], dtype


def exact_product(a: Array, b: Array) -> Array:
    """`a @ b`, and its derivatives, from operands that no accelerator rounds.

    By default a GPU rounds float32 operands to 10 mantissa bits and a TPU to 7. A layer's weights tolerate that;
    the matrix of a linear system, or a mean that is subtracted, may not. On a CPU this is `a @ b`.

    Example:
        >>> print(exact_product(jnp.ones((1, 2)), jnp.ones((2, 1))))
        [[2.]]
    """
    return jnp.matmul(a, b, precision="highest")
