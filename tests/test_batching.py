"""Tasks in chunks, and divided over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta.batching import (
    as_argument,
    chunk_of,
    even_chunk,
    filled_up,
    largest_array,
    over_devices,
    sum_over_chunks,
    sum_over_devices,
)

BATCH = {"x": jnp.arange(12.0).reshape(6, 2), "n": jnp.arange(6), "nothing": jnp.zeros((6, 0, 2))}


def total(batch):
    """Sums of two precisions, which add up, and an integer, which does not."""
    return {"x": batch["x"].sum(0), "half": batch["x"].sum().astype(jnp.bfloat16), "last": batch["n"][-1]}


@pytest.mark.parametrize("chunk", [1, 2, 6])
def test_the_sum_over_chunks_is_that_of_all_and_an_integer_is_the_last_ones(chunk):
    found = sum_over_chunks(total, BATCH, chunk)
    jax.tree.map(np.testing.assert_array_equal, found, total(BATCH))


def test_the_sum_over_devices_is_that_of_all_for_every_dtype():
    devices = tuple(jax.devices())
    found = over_devices(lambda _, batch: total(batch), devices, sum_over_devices)((), BATCH)
    for name in ("x", "half"):
        np.testing.assert_array_equal(found[name], total(BATCH)[name])
        assert found[name].dtype == total(BATCH)[name].dtype
    assert found["last"] == len(BATCH["n"]) // len(devices) - 1  # one device's


def test_a_batch_is_filled_up_with_its_first_tasks_which_do_not_count():
    batch, is_real = filled_up(BATCH, 4)
    np.testing.assert_array_equal(batch["n"], [0, 1, 2, 3, 4, 5, 0, 1])
    np.testing.assert_array_equal(is_real, [True] * 6 + [False] * 2)
    whole, is_real = filled_up(BATCH, 3)
    assert whole is BATCH
    assert is_real.all()


def test_a_sampler_of_numpy_arrays_sends_them_to_the_device_once():
    sample = as_argument(jax.tree_util.Partial(lambda table, key: table, np.zeros(3, np.float32)))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(sample))
    assert as_argument(sample).args[0] is sample.args[0]


@pytest.mark.parametrize(
    ("number", "most", "chunk"),
    [(16, 16, 16), (25, 8, 5), (25, 24, 13), (13, 8, 7), (11, 4, 4), (600, 43, 40), (7, 1, 1), (3, 9, 3)],
)
def test_a_chunk_leaves_little_to_fill_up_and_is_more_than_half_of_what_fits(number, most, chunk):
    assert even_chunk(number, most) == chunk


def test_the_largest_array_is_found_in_loops_too_and_nothing_is_computed():
    def function(x):
        return jax.lax.scan(lambda carry, _: (carry + jnp.ones((50, 3)).sum(), None), x, None, length=3)[0]

    assert largest_array(function, jax.ShapeDtypeStruct((), jnp.float32)) == 50 * 3 * 4


def test_a_chunk_stays_within_the_bound_of_the_devices_given_whatever_the_default_is(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    cpus = tuple(jax.local_devices(backend="cpu"))
    assert chunk_of(8, None, jnp.sin, jnp.zeros(2**18), devices=cpus) == 2  # of 1 MiB each
    assert chunk_of(8, None, jnp.sin, jnp.zeros(2**18)) == 8
