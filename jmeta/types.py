"""The types of jmeta: examples, tasks, models, learners and the state of training.

Shape letters, used in every docstring of the library:

    T  tasks in a batch
    N  ways: classes in a task
    K  support examples: ways x shots
    Q  query examples
    D  features, or dimensions of a regression target

Some files need more: B images of height H and width W with C channels, E outputs of a layer, L tokens, P pairs of
examples, M examples of a table.
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
        inputs: [K, ...]: images [K, H, W, C], embeddings [K, D], ... Learners divide
            uint8 inputs by 255, so tokens, and inputs that the model scales itself,
            must have another dtype.
        targets: [K, N] one-hot for classification, [K, D] real for regression.
        mask: [K], 1 for a real example and 0 for padding. Padding must be finite and of
            the magnitude of real inputs: a NaN, or a number whose square overflows,
            would make a network's gradient NaN. A fraction is a weight for losses,
            means and heads; learners that take examples one by one, such as memories,
            treat it as 1.
    """

    inputs: Array
    targets: Array
    mask: Array


class Task(NamedTuple):
    """A support set to adapt to and a query set to be judged on.

    Attributes:
        support: the labelled examples a learner adapts to.
        query: the examples it is judged on.
        class_ids: [N] which of the source's classes these are, -1 for a padded class;
            None if the source has no classes.
    """

    support: Examples
    query: Examples
    class_ids: Array | None = None


class Model(NamedTuple):
    """Any network: Linen, NNX, or two functions of your own.

    Attributes:
        init: `(key, inputs [K, ...]) -> (params, state)`.
        apply: `(params, state, inputs, *, train=False, key=None) -> (outputs [K, ...], state)`.
            Some learners pass a tree of inputs, and say so. A model that mixes examples
            (batch statistics) may take one more keyword, `mask` [K], by name or through
            `**options`, and is then told which rows are padding; a wrapper must pass
            `mask` on. A `Normalisation` anywhere in the state names the policy in reports.
    """

    init: Callable
    apply: Callable


class Learner(NamedTuple):
    """A few-shot learner: four pure functions, all written for one task.

    Those of `jmeta.learners` compile `adapt` and `predict`, once per task shape. Close over a
    learner in functions that you compile yourself: as an argument it would have to be static.

    Attributes:
        init: `(key, task) -> (params, state)`.
        adapt: `(params, state, support, *, key=None) -> adapted`, whatever is specific
            to the task: fast weights, prototypes, a context.
        predict: `(params, state, adapted, inputs [Q, ...]) -> outputs [Q, N]`.
            It may take one more keyword, `mask` [Q], like `Model.apply`; for
            regression, outputs may be a `losses.Gaussian`.
        loss: `(params, state, task, *, key=None) -> (scalar, (state, metrics))`, whose
            gradient is the meta-gradient. Training averages the results over tasks,
            except integers in the state, which must be the same for all. `metrics` is a
            dict of scalars, with `"accuracy"` if the learner classifies. The names
            `"loss"`, `"step"`, `"gradient_norm"`, `"nonfinite_tasks"` and
            `"validation_..."` are reserved and refused.
    """

    init: Callable
    adapt: Callable
    predict: Callable
    loss: Callable


class Objective(NamedTuple):
    """What a learner minimises on a set, and what it reports; made by `losses.objective`.

    Attributes:
        loss: `(outputs [K, N], targets [K, N], mask [K]) -> scalar`.
        metrics: a function of the same arguments that returns a dict of scalars.
        present: `(support) -> [N]`, which classes have a real support example; it
            returns None if targets are not classes.
    """

    loss: Callable
    metrics: Callable
    present: Callable

    def judge(self, outputs: Array, examples: Examples, state: PyTree) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        """The result of `Learner.loss`, given outputs for these examples."""
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
    """The policies of the networks a state belongs to, each once, in alphabetical order."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Normalisation))
    return tuple(sorted({node.policy for node in nodes if isinstance(node, Normalisation)}))


def together(task: Task) -> Examples:
    """Support and query as one set, the support examples first."""
    parts = (part._replace(inputs=as_float(part.inputs)) for part in (task.support, task.query))
    return Examples(*(jnp.concatenate(pair) for pair in zip(*parts, strict=True)))


def take_rows(examples: Examples, rows: Array) -> Examples:
    """The chosen rows, as JAX arrays; the examples may be NumPy arrays and `rows` traced."""
    return Examples(*(jnp.asarray(leaf)[rows] for leaf in examples))


def as_float(inputs: Array) -> Array:
    """uint8 inputs as floats in [0, 1], all others unchanged, as JAX arrays."""
    inputs = jnp.asarray(inputs)
    return inputs.astype(float) / 255 if inputs.dtype == jnp.uint8 else inputs


def at_least_single(dtype: DTypeLike) -> DTypeLike:
    """The dtype to accumulate in, at least float32: in bfloat16 a count stops at 256, and in float16 sums overflow."""
    return jnp.promote_types(dtype, jnp.float32)


def or_one(total: Array) -> Array:
    """`total`, or 1 where it is not above 0, so that a mean over nothing is 0."""
    return jnp.where(total > 0, total, 1)


def is_inexact(leaf: Array) -> bool:
    """Whether a leaf is of floats: those are differentiated and averaged over tasks; integers are alike in all."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
