"""Over which axes of a mesh arrays vary, inside `jax.shard_map`.

What is the same on all devices has a gradient that is summed over them, as soon
as it meets what is not: right for a meta-gradient, and wrong for the gradient of
a task's own loss, which is of one device.
"""

import jax
from jax import lax

from jmeta.types import PyTree


def varying(tree: PyTree) -> frozenset[str]:
    """The axes over which any array of the tree varies; none outside `shard_map`."""
    return frozenset().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(tree)))


def vary_over(tree: PyTree, axes: frozenset[str]) -> PyTree:
    """The tree, each array of which varies over these axes too."""
    if not axes:
        return tree
    return jax.tree.map(lambda leaf: lax.pcast(leaf, tuple(axes - varying(leaf)), to="varying"), tree)
