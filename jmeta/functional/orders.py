"""Orders of a set's examples that its padding does not change."""

import jax
import jax.numpy as jnp

from jmeta.types import Array


def ranks(mask: Array, key: Array | None) -> Array:
    """Numbers [K] by which to sort real examples; those of padding mean nothing.

    Args:
        mask: [K], 1 for a real example.
        key: of a random order; None for that in which they come.

    Example:
        >>> some, padded = (ranks(jnp.array(mask), jax.random.key(0)) for mask in ([1, 1], [1, 0, 1]))
        >>> print(some == padded[jnp.array([0, 2])])
        [ True  True]
    """
    number = jnp.cumsum(mask > 0)
    if key is None:
        return number
    # A key for each real example, by its number, which padding between them leaves as it is.
    return jax.vmap(lambda n: jax.random.uniform(jax.random.fold_in(key, n)))(number)
