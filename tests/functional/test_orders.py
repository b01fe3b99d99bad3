"""Orders of a set in which padding is at one end."""

import jax
import jax.numpy as jnp
import numpy as np

from jmeta.functional.orders import real_first, real_last


def test_padding_is_at_its_end_and_changes_no_random_order():
    mask, key = jnp.ones(6), jax.random.key(3)
    rows = np.asarray(real_last(mask, key))
    assert sorted(rows) == list(range(6))
    assert (rows != np.arange(6)).any()
    padded = jnp.array([1, 0, 1, 1, 0, 1, 1, 1])
    real = np.flatnonzero(padded)
    np.testing.assert_array_equal(real_last(padded, key)[2:], real[rows])
    np.testing.assert_array_equal(real_first(padded, key)[:6], real[rows])


def test_every_order_is_as_likely():
    first = jax.vmap(lambda key: real_last(jnp.ones(4), key)[0])(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(np.bincount(first) / 4000, 1 / 4, atol=0.03)
