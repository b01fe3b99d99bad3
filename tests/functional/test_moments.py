"""Moments of a convolution, found from its inputs and kernel, are those of its outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jmeta.functional import conv, conv_moments, moments
from jmeta.functional.moments import FEW_TERMS

SHAPES = {  # batch, height, width, channels, kernel, stride
    "one channel": (4, 6, 5, 1, (3, 3), 1),
    "three channels, strided": (4, 7, 6, 3, (3, 3), 2),
    "many terms": (4, 5, 5, 4, (3, 3), 1),
}
MASKS = {"all": None, "some": jnp.array([1, 0, 1, 1]), "one": jnp.array([0, 1, 0, 0]), "none": jnp.zeros(4)}


def operands(shape):
    batch, height, width, channels, size, _ = shape
    keys = jax.random.split(jax.random.key(0))
    x = 2 + jax.random.normal(keys[0], (batch, height, width, channels))
    return x, jax.random.normal(keys[1], (*size, channels, 3))


def smooth_images():
    """Strokes, most of whose pixels are as their neighbours, as on a drawing."""
    noise = np.random.default_rng(0).normal(size=(25, 7, 7, 1))
    return np.asarray(jax.image.resize(noise, (25, 28, 28, 1), "cubic") > 0.8, np.float32)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_equal_those_of_the_outputs_of_real_examples(x64, shape, mask):
    x, w = operands(shape)
    y = conv(x, w, stride=shape[-1])
    found = conv_moments(x, w, y, mask, stride=shape[-1])

    real = np.asarray(y)[slice(None) if mask is None else np.asarray(mask) > 0]
    expected = (real.mean((0, 1, 2)), real.var((0, 1, 2))) if len(real) else (np.zeros(3), np.zeros(3))
    for one, other, third in zip(found, moments(y, mask), expected, strict=True):
        np.testing.assert_allclose(one, third, atol=1e-12)
        np.testing.assert_allclose(other, third, atol=1e-12)


@pytest.mark.parametrize("name", ["one channel", "three channels, strided"])
def test_have_right_derivatives_of_both_orders_by_images_and_kernel(x64, name):
    *_, stride = SHAPES[name]

    def scalar(x, w):
        mean, variance = conv_moments(x, w, conv(x, w, stride=stride), MASKS["some"], stride=stride)
        return jnp.sin(mean).sum() + jnp.log(1e-3 + variance).sum()

    check_grads(scalar, operands(SHAPES[name]), order=2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", [[1, -2, 1], [-1, 0, 1]])
def test_round_little_for_a_kernel_that_tells_neighbours_apart(kernel):
    """Most of such a variance cancels in the covariance of the pixels; one long sum of it would be 3e-4 off."""
    x, w = smooth_images(), np.outer(kernel, kernel).astype(np.float32)[..., None, None]
    y = conv(x, w)
    _, variance = conv_moments(x, w, y)
    np.testing.assert_allclose(variance, np.asarray(y, np.float64).var((0, 1, 2)), rtol=2e-5)


def test_of_a_constant_image_are_never_below_zero():
    w = jax.random.normal(jax.random.key(0), (1, 1, 3, 64))
    x = jnp.full((2, 5, 5, 3), 0.1)
    _, variance = conv_moments(x, w, conv(x, w))
    assert variance.min() >= 0
    np.testing.assert_allclose(variance, 0, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "dtype", "reads_outputs"),
    [(3, jnp.float32, False), (3, jnp.bfloat16, True), (4, jnp.float32, True)],
    ids=["few terms", "half precision", "many terms"],
)
def test_do_not_read_the_outputs_where_terms_are_few_and_exact(channels, dtype, reads_outputs):
    x, w = jnp.ones((2, 4, 4, channels), dtype), jnp.ones((3, 3, channels, 2), dtype)
    assert (w[..., 0].size <= FEW_TERMS) == (channels == 3)
    of_other_outputs = conv_moments(x, w, jnp.zeros((2, 4, 4, 2), dtype))
    assert all(not moment.any() for moment in of_other_outputs) == reads_outputs
