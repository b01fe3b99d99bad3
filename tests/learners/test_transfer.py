"""The transfer baselines: supervised training, and a new head by the paper's optimizer written out in NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jmeta
from jmeta import data, learners
from jmeta.learners.meta_curvature import curvature
from jmeta.types import Examples, Model, Task

IDENTITY = Model(lambda key, inputs: ({}, ()), lambda params, state, inputs, *, train=False, key=None: (inputs, state))
BASELINES = {name: getattr(learners, name) for name in ("baseline", "baseline_pp")}
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(6, 8, 7)) + 2 * np.eye(6, 7)[:, None]  # six classes of eight examples


def episode(seed=0, ways=3):
    table = data.class_table(INPUTS.reshape(-1, 7), np.repeat(np.arange(6), 8))
    return data.episodes(table, ways=ways, shots=2, queries=3)(jax.random.key(seed))


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def descended(gradient, params, steps):
    """Momentum 0.9, dampening 0.9, weight decay 0.001 and rate 0.01."""
    momentum = [np.zeros_like(leaf) for leaf in params]
    for _ in range(steps):
        slopes = [slope + 1e-3 * leaf for slope, leaf in zip(gradient(*params), params, strict=True)]
        momentum = [0.9 * old + 0.1 * slope for old, slope in zip(momentum, slopes, strict=True)]
        params = [leaf - 0.01 * mean for leaf, mean in zip(params, momentum, strict=True)]
    return params


def test_a_linear_head_is_fitted_as_the_paper_does(x64):
    support = episode().support
    x, y = np.asarray(support.inputs), np.asarray(support.targets)

    def gradient(kernel, bias):
        error = (softmax(x @ kernel + bias) - y) / len(x)
        return x.T @ error, error.sum(0)

    kernel, bias = descended(gradient, [np.zeros((7, 3)), np.zeros(3)], 100)
    head = learners.baseline(IDENTITY, classes=6).adapt(*supervised("baseline", 6), support).head
    np.testing.assert_allclose(head["kernel"], kernel, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(head["bias"], bias, rtol=1e-10, atol=1e-12)


def test_a_head_is_fitted_by_the_optimizer_that_is_given(x64):
    support = episode().support
    x, y = np.asarray(support.inputs), np.asarray(support.targets)
    learner = learners.baseline(IDENTITY, classes=6, optimizer=optax.sgd(0.1), fine_tuning_steps=1)
    head = learner.adapt(*supervised("baseline", 6), support).head
    np.testing.assert_allclose(head["kernel"], 0.1 * x.T @ (y - 1 / 3) / len(x), rtol=1e-10, atol=1e-12)


def test_a_cosine_head_learns_from_features_that_add_up_to_zero():
    support = Examples(jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.eye(2), jnp.ones(2))
    learner = learners.baseline_pp(IDENTITY, classes=2)
    params, state = learner.init(jax.random.key(0), Task(support, support, jnp.arange(2)))
    outputs = learner.predict(params, state, learner.adapt(params, state, support), support.inputs)
    np.testing.assert_array_equal(outputs.argmax(1), [0, 1])


@pytest.mark.parametrize("name", BASELINES)
def test_a_head_of_features_in_half_precision_is_fitted_in_single(name):
    support = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), episode().support)
    heads = [
        BASELINES[name](IDENTITY, classes=6).adapt(*supervised(name, 6), examples).head
        for examples in (support, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), support))
    ]
    chex.assert_trees_all_close(*heads, rtol=1e-5, atol=1e-6)


def test_a_cosine_head_is_fitted_by_direction_and_length(x64):
    support = episode().support
    x, y = np.asarray(support.inputs), np.asarray(support.targets)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)

    def gradient(kernel, length):
        norm = np.linalg.norm(kernel, axis=0)
        cosines = unit @ kernel / norm
        error = 2 * (softmax(2 * length * cosines) - y) / len(x)
        tangent = unit.T @ error - kernel / norm**2 * (kernel * (unit.T @ error)).sum(0)
        return length * tangent / norm, (error * cosines).sum(0)

    mean = x.mean(0) / np.linalg.norm(x.mean(0)) / np.sqrt(3)
    kernel, length = descended(gradient, [np.tile(mean[:, None], 3), np.full(3, 3**-0.5)], 100)
    head = learners.baseline_pp(IDENTITY, classes=6).adapt(*supervised("baseline_pp", 6), support).head
    np.testing.assert_allclose(head["kernel"], kernel, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(head["length"], length, rtol=1e-10, atol=1e-12)


def supervised(name, classes):
    return BASELINES[name](IDENTITY, classes=classes).init(jax.random.key(1), episode())


@pytest.mark.parametrize(
    ("name", "classes", "scale"), [("baseline", 6, 1), ("baseline_pp", 6, 2), ("baseline_pp", 201, 10)]
)
def test_the_loss_is_classification_of_all_examples_among_all_training_classes(name, classes, scale, x64):
    task = episode()
    params, state = supervised(name, classes)
    x = np.concatenate([task.support.inputs, task.query.inputs])
    labels = np.asarray(task.class_ids)[np.concatenate([task.support.targets, task.query.targets]).argmax(1)]
    kernel = np.asarray(params.head["kernel"])
    logits = scale * x @ kernel
    if name == "baseline_pp":
        logits /= np.linalg.norm(x, axis=1, keepdims=True)  # weights have at first the length that is learned
    loss, _ = BASELINES[name](IDENTITY, classes=classes).loss(params, state, task)
    np.testing.assert_allclose(loss, -np.log(softmax(logits)[np.arange(len(x)), labels]).mean(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BASELINES)
def test_trained_on_some_classes_it_tells_others_apart(name):
    """What is learned is a linear map of inputs whose first numbers alone tell classes apart."""

    def init(key, inputs):
        return jax.random.normal(key, (20, 8)) / 5, ()

    model = Model(init, lambda params, state, inputs, *, train=False, key=None: (inputs @ params, state))
    rng = np.random.default_rng(1)
    inputs = np.repeat(rng.normal(size=(30, 1, 20)), 12, axis=1)
    inputs[..., 5:] = 3 * rng.normal(size=(30, 12, 15))
    inputs[..., :5] += 0.1 * rng.normal(size=(30, 12, 5))
    seen, unseen = (
        data.class_table(part.reshape(-1, 20), np.repeat(np.arange(15), 12)) for part in (inputs[:15], inputs[15:])
    )
    learner, optimizer = BASELINES[name](model, classes=15), optax.adam(1e-2)
    sample, test = (data.episodes(table, ways=5, shots=1, queries=5) for table in (seen, unseen))
    state = jmeta.init_state(learner, optimizer, jax.random.key(0), sample(jax.random.key(1)))
    step = jmeta.make_train_step(learner, optimizer)
    trained, _ = jax.jit(jmeta.make_train_loop(step, sample, batch_size=4, steps=100))(state)
    before, after = (
        jmeta.evaluate(learner, one, test, key=jax.random.key(2), episodes=100) for one in (state, trained)
    )
    assert after.accuracy > before.accuracy + 0.2


@pytest.mark.parametrize("name", BASELINES)
def test_classes_that_training_does_not_know_are_refused(name):
    learner, task = BASELINES[name](IDENTITY, classes=3), episode(ways=6)
    with pytest.raises(ValueError, match="the task has class id 5, but classes is 3; classes must exceed every id"):
        learner.init(jax.random.key(0), task)
    with pytest.raises(ValueError, match="class_ids is None"):
        jax.jit(learner.init)(jax.random.key(0), task._replace(class_ids=None))
    with pytest.raises(ValueError, match="classes is 1; it must be a whole number, at least 2"):
        BASELINES[name](IDENTITY, classes=1)
    with pytest.raises(ValueError, match="steps is -1"):
        BASELINES[name](IDENTITY, classes=3, fine_tuning_steps=-1)
    for wrong in (optax.sgd, curvature(0.1)):
        with pytest.raises(ValueError, match=r"optimizer is [\s\S]*; it must be an optax transformation"):
            BASELINES[name](IDENTITY, classes=3, optimizer=wrong)
    with pytest.raises(ValueError, match="optimizer needs more than gradients"):
        BASELINES[name](IDENTITY, classes=6, optimizer=optax.polyak_sgd(1.0)).init(jax.random.key(0), task)


def test_where_ids_have_no_values_an_unknown_class_makes_the_loss_nan():
    learner, task = learners.baseline(IDENTITY, classes=6), episode()
    params, state = learner.init(jax.random.key(0), task)
    loss = jax.jit(lambda ids: learner.loss(params, state, task._replace(class_ids=ids))[0])
    assert jnp.isfinite(loss(task.class_ids))
    assert jnp.isnan(loss(task.class_ids.at[1].set(6)))


def test_the_padding_of_tasks_with_fewer_ways_trains_nothing(x64):
    tasks = (episode(seed, ways=(2, 4)) for seed in range(20))
    task = next(task for task in tasks if task.class_ids.min() < 0)
    learner = learners.baseline(IDENTITY, classes=6)
    params, state = learner.init(jax.random.key(0), task)
    real = [np.flatnonzero(part.mask) for part in task[:2]]
    parts = [type(part)(*(leaf[rows] for leaf in part)) for part, rows in zip(task[:2], real, strict=True)]
    expected = learner.loss(params, state, task._replace(support=parts[0], query=parts[1]))
    chex.assert_trees_all_close(learner.loss(params, state, task), expected, rtol=1e-10, atol=1e-13)
