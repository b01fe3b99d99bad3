"""Masked losses, accuracy, calibration, and a mean with its confidence interval.

A loss is any `(outputs [K, N], targets [K, N], mask [K]) -> scalar`. One marked
with `classification` is reported with its accuracy, and classes that have no
example in the support set get no probability.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from jmeta.checks import check_counts, check_functions, is_scalar
from jmeta.types import Array, at_least_single, Examples, Learner, Objective, or_one, PyTree, Task

# The 97.5 % quantile of the standard normal distribution.
Z95 = 1.959963984540054


def classification(loss_fn: Callable) -> Callable:
    """Marks a loss as one over classes, whose targets are one-hot.

    In a task with fewer classes than columns, outputs of absent classes are so negative that a loss which counts
    them, such as label smoothing, is not finite; such a loss can skip them by `functional.present_in(outputs)`.

    Args:
        loss_fn: `(outputs [K, N], targets [K, N], mask [K]) -> scalar`.

    Returns:
        The same loss, which `objective` reports with its accuracy.

    Example:
        >>> @classification
        ... def hinge(outputs, targets, mask):
        ...     margins = 1 - (2 * targets - 1) * outputs
        ...     return masked_mean(jnp.maximum(margins, 0).sum(-1), mask)
        >>> is_classification(hinge)
        True
    """

    @functools.wraps(loss_fn)
    def marked(outputs: Array, targets: Array, mask: Array) -> Array:
        return loss_fn(outputs, targets, mask)

    marked.classification = True  # type: ignore[attr-defined]
    return marked


def is_classification(loss_fn: Callable) -> bool:
    """Whether the loss is marked as one over classes."""
    return getattr(loss_fn, "classification", False)


def tells_accuracy(learner: Learner, params: PyTree, state: PyTree, task: Task) -> bool:
    """Whether the learner's loss is over classes, so that its metrics include an accuracy."""
    # The function itself, so that `init` and the train step share its trace.
    _, (_, metrics) = jax.eval_shape(learner.loss, params, state, task, key=jax.random.key(0))
    return "accuracy" in metrics


def objective(loss_fn: Callable) -> Objective:
    """A loss with what belongs to it: classification reports accuracy and knows absent classes.

    Args:
        loss_fn: `(outputs [K, N], targets [K, N], mask [K]) -> scalar`, marked with
            `classification` if it is over classes.

    Returns:
        An `Objective`.

    Raises:
        ValueError: if `loss_fn` is not a function; from the objective's `loss`, if its
            value is not a scalar.

    Example:
        >>> labelled = jnp.array([[2.0, 1.0]]), jnp.array([[1.0, 0.0]]), jnp.ones(1)
        >>> print(objective(cross_entropy).metrics(*labelled)["accuracy"])
        1.0
    """
    check_functions("(outputs, targets, mask) -> scalar, such as losses.squared_error", loss_fn=loss_fn)

    def loss(*labelled):
        value = loss_fn(*labelled)
        if not is_scalar(value):
            raise ValueError(
                f"loss_fn gives {value}; it must give a scalar, such as losses.masked_mean(values, mask) of a value "
                "for each example."
            )
        return value

    if not is_classification(loss_fn):
        return Objective(loss, lambda *labelled: {}, lambda support: None)

    def metrics(*labelled):
        return {"accuracy": accuracy(*labelled)}

    return Objective(loss, metrics, lambda support: class_counts(support) > 0)


@classification
def cross_entropy(outputs: Array, targets: Array, mask: Array) -> Array:
    """Softmax cross-entropy in nats, averaged over real examples.

    Args:
        outputs: [K, N] logits.
        targets: [K, N] one-hot.
        mask: [K].

    Raises:
        ValueError: if `outputs` and `targets` differ in shape, or there is only one
            class, as in regression of one number.

    Example:
        >>> print(cross_entropy(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]), jnp.ones(1)))
        0.693147
    """
    _check_shapes(outputs, targets, mask)
    check_classes(targets)
    outputs, targets = (at_real_rows(values, mask) for values in (outputs, targets))
    outputs = outputs.astype(at_least_single(outputs.dtype))  # in half precision a sum of exponentials loses the small
    return masked_mean(-(targets * jax.nn.log_softmax(outputs)).sum(-1), mask)


def squared_error(outputs: Array, targets: Array, mask: Array) -> Array:
    """Mean squared error over real examples and target dimensions.

    Args:
        outputs: [K, D].
        targets: [K, D].
        mask: [K].

    Raises:
        ValueError: if `outputs` and `targets` differ in shape.

    Example:
        >>> print(squared_error(jnp.array([[1.0], [3.0]]), jnp.zeros((2, 1)), jnp.array([1, 0])))
        1.0
    """
    _check_shapes(outputs, targets, mask)
    difference = at_real_rows(outputs - targets, mask)
    return masked_mean(jnp.square(difference.astype(at_least_single(difference.dtype))).mean(-1), mask)


class Gaussian(NamedTuple):
    """A prediction with its uncertainty.

    Attributes:
        mean: [K, D].
        deviation: [K, D] standard deviations, above 0.
    """

    mean: Array
    deviation: Array


def gaussian_nll(outputs: Gaussian, targets: Array, mask: Array) -> Array:
    """Negative log-likelihood of independent Gaussians in nats, summed over D and averaged over real examples.

    Args:
        outputs: a `Gaussian` of [K, D].
        targets: [K, D].
        mask: [K].

    Raises:
        ValueError: if `outputs` are not a `Gaussian`, or its mean and `targets` differ in shape.

    Example:
        >>> print(gaussian_nll(Gaussian(jnp.zeros((1, 1)), jnp.ones((1, 1))), jnp.zeros((1, 1)), jnp.ones(1)))
        0.918938
    """
    if not isinstance(outputs, Gaussian):
        kind = "an array" if isinstance(outputs, Array) else f"of type {type(outputs).__name__}"
        raise ValueError(
            f"outputs are {kind}; they must be a losses.Gaussian, as from learners.cnp. For other learners use "
            "losses.squared_error."
        )
    _check_shapes(outputs.mean, targets, mask)
    distance, deviation = at_real_rows(targets - outputs.mean, mask), at_real_rows(outputs.deviation, mask, 1)
    distance = distance.astype(at_least_single(distance.dtype))
    return masked_mean(-norm.logpdf(distance, scale=deviation).sum(-1), mask)


def accuracy(outputs: Array, targets: Array, mask: Array) -> Array:
    """The fraction of real examples whose largest output is that of their class.

    Args:
        outputs: [K, N] logits or scores; an example with a NaN among its outputs counts
            as wrong.
        targets: [K, N] one-hot.
        mask: [K].

    Raises:
        ValueError: if `outputs` and `targets` differ in shape, or are labels.

    Example:
        >>> print(accuracy(jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.eye(2), jnp.ones(2)))
        0.5
    """
    _check_shapes(outputs, targets, mask)
    correct = (outputs.argmax(-1) == targets.argmax(-1)) & ~jnp.isnan(outputs).any(-1)
    return masked_mean(correct.astype(at_least_single(jnp.result_type(outputs))), mask)


def calibration_error(outputs: Array, targets: Array, mask: Array, *, bins: int = 15) -> Array:
    """Expected calibration error: |confidence - accuracy|, averaged over bins of confidence.

    Guo et al., 2017, "On Calibration of Modern Neural Networks", section 2.

    Args:
        outputs: [K, N] logits; pass the queries of many episodes together, since few
            give a noisy estimate.
        targets: [K, N] one-hot.
        mask: [K].
        bins: number of bins of equal width between 0 and 1.

    Returns:
        A scalar, 0 without a real example.

    Raises:
        ValueError: if `outputs` and `targets` differ in shape, or are labels, or for
            fewer than one bin.

    Example:
        >>> print(calibration_error(jnp.zeros((2, 2)), jnp.eye(2), jnp.ones(2)))  # half sure, and right half the time
        0.0
    """
    check_counts(least=1, bins=bins)
    _check_shapes(outputs, targets, mask)
    precision = at_least_single(jnp.result_type(outputs))
    confidence = jax.nn.softmax(jnp.asarray(outputs, precision)).max(-1)
    correct = (outputs.argmax(-1) == targets.argmax(-1)).astype(precision)
    index = jnp.clip(jnp.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    weights = jnp.asarray(mask, precision)
    gaps = jax.ops.segment_sum(jnp.where(mask > 0, weights * (confidence - correct), 0), index, bins)
    return jnp.abs(gaps).sum() / or_one(weights.sum())


def masked_mean(values: Array, mask: Array) -> Array:
    """The mean of `values` [K] weighted by `mask` [K], in at least single precision; 0 if all weights are 0.

    Raises:
        ValueError: if they differ in shape.

    Example:
        >>> print(masked_mean(jnp.array([1.0, 3.0, 8.0]), jnp.array([1, 1, 0])))
        2.0
    """
    _check_mask(mask, jnp.shape(values))
    weights = jnp.asarray(mask, at_least_single(jnp.result_type(values, mask)))
    return (weights * jnp.where(mask > 0, values, 0)).sum() / or_one(weights.sum())


def mean_and_interval(values: Array | np.ndarray) -> tuple[Any, Any]:
    """The mean of independent `values` [episodes] and the half-width of its 95 % confidence interval.

    The interval is 1.96 standard errors either side, as is usual for few-shot results.

    Args:
        values: [episodes], at least 2.

    Returns:
        Two scalars.

    Raises:
        ValueError: for fewer than 2 values.

    Example:
        >>> mean, ci95 = mean_and_interval(jnp.array([1.0, 2.0, 3.0]))
        >>> print(f"{mean:.2f} ± {ci95:.2f}")
        2.00 ± 1.13
    """
    if values.size < 2:
        raise ValueError(f"values has {values.size} of them; an interval needs at least 2.")
    with np.errstate(invalid="ignore"):  # with an infinite value the interval is NaN
        return values.mean(), Z95 * values.std(ddof=1) / values.size**0.5


def class_counts(examples: Examples) -> Array:
    """How many real examples each class has, [N]."""
    dtype = at_least_single(jnp.result_type(examples.targets))
    return at_real_rows(examples.targets, examples.mask).sum(0, dtype=dtype)


def check_classes(targets: Array) -> None:
    """Raises a `ValueError` for targets with a single class, which are probably those of a regression."""
    if targets.shape[1] == 1:
        raise ValueError(
            f"targets have shape {targets.shape}: a single class, from which nothing can be learned; they must be "
            "one-hot, [K, N] with N at least 2. For regression, pass loss_fn=losses.squared_error to "
            "a learner that has this argument."
        )


def at_real_rows(values: Array, mask: Array, elsewhere: float = 0) -> Array:
    """The rows [K, N] with `elsewhere` in those of padding, whose values, even NaN, then reach no gradient."""
    return jnp.where(mask[:, None] > 0, values, elsewhere)


def _check_shapes(outputs, targets, mask):
    if targets.ndim < 2:
        raise ValueError(f"targets have shape {targets.shape}; they must be [K, N] one-hot, or [K, D] for regression.")
    if outputs.shape != targets.shape:
        raise ValueError(
            f"outputs have shape {outputs.shape}, but targets have {targets.shape}: "
            f"the model's output width must be {targets.shape[-1]}."
        )
    _check_mask(mask, targets.shape[:1])


def _check_mask(mask, shape):
    if jnp.shape(mask) != shape:
        raise ValueError(
            f"mask has shape {jnp.shape(mask)}, but the values it masks have {shape}; the two must be the same."
        )
