"""Labelled examples grouped by class, on the device."""

import functools
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jmeta.checks import is_count
from jmeta.types import Array, Examples


@functools.partial(jax.tree_util.register_dataclass, data_fields=["inputs", "starts", "counts"], meta_fields=["names"])
@dataclass(frozen=True)
class ClassTable:
    """Examples grouped by class; classes may differ in size.

    Attributes:
        inputs: [M, ...] all examples, grouped by class; uint8 images stay uint8 and
            become floats in [0, 1] per episode.
        starts: [classes] int32, the first example of each class.
        counts: [classes] int32, the number of examples in each class.
        names: the names of the classes in the source.
    """

    inputs: Array
    starts: Array
    counts: Array
    names: tuple

    def __len__(self) -> int:
        """The number of classes."""
        return len(self.names)

    def take(self, classes: Sequence[int] | Iterator[int] | np.ndarray | Array) -> "ClassTable":
        """A table of some of the classes, for example to hold the others out.

        Args:
            classes: their numbers, from 0 on, in the order of the new table.

        Raises:
            ValueError: if there is none, or one is not a whole number, is out of range or
                comes twice.

        Example:
            >>> table = class_table(np.zeros((6, 4), np.float32), ["cat", "dog", "cat", "cow", "dog", "cow"])
            >>> table.take(range(2)).names, table.take([2]).names
            (('cat', 'cow'), ('dog',))
        """
        chosen = np.asarray(list(classes) if isinstance(classes, Iterator) else classes)
        is_list = chosen.ndim == 1 and chosen.size > 0 and jnp.issubdtype(chosen.dtype, np.integer)
        if not is_list or chosen.min() < 0 or chosen.max() >= len(self) or len(np.unique(chosen)) < len(chosen):
            raise ValueError(
                f"classes is {chosen.tolist()}; it must be a sequence of one or more different numbers from 0 to "
                f"{len(self) - 1}."
            )
        starts, counts = np.asarray(self.starts)[chosen], np.asarray(self.counts)[chosen]
        rows = np.concatenate([np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)])
        return _grouped(self.inputs[rows], counts, [self.names[number] for number in chosen])

    def examples(self, ways: int | None = None) -> Examples:
        """All examples as one labelled set, such as the support set of these classes.

        Args:
            ways: columns of the targets, for a learner that keeps a number of ways; None
                for as many as there are classes.

        Returns:
            `Examples` in the order of the table; column n of the targets is the class
            `names[n]`.

        Raises:
            ValueError: for fewer ways than classes.

        Example:
            >>> table = class_table(np.zeros((3, 4), np.float32), ["owl", "hen", "owl"])
            >>> print(table.names, table.examples().targets.tolist())
            ('hen', 'owl') [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
        """
        ways = len(self) if ways is None else ways
        if not is_count(ways, least=len(self)):
            raise ValueError(f"ways is {ways}; it must be a whole number, at least that of the classes, {len(self)}.")
        number = len(self.inputs)
        classes = jnp.repeat(jnp.arange(len(self)), self.counts, total_repeat_length=number)
        return Examples(self.inputs, jax.nn.one_hot(classes, ways), jnp.ones(number))

    def __repr__(self) -> str:
        each = f"{self.inputs.dtype}{list(self.inputs.shape[1:])}"
        return f"ClassTable({len(self):,} classes, {len(self.inputs):,} examples of {each})"


def class_table(inputs: np.ndarray | Array, labels: Sequence | np.ndarray) -> ClassTable:
    """Makes a `ClassTable` from plain arrays.

    Args:
        inputs: [M, ...] examples of any shape: images, embeddings, tokens. uint8
            examples are divided by 255, so tokens must have another dtype.
        labels: [M] the class of each example: numbers or names.

    Returns:
        A `ClassTable` with the classes in sorted order.

    Raises:
        ValueError: if the two differ in length or are empty; if `inputs` are not real
            numbers, have a NaN or infinity, or have integers too large for JAX's
            precision; if a label is missing, None or NaN, or labels are of several
            kinds.

    Example:
        >>> class_table(np.zeros((6, 4), np.float32), ["cat", "dog", "cat", "cow", "dog", "cow"])
        ClassTable(3 classes, 6 examples of float32[4])
    """
    inputs, labels = np.asarray(inputs), _of_one_kind(labels)
    if inputs.ndim < 1:
        raise ValueError(f"inputs is {inputs}; it must be an array of examples, [M, ...].")
    if len(inputs) != len(labels):
        raise ValueError(
            f"inputs has {len(inputs)} examples and labels {len(labels)}; there must be one label per example."
        )
    if not len(inputs):
        raise ValueError("inputs is empty; a table needs at least one example.")
    is_real = jnp.issubdtype(inputs.dtype, np.number) and not jnp.issubdtype(inputs.dtype, np.complexfloating)
    if not is_real and inputs.dtype != bool:
        raise ValueError(f"inputs are of {inputs.dtype}; they must be real numbers.")
    inputs = _in_jax(inputs)
    if jnp.issubdtype(inputs.dtype, jnp.inexact) and not np.isfinite(inputs).all():
        bad = int(np.argmin(np.isfinite(inputs).reshape(len(inputs), -1).all(1)))
        raise ValueError(
            f"inputs has a NaN or infinity in example {bad}, as {inputs.dtype}; every number must be finite."
        )
    names, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    grouped = inputs[np.argsort(index, kind="stable")]  # a copy, which asarray would copy again
    return _grouped(jax.device_put(grouped), counts, names.tolist())


def _grouped(inputs, counts, names):
    """The table of examples that are grouped by class."""
    starts = np.cumsum(counts) - counts
    return ClassTable(inputs, jnp.asarray(starts, jnp.int32), jnp.asarray(counts, jnp.int32), tuple(names))


def _of_one_kind(labels):
    """The labels as an array [M]; raises a `ValueError` if one is missing or they cannot be compared."""
    found = np.asarray(labels)
    if found.ndim != 1:
        raise ValueError(f"labels have shape {found.shape}; they must be one class per example, [M].")
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iub":
        return found
    each = np.asarray(labels, object)  # as they are: NumPy turns numbers among names into names
    for example, label in enumerate(each):
        if _is_missing(label):
            raise ValueError(
                f"label {example} is {label}, which names no class; drop that example, or give it a label."
            )
    kinds = sorted({_kind(label) for label in each})
    if len(kinds) > 1:
        raise ValueError(f"labels are of {' and '.join(kinds)}; they must be all numbers or all names.")
    if found is labels:
        return found
    # NumPy rounds integers beyond 2^53 that stand among floats, and drops null characters at the end of strings.
    exact = [label.item() if isinstance(label, np.generic) else label for label in each]
    return found if found.tolist() == exact else np.fromiter(exact, object, len(exact))


def _is_missing(label):
    if label is None:
        return True
    try:
        return bool(label != label)  # only NaN is unequal to itself
    except TypeError:  # nor is it known whether pandas' NA is
        return True


def _kind(label):
    """The name of a label's type; all numbers count as one type."""
    if isinstance(label, numbers.Number | np.bool_):
        return "number"
    return "str" if isinstance(label, str) else type(label).__name__


def _in_jax(inputs):
    """The numbers in JAX's precision and this machine's byte order."""
    native = np.float64 if inputs.dtype == np.longdouble else inputs.dtype.newbyteorder("=")
    with np.errstate(over="ignore"):  # an infinity will be reported
        inputs = inputs.astype(native, copy=False)
    dtype = jax.dtypes.canonicalize_dtype(inputs.dtype)
    if dtype == inputs.dtype:
        return inputs
    with np.errstate(over="ignore"):
        converted = inputs.astype(dtype)
    if not jnp.issubdtype(inputs.dtype, jnp.inexact) and not np.array_equal(converted, inputs):
        raise ValueError(
            f"inputs are of {inputs.dtype}, and some do not fit {converted.dtype}, JAX's precision; enable x64."
        )
    return converted
