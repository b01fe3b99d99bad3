"""Parameters parted by their paths."""

import pytest

from jmeta.functional.partition import check_parts, in_layer, join, part

PARAMS = {"Conv_0": {"kernel": 1, "bias": 2}, "head": {"kernel": 3}}


def test_the_parts_have_every_leaf_once_and_join_to_the_whole():
    moving, fixed = part(PARAMS, in_layer("head"))
    assert moving == {"Conv_0": {"kernel": None, "bias": None}, "head": {"kernel": 3}}
    assert fixed == {"Conv_0": {"kernel": 1, "bias": 2}, "head": {"kernel": None}}
    assert join(moving, fixed) == PARAMS


@pytest.mark.parametrize(("moves", "number"), [(in_layer("tail"), "none"), (lambda path: True, "all")])
def test_to_move_none_or_all_is_an_error_that_names_the_paths(moves, number):
    told = f"moves {number} of the model's parameters.*Conv_0/bias, Conv_0/kernel, head/kernel"
    with pytest.raises(ValueError, match=told):
        check_parts(*part(PARAMS, moves))
    check_parts(*part(PARAMS, in_layer("head")))
