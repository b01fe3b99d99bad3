"""Parameters parted by their paths."""

import jax.numpy as jnp
import pytest

from jmeta.functional.partition import check_part, in_layer, join, part

PARAMS = {"Conv_0": {"kernel": 1, "bias": 2}, "head": {"kernel": 3}}


def test_the_parts_have_every_leaf_once_and_join_to_the_whole():
    moving, fixed = part(PARAMS, in_layer("head"))
    assert moving == {"Conv_0": {"kernel": None, "bias": None}, "head": {"kernel": 3}}
    assert fixed == {"Conv_0": {"kernel": 1, "bias": 2}, "head": {"kernel": None}}
    assert join(moving, fixed) == PARAMS


def test_an_empty_part_is_an_error_that_names_the_paths():
    moving, _ = part(PARAMS, in_layer("tail"))
    with pytest.raises(ValueError, match="Conv_0/bias, Conv_0/kernel, head/kernel"):
        check_part(moving, PARAMS)
    check_part(jnp.ones(2), PARAMS)
