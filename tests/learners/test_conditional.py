"""What each learner that adapts by a forward pass is, against its own definition, in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import jmeta
from jmeta import data, functional, learners, losses, models
from jmeta.types import Examples, Model, Task

RAW = models.mlp(hidden=(), outputs=None)
TASK = data.sinusoid(shots=6, queries=5)


def transformer(outputs):
    return models.transformer(outputs, width=8, depth=2, heads=2)


def snail(outputs):
    return models.snail(outputs, filters=4, attention=[(4, 4), (4, 4)], length=8)


def mann(outputs):
    return models.mann(outputs, controller=6, slots=5, width=4, heads=2)


MASKLESS = Model(RAW.init, lambda params, state, inputs, *, train=False, key=None: (inputs, state))
SQUARED = {"loss_fn": losses.squared_error}
GAUSSIAN = {"loss_fn": losses.gaussian_nll}
SMALL = {
    "in_context": learners.in_context(RAW, sequence=transformer, **SQUARED),
    "snail": learners.snail(RAW, sequence=snail, **SQUARED),
    "cnp": learners.cnp(RAW, loss_fn=losses.gaussian_nll),
    "mann": learners.mann(RAW, network=mann, **SQUARED),
}


@pytest.mark.parametrize("name", SMALL)
def test_other_ways_than_it_was_initialised_with_are_an_error(name):
    learner, task = SMALL[name], TASK(jax.random.key(0))
    params, state = jax.eval_shape(learner.init, jax.random.key(1), task)
    wider = task.support._replace(targets=jnp.ones((len(task.support.targets), 3)))
    for use, given in ((learner.adapt, wider), (learner.loss, Task(wider, wider))):
        with pytest.raises(ValueError, match="targets of width 3 and features of width 1, but the head was init"):
            jax.eval_shape(use, params, state, given)


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (
            learners.in_context(RAW, sequence=models.transformer(1), **SQUARED),
            "sequence is of type Model; it must be a",
        ),
        (learners.in_context(RAW, sequence=nn.Dense(1), **SQUARED), "sequence is of type Dense; it must be a function"),
        (learners.mann(RAW, network=lambda outputs: nn.Dense(1), **SQUARED), "what network makes is of type Dense"),
        (learners.mann(RAW, network=lambda outputs: MASKLESS, **SQUARED), "a Model whose apply takes no `mask`"),
        (
            learners.cnp(RAW, decoder=models.mlp(outputs=2), **GAUSSIAN),
            "decoder is of type Model; it must be a function from",
        ),
        (
            learners.cnp(RAW, decoder=lambda _: models.mlp(outputs=1), **GAUSSIAN),
            "outputs have width 1; it was asked for 2",
        ),
    ],
    ids=["a model", "a module", "no model made", "no mask", "a decoder", "a width"],
)
def test_a_network_of_another_kind_is_refused(learner, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(learner.init, jax.random.key(0), TASK(jax.random.key(0)))


def test_a_summary_that_is_no_model_is_refused_by_the_factory():
    with pytest.raises(ValueError, match=r"summary is of type Dense; it must be a jmeta\.Model"):
        learners.cnp(RAW, summary=nn.Dense(4))


@pytest.fixture
def task(x64):
    return TASK(jax.random.key(0))


def answers(learner, params, state, support, inputs):
    return learner.predict(params, state, learner.adapt(params, state, support), inputs)


def first_answers(learner, task):
    params, state = learner.init(jax.random.key(0), task)
    return answers(learner, params, state, task.support, task.query.inputs)


def two_functions(apply, shape=(3, 2)):
    """A network that is a matrix, and what `apply` does with it."""
    return Model(lambda key, inputs: (jax.random.normal(key, shape), ()), apply)


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


# All of them; what they promise of classification is in tests/test_contract.py.


@pytest.fixture(params=SMALL)
def outputs_of(request, task):
    """(support, query inputs) -> outputs, compiled."""
    learner = SMALL[request.param]
    params, state = jax.jit(learner.init)(jax.random.key(1), task)
    return jax.jit(lambda *given: jax.tree.leaves(answers(learner, params, state, *given))[0])  # of a Gaussian the mean


def test_a_regression_reads_targets_and_neither_padding_nor_other_queries(task, outputs_of):
    support, inputs = task.support, task.query.inputs
    outputs = outputs_of(support, inputs)
    assert outputs.shape == task.query.targets.shape
    assert (outputs_of(support._replace(targets=support.targets.at[2].add(1)), inputs) != outputs).all()
    others = outputs_of(support, inputs.at[1:].multiply(-3.0))
    np.testing.assert_array_equal(others[0], outputs[0])
    assert (others[1:] != outputs[1:]).all()
    np.testing.assert_array_equal(outputs_of(support, inputs.at[1:].set(jnp.nan))[0], outputs[0])
    masked = support._replace(mask=support.mask.at[2].set(0))
    padding = masked._replace(inputs=masked.inputs.at[2].set(9.0), targets=masked.targets.at[2].set(7.0))
    np.testing.assert_array_equal(outputs_of(padding, inputs), outputs_of(masked, inputs))


@pytest.mark.parametrize("name", ["snail", "mann"])
def test_a_key_shuffles_a_sequence_in_training_and_in_adaptation(name, task):
    learner = SMALL[name]
    params, state = jax.jit(learner.init)(jax.random.key(1), task)

    @jax.jit
    def run(key):
        outputs = learner.predict(params, state, learner.adapt(params, state, task.support, key=key), task.query.inputs)
        return learner.loss(params, state, task, key=key)[0], outputs[0, 0]

    for values in zip(*(map(float, run(jax.random.key(seed))) for seed in range(3)), strict=True):
        assert len(set(values)) == 3


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_a_network_with_statistics_of_a_batch_is_refused(task, norm):
    def decoder(outputs):
        return models.mlp(outputs=outputs, norm=norm)

    def of_queries(outputs):
        network = decoder(outputs)
        return Model(lambda key, inputs: network.init(key, inputs[0]), network.apply)

    summarised = learners.cnp(RAW, decoder=decoder, loss_fn=losses.gaussian_nll)
    with pytest.raises(ValueError, match="the summary or the decoder has statistics of a batch"):
        jax.eval_shape(summarised.init, jax.random.key(0), task)
    prompted = learners.in_context(RAW, sequence=of_queries, **SQUARED)
    with pytest.raises(ValueError, match="the sequence model has statistics of a batch"):
        jax.eval_shape(prompted.init, jax.random.key(0), task)


def test_an_encoder_that_gives_no_features_is_refused(x64):
    images = Model(lambda key, inputs: ((), ()), lambda params, state, inputs, **_: (inputs, state))
    examples = Examples(jnp.zeros((5, 8, 8, 1)), jnp.eye(5), jnp.ones(5))
    with pytest.raises(ValueError, match=r"have shape \(5, 8, 8, 1\); they must be vectors"):
        learners.in_context(images).init(jax.random.key(0), Task(examples, examples))


# Prompts.


def test_with_a_kernel_for_a_sequence_model_it_is_kernel_regression(task):
    def smoother(outputs):
        def apply(params, state, inputs, *, train=False, key=None):
            queries, prompt, mask = inputs
            unknown, ones, x = jnp.split(queries, [outputs, outputs + 1], axis=1)
            targets, zeros, examples = jnp.split(prompt, [outputs, outputs + 1], axis=1)
            weights = jnp.exp(-jnp.square(x[:, None] - examples[None]).sum(2)) * ones * (mask - zeros[:, 0])[None]
            return unknown + weights @ targets / weights.sum(1, keepdims=True), state

        return two_functions(apply)

    learner = learners.in_context(RAW, sequence=smoother, **SQUARED)
    outputs = first_answers(learner, task)
    x, y = np.asarray(task.support.inputs), np.asarray(task.support.targets)
    weights = np.exp(-((np.asarray(task.query.inputs) - x.T) ** 2))
    close(outputs, weights @ y / weights.sum(1, keepdims=True))


# Memory.


def test_labels_come_one_token_late_and_each_query_after_the_last_example(task):
    def leaky(outputs):
        def apply(params, carry, tokens, *, mask, train=False, key=None):
            def step(carry, token):
                carry = jnp.where(token[-1] > 0, carry / 2 + token[:-1] @ params, carry)
                return carry, carry

            carry = jnp.zeros(1) if carry is None else carry
            carry, values = jax.lax.scan(step, carry, jnp.concatenate([tokens, mask[:, None]], axis=1))
            return values, carry

        return Model(lambda key, tokens: (jnp.array([[3.0], [5.0]]), None), apply)

    learner = learners.mann(RAW, network=leaky, **SQUARED)
    outputs = first_answers(learner, task)
    held, label = 0.0, 0.0
    for x, y in zip(task.support.inputs[:, 0], task.support.targets[:, 0], strict=True):
        held, label = held / 2 + 3 * label + 5 * x, y
    close(outputs, held / 2 + 3 * label + 5 * task.query.inputs)


def test_each_query_of_a_recurrent_network_draws_numbers_of_its_own():
    def drawn(params, state, tokens, *, mask=None, train=False, key=None):
        return jax.random.normal(key, (len(tokens), 2)), jnp.zeros(())

    head = functional.recurrent(lambda outputs: Model(lambda key, tokens: ({}, None), drawn))
    past, queries = functional.Past(jnp.zeros(()), jnp.zeros(2)), jnp.ones((3, 4))
    found, fewer = (head.score({}, past, rows, key=jax.random.key(0)) for rows in (queries, queries[:2]))
    assert len(np.unique(found)) == found.size
    np.testing.assert_array_equal(found[:2], fewer)


def test_examples_that_come_one_by_one_count_whole_whatever_they_weigh(task):
    learner = learners.mann(RAW, **SQUARED)
    params, state = learner.init(jax.random.key(0), task)
    support = task.support._replace(mask=jnp.full_like(task.support.mask, 0.5))
    half, whole = (answers(learner, params, state, one, task.query.inputs) for one in (support, task.support))
    np.testing.assert_array_equal(half, whole)


# Conditional neural processes.


def matrix_model(shape):
    return two_functions(lambda params, state, inputs, **_: (inputs @ params, state), shape)


def test_a_conditional_process_decodes_the_mean_of_what_it_encodes(task):
    networks = {"summary": matrix_model((2, 3)), "decoder": lambda outputs: matrix_model((4, outputs))}
    learner = learners.cnp(RAW, **networks, **GAUSSIAN)
    params, state = learner.init(jax.random.key(0), task)
    found = answers(learner, params, state, task.support, task.query.inputs)
    (x, y, _), queries = map(np.asarray, task.support), np.asarray(task.query.inputs)
    values = (np.concatenate([y, x], axis=1) @ params.head["summary"]).mean(0)
    decoded = np.concatenate([np.tile(values, (5, 1)), queries], axis=1) @ params.head["decoder"]
    deviation = 0.1 + 0.9 * np.log1p(np.exp(decoded[:, 1:]))
    close(found.mean, decoded[:, :1])
    close(found.deviation, deviation)
    likelihood = stats.norm.logpdf(np.asarray(task.query.targets), decoded[:, :1], deviation)
    loss, (_, metrics) = learner.loss(params, state, task)
    close(loss, -likelihood.mean())
    close(metrics["squared_error"], np.square(decoded[:, :1] - task.query.targets).mean())


def test_a_conditional_process_of_classes_decodes_the_mean_of_each(x64):
    inputs = jnp.array([[1.0], [3.0], [10.0]])
    support = Examples(inputs, jnp.array([[1.0, 0], [1, 0], [0, 1]]), jnp.ones(3))
    features = two_functions(lambda params, state, inputs, **_: (inputs[:, 2:], state))
    decoder = two_functions(lambda params, state, inputs, **_: (-jnp.square(inputs[:, :2] - inputs[:, 2:]), state))
    learner = learners.cnp(RAW, summary=features, decoder=lambda outputs: decoder)
    outputs = first_answers(learner, Task(support, support))
    close(outputs, -np.square([[2.0, 10.0]] - np.asarray(inputs)))


def test_a_conditional_process_without_a_variance_is_refused():
    with pytest.raises(ValueError, match="loss_fn is squared_error; a conditional neural process"):
        learners.cnp(RAW, **SQUARED)


@pytest.mark.long
def test_a_conditional_process_learns_curves():
    learner, sample = learners.cnp(RAW, **GAUSSIAN), data.sinusoid()
    state = jmeta.fit(learner, optax.adam(1e-3), sample, key=jax.random.key(0), steps=2000, batch_size=16)
    report = jmeta.evaluate(learner, state, sample, key=jax.random.key(1))
    assert report.loss + report.loss_ci95 < 4.25 / 4  # 4.25 is the variance of the targets
