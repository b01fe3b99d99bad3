"""The convolution equals `lax.conv_general_dilated` in value and in every derivative, in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jmeta.functional import conv
from jmeta.functional.conv import _dw_as_lax, _dw_as_matmul, _dw_by_rows_and_columns, _dw_in_blocks, _dw_on_cpu

# Batch, height, width, channels, filters, kernel, stride; chosen to reach every form on the CPU.
SHAPES = {
    "small": (3, 5, 6, 2, 3, (3, 5), 1),
    "large batch, odd size": (17, 9, 7, 12, 4, (3, 3), 1),
    "few pixels": (7, 6, 9, 10, 3, (3, 5), 1),
    "small map": (17, 4, 4, 12, 4, (3, 3), 1),
    "blocks of an image": (4, 110, 113, 9, 2, (3, 3), 1),
    "blocks of two": (12, 64, 65, 9, 2, (3, 3), 1),
    "many numbers in columns": (22, 28, 28, 8, 2, (3, 3), 1),
    "columns in blocks of four": (24, 27, 28, 8, 2, (3, 5), 1),
    "columns in blocks of four, the last not full": (23, 27, 28, 8, 2, (3, 5), 1),
    "strided": (4, 7, 8, 3, 2, (3, 3), 2),
    "strided, many numbers in columns": (23, 27, 28, 9, 2, (3, 5), 2),
    "pointwise": (2, 5, 5, 3, 2, (1, 1), 2),
}


def reference(x, w, *, stride=1):
    return lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def scalar(convolve, stride):
    """A function of both operands that is not quadratic, so that its second derivatives vary."""
    return lambda x, w: jnp.sin(convolve(jnp.tanh(x), w, stride=stride)).sum()


def derivatives(f, x, w):
    """Value, gradients and a forward-over-reverse Hessian-vector product."""
    tangents = (x[::-1], w[::-1])
    gradient = jax.grad(f, (0, 1))
    return f(x, w), gradient(x, w), jax.jvp(gradient, (x, w), tangents)[1]


def operands(shape):
    batch, height, width, channels, filters, size, _ = shape
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (batch, height, width, channels)), jax.random.normal(
        keys[1], (*size, channels, filters)
    )


def assert_equal(one, other, atol=1e-11):
    chex.assert_trees_all_close(one, other, atol=atol, rtol=1e-12)


@pytest.mark.parametrize("name", SHAPES)
def test_equals_lax_in_value_gradient_and_hessian_vector_product(x64, name):
    x, w = operands(SHAPES[name])
    stride = SHAPES[name][-1]
    np.testing.assert_allclose(conv(x, w, stride=stride), reference(x, w, stride=stride), rtol=1e-10, atol=1e-12)
    results = [jax.jit(lambda f=scalar(c, stride): derivatives(f, x, w))() for c in (conv, reference)]
    assert_equal(*results)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_equals_lax_under_vmap_with_kernels_shared_and_per_task(x64, axes):
    x, w = operands(SHAPES["large batch, odd size"])
    x, w = (jnp.stack([a, 2 * a, a[::-1]]) if axis == 0 else a for a, axis in zip((x, w), axes, strict=True))

    def run(convolve):
        return jax.jit(jax.vmap(lambda x, w: derivatives(scalar(convolve, 1), x, w), axes))(x, w)

    assert_equal(run(conv), run(reference))


@pytest.mark.parametrize("axes", [(0, 0), (None, 0)])
def test_what_an_accelerator_would_run_equals_lax_in_every_derivative(x64, as_an_accelerator_would, axes):
    x, w = operands(SHAPES["small"])
    x, w = (jnp.stack([a, 2 * a]) if axis == 0 else a for a, axis in zip((x, w), axes, strict=True))

    def run(convolve):
        return jax.vmap(lambda x, w: derivatives(scalar(convolve, 1), x, w), axes)

    assert_equal(as_an_accelerator_would(run(conv), x, w), jax.jit(run(reference))(x, w))


def test_reverse_over_reverse_inside_a_scan_equals_lax(x64):
    x, w = operands(SHAPES["blocks of two"])

    def run(convolve):
        gradient = jax.grad(scalar(convolve, 1), 1)

        def descended(w):
            w, _ = lax.scan(lambda w, _: (w - 0.001 * gradient(x, w), None), w, None, length=2)
            return scalar(convolve, 1)(x, w)

        return jax.jit(jax.grad(descended))(w)

    assert_equal(run(conv), run(reference))


FORMS = {
    "columns": _dw_as_matmul,
    "rows and columns": _dw_by_rows_and_columns,
    "columns in blocks": functools.partial(_dw_in_blocks, _dw_as_matmul, images=4),
    "rows and columns in blocks": functools.partial(_dw_in_blocks, _dw_by_rows_and_columns, images=3),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_kernel_gradient_is_the_same(x64, form):
    x, w = operands((12, 6, 9, 10, 3, (3, 5), 1))
    dy = reference(x, w)
    assert_equal(FORMS[form](x, dy, size=(3, 5)), _dw_as_lax(x, dy, size=(3, 5)))


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("large batch, odd size", []),
        ("blocks of an image", [4]),
        ("blocks of two", [6]),
        ("columns in blocks of four", [6]),
        ("columns in blocks of four, the last not full", [6]),
    ],
)
def test_large_kernel_gradients_are_made_of_as_many_images_at_a_time_as_fit_and_nearly_divide_them(name, blocks):
    batch, height, width, channels, filters, size, _ = SHAPES[name]
    x, dy = (jax.ShapeDtypeStruct((batch, height, width, of), "float32") for of in (channels, filters))
    made = jax.make_jaxpr(functools.partial(_dw_on_cpu, size=size))(x, dy)
    assert [equation.params["length"] for equation in made.eqns if equation.primitive.name == "scan"] == blocks


def test_a_kernel_gradient_in_half_precision_is_added_up_over_blocks_in_single():
    pixels = jnp.ones((2000, 1, 1, 1), jnp.bfloat16)  # beyond 256, numbers of this precision are more than 1 apart
    found = _dw_in_blocks(_dw_as_matmul, pixels, pixels, size=(1, 1), images=1)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.ravel(), 2000.0)


def test_integer_images_are_promoted():
    images = jnp.arange(16).reshape(1, 4, 4, 1)
    assert conv(images, jnp.ones((3, 3, 1, 1)))[0, 0, 0, 0] == 0 + 1 + 4 + 5


@pytest.mark.parametrize(
    ("w", "stride", "message"),
    [
        ((2, 3, 2, 4), 1, "kernel of 2 x 3"),
        ((3, 3, 5, 4), 1, "x has 2 channels"),
        ((3, 3, 2, 4), 0, "stride is 0"),
        ((3, 3, 2), 1, "must be"),
    ],
)
def test_refuses_what_it_cannot_do(w, stride, message):
    with pytest.raises(ValueError, match=message):
        conv(jnp.ones((1, 4, 4, 2)), jnp.ones(w), stride=stride)


@pytest.mark.parametrize("form", [_dw_as_lax, FORMS["rows and columns in blocks"]])
def test_inside_shard_map_a_kernel_gradient_is_of_a_devices_own_images(x64, over_two_devices, form):
    x, dy = jax.random.normal(jax.random.key(0), (2, 24, 6, 6, 3))
    gradient = functools.partial(form, size=(3, 3))
    found = over_two_devices(gradient, P("tasks"), P("tasks"))(x, dy)
    assert_equal(found, jnp.concatenate([gradient(x[:12], dy[:12]), gradient(x[12:], dy[12:])]))


def test_inside_shard_map_the_gradient_of_a_shared_kernel_is_summed_over_devices_once(x64, over_two_devices):
    x, w = operands((24, *SHAPES["blocks of two"][1:]))  # in blocks on each of two devices
    gradient = jax.grad(lambda w, x: jnp.sin(conv(x, w)).sum())
    assert_equal(over_two_devices(gradient, (P(), P("tasks")), P())(w, x), jax.jit(gradient)(w, x))
