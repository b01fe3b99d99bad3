"""The episode sampler, by its statistics."""

import functools
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jmeta import data
from jmeta.data.episodes import _by_scores, _one_by_one

SIZES = (6, 4, 9, 5, 7)  # examples of each class: ragged
LABELS = np.repeat(np.arange(5), SIZES)
TABLE = data.class_table(np.arange(31, dtype=np.int32)[:, None], LABELS)  # each example is its own number


@pytest.fixture(scope="module")
def many():
    """Two thousand 3-way 1-shot episodes with 2 queries."""
    sample = data.episodes(TABLE, ways=3, shots=1, queries=2)
    return jax.vmap(sample)(jax.random.split(jax.random.key(0), 2000))


def assert_uniform(values, number):
    """That the integers below `number` are equally frequent, by a chi-squared test."""
    counts = np.bincount(np.asarray(values).ravel(), minlength=number)
    assert len(counts) == number
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_what_is_no_table_is_refused():
    with pytest.raises(ValueError, match="table is of type ndarray; it must be a ClassTable, as made by"):
        data.episodes(np.zeros((4, 2)), ways=2, shots=1, queries=1)


def test_every_class_is_equally_likely_at_every_label(many):
    for label in range(3):
        assert_uniform(many.class_ids[:, label], 5)


def test_classes_of_an_episode_differ(many):
    assert all(len(set(ids)) == 3 for ids in np.asarray(many.class_ids).tolist())


def test_every_example_of_a_class_is_equally_likely_in_support_and_query(many):
    for part in (many.support, many.query):
        drawn = np.asarray(part.inputs).ravel()
        for index, size in enumerate(SIZES):
            first = sum(SIZES[:index])
            assert_uniform(drawn[LABELS[drawn] == index] - first, size)


def test_support_and_query_are_disjoint_and_without_repetition(many):
    examples = np.concatenate([many.support.inputs, many.query.inputs], axis=1)[..., 0]
    assert all(len(set(row)) == 9 for row in examples.tolist())


def test_targets_say_the_class_of_each_example(many):
    for part in (many.support, many.query):
        classes = np.take_along_axis(np.asarray(many.class_ids), np.asarray(part.targets.argmax(-1)), axis=1)
        np.testing.assert_array_equal(classes, LABELS[np.asarray(part.inputs)[..., 0]])


def test_ranges_draw_every_number_of_ways_and_shots_at_one_shape():
    sample = data.episodes(TABLE, ways=(2, 4), shots=(1, 3), queries=1)
    tasks = jax.vmap(sample)(jax.random.split(jax.random.key(1), 1000))
    assert tasks.support.inputs.shape == (1000, 12, 1)
    counts = np.asarray((tasks.support.targets * tasks.support.mask[..., None]).sum(1))
    ways = (counts > 0).sum(1)
    assert_uniform(ways - 2, 3)
    assert_uniform(counts.max(1).astype(int) - 1, 3)
    np.testing.assert_array_equal(ways, (np.asarray(tasks.class_ids) >= 0).sum(1))


def test_padding_is_zero_everywhere():
    sample = data.episodes(TABLE, ways=(2, 4), shots=(1, 3), queries=1)
    tasks = jax.vmap(sample)(jax.random.split(jax.random.key(1), 50))
    for part in (tasks.support, tasks.query):
        padding = np.asarray(part.mask) == 0
        assert padding.any()
        assert not np.asarray(part.inputs)[padding].any()
        assert not np.asarray(part.targets)[padding].any()


def test_images_stay_bytes_in_the_table_and_are_floats_in_an_episode():
    table = data.class_table(np.full((4, 2, 2, 1), 255, np.uint8), [0, 0, 1, 1])
    task = data.episodes(table, ways=2, shots=1, queries=1)(jax.random.key(0))
    assert table.inputs.dtype == jnp.uint8
    assert task.support.inputs.dtype == jnp.float32
    assert (task.support.inputs == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 6}, "ways is 6, but the table has 5 classes"),
        ({"ways": 1}, "ways is 1; it must be a number, at least 2"),
        ({"ways": 2.5}, "ways is 2.5"),
        ({"shots": 0}, "shots is 0; it must be a number, at least 1"),
        ({"queries": (1, 2)}, r"queries is \(1, 2\); it must be a whole number"),
        ({"queries": 0}, "queries is 0"),
        ({"shots": (3, 2)}, r"shots is \(3, 2\)"),
        ({"shots": 2, "queries": 3}, "shots . queries is 2 . 3 = 5, but the smallest class, 1, has 4 examples"),
    ],
)
def test_refuses_episodes_that_the_table_cannot_give(options, message):
    with pytest.raises(ValueError, match=message):
        data.episodes(TABLE, **{"ways": 3, "shots": 1, "queries": 1} | options)


@pytest.mark.parametrize("draw", [_one_by_one, functools.partial(_by_scores, bound=7)])
def test_every_number_is_equally_likely_at_every_place_and_none_comes_twice(draw):
    draw = functools.partial(draw, number=4)
    keys = jax.random.split(jax.random.key(0), 3000)
    for size in (4, 6, 7):
        drawn = np.asarray(jax.vmap(draw, (0, None))(keys, size))
        assert all(len(set(row)) == 4 for row in drawn.tolist())
        for place in range(4):
            assert_uniform(drawn[:, place], size)
        assert_uniform(size * drawn[:, 0] + drawn[:, 1] - (drawn[:, 0] < drawn[:, 1]) - drawn[:, 0], size * (size - 1))


def test_an_episode_of_a_large_class_holds_different_examples_of_it():
    table = data.class_table(np.arange(3000)[:, None], np.repeat([0, 1], [2990, 10]))
    task = data.episodes(table, ways=2, shots=3, queries=7)(jax.random.key(0))
    for name, low, high in ((0, 0, 2990), (1, 2990, 3000)):
        label = int(np.flatnonzero(task.class_ids == name)[0])
        parts = [np.asarray(part.inputs)[np.asarray(part.targets)[:, label] > 0, 0] for part in task[:2]]
        drawn = np.concatenate(parts)
        assert len(set(drawn.tolist())) == 10
        assert ((drawn >= low) & (drawn < high)).all()


def test_tables_that_differ_in_names_alone_compile_once():
    draw = sys.modules["jmeta.data.episodes"]._draw
    sizes = []
    for names in (["a", "b"], ["c", "d"]):
        table = data.class_table(np.zeros((6, 5)), np.repeat(names, 3))
        data.episodes(table, ways=2, shots=1, queries=1)(jax.random.key(0))
        sizes.append(draw._cache_size())
    assert sizes[0] == sizes[1]


def episode_sampler():
    table = data.class_table(np.arange(8.0).reshape(8, 1), np.repeat(np.arange(2), 4))
    return data.episodes(table, ways=2, shots=1, queries=1)


@pytest.mark.parametrize(
    "make", [functools.partial(data.sinusoid, shots=2), functools.partial(data.glyphs, ways=2), episode_sampler]
)
def test_a_sampler_can_be_pickled(make):
    sample = make()
    again = pickle.loads(pickle.dumps(sample))
    one, other = (of(jax.random.key(0)) for of in (sample, again))
    jax.tree.map(np.testing.assert_array_equal, one, other)
