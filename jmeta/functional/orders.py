"""Orders of a set's examples that do not depend on its padding."""

import jax
import jax.numpy as jnp

from jmeta.types import Array


def real_first(mask: Array, key: Array | None = None) -> Array:
    """Rows [K] of a set: real examples first, then padding.

    Args:
        mask: [K], 1 for a real example.
        key: PRNG key for a random order of the real ones, which does not depend on
            padding; None for the given order.

    Example:
        >>> real_first(jnp.array([1, 0, 1, 0])).tolist()
        [0, 2, 1, 3]
    """
    return jnp.argsort(jnp.where(mask > 0, _ranks(mask, key), jnp.inf))


def real_last(mask: Array, key: Array | None = None) -> Array:
    """Rows [K] of a set: padding first, then real examples, so that no padding lies between them and what follows.

    Args:
        mask: as for `real_first`.
        key: as for `real_first`.

    Example:
        >>> real_last(jnp.array([1, 0, 1, 0])).tolist()
        [1, 3, 0, 2]
    """
    return jnp.argsort(jnp.where(mask > 0, _ranks(mask, key), -1))


def _ranks(mask: Array, key: Array | None) -> Array:
    """Numbers [K] by which to sort real examples; those of padding have no meaning."""
    number = jnp.cumsum(mask > 0)
    if key is None:
        return number
    # A key for each real example by its number, which does not depend on padding between them.
    return jax.vmap(lambda n: jax.random.uniform(jax.random.fold_in(key, n)))(number)
