"""The nouns of jmeta: examples, tasks, models, learners and the state of training.

Shape letters, used in every docstring of the library:

    T  tasks in a batch
    N  ways: classes in a task
    K  support examples: ways x shots
    Q  query examples
    D  features, or dimensions of a target of regression

Where a file needs more: B images of height H, width W and C channels, L tokens, P pairs of examples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Array = jax.Array
PyTree = Any


class Examples(NamedTuple):
    """One labelled set.

    Attributes:
        inputs: [K, ...], an image [K, H, W, C], an embedding [K, D], ...; of unsigned
            bytes, uint8, learners divide them by 255, so that tokens, and what a model
            scales by itself, should be of another type.
        targets: [K, N] one-hot for classification, [K, D] real for regression.
        mask: [K], 1 for a real example and 0 for padding. Padding may be any numbers of
            the size of real ones: a NaN in it, or what overflows when squared, would be a
            NaN in a network's gradient. A number between is a weight to losses, means and
            heads; what takes examples one by one, as a memory, takes such a one for real.
    """

    inputs: Array
    targets: Array
    mask: Array


class Task(NamedTuple):
    """A support set to adapt to and a query set to be judged on.

    Attributes:
        support: the labelled examples a learner adapts to.
        query: the examples it is judged on.
        class_ids: [N] which classes of the source these are, -1 for a padded
            class; None where the source has no classes.
    """

    support: Examples
    query: Examples
    class_ids: Array | None = None


class Model(NamedTuple):
    """Any network: Linen, NNX, or two functions of your own.

    Attributes:
        init: `(key, inputs [K, ...]) -> (params, state)`.
        apply: `(params, state, inputs, *, train=False, key=None) -> (outputs [K, ...], state)`.
            Inputs are a tree where a learner says that they are.
            A model that mixes examples (batch statistics) may take one keyword
            more, `mask` [K], by its name or among any (`**options`), and is then told
            which rows are padding; a wrapper of it passes `mask` on.
    """

    init: Callable
    apply: Callable


class Learner(NamedTuple):
    """A few-shot learner: four pure functions, all written for one task.

    Those of `jmeta.learners` compile `adapt` and `predict`, once for all tasks of a shape.

    Attributes:
        init: `(key, task) -> (params, state)`.
        adapt: `(params, state, support, *, key=None) -> adapted`, what is
            specific to the task: fast weights, prototypes, a context.
        predict: `(params, state, adapted, inputs [Q, ...]) -> outputs [Q, N]`.
            It may take one keyword more, `mask` [Q], like `Model.apply`; outputs of
            regression may be a `losses.Gaussian`.
        loss: `(params, state, task, *, key=None) -> (scalar, (state, metrics))`,
            whose gradient is the meta-gradient. Training averages what it gives over
            tasks, but for integers in the state, which must be the same for all.
            `metrics` is a dictionary of scalars; it has an `"accuracy"` if the learner
            classifies. Training has its own `"loss"`, `"step"`, `"gradient_norm"`,
            `"nonfinite_tasks"` and `"validation_..."`, and refuses a learner's.
    """

    init: Callable
    adapt: Callable
    predict: Callable
    loss: Callable


class Objective(NamedTuple):
    """What a learner minimises on a set, and what it reports; made by `losses.objective`.

    Attributes:
        loss: `(outputs [K, N], targets [K, N], mask [K]) -> scalar`.
        metrics: of the same arguments, a dictionary of scalars.
        present: `(support) -> [N]`, which classes have a real support example;
            None where targets are not classes.
    """

    loss: Callable
    metrics: Callable
    present: Callable

    def judge(self, outputs: Array, examples: Examples, state: PyTree) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        """What `Learner.loss` gives, for outputs of these examples."""
        labelled = (outputs, examples.targets, examples.mask)
        return self.loss(*labelled), (state, self.metrics(*labelled))


class TrainState(NamedTuple):
    """Everything training carries from one meta-step to the next.

    Attributes:
        params: meta-parameters.
        state: running normalisation statistics; never differentiated.
        opt_state: the optimizer's state.
        key: the PRNG key that the next meta-step splits.
        step: meta-steps taken, a scalar int32.
    """

    params: PyTree
    state: PyTree
    opt_state: PyTree
    key: Array
    step: Array


@jax.tree_util.register_static
@dataclass(frozen=True)
class Normalisation:
    """A model's normalisation policy, carried in its `state` as a node without leaves.

    It travels with the statistics it governs, so that whoever holds the state
    (an evaluation report) can say how activations were normalised.
    """

    policy: str


def normalisations(state: PyTree) -> tuple[str, ...]:
    """The policies of the networks that a state belongs to, each once, in alphabetical order."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Normalisation))
    return tuple(sorted({node.policy for node in nodes if isinstance(node, Normalisation)}))


def together(task: Task) -> Examples:
    """Support and query as one set, the support examples first."""
    parts = (part._replace(inputs=as_float(part.inputs)) for part in (task.support, task.query))
    return Examples(*(jnp.concatenate(pair) for pair in zip(*parts, strict=True)))


def take_rows(examples: Examples, rows: Array) -> Examples:
    """These rows of the examples, which may be NumPy's and the rows found within a trace."""
    return Examples(*(jnp.asarray(leaf)[rows] for leaf in examples))


def as_float(inputs: Array) -> Array:
    """Images of unsigned bytes as numbers from 0 to 1, all else as it is; arrays of JAX's."""
    inputs = jnp.asarray(inputs)
    return inputs.astype(float) / 255 if inputs.dtype == jnp.uint8 else inputs


def at_least_single(dtype: DTypeLike) -> DTypeLike:
    """The precision to add up numbers of a dtype in: half would count to 256, and measure up to that length."""
    return jnp.promote_types(dtype, jnp.float32)


def or_one(total: Array) -> Array:
    """What to divide by where the total of the weights may be 0: of nothing the mean is then 0."""
    return jnp.where(total > 0, total, 1)


def is_inexact(leaf: Array) -> bool:
    """Whether it is of numbers that have a derivative and that tasks add up; integers are the same in all of them."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
