"""An endless family of handwritten-like characters, drawn on the device: data without files."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import jax
import jax.numpy as jnp
from jax import lax

from jmeta.checks import check_counts
from jmeta.types import Array, Examples, Task

SIZE = 28
STROKES = 4  # the most a class may have
SEGMENTS = 6  # straight lines that approximate a stroke

# The random numbers of a character: ends of strokes, their middles, new starts, which strokes start where the
# last one ended, and how many there are. Those of a drawing of it: its wobble, a linear map, a shift.
CHARACTER = (2 * (STROKES + 1), 2 * STROKES, 2 * STROKES, STROKES, 1)
DRAWING = (6 * STROKES, 4, 2)

# How much two drawings of one character differ. Chosen so that the nearest raw-pixel centroid is right about half the
# time at 5-way 1-shot (tests/data/test_glyphs.py).
WOBBLE = 0.07  # standard deviation of a control point, in image widths
SHEAR = 0.15  # of each entry of the linear map about the identity
SHIFT = 0.05  # of the position, in image widths
PEN = (0.03, 0.045)  # half-width of the pen, in image widths

UNDRAWN = 9.0  # added to the squared distance from a stroke that is left out: beyond the pen's reach


def glyphs(*, ways: int = 5, shots: int = 1, queries: int = 15) -> Callable[[Array], Task]:
    """A sampler of tasks over characters nobody has written.

    A class is a program of two to four strokes, each a quadratic Bézier curve that
    starts where the last one ended or anew. An example is a perturbed rendering:
    control points wobble, the whole is sheared and shifted, and the pen width varies.
    Every class of every task is new.

    Args:
        ways: classes per task.
        shots: support examples of each class.
        queries: query examples of each class.

    Returns:
        `sample(key) -> Task`, compiled, of images [K, 28, 28, 1], ink 1 on paper 0.

    Raises:
        ValueError: for fewer than 2 ways, or fewer than 1 shot or query.

    Example:
        >>> glyphs(ways=3, shots=2)(jax.random.key(0)).support.inputs.shape
        (6, 28, 28, 1)
    """
    check_counts(least=2, ways=ways)
    check_counts(least=1, shots=shots, queries=queries)
    return _Sampler(ways, shots, queries)


@dataclass(frozen=True)
class _Sampler:  # compared by its sizes, so that what is compiled for one serves another of the same
    ways: int
    shots: int
    queries: int

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, key):
        # Few draws of many numbers, since each call of a random generator takes long to compile.
        class_key, id_key, example_key, pen_key = jax.random.split(key, 4)
        characters = jax.vmap(_character)(jax.random.uniform(class_key, (self.ways, sum(CHARACTER))))
        examples = self.ways, self.shots + self.queries
        changes = jax.random.normal(example_key, (*examples, sum(DRAWING)))
        pens = jax.random.uniform(pen_key, examples, minval=PEN[0], maxval=PEN[1])
        images = jax.vmap(jax.vmap(_drawing, (None, 0, 0)))(characters, changes, pens)
        # No class comes twice, so each gets a random number of its own.
        class_ids = (jax.random.bits(id_key, (self.ways,), "uint32") >> 1).astype(jnp.int32)
        return Task(_examples(images[:, : self.shots]), _examples(images[:, self.shots :]), class_ids)


def _examples(images):
    ways, per_class = images.shape[:2]
    targets = jnp.repeat(jnp.eye(ways), per_class, axis=0)
    return Examples(images.reshape(-1, SIZE, SIZE, 1), targets, jnp.ones(ways * per_class))


def _character(numbers):
    """A class from uniform numbers: control points [STROKES, 3, 2] in the unit square, and which strokes it has."""
    ends, middles, fresh, joined, count = _parts(numbers, CHARACTER)
    # Ends keep a margin, into which the middles may reach; both margins are our choice.
    ends, fresh = (0.15 + 0.7 * part.reshape(-1, 2) for part in (ends, fresh))
    middles = 0.05 + 0.9 * middles.reshape(-1, 2)
    starts = jnp.where(joined[:, None] < 0.5, ends[:-1], fresh)
    strokes = 2 + jnp.floor((STROKES - 1) * count)
    return jnp.stack([starts, middles, ends[1:]], axis=1), jnp.arange(STROKES) < strokes


def _drawing(character, changes, pen):
    """One rendering [SIZE, SIZE] of a class, perturbed by normal numbers."""
    controls, is_drawn = character
    wobble, shear, shift = _parts(changes, DRAWING)
    controls += WOBBLE * wobble.reshape(controls.shape)
    linear = jnp.eye(2) + SHEAR * shear.reshape(2, 2)
    turned = jnp.matmul(controls - 0.5, linear.T, precision="highest")  # or accelerators would draw other lines
    controls = turned + 0.5 + SHIFT * shift.reshape(1, 1, 2)
    return _ink(_along(controls), is_drawn, pen)


def _parts(numbers, sizes):
    """The numbers, split into parts of these sizes."""
    return jnp.split(numbers, list(accumulate(sizes))[:-1])


def _along(controls):
    """Points [STROKES, SEGMENTS + 1, 2] along the quadratic Bézier curves of `controls` [STROKES, 3, 2]."""
    t = jnp.linspace(0, 1, SEGMENTS + 1)
    basis = jnp.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=-1)
    return jnp.einsum("pc,scd->spd", basis, controls, precision="highest")


def _ink(points, is_drawn, pen):
    """Ink [SIZE, SIZE]: 1 within the pen's width of a drawn stroke, fading to 0 over a pixel."""
    pixels = (jnp.arange(SIZE) + 0.5) / SIZE
    starts = points[:, :-1].reshape(-1, 2)
    along = points[:, 1:].reshape(-1, 2) - starts
    lengths = jnp.maximum(jnp.square(along).sum(1), 1e-12)  # squared; it is a divisor
    undrawn = jnp.where(is_drawn, 0.0, UNDRAWN).repeat(SEGMENTS)

    def distances(start, along, length, undrawn):  # squared
        right, down = pixels[None] - start[0], pixels[:, None] - start[1]
        projection = right * along[0] + down * along[1]
        place = jnp.clip(projection / length, 0, 1)
        return right**2 + down**2 + place * (place * length - 2 * projection) + undrawn

    # One segment after another: the distances of all pixels from all segments would not fit a CPU's cache, and take 5
    # to 8 times as long (benchmarks/README.md).
    segments = starts, along, lengths, undrawn
    first, others = distances(*(leaf[0] for leaf in segments)), tuple(leaf[1:] for leaf in segments)
    nearest, _ = lax.scan(lambda nearest, one: (jnp.minimum(nearest, distances(*one)), None), first, others)
    return jnp.clip((pen - jnp.sqrt(jnp.maximum(nearest, 0))) * SIZE + 0.5, 0, 1)
