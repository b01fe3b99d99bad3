"""Trees of arrays, leaf by leaf."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jmeta.types import PyTree


def by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by path."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def dtype_and_shape(leaf: Any) -> str:
    """The dtype and shape of a leaf, such as `float32[2, 3]`."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)  # NumPy's double is not JAX's single
    return f"{dtype}{shape(leaf)}"


def shape(leaf: Any) -> str:
    """The shape of a leaf, such as `[2, 3]`."""
    return str(list(jnp.shape(leaf)))


def first_difference(
    found: dict[str, Any], expected: dict[str, Any], *, kind: Callable[[Any], str] = dtype_and_shape
) -> tuple[str, str, str] | None:
    """The first path at which the leaves differ in `kind`, and the kind in each; None if there is no difference."""
    kinds = [{name: kind(leaf) for name, leaf in leaves.items()} for leaves in (found, expected)]
    for name in sorted(found.keys() | expected.keys()):
        one, other = (of.get(name, "absent") for of in kinds)
        if one != other:
            return name, one, other
    return None
