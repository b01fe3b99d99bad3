"""Moments of a convolution, found from its inputs and kernel, are those of its outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jmeta.functional import conv, conv_moments, moments
from jmeta.models.layers import Conv, Normalise

FILTERS = 32  # more than a window has terms, or the outputs are read
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
    return x, jax.random.normal(keys[1], (*size, channels, FILTERS))


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
    expected = (real.mean((0, 1, 2)), real.var((0, 1, 2))) if len(real) else (np.zeros(FILTERS), np.zeros(FILTERS))
    for one, other, third in zip(found, moments(y, mask), expected, strict=True):
        np.testing.assert_allclose(one, third, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(other, third, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["one channel", "three channels, strided"])
def test_have_right_derivatives_of_both_orders_by_images_and_kernel(x64, name):
    *_, stride = SHAPES[name]

    @jax.jit
    def scalar(x, w):
        mean, variance = conv_moments(x, w, conv(x, w, stride=stride), MASKS["some"], stride=stride)
        return jnp.sin(mean).sum() + jnp.log(1e-3 + variance).sum()

    check_grads(scalar, operands(SHAPES[name]), order=2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", [[[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.outer([1, -2, 1], [1, -2, 1])])
def test_round_little_for_a_kernel_that_tells_neighbours_apart(kernel):
    """Most of such a variance cancels in the covariance of the pixels; one long sum of it would be 2e-4 off."""
    x = smooth_images()
    w = jnp.tile(jnp.asarray(kernel, jnp.float32)[..., None, None], FILTERS)
    y = conv(x, w)
    _, variance = conv_moments(x, w, y)
    np.testing.assert_allclose(variance, np.asarray(y, np.float64).var((0, 1, 2)), rtol=5e-5)


def grey_images_and_kernels_that_see_colours():
    """Of which the variance is zero, but for what is rounded."""
    grey = jax.random.normal(jax.random.key(0), (2, 6, 6, 1))
    w = jax.random.normal(jax.random.key(1), (3, 3, 3, 64))
    return jnp.tile(grey, 3), w - w.mean(2, keepdims=True)


def test_of_whole_numbers_are_those_of_the_same_real_ones():
    for found, expected in zip(moments(jnp.array([[1], [3]])), (2.0, 1.0), strict=True):
        np.testing.assert_allclose(found, [expected])


def test_are_never_below_zero():
    x, w = grey_images_and_kernels_that_see_colours()
    _, variance = conv_moments(x, w, conv(x, w))
    np.testing.assert_allclose(variance, 0, atol=1e-5)
    assert variance.min() >= 0


def test_have_the_second_derivatives_of_the_outputs_where_the_variance_is_zero(x64):
    x, w = operands(SHAPES["one channel"])

    def curvature(find):
        return jax.jvp(jax.grad(lambda w: find(x, w, conv(x, w))[1].sum()), (0 * w,), (w,))[1]

    np.testing.assert_allclose(curvature(conv_moments), curvature(lambda x, w, y: moments(y)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "filters", "dtype", "backend", "reads_outputs"),
    [
        (3, 32, "float32", "cpu", False),
        (3, 32, "float32", "gpu", True),
        (3, 32, "bfloat16", "cpu", True),
        (4, 64, "float32", "cpu", True),
        (3, 16, "float32", "cpu", True),
    ],
    ids=["few terms", "an accelerator", "half precision", "many terms", "few filters"],
)
def test_read_the_outputs_but_where_terms_are_few_and_exact(
    channels, filters, dtype, backend, reads_outputs, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, w = jnp.ones((2, 4, 4, channels), dtype), jnp.ones((3, 3, channels, filters), dtype)
    for moment in conv_moments(x, w, jnp.full((2, 4, 4, filters), jnp.nan, dtype)):
        assert jnp.isnan(moment).any() == reads_outputs


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "float64"), ("uint8", "float32")])
def test_are_in_the_dtype_that_images_and_kernel_promote_to(x64, dtypes):
    x, w = operands(SHAPES["one channel"])
    x, w = (jnp.abs(5 * x)).astype(dtypes[0]), w.astype(dtypes[1])
    y = conv(x, w)
    for found, expected in zip(conv_moments(x, w, y), moments(y), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-12 if dtypes[1] == "float64" else 1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_normalise_a_layer_of_each_task_as_those_of_its_outputs_do(x64, stride):
    """In value and in both derivatives, vmapped over tasks with kernels and masks of their own."""
    layer, normalise = Conv(FILTERS, stride=stride, use_bias=False), Normalise("batch")
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 5, 1))
    masks = jnp.array([[1.0, 0, 1, 1], [1, 1, 1, 1]])
    kernels = jax.random.normal(jax.random.key(1), (2, 3, 3, 1, FILTERS))
    scale = {"params": {"scale": jnp.ones(FILTERS), "bias": jnp.zeros(FILTERS)}}

    def derivatives(from_images):
        def loss(kernel, x, mask):
            bound = layer.bind({"params": {"kernel": kernel}})
            options = {"moments_of": bound.moments_of(x)} if from_images else {}
            return jnp.sin(normalise.apply(scale, bound(x), mask=mask, **options)[mask.argmax()]).sum()

        def both(kernel, x, mask):
            gradient = jax.grad(lambda kernel: loss(kernel, x, mask))
            return loss(kernel, x, mask), *jax.jvp(gradient, (kernel,), (kernel[::-1],))

        return jax.jit(jax.vmap(both))(kernels, x, masks)

    for one, other in zip(derivatives(True), derivatives(False), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_a_mask_of_half_precision_counts_beyond_256():
    x = (jnp.arange(301.0) % 7)[:, None]
    found = moments(x, jnp.ones(301, jnp.bfloat16))
    np.testing.assert_allclose(found, moments(x), rtol=1e-6)


def test_moments_of_half_precision_are_found_in_single():
    x = jnp.asarray(np.random.default_rng(0).normal(5, 1, (75, 6, 6, 2)), jnp.bfloat16)
    expected = moments(x.astype(jnp.float32))
    for found, exact in zip(moments(x), expected, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))
