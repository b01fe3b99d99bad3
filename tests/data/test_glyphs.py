"""The drawn characters are hard enough to be worth learning, and new every time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jmeta import data
from jmeta.data.glyphs import _character, CHARACTER


@pytest.fixture(scope="module")
def tasks():
    return jax.jit(jax.vmap(data.glyphs(ways=5, shots=1, queries=15)))(jax.random.split(jax.random.key(0), 200))


@pytest.mark.long
def test_the_nearest_raw_pixel_centroid_is_right_about_half_the_time(tasks):
    support, query = (np.asarray(part.inputs).reshape(200, -1, 784) for part in tasks[:2])
    distances = (query**2).sum(-1)[:, :, None] - 2 * query @ support.swapaxes(1, 2) + (support**2).sum(-1)[:, None]
    accuracy = (distances.argmin(-1) == np.asarray(tasks.query.targets).argmax(-1)).mean()
    assert 0.35 < accuracy < 0.75


def test_images_are_ink_on_paper(tasks):
    ink = np.asarray(tasks.query.inputs)
    assert ink.shape == (200, 75, 28, 28, 1)
    assert ink.min() == 0
    assert ink.max() == 1
    assert 0.03 < ink.mean() < 0.3
    assert (ink.sum((2, 3, 4)) > 5).mean() > 0.99  # hardly a sheet is empty


def test_no_two_drawings_and_no_two_characters_are_the_same(tasks):
    drawings = np.asarray(tasks.query.inputs).reshape(-1, 784)
    assert len(np.unique(drawings, axis=0)) > 0.99 * len(drawings)
    assert len(np.unique(tasks.class_ids)) == 1000
    means = np.asarray(tasks.query.inputs).reshape(1000, 15, 784).mean(1)
    assert len(np.unique(means, axis=0)) == 1000


def test_a_character_has_two_to_four_strokes_half_of_which_start_where_the_last_one_ended():
    numbers = jax.random.uniform(jax.random.key(0), (2000, sum(CHARACTER)))
    controls, is_drawn = map(np.asarray, jax.vmap(_character)(numbers))
    np.testing.assert_allclose(np.bincount(is_drawn.sum(1)) / 2000, [0, 0, 1 / 3, 1 / 3, 1 / 3], atol=0.05)
    is_joined = (controls[:, 1:, 0] == controls[:, :-1, 2]).all(-1)
    np.testing.assert_allclose(is_joined.mean(), 0.5, atol=0.05)


def test_inside_shard_map_the_same_tasks_are_drawn(tasks, over_two_devices):
    draw = jax.vmap(data.glyphs(ways=5, shots=1, queries=15))
    on_each = over_two_devices(draw, P("tasks"), P("tasks"))
    found = on_each(jax.random.split(jax.random.key(0), 200))
    np.testing.assert_allclose(found.query.inputs, tasks.query.inputs, atol=1e-4)


def test_the_same_key_draws_the_same_task():
    sample = data.glyphs(ways=2, shots=1, queries=1)
    jax.tree.map(np.testing.assert_array_equal, sample(jax.random.key(3)), sample(jax.random.key(3)))
    assert not jnp.array_equal(sample(jax.random.key(3)).support.inputs, sample(jax.random.key(4)).support.inputs)


@pytest.mark.parametrize(("name", "value"), [("ways", 1), ("shots", 0), ("queries", 0)])
def test_refuses_a_task_that_cannot_be(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        data.glyphs(**{name: value})
