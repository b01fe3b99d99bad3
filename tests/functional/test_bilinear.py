"""What the primitives share: how they behave when tasks are sharded over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jmeta.functional import conv, linear

OPERATIONS = {
    "linear": (linear, (6, 3), (3, 2)),
    "conv": (conv, (4, 5, 5, 2), (3, 3, 2, 3)),
    "pointwise": (conv, (4, 5, 5, 2), (1, 1, 2, 3)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_gradient_of_a_matrix_that_devices_share_is_the_sum_over_their_examples(x64, name):
    operation, *shapes = OPERATIONS[name]
    x, w = (jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate(shapes))

    def loss(x, w):
        return jnp.sin(operation(x, w)).sum()

    sharded = jax.shard_map(
        lambda x, w: (lax.psum(loss(x, w), "tasks"), jax.grad(loss, 1)(x, w)),
        mesh=jax.make_mesh((2,), ("tasks",), axis_types=(AxisType.Auto,)),
        in_specs=(PartitionSpec("tasks"), PartitionSpec()),
        out_specs=PartitionSpec(),
    )
    expected = loss(x, w), jax.grad(loss, 1)(x, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), jax.jit(sharded)(x, w), expected)
