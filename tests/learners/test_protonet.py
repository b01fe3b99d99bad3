"""Prototypical networks against their definition in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jmeta
from jmeta import data, learners, models
from jmeta.types import Examples, Model, Task

IDENTITY = Model(lambda key, inputs: ({}, ()), lambda params, state, inputs, *, train=False, key=None: (inputs, state))


@pytest.fixture
def task(x64):
    inputs = np.random.default_rng(0).normal(size=(20, 4))
    table = data.class_table(inputs, np.repeat(np.arange(4), 5))
    return data.episodes(table, ways=3, shots=2, queries=3)(jax.random.key(0))


def outputs(learner, params, task):
    return learner.predict(params, (), learner.adapt(params, (), task.support), task.query.inputs)


def minus_squares(apart, classes):
    return -np.square(apart).sum(-1)


def ten_cosines(apart, classes):
    points = classes.mean(1)
    queries = apart + points
    return 10 * (queries * points).sum(-1) / np.linalg.norm(queries, axis=-1) / np.linalg.norm(points, axis=-1)


def minus_half_mahalanobis(apart, classes):
    """By 2/3 of a class's covariance, of two examples, 1/3 of the task's, and the identity."""
    everything = np.cov(np.concatenate(classes).T)
    precisions = [np.linalg.inv(2 / 3 * np.cov(rows.T) + everything / 3 + np.eye(4)) for rows in classes]
    return -np.einsum("qni,nij,qnj->qn", apart, precisions, apart) / 2


@pytest.mark.parametrize(
    ("distance", "formula"),
    [("euclidean", minus_squares), ("cosine", ten_cosines), ("mahalanobis", minus_half_mahalanobis)],
)
def test_with_the_identity_for_an_encoder_outputs_are_those_of_each_distance_to_the_centroids(task, distance, formula):
    learner, classes = learners.protonet(IDENTITY, distance=distance), np.asarray(task.support.inputs).reshape(3, 2, 4)
    apart = np.asarray(task.query.inputs)[:, None] - classes.mean(1)
    found = outputs(learner, learner.init(jax.random.key(0), task)[0], task)
    np.testing.assert_allclose(found, formula(apart, classes), rtol=1e-10, atol=1e-13)


def test_the_scale_of_cosines_is_learned_from_ten_on(task):
    learner = learners.protonet(IDENTITY, distance="cosine")
    params, _ = learner.init(jax.random.key(0), task)
    assert params.head == {"scale": 10}
    doubled = outputs(learner, params._replace(head={"scale": jnp.asarray(20.0)}), task)
    np.testing.assert_allclose(doubled, 2 * outputs(learner, params, task), rtol=1e-10, atol=1e-13)
    assert jax.grad(lambda params: learner.loss(params, (), task)[0])(params).head["scale"] != 0


def described(key):
    """A task without support examples: each class is described by five attributes, which a matrix makes pictures of."""
    attributes_key, noise_key = jax.random.split(key)
    attributes = jax.random.normal(attributes_key, (3, 5))
    pictures = jnp.tanh(attributes @ jax.random.normal(jax.random.key(7), (5, 4)))
    queries = jnp.repeat(pictures, 2, axis=0) + 0.1 * jax.random.normal(noise_key, (6, 4))
    targets = jnp.eye(3)
    support = Examples(attributes, targets, jnp.ones(3))
    return Task(support, Examples(queries, jnp.repeat(targets, 2, axis=0), jnp.ones(6)))


@pytest.mark.long
def test_it_learns_to_classify_by_descriptions_alone():
    encoders = [models.mlp(outputs=8, norm="none") for _ in range(2)]
    learner, optimizer = learners.protonet(encoders[0], support_encoder=encoders[1]), optax.adam(3e-3)
    state = jmeta.init_state(learner, optimizer, jax.random.key(0), described(jax.random.key(1)))
    before = jmeta.evaluate(learner, state, described, key=jax.random.key(2), episodes=100)
    step = jmeta.make_train_step(learner, optimizer)
    state, _ = jax.jit(jmeta.make_train_loop(step, described, batch_size=8, steps=300))(state)
    after = jmeta.evaluate(learner, state, described, key=jax.random.key(2), episodes=100)
    assert before.accuracy < 0.5
    assert after.accuracy > 0.9


def test_refuses_an_unknown_distance():
    with pytest.raises(ValueError, match="distance is 'manhattan'"):
        learners.protonet(IDENTITY, distance="manhattan")


def test_refuses_an_encoder_of_maps(task):
    maps = Model(IDENTITY.init, lambda params, state, inputs, *, train=False, key=None: (inputs[:, None], state))
    with pytest.raises(ValueError, match=r"features have shape \(6, 1, 4\); they must be vectors"):
        learners.protonet(maps).init(jax.random.key(0), task)


def test_refuses_encoders_of_different_width(task):
    learner = learners.protonet(IDENTITY, support_encoder=models.mlp(outputs=1))
    with pytest.raises(ValueError, match="support features have width 1, query features 4; they must agree"):
        learner.init(jax.random.key(0), task)


def test_a_support_encoder_that_is_no_model_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"support_encoder is of type Dense; it must be a jmeta\.Model"):
        learners.protonet(IDENTITY, support_encoder=nn.Dense(3))
