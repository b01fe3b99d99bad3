"""The episode sampler: few-shot tasks drawn from a table, on the device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jmeta.data.table import ClassTable
from jmeta.types import Array, Examples, Task


def episodes(
    table: ClassTable, *, ways: int | tuple[int, int], shots: int | tuple[int, int], queries: int
) -> Callable[[Array], Task]:
    """A sampler of N-way K-shot classification tasks.

    Classes are drawn without replacement and in random order, so that labels
    carry no meaning from one episode to the next; examples likewise, so that
    support and query share none.

    Args:
        table: the classes.
        ways: classes in an episode; `(low, high)` draws a number from low to
            high for each episode. Arrays are then as wide as the highest, and
            rows and columns of classes that are not there are padding.
        shots: support examples of each class, or such a range.
        queries: query examples of each class.

    Returns:
        `sample(key) -> Task`, pure: jit it and vmap it. Support rows go class by
        class, [ways x shots]; query rows likewise.

    Raises:
        ValueError: for fewer than 2 ways, fewer than 1 shot or query, an empty
            range, more ways than the table has classes, or more examples per
            class than its smallest class has.

    Example:
        >>> import numpy as np
        >>> from jmeta import data
        >>> table = data.class_table(np.arange(40.0).reshape(20, 2), np.repeat(np.arange(4), 5))
        >>> task = episodes(table, ways=3, shots=1, queries=2)(jax.random.key(0))
        >>> task.support.inputs.shape, task.query.targets.shape
        ((3, 2), (6, 3))
    """
    ways_range, shots_range = _range("ways", ways, 2), _range("shots", shots, 1)
    _range("queries", queries, 1)
    _check_fits(table, ways_range[1], shots_range[1], queries)
    widest, most = ways_range[1], shots_range[1]
    largest = int(table.counts.max())

    def rows_of_class(table, key, index):
        return table.starts[index] + _without_replacement(key, table.counts[index], largest, most + queries)

    def draw(table, key):
        ways_key, shots_key, class_key, example_key = jax.random.split(key, 4)
        classes = _without_replacement(class_key, len(table), len(table), widest)
        rows = jax.vmap(rows_of_class, (None, 0, 0))(table, jax.random.split(example_key, widest), classes)
        is_way = jnp.arange(widest) < _between(ways_key, ways_range)
        is_shot = jnp.arange(most) < _between(shots_key, shots_range)
        support = _examples(table, rows[:, :most], is_way[:, None] & is_shot[None, :])
        query = _examples(table, rows[:, most:], jnp.broadcast_to(is_way[:, None], (widest, queries)))
        return Task(support, query, jnp.where(is_way, classes, -1))

    # The table is an argument of `draw`, so that a compiled function may take it as one and hold no copy.
    return jax.tree_util.Partial(draw, table)


def _examples(table, rows, mask):
    """The examples at `rows` [N, K], of which those outside `mask` [N, K] are zeroed."""
    targets = jnp.repeat(jnp.eye(len(rows)), rows.shape[1], axis=0)
    mask = mask.reshape(-1)
    inputs = _as_float(table.inputs[rows.reshape(-1)])
    shape = (-1,) + (1,) * (inputs.ndim - 1)
    return Examples(
        jnp.where(mask.reshape(shape), inputs, jnp.zeros((), inputs.dtype)),
        targets * mask[:, None],
        mask.astype(targets.dtype),
    )


def _as_float(inputs):
    return inputs.astype(float) / 255 if inputs.dtype == jnp.uint8 else inputs


def _without_replacement(key, size, bound, number):
    """`number` different integers below `size`, itself at most `bound`, in random order."""
    scores = jnp.where(jnp.arange(bound) < size, jax.random.uniform(key, (bound,)), -1.0)
    return lax.top_k(scores, number)[1]


def _between(key, bounds):
    return jax.random.randint(key, (), bounds[0], bounds[1] + 1)


def _range(name, value, least):
    low, high = value if isinstance(value, tuple) else (value, value)
    if low < least or high < low:
        raise ValueError(f"{name} is {value}; it must be at least {least}, and a range must go from low to high.")
    return low, high


def _check_fits(table, ways, shots, queries):
    if ways > len(table):
        raise ValueError(f"ways is {ways}, but the table has {len(table)} classes; ways must be at most that.")
    smallest = int(table.counts.argmin())
    if shots + queries > table.counts[smallest]:
        raise ValueError(
            f"shots + queries is {shots} + {queries} = {shots + queries}, but the smallest class, "
            f"{table.names[smallest]!r}, has {table.counts[smallest]} examples; the sum must be at most that."
        )
