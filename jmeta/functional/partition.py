"""Partitions parameters by path: those that an inner loop moves and those that it leaves."""

from collections.abc import Callable
from typing import Any

import jax

from jmeta.checks import check_functions
from jmeta.types import PyTree


def path_name(path: tuple) -> str:
    """A leaf's path as text, such as `"head/kernel"`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def part(params: PyTree, moves: Callable[[str], bool]) -> tuple[PyTree, PyTree]:
    """The parameters whose path is chosen, and the others; each has None where the other has a leaf.

    Args:
        params: any tree.
        moves: `(path) -> bool`, for paths such as `"head/kernel"`.

    Example:
        >>> part({"body": 1.0, "head": 2.0}, lambda path: path == "head")
        ({'body': None, 'head': 2.0}, {'body': 1.0, 'head': None})
    """
    chosen = jax.tree_util.tree_map_with_path(lambda path, _: bool(moves(path_name(path))), params)
    moving = jax.tree.map(lambda flag, leaf: leaf if flag else None, chosen, params)
    fixed = jax.tree.map(lambda flag, leaf: None if flag else leaf, chosen, params)
    return moving, fixed


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


def join(moving: PyTree, fixed: PyTree) -> PyTree:
    """Undoes `part`."""
    return jax.tree.map(
        lambda one, other: other if one is None else one, moving, fixed, is_leaf=lambda leaf: leaf is None
    )


def in_layer(name: str) -> Callable[[str], bool]:
    """A predicate for the parameters under a layer of this name, at any depth.

    Example:
        >>> in_layer("head")("head/kernel"), in_layer("head")("heads/kernel")
        (True, False)
    """
    return lambda path: name in path.split("/")
