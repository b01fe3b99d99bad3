"""Evaluation: the figures, the protocol it states, and that it changes nothing."""

import dataclasses
import functools
import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jmeta
from jmeta import batching, data, evaluation, learners, losses, models
from jmeta.functional import HeadParams
from jmeta.types import Examples, Learner, Model, Task

TABLE = data.class_table(np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), np.repeat(np.arange(6), 10))
IDENTITY = Model(lambda key, inputs: ({}, ()), lambda params, state, inputs, *, train=False, key=None: (inputs, state))
BATCH = models.mlp(hidden=(8,), outputs=None, norm="batch")
PARAMS = HeadParams({}, {})  # of its prototypical network


cached_protonet = functools.cache(learners.protonet)  # so that episodes of one shape are compiled once


def evaluated(model, sample, **options):
    learner = cached_protonet(model)
    state = jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), sample(jax.random.key(1)))
    return jmeta.evaluate(learner, state, sample, **{"key": jax.random.key(2), "episodes": 40} | options)


@pytest.fixture(scope="module")
def report():
    return evaluated(IDENTITY, data.episodes(TABLE, ways=3, shots=2, queries=4))


def test_mean_and_interval_are_those_of_the_episodes(report):
    values = report.per_episode["accuracy"].astype(float)
    assert values.shape == (40,)
    np.testing.assert_allclose(report.accuracy, values.mean())
    np.testing.assert_allclose(report.ci95, 1.96 * values.std(ddof=1) / np.sqrt(40), rtol=1e-4)


def test_an_episode_is_adapted_to_and_predicted(report):
    key = jax.random.split(jax.random.split(jax.random.key(2), 40)[7])[0]
    task = data.episodes(TABLE, ways=3, shots=2, queries=4)(key)
    learner = learners.protonet(IDENTITY)
    outputs = learner.predict(PARAMS, (), learner.adapt(PARAMS, (), task.support), task.query.inputs)
    correct = np.asarray(outputs.argmax(-1) == task.query.targets.argmax(-1))
    np.testing.assert_allclose(report.per_episode["accuracy"][7], correct.mean(), rtol=1e-6)


def test_the_report_states_its_protocol(report):
    assert (report.episodes, report.ways, report.shots, report.queries) == (40, 3, 2, 4)
    assert str(report) == f"accuracy {100 * report.accuracy:.1f} ± {100 * report.ci95:.1f} % (95 % CI, 40 episodes)"
    whole = json.loads(report.to_json())
    assert whole["accuracy"] == report.accuracy
    assert len(whole["per_episode"]["loss"]) == 40
    with pytest.raises(AttributeError):
        report.accuracy = 1.0


def test_two_learners_see_the_same_episodes():
    seen = []

    def watching(learner):
        def adapt(params, state, support, *, key=None):
            jax.debug.callback(lambda inputs: seen.append(np.sort(inputs.ravel())), support.inputs)
            return learner.adapt(params, state, support, key=key)

        return learner._replace(adapt=adapt)

    sample = data.episodes(TABLE, ways=3, shots=2, queries=4)
    subjects = learners.protonet(IDENTITY), learners.maml(models.mlp(hidden=(), outputs=3))
    for subject in map(watching, subjects):
        state = jmeta.init_state(subject, optax.sgd(0.1), jax.random.key(0), sample(jax.random.key(1)))
        jmeta.evaluate(subject, state, sample, key=jax.random.key(2), episodes=4)
        jax.effects_barrier()
    one, other = (sorted(map(tuple, half)) for half in (seen[: len(seen) // 2], seen[len(seen) // 2 :]))
    assert one == other
    assert len(set(one)) == 4


def test_each_episode_is_adapted_to_with_a_key_of_its_own():
    seen, learner, sample = [], learners.protonet(IDENTITY), data.episodes(TABLE, ways=3, shots=1, queries=2)

    def adapt(params, state, support, *, key=None):
        jax.debug.callback(lambda key: seen.append(tuple(np.ravel(key))), jax.random.key_data(key))
        return learner.adapt(params, state, support)

    state = jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), sample(jax.random.key(1)))
    jmeta.evaluate(learner._replace(adapt=adapt), state, sample, key=jax.random.key(2), episodes=4)
    jax.effects_barrier()
    drawn_by = jax.vmap(jax.random.split)(jax.random.split(jax.random.key(2), 4))[:, 0]
    assert len(set(seen)) == 4
    assert not set(seen) & set(map(tuple, np.asarray(jax.random.key_data(drawn_by))))


def test_tasks_of_numpy_in_double_precision_are_trained_on_and_evaluated():
    """A warning of JAX would be an error here."""
    task = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), data.sinusoid()(jax.random.key(0)))
    learner, optimizer = learners.maml(models.mlp(hidden=(4,)), loss_fn=losses.squared_error), optax.sgd(0.1)
    state = jmeta.init_state(learner, optimizer, jax.random.key(0), task)
    batch = jax.tree.map(lambda leaf: leaf[None], task)
    state, _ = jmeta.make_train_step(learner, optimizer)(state, batch)
    report = jmeta.evaluate(learner, state, lambda key: task, key=jax.random.key(0), episodes=2)
    assert np.isfinite(report.loss)


def test_chunking_changes_nothing(report):
    sample = data.episodes(TABLE, ways=3, shots=2, queries=4)
    for chunk in (1, 7):
        chunked = evaluated(IDENTITY, sample, tasks_per_chunk=chunk)
        np.testing.assert_allclose(chunked.per_episode["loss"], report.per_episode["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("norm", "transductive"), [("batch", True), ("running", False), ("group", False), ("none", False)]
)
def test_the_normalisation_policy_and_transduction_are_stated(norm, transductive):
    report = evaluated(
        models.mlp(hidden=(8,), outputs=None, norm=norm), data.episodes(TABLE, ways=3, shots=1, queries=3)
    )
    assert report.normalisation == (norm,)
    assert report.transductive is transductive


@pytest.mark.parametrize(("norm", "transductive"), [("batch", True), ("running", False)])
def test_transduction_is_seen_where_an_episode_lacks_classes(norm, transductive):
    def sample(key):
        task = three_ways(key)
        support, query = (part._replace(targets=jnp.pad(part.targets, ((0, 0), (0, 1)))) for part in task[:2])
        return task._replace(support=support, query=query)

    three_ways = data.episodes(TABLE, ways=3, shots=1, queries=3)
    assert evaluated(models.mlp(hidden=(8,), outputs=None, norm=norm), sample).transductive is transductive


def test_episodes_that_diverge_are_counted_and_their_queries_wrong():
    def apply(params, state, inputs, *, train=False, key=None):
        return jnp.where(inputs[:1, :1] > 0, jnp.nan, inputs) - inputs.mean(0, keepdims=True), state

    report = evaluated(Model(IDENTITY.init, apply), data.episodes(TABLE, ways=3, shots=1, queries=3))
    diverged = ~np.isfinite(report.per_episode["loss"])
    assert 0 < report.nonfinite == diverged.sum() < 40
    assert report.transductive
    assert (report.per_episode["accuracy"][diverged] == 0).all()
    assert str(report).endswith(f"(95 % CI, 40 episodes, {report.nonfinite} with a loss that is not finite)")
    assert json.loads(report.to_json(allow_nan=False))["loss"] is None


@pytest.mark.parametrize("factory", [learners.baseline, learners.baseline_pp])
def test_a_baseline_is_evaluated_alike_on_tasks_whose_classes_are_not_numbered(factory):
    sample = data.episodes(TABLE, ways=3, shots=2, queries=4)
    learner = factory(IDENTITY, classes=6, fine_tuning_steps=1)
    state = jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), sample(jax.random.key(1)))
    numbered, unnumbered = (
        jmeta.evaluate(learner, state, tasks, key=jax.random.key(2), episodes=4)
        for tasks in (sample, lambda key: sample(key)._replace(class_ids=None))
    )
    assert numbered == unnumbered


def test_queries_of_a_class_without_support_are_an_error():
    sample = data.episodes(TABLE, ways=3, shots=1, queries=3)
    learner = learners.protonet(IDENTITY)

    def orphaned(key):
        task = sample(key)
        return task._replace(support=task.support._replace(mask=task.support.mask.at[0].set(0)))

    state = jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), sample(jax.random.key(1)))
    with pytest.raises(ValueError, match="episode 0 has queries of a class without a support example"):
        jmeta.evaluate(learner, state, orphaned, key=jax.random.key(2), episodes=4)


def test_real_numbers_as_targets_of_numbered_classes_are_an_error():
    points = Examples(jnp.ones((4, 1)), jnp.linspace(-1, 1, 8).reshape(4, 2), jnp.ones(4))
    learner = learners.maml(models.mlp(hidden=(4,), outputs=2), loss_fn=losses.squared_error)
    state = jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), Task(points, points))
    with pytest.raises(ValueError, match="episode 0 has targets that are neither one-hot nor probabilities"):
        jmeta.evaluate(learner, state, lambda _: Task(points, points, jnp.arange(2)), key=jax.random.key(2), episodes=4)


def test_the_shots_of_a_regression_are_its_examples_whatever_they_weigh():
    def sample(key):
        support, query, _ = data.sinusoid(shots=4, queries=6)(key)
        return Task(*(part._replace(mask=part.mask / 2) for part in (support, query)))

    learner = learners.maml(models.mlp(hidden=(4,)), loss_fn=losses.squared_error)
    state = jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), sample(jax.random.key(1)))
    report = jmeta.evaluate(learner, state, sample, key=jax.random.key(2), episodes=2)
    assert (report.shots, report.queries) == (4, 6)


def test_the_shots_of_soft_labels_are_rounded():
    task = data.glyphs(ways=2, shots=3, queries=1)(jax.random.key(0))
    soft = task.support._replace(targets=0.8 * task.support.targets + 0.1)
    learner = learners.protonet(models.mlp(hidden=(4,), outputs=None))
    state = jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), task)
    report = jmeta.evaluate(learner, state, lambda _: task._replace(support=soft), key=jax.random.key(2), episodes=2)
    assert (report.ways, report.shots, report.queries) == (2, 3, 1)


def test_variable_ways_and_shots_are_stated_as_ranges_and_the_ways_of_each_episode():
    report = evaluated(IDENTITY, data.episodes(TABLE, ways=(2, 4), shots=(1, 3), queries=2))
    assert (report.ways, report.shots, report.queries) == ((2, 4), (1, 3), 2)
    assert set(report.per_episode["ways"]) == {2, 3, 4}


def test_regression_has_no_accuracy_and_an_interval_of_its_error():
    learner = learners.maml(models.mlp(), inner_optimizer=optax.sgd(0.01), loss_fn=losses.squared_error)
    sample = data.sinusoid(shots=5, queries=7)
    state = jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), sample(jax.random.key(1)))
    report = jmeta.evaluate(learner, state, sample, key=jax.random.key(2), episodes=20)
    assert (report.accuracy, report.ci95, report.ways, report.shots, report.queries) == (None, None, None, 5, 7)
    np.testing.assert_allclose(report.loss, report.per_episode["loss"].mean(), rtol=1e-6)
    assert report.loss_ci95 > 0
    assert str(report).startswith("mean squared error ")


def test_a_second_evaluation_does_not_trace_again():
    traces = []

    def predict(params, state, adapted, inputs):
        traces.append(1)
        return inputs[:, :3]

    protonet = learners.protonet(IDENTITY)
    learner = Learner(protonet.init, protonet.adapt, predict, protonet.loss)
    state = None
    for seed in (1, 2):
        sample = data.episodes(TABLE, ways=3, shots=1, queries=2)  # another sampler of the same episodes
        state = state or jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), sample(jax.random.key(1)))
        jmeta.evaluate(learner, state, sample, key=jax.random.key(seed), episodes=4)
        traces.append("done")
    assert traces[-1] == traces[-2] == "done"


def test_nothing_is_written_to_the_state():
    sample = data.episodes(TABLE, ways=3, shots=1, queries=3)
    learner = learners.protonet(models.mlp(hidden=(8,), outputs=None, norm="running"))
    state = jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), sample(jax.random.key(1)))
    before = jax.tree.map(jnp.copy, state.state)
    jmeta.evaluate(learner, state, sample, key=jax.random.key(2), episodes=4)
    jax.tree.map(np.testing.assert_array_equal, state.state, before)


@pytest.mark.parametrize(("episodes", "chunk", "at_once"), [(6, None, 3), (3, None, 2), (7, 2, 2)])
def test_episodes_divided_over_devices_are_the_same(monkeypatch, episodes, chunk, at_once):
    cached_protonet.cache_clear()  # whose episodes may be compiled already
    sizes, map_tasks = [], evaluation.map_tasks
    monkeypatch.setattr(evaluation, "map_tasks", lambda f, *batch: sizes.append(len(batch[0])) or map_tasks(f, *batch))
    sample = data.episodes(TABLE, ways=3, shots=1, queries=2)
    kept = jax.device_put(jax.random.PRNGKey(2), jax.devices()[1])  # a raw key, that lies on one of them
    one = evaluated(BATCH, sample, episodes=episodes)
    sizes.clear()
    options = {"episodes": episodes, "tasks_per_chunk": chunk, "devices": jax.devices(), "key": kept}
    two = evaluated(BATCH, sample, **options)
    assert sizes == [at_once]  # traced once, for what each of two devices does at a time, in two turns or more
    assert one.transductive == two.transductive
    chex.assert_trees_all_close(one.per_episode, two.per_episode, rtol=1e-5)


def test_a_prime_number_of_episodes_takes_as_few_chunks_as_another(monkeypatch):
    monkeypatch.setattr(batching, "largest_array", lambda *_: batching.CHUNK_BYTES["cpu"] // 4)
    evaluation._chunk_of_shapes.cache_clear()
    sizes = []

    def adapt(params, state, support, *, key=None):
        jax.debug.callback(lambda _: sizes.append(1), key)
        return learner.adapt(params, state, support)

    learner, sample = learners.protonet(IDENTITY), data.episodes(TABLE, ways=3, shots=1, queries=2)
    state = jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), sample(jax.random.key(1)))
    jmeta.evaluate(learner._replace(adapt=adapt), state, sample, key=jax.random.key(2), episodes=11)
    jax.effects_barrier()
    evaluation._chunk_of_shapes.cache_clear()
    assert len(sizes) == 4 * 4  # 11, the first 4 again with other queries blank, and one of padding


@pytest.mark.parametrize(
    ("name", "value"), [("episodes", 1), ("episodes", 4.0), ("tasks_per_chunk", 0), ("devices", ())]
)
def test_refuses_an_evaluation_that_cannot_be(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value}")):
        evaluated(IDENTITY, data.episodes(TABLE, ways=3, shots=1, queries=3), **{name: value})


def test_parameters_alone_are_refused_for_a_state():
    with pytest.raises(ValueError, match="state is of type dict; it must be a TrainState"):
        jmeta.evaluate(None, {}, None, key=jax.random.key(0))


def test_a_state_of_another_learner_is_told():
    sample = data.episodes(TABLE, ways=3, shots=1, queries=3)
    state = jmeta.init_state(learners.protonet(BATCH), optax.sgd(0.1), jax.random.key(0), sample(jax.random.key(1)))
    with pytest.raises(ValueError, match="the state is of another learner or model"):
        jmeta.evaluate(learners.maml(models.mlp(outputs=3)), state, sample, key=jax.random.key(0))


def test_what_is_no_learner_or_no_sampler_is_refused():
    learner, sample = learners.protonet(IDENTITY), data.episodes(TABLE, ways=3, shots=1, queries=3)
    state = jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), sample(jax.random.key(1)))
    with pytest.raises(ValueError, match="learner is of type NoneType"):
        jmeta.evaluate(None, state, sample, key=jax.random.key(0))
    with pytest.raises(ValueError, match="sample is None; it must be a function from a key to a Task"):
        jmeta.evaluate(learner, state, None, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"the task is of type tuple; it must be a jmeta\.Task"):
        jmeta.evaluate(learner, state, lambda key: (1, 2), key=jax.random.key(0))


def test_an_episode_without_a_real_example_is_refused():
    full = data.episodes(TABLE, ways=3, shots=1, queries=3)

    def sample(key):
        is_there = jax.random.bernoulli(key)
        parts = (part._replace(mask=part.mask * is_there) for part in full(key)[:2])
        return Task(*parts)

    learner = learners.protonet(IDENTITY)
    state = jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), full(jax.random.key(1)))
    with pytest.raises(ValueError, match=r"episode \d+ has no support example"):
        jmeta.evaluate(learner, state, sample, key=jax.random.key(2), episodes=20)


def test_an_episode_without_a_real_query_is_refused():
    learner = learners.maml(models.mlp(hidden=(4,)), inner_optimizer=optax.sgd(0.01), loss_fn=losses.squared_error)
    full = data.sinusoid(shots=5, queries=5)

    def sample(key):
        task = full(key)
        return task._replace(query=task.query._replace(mask=task.query.mask * jax.random.bernoulli(key)))

    state = jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), full(jax.random.key(1)))
    with pytest.raises(ValueError, match=r"episode \d+ has no query example"):
        jmeta.evaluate(learner, state, sample, key=jax.random.key(2), episodes=20)
    empty = full(jax.random.key(1))
    empty = empty._replace(query=empty.query._replace(mask=jnp.zeros_like(empty.query.mask)))
    with pytest.raises(ValueError, match=r"task\.query\.mask is zero everywhere"):
        jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), empty)


def test_what_else_is_measured_is_that_of_each_episode():
    def count(outputs, targets, mask):
        return (outputs.argmax(1) == targets.argmax(1)).sum()

    metrics = {
        "right": count,
        "calibration_error": losses.calibration_error,
        "size": lambda *labelled: len(labelled[2]),
    }
    sample, options = data.episodes(TABLE, ways=3, shots=1, queries=2), {"metrics": metrics, "tasks_per_chunk": 1}
    per_episode = evaluated(BATCH, sample, **options).per_episode
    assert set(per_episode["size"]) == {6}
    np.testing.assert_allclose(per_episode["right"] / 6, per_episode["accuracy"], rtol=1e-6)
    assert per_episode["calibration_error"].shape == (40,)


def test_a_gaussian_is_judged_by_its_mean_and_a_metric_is_given_it_whole():
    learner = learners.cnp(models.mlp(hidden=(), outputs=None), loss_fn=losses.gaussian_nll)
    sample = data.sinusoid(shots=3, queries=2)
    state = jmeta.init_state(learner, optax.sgd(0.1), jax.random.key(0), sample(jax.random.key(1)))
    metrics = {"nll": losses.gaussian_nll, "of mean": lambda outputs, *rest: losses.squared_error(outputs.mean, *rest)}
    report = jmeta.evaluate(learner, state, sample, key=jax.random.key(2), episodes=3, metrics=metrics)
    assert np.isfinite(report.per_episode["nll"]).all()
    np.testing.assert_allclose(report.per_episode["loss"], report.per_episode["of mean"], rtol=1e-5)


def test_a_metric_may_be_an_object_that_compares_by_arrays():
    @dataclasses.dataclass(frozen=True)
    class Weighted:
        weights: np.ndarray

        def __call__(self, outputs, targets, mask):
            return (self.weights * mask).sum()

    sample = data.episodes(TABLE, ways=3, shots=1, queries=2)
    report = evaluated(IDENTITY, sample, episodes=4, metrics={"weight": Weighted(np.full(6, 0.5))})
    np.testing.assert_array_equal(report.per_episode["weight"], 3)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": losses.cross_entropy}, "metrics has 'loss', a name that evaluation uses itself; rename it"),
        ({"mine": 0.5}, "mine is 0.5; it must be a function of outputs, targets and a mask"),
        ({"each": lambda *labelled: labelled[2]}, r"metrics has 'each', which gives .*\[6\].*; it must give a scalar"),
        (
            {"pair": lambda *labelled: {"one": 1.0}},
            "metrics has 'pair', which gives {'one': 1.0}; it must give a scalar",
        ),
        ([losses.accuracy], "metrics is of type list; it must be a dict of functions by their names"),
    ],
)
def test_what_is_no_metric_is_refused(metrics, message):
    with pytest.raises(ValueError, match=message):
        evaluated(IDENTITY, data.episodes(TABLE, ways=3, shots=1, queries=2), metrics=metrics)


def test_an_object_that_compares_by_arrays_is_a_sampler_like_any_other():
    @dataclasses.dataclass(frozen=True)
    class Sampler:
        table: np.ndarray

        def __call__(self, key):
            return sample(key)

    sample = data.episodes(TABLE, ways=3, shots=1, queries=3)
    one, other = (evaluated(IDENTITY, Sampler(np.ones(3)), episodes=4) for _ in range(2))
    np.testing.assert_array_equal(one.per_episode["loss"], other.per_episode["loss"])


def test_inputs_may_be_of_two_values():
    table = data.class_table(np.asarray(TABLE.inputs) > 0, np.repeat(np.arange(6), 10))
    assert evaluated(models.mlp(hidden=(8,), outputs=None), data.episodes(table, ways=3, shots=1, queries=3)).accuracy
