"""Runs a function of one task over a batch of tasks: divided over devices, and vmapped in chunks on each."""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import jaxpr_as_fun, subjaxprs
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jmeta.types import Array, is_inexact, PyTree, Task

# Bytes that the largest array of the tasks vmapped together may take. On a CPU, a chunk whose arrays leave the cache is
# slower than one task at a time (docs/decisions/0004-chunks.md); elsewhere this bounds the memory.
CHUNK_BYTES = {"cpu": 2**21}
ACCELERATOR_CHUNK_BYTES = 2**30

TASKS = "tasks"  # the axis of a mesh of devices over which tasks are divided


def map_tasks(function: Callable, *batches: PyTree) -> PyTree:
    """`jax.vmap(function)(*batches)`, without `vmap` if there is a single task.

    An axis of one task makes a meta-step a third slower (XLA on the CPU, Conv4-64, 10 inner steps).

    Args:
        function: a function of one task.
        batches: its arguments for all tasks, [T, ...].
    """
    if len(jax.tree.leaves(batches)[0]) > 1:
        return jax.vmap(function)(*batches)
    return jax.tree.map(lambda leaf: leaf[None], function(*jax.tree.map(lambda leaf: leaf[0], batches)))


def sum_over_chunks(function: Callable, batch: PyTree, chunk: int) -> PyTree:
    """The sum of `function` over chunks of the leading axis of `batch`, which `chunk` divides.

    Leaves that are not floats are taken from the last chunk.
    """
    if chunk == len(jax.tree.leaves(batch)[0]):
        return function(batch)
    chunks = jax.tree.map(lambda leaf: leaf.reshape(len(leaf) // chunk, chunk, *leaf.shape[1:]), batch)
    shapes = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], chunks))

    def add(sums, one):
        return jax.tree.map(lambda a, b: a + b if is_inexact(b) else b, sums, function(one)), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return lax.scan(add, zeros, chunks)[0]


def chunk_of(
    number: int,
    most: int | None,
    function: Callable,
    *arguments: PyTree,
    devices: tuple[jax.Device, ...] | None = None,
) -> int:
    """How many of `number` tasks to vmap a function over at once.

    Args:
        number: number of tasks on each device.
        most: an upper bound; None for as many as keep the function's largest array,
            times their number, within the device's bound, and at least one.
        function: a function of one task.
        arguments: its arguments, or their shapes.
        devices: devices that share the tasks; None for JAX's default device.
    """
    if most is None:
        platform = jax.default_backend() if devices is None else devices[0].platform
        bound = CHUNK_BYTES.get(platform, ACCELERATOR_CHUNK_BYTES)
        most = max(1, bound // largest_array(function, *arguments))
    return even_chunk(number, most)


def even_chunk(number: int, most: int) -> int:
    """The chunk size, at most `most`, that needs the least padding.

    All chunks are of one size, so that one compiled function serves them all, and the last is padded. Of the sizes
    above half of `most` this is the one that needs the least padding; of equals, the largest.
    """
    most = min(most, number)
    return min(range(most // 2 + 1, most + 1), key=lambda chunk: (-number % chunk, -chunk))


def largest_array(function: Callable, *arguments: PyTree) -> int:
    """Bytes of the largest array that a function computes on the way; it is traced, not run."""

    def largest(jaxpr):
        made = [var.aval for eqn in jaxpr.eqns for var in eqn.outvars if hasattr(var.aval, "dtype")]
        numbers = [aval for aval in made if jnp.issubdtype(aval.dtype, jnp.number)]
        return max([1, *(aval.size * aval.dtype.itemsize for aval in numbers), *map(largest, subjaxprs(jaxpr))])

    return largest(jax.make_jaxpr(function)(*arguments).jaxpr)


def as_argument(sample: Callable[[Array], Task]) -> jax.tree_util.Partial:
    """The sampler as a pytree of JAX arrays: a compiled function takes its table as an argument, not a constant."""
    if isinstance(sample, jax.tree_util.Partial):
        return jax.tree.map(jnp.asarray, sample)  # or NumPy arrays would go to the device in each call
    return jax.tree_util.Partial(hashable(sample))


def hashable(function: Callable) -> Callable:
    """The function, or if it cannot be hashed and so key a cache, like a frozen dataclass of arrays, its method."""
    try:
        hash(function)
    except TypeError:
        return function.__call__  # type: ignore[operator]  # bound: hashed by the identity of its object
    return function


def as_devices(devices: Sequence[jax.Device] | None) -> tuple[jax.Device, ...] | None:
    """The devices as a tuple, which can key a cache; raises a `ValueError` if tasks cannot be divided over them."""
    if devices is None:
        return None
    found = tuple(devices) if isinstance(devices, Iterable) else ()
    if not _can_share(found):
        raise ValueError(
            f"devices is {devices!r}; it must be a sequence of different devices of one kind and of this process, such "
            "as jax.local_devices(), or None."
        )
    return found


def _can_share(devices):
    if not devices or not all(isinstance(device, jax.Device) for device in devices):
        return False
    kinds = {(device.platform, device.process_index) for device in devices}
    return len(set(devices)) == len(devices) and kinds == {(devices[0].platform, jax.process_index())}


def device_count(devices: tuple[jax.Device, ...] | None) -> int:
    """The number of devices that share tasks."""
    return 1 if devices is None else len(devices)


def on_each_device(tree: PyTree, devices: tuple[jax.Device, ...] | None) -> PyTree:
    """A copy of the tree on each device, or the tree itself if `devices` is None."""
    return tree if devices is None else jax.device_put(tree, NamedSharding(_mesh(devices), PartitionSpec()))


def _mesh(devices):
    return Mesh(np.array(devices), (TASKS,))


def filled_up(batch: PyTree, multiple: int) -> tuple[PyTree, np.ndarray]:
    """A batch [T, ...] padded with its first tasks to the next multiple, and a mask that is False for padding."""
    number = len(jax.tree.leaves(batch)[0])
    index = np.arange(-(-number // multiple) * multiple)
    if len(index) > number:
        batch = jax.tree.map(lambda leaf: leaf[index % number], batch)
    return batch, index < number


def over_devices(
    function: Callable, devices: tuple[jax.Device, ...] | None, add: Callable[[PyTree], PyTree] | None = None
) -> Callable:
    """A function `(shared, batch)` that each device runs on its part of the batch.

    Args:
        function: the function that a device runs.
        devices: the devices, whose number divides that of the tasks in a batch
            [T, ...]; with None, `function` itself is returned.
        add: sums the results of the devices over the axis `TASKS`.

    Returns:
        A function that returns the result of `add`; without `add`, the results of all
        devices end to end, [T, ...].
    """
    if devices is None:
        return function

    def divided(shared, batch):
        traced = _traced(function, shared, batch, len(devices))
        run_on_each = jax.shard_map(
            traced if add is None else lambda *arguments: add(traced(*arguments)),
            mesh=_mesh(devices),
            in_specs=(PartitionSpec(), PartitionSpec(TASKS)),
            out_specs=PartitionSpec(TASKS) if add is None else PartitionSpec(),
            check_vma=False,  # traced elsewhere, the function does not say what varies over devices
        )
        return run_on_each(shared, batch)

    return divided


def _traced(function, shared, batch, number):
    """The function, traced for the part of a batch that one of `number` devices has.

    Traced here, on arrays without a device, it reuses what JAX has traced; inside `shard_map` it would not.
    """
    whole, batch = jax.eval_shape(lambda *arguments: arguments, shared, batch)
    whole = jax.tree.map(lambda leaf: _nowhere(leaf.shape, leaf), whole)
    part = jax.tree.map(lambda leaf: _nowhere((len(leaf) // number, *leaf.shape[1:]), leaf), batch)
    jaxpr, shapes = jax.make_jaxpr(jax.jit(function), return_shape=True)(whole, part)

    def run(*arguments):
        return jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(jaxpr)(*jax.tree.leaves(arguments)))

    return run


def _nowhere(shape, leaf):
    return jax.ShapeDtypeStruct(shape, leaf.dtype, weak_type=leaf.weak_type)


def sum_over_devices(sums: PyTree) -> PyTree:
    """The leaves summed over all devices, except those that are not floats, which are one device's.

    Leaves of one dtype are summed as one vector: on a CPU each array costs all devices a wait for each other, and
    in a step of a small network they wait for a sixth of it (docs/decisions/0014-devices.md).
    """
    leaves, structure = jax.tree.flatten(sums)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves if is_inexact(leaf)):
        places = [place for place, leaf in enumerate(leaves) if leaf.dtype == dtype]
        vector, unravel = ravel_pytree([leaves[place] for place in places])
        for place, total in zip(places, unravel(lax.psum(vector, TASKS)), strict=True):
            leaves[place] = total
    return jax.tree.unflatten(structure, leaves)
