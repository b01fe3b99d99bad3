"""Parts a tree in two: parameters that an inner loop moves and those that it leaves, or what has a gradient."""

from collections.abc import Callable
from typing import Any

import jax

from jmeta.checks import check_functions
from jmeta.types import is_inexact, PyTree


def path_name(path: tuple) -> str:
    """A leaf's path as text, such as `"head/kernel"`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def part(params: PyTree, moves: Callable[[str], bool] | None) -> tuple[PyTree, PyTree]:
    """The parameters whose path is chosen, and the others; each has None where the other has a leaf.

    Args:
        params: any tree.
        moves: `(path) -> bool`, for paths such as `"head/kernel"`; None for all
            parameters, and None in place of the others.

    Example:
        >>> part({"body": 1.0, "head": 2.0}, lambda path: path == "head")
        ({'body': None, 'head': 2.0}, {'body': 1.0, 'head': None})
    """
    if moves is None:
        return params, None
    return _parted(params, jax.tree_util.tree_map_with_path(lambda path, _: bool(moves(path_name(path))), params))


def smooth_part(tree: PyTree) -> tuple[PyTree, PyTree]:
    """The leaves that are differentiated, and the others, as `part` gives them.

    Example:
        >>> smooth_part({"x": 1.0, "index": 2})
        ({'index': None, 'x': 1.0}, {'index': 2, 'x': None})
    """
    return _parted(tree, jax.tree.map(is_inexact, tree))


def _parted(tree, is_chosen):
    ours = jax.tree.map(lambda flag, leaf: leaf if flag else None, is_chosen, tree)
    others = jax.tree.map(lambda flag, leaf: None if flag else leaf, is_chosen, tree)
    return ours, others


def join(ours: PyTree, others: PyTree) -> PyTree:
    """Undoes `part` and `smooth_part`."""
    if others is None:
        return ours
    return jax.tree.map(
        lambda one, other: other if one is None else one, ours, others, is_leaf=lambda leaf: leaf is None
    )


def check_predicates(**predicates: Any) -> None:
    """Raises a `ValueError` that names the argument if it is not a function of a path."""
    check_functions('from a path such as "head/kernel" to a bool, such as functional.in_layer("head")', **predicates)


def check_parts(moving: PyTree, fixed: PyTree) -> None:
    """Raises a `ValueError` if the inner loop moves none of the parameters, or all of them."""
    for empty, whole, number in ((moving, fixed, "none"), (fixed, moving, "all")):
        if not jax.tree.leaves(empty):
            names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(whole)]
            raise ValueError(
                f"the inner loop moves {number} of the model's parameters, but it must move some and leave some; "
                f"their paths are {', '.join(names)}."
            )


def in_layer(name: str) -> Callable[[str], bool]:
    """A predicate for the parameters under a layer of this name, at any depth.

    Example:
        >>> in_layer("head")("head/kernel"), in_layer("head")("heads/kernel")
        (True, False)
    """
    return lambda path: name in path.split("/")
