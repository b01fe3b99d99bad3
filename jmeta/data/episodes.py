"""The episode sampler: few-shot tasks drawn from a table, on the device."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jmeta.checks import check_counts, is_count
from jmeta.data.table import ClassTable
from jmeta.types import Array, as_float, Examples, Task

# In classes larger than this, examples are drawn one by one if they are few enough for that to be less work: it is
# quadratic in their number, where scoring is linear in the class size. (16 of 10,000, 5 ways, 16 tasks, two x86 cores:
# 0.3 ms one by one, 12 ms by scores; not measured on accelerators, where steps of a loop cost more.)
MOST_SCORED = 1000


def episodes(
    table: ClassTable, *, ways: int | tuple[int, int], shots: int | tuple[int, int], queries: int
) -> Callable[[Array], Task]:
    """A sampler of classification tasks from a table.

    Classes are drawn without replacement and in random order, so labels carry no
    meaning from one episode to the next; so are examples, and support and query share
    none.

    Args:
        table: the classes.
        ways: classes per episode; `(low, high)` draws a number from low to high for
            each episode. Arrays are then as wide as the highest, and the rows and
            columns of missing classes are padding.
        shots: support examples of each class, or such a range.
        queries: query examples of each class.

    Returns:
        `sample(key) -> Task`, pure and compiled: vmap it. Support rows go class by
        class, [ways x shots], and so do query rows.

    Raises:
        ValueError: for what is no table, fewer than 2 ways, fewer than 1 shot or
            query, an empty range, more ways than the table has classes, or more
            examples per class than its smallest class has.

    Example:
        >>> import numpy as np
        >>> from jmeta import data
        >>> table = data.class_table(np.arange(40.0).reshape(20, 2), np.repeat(np.arange(4), 5))
        >>> task = episodes(table, ways=3, shots=1, queries=2)(jax.random.key(0))
        >>> task.support.inputs.shape, task.query.targets.shape
        ((3, 2), (6, 3))
    """
    if not isinstance(table, ClassTable):
        raise ValueError(
            f"table is of type {type(table).__name__}; it must be a ClassTable, as made by data.class_table."
        )
    check_counts(least=1, queries=queries)
    spec = _Spec(_range("ways", ways, 2), _range("shots", shots, 1), queries, int(table.counts.max()))
    _check_fits(table, spec)
    # Arrays are arguments of `_draw`, so that a compiled function holds no copy of the table. Names are left out, or
    # two samplers of one spec would compile twice.
    return jax.tree_util.Partial(_sample, spec, table.inputs, table.starts, table.counts)


def _sample(*arguments):  # a plain function, which can be pickled
    return _draw(*arguments)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Spec:
    """What determines the shapes of an episode; ranges are (low, high)."""

    ways: tuple[int, int]
    shots: tuple[int, int]
    queries: int
    largest: int  # examples of the largest class


@jax.jit
def _draw(spec: _Spec, inputs: Array, starts: Array, counts: Array, key: Array) -> Task:
    ways_key, shots_key, class_key, example_key = jax.random.split(key, 4)
    widest, most = spec.ways[1], spec.shots[1]
    classes = _by_scores(class_key, len(starts), bound=len(starts), number=widest)
    number = most + spec.queries
    is_sparse = spec.largest > MOST_SCORED and number**2 < spec.largest
    rows_of = _one_by_one if is_sparse else functools.partial(_by_scores, bound=spec.largest)
    keys = jax.random.split(example_key, widest)
    rows = starts[classes][:, None] + jax.vmap(functools.partial(rows_of, number=number))(keys, counts[classes])
    is_way = jnp.arange(widest) < _between(ways_key, spec.ways)
    is_shot = jnp.arange(most) < _between(shots_key, spec.shots)
    support = _examples(inputs, rows[:, :most], is_way[:, None] & is_shot[None, :])
    query = _examples(inputs, rows[:, most:], jnp.broadcast_to(is_way[:, None], (widest, spec.queries)))
    return Task(support, query, jnp.where(is_way, classes, -1))


def _examples(inputs, rows, mask):
    """The examples at `rows` [N, shots] or [N, queries]; those outside `mask`, of the same shape, are zero."""
    targets = jnp.repeat(jnp.eye(len(rows)), rows.shape[1], axis=0)
    mask = mask.reshape(-1)
    inputs = as_float(inputs[rows.reshape(-1)])
    shape = (-1,) + (1,) * (inputs.ndim - 1)
    return Examples(
        jnp.where(mask.reshape(shape), inputs, jnp.zeros((), inputs.dtype)),
        targets * mask[:, None],
        mask.astype(targets.dtype),
    )


def _by_scores(key, size, *, bound, number):
    """`number` different integers below `size`, which is at most `bound`, in random order."""
    scores = jnp.where(jnp.arange(bound) < size, jax.random.uniform(key, (bound,)), -1.0)
    return lax.top_k(scores, number)[1]


def _one_by_one(key, size, *, number):
    """The same, without a score for every candidate: each draw picks a random position among the integers left."""
    places = jax.random.randint(key, (number,), 0, size - jnp.arange(number))

    def draw(drawn, place):  # those drawn, in order, then larger numbers as padding
        # The integers already drawn that come before the new one are those with at most `place` integers left below.
        found = place + (drawn - jnp.arange(number) <= place).sum(dtype=place.dtype)
        return jnp.sort(drawn.at[-1].set(found)), found

    nothing = jnp.full(number, jnp.iinfo(places.dtype).max, places.dtype)
    return lax.scan(draw, nothing, places)[1]


def _between(key, bounds):
    return jax.random.randint(key, (), bounds[0], bounds[1] + 1)


def _range(name, value, least):
    bounds = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(bounds) != 2 or not all(is_count(bound, least) for bound in bounds) or bounds[0] > bounds[1]:
        raise ValueError(f"{name} is {value}; it must be a number, at least {least}, or a range (low, high) of those.")
    return bounds


def _check_fits(table, spec):
    if spec.ways[1] > len(table):
        raise ValueError(f"ways is {spec.ways[1]}, but the table has {len(table)} classes; it must be at most that.")
    smallest, shots = int(table.counts.argmin()), spec.shots[1]
    if shots + spec.queries > table.counts[smallest]:
        raise ValueError(
            f"shots + queries is {shots} + {spec.queries} = {shots + spec.queries}, but the smallest class, "
            f"{table.names[smallest]!r}, has {table.counts[smallest]} examples; the sum must be at most that."
        )
