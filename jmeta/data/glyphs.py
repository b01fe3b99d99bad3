"""An endless family of handwritten-like characters, drawn on the device: data without files."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jmeta.types import Array, Examples, Task

SIZE = 28
STROKES = 4  # of which each class leaves some out
SEGMENTS = 6  # of straight line that a stroke is drawn with

# How unlike two drawings of one character are. Chosen so that the nearest raw-pixel
# centroid is right about half the time at 5-way 1-shot (tests/data/test_glyphs.py).
WOBBLE = 0.07  # standard deviation of a control point, in image widths
SHEAR = 0.15  # of each entry of the linear map about the identity
SHIFT = 0.05  # of the position, in image widths
PEN = (0.03, 0.045)  # half-width of the pen, in image widths


def glyphs(ways: int = 5, shots: int = 1, queries: int = 15) -> Callable[[Array], Task]:
    """A sampler of tasks over characters nobody has written.

    A class is a program of two to four strokes, each a quadratic Bézier curve
    that starts where the last one ended or anew. An example is a perturbed
    rendering: control points wobble, the whole is sheared and shifted, and the
    pen has a width of its own. Every class of every task is new.

    Args:
        ways: classes in a task.
        shots: support examples of each class.
        queries: query examples of each class.

    Returns:
        `sample(key) -> Task` of images [K, 28, 28, 1], ink 1 on paper 0.

    Raises:
        ValueError: for fewer than 2 ways, or fewer than 1 shot or query.

    Example:
        >>> glyphs(ways=3, shots=2)(jax.random.key(0)).support.inputs.shape
        (6, 28, 28, 1)
    """
    for name, value, least in (("ways", ways, 2), ("shots", shots, 1), ("queries", queries, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}.")

    def draw(key):
        class_key, example_key = jax.random.split(key)
        character = _character(class_key)
        return jax.vmap(_drawing, (None, 0))(character, jax.random.split(example_key, shots + queries))

    def examples(images):
        per_class = images.shape[1]
        targets = jnp.repeat(jnp.eye(ways), per_class, axis=0)
        return Examples(images.reshape(-1, SIZE, SIZE, 1), targets, jnp.ones(ways * per_class))

    def sample(key):
        keys = jax.random.split(key, ways)
        images = jax.vmap(draw)(keys)
        # No class comes twice, and a number drawn from its key tells it from the others.
        class_ids = jax.vmap(lambda key: jax.random.randint(key, (), 0, jnp.iinfo(jnp.int32).max, jnp.int32))(keys)
        return Task(examples(images[:, :shots]), examples(images[:, shots:]), class_ids)

    return sample


def _character(key):
    """A class: control points [STROKES, 3, 2] in the unit square, and which strokes it has [STROKES]."""
    start_key, bend_key, joined_key, number_key = jax.random.split(key, 4)
    ends = jax.random.uniform(start_key, (STROKES + 1, 2), minval=0.15, maxval=0.85)
    middles = jax.random.uniform(bend_key, (STROKES, 2), minval=0.05, maxval=0.95)
    fresh = jax.random.uniform(joined_key, (STROKES, 2), minval=0.15, maxval=0.85)
    is_joined = jax.random.bernoulli(jax.random.fold_in(joined_key, 1), 0.5, (STROKES, 1))
    starts = jnp.where(is_joined, ends[:-1], fresh)
    number = jax.random.randint(number_key, (), 2, STROKES + 1)
    return jnp.stack([starts, middles, ends[1:]], axis=1), jnp.arange(STROKES) < number


def _drawing(character, key):
    """One rendering [SIZE, SIZE] of a class."""
    controls, is_drawn = character
    wobble_key, shear_key, shift_key, pen_key = jax.random.split(key, 4)
    controls += WOBBLE * jax.random.normal(wobble_key, controls.shape)
    linear = jnp.eye(2) + SHEAR * jax.random.normal(shear_key, (2, 2))
    shift = SHIFT * jax.random.normal(shift_key, (2,))
    controls = (controls - 0.5) @ linear.T + 0.5 + shift.reshape(1, 1, 2)
    pen = jax.random.uniform(pen_key, (), minval=PEN[0], maxval=PEN[1])
    return _ink(_along(controls), is_drawn, pen)


def _along(controls):
    """Points [STROKES, SEGMENTS + 1, 2] along the quadratic Bézier curves of `controls` [STROKES, 3, 2]."""
    t = jnp.linspace(0, 1, SEGMENTS + 1)
    basis = jnp.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=-1)
    return jnp.einsum("pc,scd->spd", basis, controls)


def _ink(points, is_drawn, pen):
    """Ink [SIZE, SIZE]: 1 within the pen's width of a drawn stroke, fading to 0 over a pixel."""
    pixels = (jnp.arange(SIZE) + 0.5) / SIZE
    starts = points[:, :-1].reshape(-1, 2, 1, 1)
    along = points[:, 1:].reshape(-1, 2, 1, 1) - starts
    right, down = pixels.reshape(1, 1, -1) - starts[:, 0], pixels.reshape(1, -1, 1) - starts[:, 1]
    length = jnp.maximum(jnp.square(along).sum(1), 1e-12)  # squared
    projection = right * along[:, 0] + down * along[:, 1]
    place = jnp.clip(projection / length, 0, 1)
    squared = right**2 + down**2 + place * (place * length - 2 * projection)
    undrawn = jnp.where(is_drawn, 0.0, 9.0).repeat(SEGMENTS).reshape(-1, 1, 1)
    nearest = jnp.sqrt(jnp.maximum((squared + undrawn).min(0), 0))
    return jnp.clip((pen - nearest) * SIZE + 0.5, 0, 1)
