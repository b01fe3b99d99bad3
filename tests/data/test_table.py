"""Tables from plain arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import data


def test_examples_are_grouped_by_class_in_their_order():
    table = data.class_table(np.array([[1], [2], [3], [4]]), ["b", "a", "b", "c"])
    assert table.names == ("a", "b", "c")
    np.testing.assert_array_equal(table.inputs[:, 0], [2, 1, 3, 4])
    np.testing.assert_array_equal(table.starts, [0, 1, 3])
    np.testing.assert_array_equal(table.counts, [1, 2, 1])


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.zeros((3, 2)), [0, 1], "inputs has 3 examples and labels 2"),
        (np.zeros((0, 2)), [], "inputs is empty"),
        (np.array([[0.0], [np.nan]]), [0, 1], "NaN or infinity in example 1, as float32"),
        (np.array([[0.0], [0.0], [1e300]]), [0, 0, 1], "NaN or infinity in example 2, as float32"),
        (jnp.array([[0.0], [jnp.inf]], jnp.bfloat16), [0, 1], "NaN or infinity in example 1, as bfloat16"),
        (np.array([[2**40 + 3]]), [0], "numbers of int64 that int32 does not hold; enable x64"),
        (np.zeros((2, 2)), [[0], [1]], r"labels have shape \(2, 1\)"),
    ],
)
def test_refuses_arrays_that_are_no_table(inputs, labels, message):
    with pytest.raises(ValueError, match=message):
        data.class_table(inputs, labels)


def test_inputs_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="inputs are of <U1; they must be numbers"):
        data.class_table(np.array(["a", "b"]), [0, 1])
