"""Matching, relation and Siamese networks against their definitions in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import data, learners, models
from jmeta.functional import HeadParams
from jmeta.learners.siamese import Likeness, pair_loss
from jmeta.types import Examples, Model, normalisations, Task

IDENTITY = Model(lambda key, inputs: ({}, ()), lambda params, state, inputs, *, train=False, key=None: (inputs, state))


@pytest.fixture
def task(x64):
    inputs = np.random.default_rng(0).normal(size=(20, 4))
    table = data.class_table(inputs, np.repeat(np.arange(4), 5))
    return data.episodes(table, ways=3, shots=2, queries=3)(jax.random.key(0))


def numpy(task):
    return np.asarray(task.support.inputs), np.asarray(task.support.targets), np.asarray(task.query.inputs)


def outputs(learner, params, task):
    return learner.predict(params, (), learner.adapt(params, (), task.support), task.query.inputs)


def test_matching_is_the_attention_to_each_class(task):
    support, targets, queries = numpy(task)
    learner = learners.matching(IDENTITY, scale=3.0)
    params, _ = learner.init(jax.random.key(0), task)
    cosines = 3 * queries @ support.T / np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(support, axis=1))
    weights = np.exp(cosines) / np.exp(cosines).sum(1, keepdims=True)
    np.testing.assert_allclose(
        jax.nn.softmax(outputs(learner, params, task)), weights @ targets, rtol=1e-10, atol=1e-13
    )


def test_attention_weights_of_real_examples_sum_to_one(task):
    learner = learners.matching(IDENTITY)
    params, _ = learner.init(jax.random.key(0), task)
    part = task._replace(support=task.support._replace(mask=jnp.array([1.0, 0, 1, 1, 0, 0])))
    probability = jax.nn.softmax(outputs(learner, params, part))
    np.testing.assert_allclose(probability.sum(1), 1, rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(probability[:, 2], 0)


def test_an_example_of_two_classes_by_half_has_half_of_its_attention_for_each(task):
    support, targets, queries = numpy(task)
    learner, shared = learners.matching(IDENTITY, scale=3.0), targets @ [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]
    params, _ = learner.init(jax.random.key(0), task)
    cosines = 3 * queries @ support.T / np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(support, axis=1))
    weights = np.exp(cosines) / np.exp(cosines).sum(1, keepdims=True)
    soft = task._replace(support=task.support._replace(targets=jnp.asarray(shared)))
    np.testing.assert_allclose(jax.nn.softmax(outputs(learner, params, soft)), weights @ shared, rtol=1e-10, atol=1e-13)


def test_pairs_of_soft_targets_weigh_as_much_as_they_are_likely():
    logits, same = np.array([[1.0, -1.0], [0.5, 2.0]]), np.array([[0.2, 0.8], [1.0, 0.0]])
    alike = np.average(np.logaddexp(0, -logits), weights=same)
    other = np.average(np.logaddexp(0, logits), weights=1 - same)
    found = pair_loss(*(jnp.asarray(array, jnp.float32) for array in (logits, same, np.ones((2, 2)))))
    np.testing.assert_allclose(found, (alike + other) / 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32])
@pytest.mark.parametrize(
    "learner",
    [
        learners.matching(IDENTITY),
        learners.siamese(IDENTITY),
        learners.protonet(IDENTITY, distance="cosine"),
        learners.r2d2(IDENTITY),
    ],
    ids=["matching", "siamese", "protonet", "r2d2"],
)
def test_what_a_head_learns_is_in_single_precision_whatever_features_are_in(learner, dtype):
    inputs = (10 * jax.random.normal(jax.random.key(0), (6, 4))).astype(dtype)
    part = Examples(inputs, jnp.eye(3)[jnp.arange(6) % 3], jnp.ones(6))
    params, state = learner.init(jax.random.key(1), Task(part, part))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    gradient = jax.jit(jax.grad(lambda params: learner.loss(params, state, Task(part, part))[0]))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: learners.matching(IDENTITY, support_context=nn.Dense(4)), "support_context is of type Dense; it must"),
        (lambda: learners.matching(IDENTITY, query_context=nn.Dense(4)), "query_context is of type Dense; it must be"),
        (
            lambda: learners.relation(IDENTITY, comparator=nn.Dense(1)),
            "comparator is of type Dense; it must be a jmeta",
        ),
    ],
    ids=["support_context", "query_context", "comparator"],
)
def test_a_second_network_that_is_no_model_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_contexts_of_two_widths_are_refused(task):
    learner = learners.matching(IDENTITY, support_context=models.mlp(outputs=7))
    with pytest.raises(ValueError, match="query_context gives features of width 4, support_context of 7; they must be"):
        learner.init(jax.random.key(0), task)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(params, x, hidden, memory):
    """One step of an LSTM by its equations."""
    gates = {
        gate: x @ params[f"i{gate}"]["kernel"] + hidden @ params[f"h{gate}"]["kernel"] + params[f"h{gate}"]["bias"]
        for gate in "ifgo"
    }
    memory = sigmoid(gates["f"]) * memory + sigmoid(gates["i"]) * np.tanh(gates["g"])
    return sigmoid(gates["o"]) * np.tanh(memory), memory


def test_the_query_context_is_that_of_the_paper_s_equations(x64):
    rng = np.random.default_rng(0)
    queries, support = rng.normal(size=(2, 3)), rng.normal(size=(5, 3))
    model, inputs = models.attention_lstm(steps=2), (queries, support, jnp.array([1.0, 1, 1, 0, 1]))
    params, _ = model.init(jax.random.key(0), inputs)
    (cell,) = jax.tree.map(np.asarray, params).values()
    real, hidden, memory = support[[0, 1, 2, 4]], np.zeros((2, 3)), np.zeros((2, 3))
    for _ in range(2):
        weights = np.exp(hidden @ real.T)
        read = weights / weights.sum(1, keepdims=True) @ real
        hidden, memory = lstm(cell, np.concatenate([queries, read], 1), hidden, memory)
        hidden = hidden + queries
    np.testing.assert_allclose(model.apply(params, {}, inputs)[0], hidden, rtol=1e-10, atol=1e-12)


def test_a_query_in_the_context_of_padding_alone_has_a_finite_gradient():
    model = models.attention_lstm(steps=2)
    queries, support = jnp.ones((2, 3)), jnp.ones((4, 3))
    params, _ = model.init(jax.random.key(0), (queries, support, jnp.ones(4)))
    gradient = jax.grad(lambda params: model.apply(params, {}, (queries, support, jnp.zeros(4)))[0].sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_the_context_of_integers_is_that_of_the_same_numbers_as_floats():
    model, queries, support = models.attention_lstm(steps=2), jnp.arange(6).reshape(2, 3), jnp.eye(3, dtype=int)
    params, _ = model.init(jax.random.key(0), (queries, support, jnp.ones(3)))
    outputs, expected = (
        model.apply(params, {}, (queries.astype(dtype), support.astype(dtype), jnp.ones(3)))[0]
        for dtype in (jnp.int32, jnp.float32)
    )
    np.testing.assert_array_equal(outputs, expected)


def test_the_support_context_adds_both_directions(x64):
    features = np.random.default_rng(0).normal(size=(3, 2))
    model = models.bidirectional_lstm()
    params, _ = model.init(jax.random.key(0), features)
    cells = list(jax.tree.map(np.asarray, params).values())
    expected = features.copy()
    for cell, rows in zip(cells, ([0, 1, 2], [2, 1, 0]), strict=True):
        hidden, memory = np.zeros(2), np.zeros(2)
        for row in rows:
            hidden, memory = lstm(cell, features[row], hidden, memory)
            expected[row] += hidden
    np.testing.assert_allclose(model.apply(params, {}, features)[0], expected, rtol=1e-10, atol=1e-12)


def test_a_relation_network_scores_the_query_joined_to_each_class_mean(task):
    support, _, queries = numpy(task)
    weights = np.random.default_rng(1).normal(size=(8, 1))
    linear = Model(IDENTITY.init, lambda params, state, inputs, *, train=False, key=None: (inputs @ weights, state))
    learner = learners.relation(IDENTITY, comparator=linear)
    params, state = learner.init(jax.random.key(0), task)
    adapted = learner.adapt(params, state, task.support)
    means = support.reshape(3, 2, 4).mean(1)
    expected = (means @ weights[:4]).T + queries @ weights[4:]
    found = learner.predict(params, state, adapted, task.query.inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
    loss, _ = learner.loss(params, state, task)
    np.testing.assert_allclose(
        loss, np.square(sigmoid(expected) - np.asarray(task.query.targets)).mean(), rtol=1e-10, atol=1e-13
    )


def test_the_loss_of_a_relation_network_counts_classes_without_queries(task):
    learner = learners.relation(IDENTITY, comparator=models.mlp(hidden=(), outputs=1))
    params, state = jax.tree.map(jnp.zeros_like, learner.init(jax.random.key(0), task))
    query = task.query._replace(targets=jax.nn.one_hot(jnp.zeros(len(task.query.mask), int), 3))
    loss, _ = learner.loss(params, state, task._replace(query=query))
    np.testing.assert_allclose(loss, 0.25)  # every score is half


def test_a_comparator_of_other_scores_is_refused(task):
    with pytest.raises(ValueError, match=r"the comparator's scores have shape \(27, 3\); they must be \(27, 1\)"):
        learners.relation(IDENTITY, comparator=models.mlp(outputs=3)).init(jax.random.key(0), task)


def test_a_siamese_network_takes_the_best_pair_and_learns_from_all_of_them(task):
    support, targets, queries = numpy(task)
    weights = np.array([-1.0, -0.5, 0.3, -2.0])
    params = HeadParams({}, Likeness(jnp.asarray(weights), jnp.asarray(0.7)))
    logits = np.abs(queries[:, None] - support[None]) @ weights + 0.7
    learner = learners.siamese(IDENTITY)
    expected = np.stack([logits[:, targets[:, way] == 1].max(1) for way in range(3)], 1)
    np.testing.assert_allclose(outputs(learner, params, task), expected, rtol=1e-10, atol=1e-13)
    same = np.asarray(task.query.targets) @ targets.T == 1
    pairs = np.where(same, np.log1p(np.exp(-logits)), np.log1p(np.exp(logits)))
    loss, (_, metrics) = learner.loss(params, (), task)
    np.testing.assert_allclose(loss, (pairs[same].mean() + pairs[~same].mean()) / 2, rtol=1e-10, atol=1e-13)
    assert set(metrics) == {"accuracy"}


def test_a_pair_is_alike_at_no_distance_at_first_and_as_surely_not_at_one(task):
    (weights, bias), features = learners.siamese(IDENTITY).init(jax.random.key(0), task)[0].head, task.support.inputs
    assert bias == 5
    np.testing.assert_allclose(jnp.ones(features.shape[1]) @ weights + bias, -5)


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_a_context_with_statistics_of_a_batch_is_refused(task, norm):
    with pytest.raises(ValueError, match="support_context or query_context has statistics of a batch"):
        learners.matching(IDENTITY, support_context=models.mlp(outputs=4, norm=norm)).init(jax.random.key(0), task)


@pytest.mark.parametrize(("shape", "stated"), [((4,), ()), ((2, 2, 1), ("batch",))])
def test_a_comparator_states_its_policy_if_it_applies_it(task, shape, stated):
    support, query = (part._replace(inputs=part.inputs.reshape(-1, *shape)) for part in (task.support, task.query))
    _, state = learners.relation(IDENTITY).init(jax.random.key(0), Task(support, query))
    assert normalisations(state) == stated
