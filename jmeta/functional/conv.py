"""Two-dimensional convolution that stays fast in loops, under vmap and at second order.

Convolution is bilinear, and two bilinear operations are closed under
differentiation of every order, forward and reverse:

    conv(x, w)   the convolution itself, and
    dw(x, dy)    its kernel gradient.

`conv` transposes to a `conv` with the flipped kernel and to a `dw`; `dw`
transposes to two `conv`s. Since both are JAX primitives, every derivative of a
network is made of these two, and each is lowered to the form that is fastest
for its shape. On the CPU that matters: the gradient of
`lax.conv_general_dilated` with respect to the kernel is a convolution with a
huge window, and a vmapped one has a kernel per task; XLA's CPU loop bodies run
both naively.

Strided convolutions and those with a 1 x 1 kernel are plain matrix products.

Both primitives carry a leading axis of tasks T (`primitives.py`): inputs
[T, B, H, W, C], kernels [T, h, w, C, O].
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad

from jmeta.checks import check_counts
from jmeta.functional.linear import linear
from jmeta.functional.primitives import alike, batch_tasks, task_primitive
from jmeta.functional.varying import vary_over, varying
from jmeta.types import Array, at_least_single

# Measured on two x86 cores (docs/decisions/0003-convolution.md). Where there are few channels, or few pixels in all, a
# matrix of columns costs less than `lax.conv`, unless it is large. For the kernel gradient, columns win where channels
# or the pixels of a map are few; otherwise shifts of rows and columns do. Large matrices are made for a block of images
# at a time, which stays in the cache. The bound on channels was not measured between 3 and 32.
FEW_CHANNELS = 8
FEW_ROWS = 100
SMALL_MAP = 16
LARGE = 1_500_000  # numbers in the matrices that a form makes of all images
BLOCK = 400_000  # numbers in those of a block, if one image has not more
# Columns are made of h * w shifts, or of w shifts along rows and then h along columns. The latter is less to compile,
# but copies again what is made first, which costs time where numbers are many. (Measured on the CPU; strided
# convolutions are made the same way everywhere.)
FEW_NUMBERS = 2**17


def conv(x: Array, w: Array, *, stride: int = 1) -> Array:
    """Two-dimensional convolution with "SAME" padding.

    Args:
        x: [B, H, W, C] images.
        w: [h, w, C, O] kernel, h and w odd; dtypes are promoted as in a product.
        stride: pixels between outputs, in both directions.

    Returns:
        [B, ceil(H / stride), ceil(W / stride), O], equal to
        `lax.conv_general_dilated(x, w, (stride, stride), "SAME")` in NHWC, HWIO.

    Raises:
        ValueError: for images or a kernel without four axes, a kernel of even size,
            channels that do not match, or a stride below 1.

    Example:
        >>> conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))).shape
        (1, 4, 4, 5)
    """
    _check(x, w, stride)
    if w.shape[:2] == (1, 1):
        return linear(x[:, ::stride, ::stride], w[0, 0])
    x, w = alike(x, w)
    if stride > 1:
        return _as_matmul(x, w, stride)
    return conv_p.bind(x[None], w[None])[0]


def _check(x, w, stride):
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(f"x has shape {x.shape} and w {w.shape}; they must be [B, H, W, C] and [h, w, C, O].")
    check_counts(least=1, stride=stride)
    if w.shape[0] % 2 == 0 or w.shape[1] % 2 == 0:
        raise ValueError(f"w has a kernel of {w.shape[0]} x {w.shape[1]}; both sizes must be odd.")
    if x.shape[-1] != w.shape[2]:
        raise ValueError(f"x has {x.shape[-1]} channels, but w of shape {w.shape} takes {w.shape[2]}.")


# The forms, each for one task: x [B, H, W, C], w [h, w, C, O], dy [B, H, W, O].


def columns(x: Array, size: tuple[int, int], stride: int = 1) -> Array:
    """[B, H, W, C] -> [B, H', W', h * w * C], the pixels under each position of a window of this size."""
    _, H, W, _ = x.shape
    pads = [max((-(-n // stride) - 1) * stride + k - n, 0) for n, k in zip((H, W), size, strict=True)]
    x = jnp.pad(x, ((0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)))
    if x.size > FEW_NUMBERS:
        shifts = [(i, j) for i in range(size[0]) for j in range(size[1])]
        return jnp.concatenate([x[:, i : i + H : stride, j : j + W : stride] for i, j in shifts], -1)
    x = jnp.concatenate([x[:, :, j : j + W : stride] for j in range(size[1])], -1)
    return jnp.concatenate([x[:, i : i + H : stride] for i in range(size[0])], -1)


def _as_matmul(x, w, stride=1):
    windows = columns(x, w.shape[:2], stride)
    return lax.dot_general(windows, w.reshape(-1, w.shape[-1]), (((3,), (0,)), ((), ())))


def _as_lax(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _dw_as_lax(x, dy, *, size):
    return jax.linear_transpose(functools.partial(_as_lax, x), _zeros(size, x, dy, x.dtype))(dy)[0]


def _zeros(size, x, dy, dtype):
    """A kernel of zeros that varies over devices as the operands do, or JAX would sum its gradient over devices."""
    return vary_over(jnp.zeros((*size, x.shape[-1], dy.shape[-1]), dtype), varying((x, dy)))


def _dw_as_matmul(x, dy, *, size):
    windows = columns(x, size)
    # `dy` times columns rather than columns times `dy`, so that the smaller operand is the one transposed.
    product = dy.reshape(-1, dy.shape[-1]).T @ windows.reshape(-1, windows.shape[-1])
    return product.T.reshape(*size, x.shape[-1], dy.shape[-1])


def _dw_by_rows_and_columns(x, dy, *, size):
    """All products of a window as one product, of `x` shifted along its columns and `dy` shifted along its rows.

    The matrices hold each number h or w times, not h * w times as columns do. The h - 1 rows of padding are
    multiplied too, for (H + h - 1) / H times the arithmetic.
    """
    (h, w), channels, features = size, x.shape[-1], dy.shape[-1]
    along = columns(jnp.pad(x, ((0, 0), (h // 2, h // 2), (0, 0), (0, 0))), (1, w))
    rows = jnp.concatenate([jnp.pad(dy, ((0, 0), (i, h - 1 - i), (0, 0), (0, 0))) for i in range(h)], -1)
    product = rows.reshape(-1, h * features).T @ along.reshape(-1, w * channels)
    return product.reshape(h, features, w, channels).transpose(0, 2, 3, 1)


def _dw_in_blocks(form, x, dy, *, size, images):
    """The sum of a form's results for so many images at a time; the last block is filled up with zeros."""
    if missing := -x.shape[0] % images:
        x, dy = (jnp.pad(a, ((0, missing), (0, 0), (0, 0), (0, 0))) for a in (x, dy))
    blocks = [a.reshape(-1, images, *a.shape[1:]) for a in (x, dy)]

    def add(total, block):
        return total + form(*block, size=size), None

    # In half precision a sum of many blocks would stop growing.
    return lax.scan(add, _zeros(size, x, dy, at_least_single(x.dtype)), blocks)[0].astype(x.dtype)


def _conv_on_cpu(x, w):
    is_small = x.shape[-1] <= FEW_CHANNELS or math.prod(x.shape[:3]) <= FEW_ROWS
    is_large = math.prod(x.shape) * math.prod(w.shape[:2]) > LARGE
    return (_as_matmul if is_small and not is_large else _as_lax)(x, w)


def _dw_on_cpu(x, dy, *, size):
    (h, w), (images, H, W, channels) = size, x.shape
    if channels <= FEW_CHANNELS or H * W <= SMALL_MAP:
        form, numbers = _dw_as_matmul, H * W * h * w * channels
    else:
        form, numbers = _dw_by_rows_and_columns, H * W * (w * channels + h * dy.shape[-1])
    if images * numbers <= LARGE:
        return form(x, dy, size=size)
    most = max(BLOCK // numbers, 1)
    blocks = range((most + 1) // 2, most + 1)
    return _dw_in_blocks(form, x, dy, size=size, images=min(blocks, key=lambda block: (-images % block, -block)))


def _task_by_task(form):
    """Runs tasks with their own kernels one after another: a grouped convolution is slow on the CPU."""

    def run(a, b, **params):
        one = functools.partial(form, **params)
        return one(a[0], b[0])[None] if a.shape[0] == 1 else lax.map(lambda ab: one(*ab), (a, b))

    return run


def _all_tasks(form):
    def run(a, b, **params):
        return jax.vmap(functools.partial(form, **params))(a, b)

    return run


# At a stride of 1 accelerators keep the `lax` form, whose gradients cuDNN and the TPU compiler know.
conv_p = task_primitive(
    "conv",
    lambda x, w: (*x.shape[:4], w.shape[4]),
    terms=lambda x, w: math.prod(w.shape[1:4]),
    cpu=_task_by_task(_conv_on_cpu),
    accelerator=_all_tasks(_as_lax),
)
dw_p = task_primitive(
    "conv_dw",
    lambda x, dy, size: (x.shape[0], *size, x.shape[4], dy.shape[4]),
    terms=lambda x, dy, size: math.prod(dy.shape[1:4]),
    cpu=_task_by_task(_dw_on_cpu),
    accelerator=_all_tasks(_dw_as_lax),
    static=("size",),
)


def _flipped(w):
    return jnp.flip(w, (1, 2)).swapaxes(3, 4)


ad.defbilinear(
    conv_p,
    lambda ct, x, w: conv_p.bind(ct, _flipped(w)),
    lambda ct, x, w: dw_p.bind(x, ct, size=w.aval.shape[1:3]),
)
ad.defbilinear(
    dw_p,
    lambda ct, x, dy, size: conv_p.bind(dy, _flipped(ct)),
    lambda ct, x, dy, size: conv_p.bind(x, ct),
)

batch_tasks(conv_p, a_axis=1, b_axis=4, a_out=1, b_out=4)  # images join the images, kernels the output channels
batch_tasks(dw_p, a_axis=4, b_axis=4, a_out=3, b_out=4)  # each joins its own channels
