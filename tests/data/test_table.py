"""Tables from plain arrays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import data


def test_examples_are_grouped_by_class_in_their_order():
    labels = np.tile(["b", "a", "b", "c"], 25)  # of so many an unstable sort would mix some up
    table = data.class_table(np.arange(100)[:, None], labels)
    assert table.names == ("a", "b", "c")
    np.testing.assert_array_equal(table.starts, [0, 25, 75])
    np.testing.assert_array_equal(table.counts, [25, 50, 25])
    for name, start, count in zip(table.names, table.starts, table.counts, strict=True):
        np.testing.assert_array_equal(table.inputs[start : start + count, 0], np.flatnonzero(labels == name))


class Unknown:
    """What pandas puts in the place of a missing label."""

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

    def __repr__(self):
        return "<NA>"

    __hash__ = object.__hash__


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.zeros((3, 2)), [0, 1], "inputs has 3 examples and labels 2"),
        (np.zeros((0, 2)), [], "inputs is empty"),
        (np.array([[0.0], [np.nan]]), [0, 1], "NaN or infinity in example 1, as float32"),
        (np.array([[0.0], [0.0], [1e300]]), [0, 0, 1], "NaN or infinity in example 2, as float32"),
        (jnp.array([[0.0], [jnp.inf]], jnp.bfloat16), [0, 1], "NaN or infinity in example 1, as bfloat16"),
        (np.array([[2**40 + 3]]), [0], "inputs are of int64, and some do not fit int32, JAX's precision; enable x64"),
        (np.zeros((2, 2)), [[0], [1]], r"labels have shape \(2, 1\)"),
        (np.zeros((3, 2)), [0.0, np.nan, 1.0], "label 1 is nan, which names no class"),
        (np.zeros((3, 2)), ["a", "b", None], "label 2 is None, which names no class"),
        (np.zeros((2, 2)), ["a", Unknown()], "label 1 is <NA>, which names no class"),
        (np.zeros((2, 2)), ["a", 1], "labels are of number and str; they must be all numbers or all names"),
        (np.zeros((2, 2)), np.array([1, "a"], object), "labels are of number and str"),
        (np.zeros((3, 2)), [b"a", 1, b"b"], "labels are of bytes and number"),
        (np.float32(5), [1], "inputs is 5.0; it must be an array of examples"),
        (np.zeros((2, 2), complex), [0, 1], "inputs are of complex128; they must be real numbers"),
    ],
)
def test_refuses_arrays_that_are_no_table(inputs, labels, message):
    with pytest.raises(ValueError, match=message):
        data.class_table(inputs, labels)


@pytest.mark.parametrize(
    "labels",
    [
        [2**63, 2**63 + 1, -1, 3],
        [2**53, 2**53 + 1, 0.5, 3],
        [np.uint64(2**63), np.uint64(2**63 + 1), np.int64(1), 3],
        ["a", "a\0", "b", "c"],
        [b"a", b"a\0", b"b", b"c"],
    ],
)
def test_labels_that_numpy_would_make_alike_are_classes_of_their_own(labels):
    assert data.class_table(np.zeros((4, 2)), labels).names == tuple(sorted(labels))


@pytest.mark.parametrize("dtype", [">f4", ">i4", ">u2", ">f2", np.longdouble])
def test_numbers_of_any_order_of_bytes_and_any_length_are_taken(dtype):
    table = data.class_table(np.array([[1], [2], [3]], dtype), [1, 0, 1])
    np.testing.assert_array_equal(table.inputs, [[2], [1], [3]])


@pytest.mark.parametrize("ways", [None, 3, 5])
def test_all_examples_of_a_table_are_a_set_with_a_column_for_each_name(ways):
    inputs, labels = np.arange(14.0).reshape(7, 2), np.array(list("cabacca"))
    table = data.class_table(inputs, labels)
    examples = jax.jit(lambda table: table.examples(ways))(table)
    assert examples.targets.shape == (7, ways or 3)
    for row, target, mask in zip(*examples, strict=True):
        assert (table.names[target.argmax()], target.sum(), mask) == (labels[int(row[0]) // 2], 1, 1)


@pytest.mark.parametrize("ways", [2, 3.0, True])
def test_a_set_is_refused_fewer_columns_than_classes(ways):
    with pytest.raises(ValueError, match=f"ways is {ways}; it must be a whole number, at least that of the classes, 3"):
        data.class_table(np.zeros((3, 2)), list("abc")).examples(ways)


def test_some_classes_make_a_table_like_that_of_their_examples_alone():
    inputs, labels = np.arange(14.0).reshape(7, 2), np.array(list("abcabca"))
    taken = data.class_table(inputs, labels).take(number for number in (0, 2))
    kept = labels != "b"
    chex.assert_trees_all_equal(taken, data.class_table(inputs[kept], labels[kept]))
    for classes in ([2, 0], np.array([2, 0], np.uint8), jnp.array([2, 0])):
        assert data.class_table(inputs, labels).take(classes).names == ("c", "a")


@pytest.mark.parametrize(
    "classes", [[], [0, 0], [3], [-1], 1, np.array(1), ["a"], [0.0], np.array([True, False, True]), {0, 1}]
)
def test_what_chooses_no_classes_of_a_table_is_refused(classes):
    with pytest.raises(
        ValueError, match=r"classes is .*; it must be a sequence of one or more different numbers from 0 to 2"
    ):
        data.class_table(np.zeros((6, 2)), list("abcabc")).take(classes)


def test_inputs_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="inputs are of <U1; they must be real numbers"):
        data.class_table(np.array(["a", "b"]), [0, 1])
