"""The axes of a mesh over which arrays vary, inside `jax.shard_map`.

JAX sums the gradient of a replicated array over devices as soon as the array meets one
that varies: right for a meta-gradient, wrong for the inner gradient of a task, which
belongs to one device.
"""

import jax
from jax import lax

from jmeta.types import PyTree


def varying(tree: PyTree) -> frozenset[str]:
    """The axes over which any array of the tree varies; none outside `shard_map`."""
    return frozenset().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(tree)))


def vary_over(tree: PyTree, axes: frozenset[str]) -> PyTree:
    """The tree, with each array varying over these axes too."""
    if not axes:
        return tree
    return jax.tree.map(lambda leaf: lax.pcast(leaf, tuple(axes - varying(leaf)), to="varying"), tree)
