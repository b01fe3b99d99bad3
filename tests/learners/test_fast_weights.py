"""What each gradient-based learner is, against its own definition, in float64."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import jmeta
from jmeta import data, learners, losses, models
from jmeta.functional import HeadParams
from jmeta.functional.fast_weights import minibatches
from jmeta.functional.partition import join
from jmeta.learners.mamlpp import step_weights
from jmeta.learners.meta_curvature import curvature
from jmeta.types import Examples, Model, Task

RATE = 0.05
REGRESSION = {"loss_fn": losses.squared_error}
SGD = {"inner_optimizer": optax.sgd(RATE)}
TASK = data.sinusoid(shots=6, queries=5)


def mlp(**options):
    return models.mlp(hidden=(8, 8), **options)


@pytest.fixture
def task(x64):
    return TASK(jax.random.key(0))


def begin(learner, task):
    return learner.init(jax.random.key(2), task)


@functools.partial(jax.jit, static_argnums=0)
def meta_gradient(learner, params, state, task):
    return jax.grad(lambda params: learner.loss(params, state, task)[0])(params)


def support_gradient(model, params, state, examples):
    def loss(params):
        outputs, _ = model.apply(params, state, examples.inputs)
        return losses.squared_error(outputs, examples.targets, examples.mask)

    return jax.grad(loss)(params)


def close(one, other, atol=1e-12):
    chex.assert_trees_all_close(one, other, atol=atol, rtol=min(atol, 1e-10))


# MAML, its first order, and Reptile.


def test_one_step_of_maml_on_linear_regression_equals_the_formula(x64):
    """With L(w) = |Xw - y|^2 / K and w' = w - a dL/dw: (I - 2a X'X / K) times the query's gradient at w'."""
    rng = np.random.default_rng(0)
    support, query = (Examples(rng.normal(size=(k, 3)), rng.normal(size=(k, 1)), np.ones(k)) for k in (6, 4))
    w = rng.normal(size=(3, 1))

    def slope(w, examples):
        return 2 * examples.inputs.T @ (examples.inputs @ w - examples.targets) / len(examples.inputs)

    linear = Model(lambda key, inputs: (jnp.zeros((3, 1)), ()), lambda w, state, inputs, **_: (inputs @ w, state))
    learner = learners.maml(linear, inner_steps=1, **SGD, **REGRESSION)
    params, state = begin(learner, Task(support, query))
    params, fast = params._replace(model=w), w - RATE * slope(w, support)
    (loss, _), gradient = jax.value_and_grad(learner.loss, has_aux=True)(params, state, Task(support, query))
    close(loss, np.square(query.inputs @ fast - query.targets).mean())
    curvature = np.eye(3) - RATE * 2 * support.inputs.T @ support.inputs / 6
    close(gradient.model, curvature @ slope(fast, query))


def test_first_order_is_the_query_gradient_at_the_fast_weights(task):
    learner = learners.fomaml(mlp(), inner_steps=3, **SGD, **REGRESSION)
    params, state = begin(learner, task)
    fast = jax.jit(learner.adapt)(params, state, task.support).params
    close(meta_gradient(learner, params, state, task).model, support_gradient(mlp(), fast, state, task.query))


def test_fomaml_is_first_order_maml(task):
    fomaml = learners.fomaml(mlp(), inner_steps=3, **SGD, **REGRESSION)
    maml = learners.maml(mlp(), inner_steps=3, meta_gradient="first_order", **SGD, **REGRESSION)
    params, state = begin(maml, task)
    close(meta_gradient(fomaml, params, state, task), meta_gradient(maml, params, state, task), atol=0)


def test_reptiles_gradient_points_from_the_fast_weights_of_all_examples_to_the_start(task):
    learner = learners.reptile(mlp(), inner_steps=2, inner_batch=None, **SGD, **REGRESSION)
    params, state = begin(learner, task)
    both = Examples(*(jnp.concatenate(pair) for pair in zip(task.support, task.query, strict=True)))
    fast = params.model
    for _ in range(2):
        gradient = support_gradient(mlp(), fast, state, both)
        fast = jax.tree.map(lambda weight, slope: weight - RATE * slope, fast, gradient)
    close(meta_gradient(learner, params, state, task).model, optax.tree.sub(params.model, fast))


def test_an_outer_step_of_rate_one_ends_serial_reptile_at_the_fast_weights(task):
    learner = learners.reptile(mlp(), inner_steps=2, inner_batch=None, test_steps=None, **SGD, **REGRESSION)
    optimizer = optax.sgd(1.0)
    state = jmeta.init_state(learner, optimizer, jax.random.key(0), task)
    both = Examples(*(jnp.concatenate(pair) for pair in zip(task.support, task.query, strict=True)))
    fast = jax.jit(learner.adapt)(state.params, state.state, both).params
    after, _ = jax.jit(jmeta.make_train_step(learner, optimizer))(state, jax.tree.map(lambda leaf: leaf[None], task))
    close(after.params.model, fast)


def loops(function, *arguments):
    return "stablehlo.while" in jax.jit(function).lower(*arguments).as_text()


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (mlp(outputs=5), {"inner_steps": 5}, False),
        (mlp(outputs=5), {"inner_steps": 6}, True),
        (mlp(outputs=5), {"inner_steps": 5, "checkpoint": True}, True),
        (mlp(outputs=5), {"inner_steps": 5, "meta_gradient": "first_order"}, True),
        (mlp(outputs=5), {"inner_steps": 5, "meta_gradient": "implicit", "proximal": 1.0}, True),
        (models.mlp(hidden=(64,), outputs=5), {"inner_steps": 5}, True),
        (models.conv4(outputs=5, width=2, strided=True), {"inner_steps": 5}, True),
    ],
    ids=["few", "more", "checkpoint", "first order", "implicit", "large", "convolutions"],
)
def test_few_exact_steps_of_a_small_mlp_are_differentiated_without_a_loop(model, options, expected):
    task = data.glyphs(ways=5, shots=1, queries=1)(jax.random.key(0))
    learner = learners.maml(model, **SGD, **options)
    params, state = begin(learner, task)
    assert loops(jax.grad(learner.loss, has_aux=True), params, state, task) == expected
    assert loops(learner.adapt, params, state, task.support)


def test_minibatches_go_through_all_real_examples_before_any_comes_again():
    mask = jnp.array([1, 1, 0, 1, 1, 0, 1, 1])
    rows = minibatches(mask, steps=4, size=3, key=jax.random.key(0)).reshape(-1)
    assert sorted(rows[:6].tolist()) == sorted(rows[6:].tolist()) == [0, 1, 3, 4, 6, 7]
    assert rows[:6].tolist() != [0, 1, 3, 4, 6, 7]


def test_a_minibatch_has_no_example_twice_and_padding_changes_no_order():
    mask, key = jnp.ones(5), jax.random.key(1)
    larger = minibatches(mask, steps=3, size=10, key=key)
    assert all(sorted(row) == [0, 1, 2, 3, 4] for row in larger.tolist())
    padded = minibatches(jnp.concatenate([mask, jnp.zeros(3)]), steps=3, size=10, key=key)
    assert [[row for row in rows if row >= 0] for rows in padded.tolist()] == larger.tolist()
    between = jnp.array([0, 1, 1, 0, 1, 1, 0, 1])
    apart = np.flatnonzero(between)[minibatches(mask, steps=3, size=2, key=key)]
    assert minibatches(between, steps=3, size=2, key=key).tolist() == apart.tolist()


def test_minibatches_of_numpy_examples_are_taken_within_a_trace():
    task = jax.tree.map(np.asarray, TASK(jax.random.key(0)))
    learner = learners.reptile(mlp(), inner_batch=4, **REGRESSION)
    params, state = learner.init(jax.random.key(0), task)
    adapted = jax.eval_shape(lambda params: learner.adapt(params, state, task.support), params)
    assert jax.tree.structure(adapted.params) == jax.tree.structure(params.model)


def test_padding_changes_nothing_in_reptile_with_minibatches(task):
    learner = learners.reptile(mlp(), inner_batch=4, **SGD, **REGRESSION)
    params, state = begin(learner, task)
    padded = Examples(*(jnp.concatenate([leaf, 0 * leaf[:2]]) for leaf in task.query))
    losses = [learner.loss(params, state, task._replace(query=query), key=jax.random.key(0))[0]
              for query in (task.query, padded)]  # fmt: skip
    close(*losses)


@pytest.mark.parametrize("name", ["fomaml", "anil", "boil", "cavia", "meta_sgd", "meta_curvature"])
def test_an_inner_step_on_as_many_examples_as_there_are_is_one_on_all(task, name):
    model = mlp(context=3) if name == "cavia" else mlp()
    found = {}
    for size in (None, 2, 6):
        learner = getattr(learners, name)(model, inner_steps=2, inner_batch=size, **REGRESSION)
        params, state = begin(learner, task)
        found[size] = learner.adapt(params, state, task.support).params
    close(found[6], found[None], atol=1e-9)
    assert any(jax.tree.leaves(jax.tree.map(lambda one, other: bool((one != other).any()), found[2], found[None])))


def test_a_misspelt_option_is_refused_when_the_learner_is_made():
    with pytest.raises(TypeError, match="checkpont"):
        learners.maml(mlp(), checkpont=True)


def test_a_learned_rule_has_no_implicit_meta_gradient(task):
    learner = learners.meta_sgd(mlp(), meta_gradient="implicit", proximal=1.0, **REGRESSION)
    with pytest.raises(ValueError, match='rule has parameters of its own, but meta_gradient is "implicit"'):
        begin(learner, task)


def test_reptile_refuses_a_rule_it_could_not_learn(task):
    with pytest.raises(ValueError, match="inner_optimizer has meta-learned parameters, which Reptile cannot learn"):
        begin(learners.reptile(mlp(), inner_optimizer=curvature(0.1), **REGRESSION), task)


def test_labels_are_refused_for_targets_when_a_learner_adapts(task):
    labelled = task.support._replace(targets=jnp.arange(6))
    for learner in (learners.maml(mlp(), **REGRESSION), learners.mamlpp(mlp(), **REGRESSION)):
        params, state = begin(learner, task)
        with pytest.raises(ValueError, match=r"support.targets have shape \(6,\)"):
            learner.adapt(params, state, labelled)


def test_no_steps_at_test_are_the_meta_learned_model(task):
    learner = learners.imaml(mlp(), test_steps=0, **REGRESSION)
    params, state = begin(learner, task)
    close(learner.adapt(params, state, task.support, key=jax.random.key(0)).params, params.model, atol=0)


# What the inner loop moves.


@pytest.mark.parametrize(
    ("name", "moved"),
    [("maml", "Dense_0 Dense_1 head"), ("anil", "head"), ("boil", "Dense_0 Dense_1"), ("cavia", "context")],
)
def test_the_fast_weights_are_of_what_the_learner_moves(task, name, moved):
    model = mlp(context=3) if name == "cavia" else mlp()
    learner = getattr(learners, name)(model, **REGRESSION)
    params, state = begin(learner, task)
    fast = jax.jit(learner.adapt)(params, state, task.support).params
    assert {layer for layer, leaves in fast.items() if jax.tree.leaves(leaves)} == set(moved.split())


@pytest.mark.parametrize("name", ["anil", "boil", "cavia"])
def test_a_model_without_what_is_to_be_moved_is_refused(task, name):
    learner = getattr(learners, name)(mlp(), **REGRESSION, **({} if name == "cavia" else {"head": lambda path: False}))
    with pytest.raises(ValueError, match="their paths are Dense_0/bias"):
        begin(learner, task)


def test_a_context_starts_at_zero_whatever_its_parameter_holds(task):
    learner = learners.cavia(mlp(context=3), **REGRESSION)
    params, state = begin(learner, task)
    other = params._replace(model={**params.model, "context": jnp.ones(3)})
    close(learner.loss(params, state, task)[0], learner.loss(other, state, task)[0], atol=0)
    assert (meta_gradient(learner, other, state, task).model["context"] == 0).all()


# What the rule learns.


def test_meta_sgd_scales_each_gradient_by_its_own_rate(task):
    learner = learners.meta_sgd(mlp(), **REGRESSION)
    params, state = begin(learner, task)
    rates = jax.tree.map(lambda leaf: jnp.linspace(-0.1, 0.1, leaf.size).reshape(leaf.shape), params.rule)
    fast = jax.jit(learner.adapt)(params._replace(rule=rates), state, task.support).params
    gradient = support_gradient(mlp(), params.model, state, task.support)
    close(fast, jax.tree.map(lambda weight, rate, slope: weight - rate * slope, params.model, rates, gradient))


def test_meta_curvature_multiplies_each_axis_of_a_gradient_by_a_matrix(x64):
    rng = np.random.default_rng(0)
    params = {"bias": jnp.zeros(4), "dense": jnp.zeros((3, 4)), "kernel": jnp.zeros((2, 3, 4, 5))}

    def inner(w):
        return sum((jnp.asarray(slope) * leaf).sum() for slope, leaf in zip(slopes, jax.tree.leaves(w), strict=True))

    slopes = [rng.normal(size=leaf.shape) for leaf in jax.tree.leaves(params)]
    model = Model(lambda key, inputs: (params, ()), lambda w, state, inputs, **_: (inner(w) + 0 * inputs, state))
    learner = learners.meta_curvature(model, inner_rate=1.0, loss_fn=lambda outputs, targets, mask: outputs.sum())
    support = Examples(jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.ones(1))
    meta, state = learner.init(jax.random.key(0), jmeta.Task(support, support))
    matrices = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), meta.rule)
    fast = jax.jit(learner.adapt)(meta._replace(rule=matrices), state, support).params
    factors, (left, right), (window, inputs, outputs) = (matrices[name] for name in params)
    close(fast["bias"], -factors * slopes[0])
    close(fast["dense"], -left @ slopes[1] @ right.T)
    expected = np.einsum("pq,ij,kl,qjl->pik", window, inputs, outputs, slopes[2].reshape(6, 4, 5))
    close(fast["kernel"], -expected.reshape(2, 3, 4, 5))


@pytest.mark.parametrize("name", ["meta_sgd", "meta_curvature"])
def test_a_learned_rule_starts_as_maml(task, name):
    learner = getattr(learners, name)(mlp(), inner_rate=RATE, inner_steps=2, **REGRESSION)
    maml = learners.maml(mlp(), inner_steps=2, **SGD, **REGRESSION)
    params, state = begin(learner, task)
    close(learner.loss(params, state, task)[0], maml.loss(params._replace(rule=()), state, task)[0])


def test_imaml_is_maml_with_an_implicit_meta_gradient(task):
    options = {"inner_steps": 4, **SGD, **REGRESSION}
    for given in ({"proximal": 2.0, "damping": 22.0}, {"proximal": 3.0, "damping": 1.0, "cg_steps": 2}):
        imaml = learners.imaml(mlp(), **(given if "cg_steps" in given else {}), **options)
        maml = learners.maml(mlp(), meta_gradient="implicit", **given, **options)
        params, state = begin(imaml, task)
        close(meta_gradient(imaml, params, state, task), meta_gradient(maml, params, state, task), atol=0)


# MAML++.


def mamlpp(**options):
    return learners.mamlpp(
        mlp(norm="running"), **{"inner_steps": 3, "inner_rate": RATE, "first_order_until": 0} | options, **REGRESSION
    )


def test_mamlpp_with_a_loss_at_the_last_step_alone_is_maml(task):
    learner = learners.mamlpp(mlp(), inner_rate=RATE, multi_step_until=0, first_order_until=0, **REGRESSION)
    maml = learners.maml(mlp(), inner_steps=5, **SGD, **REGRESSION)
    params, state = begin(learner, task)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: learner.loss(p, state, task)[0]))(params)
    expected = jax.jit(jax.value_and_grad(lambda p: maml.loss(p, state.model, task)[0]))(begin(maml, task)[0])
    close((value, gradient.model), (expected[0], expected[1].model))


@pytest.mark.parametrize(("meta_step", "norm", "passes"), [(0, "none", 3), (9, "none", 1), (9, "running", 3)])
def test_mamlpp_passes_queries_through_the_network_when_a_loss_or_statistics_need_it(task, meta_step, norm, passes):
    network, calls = mlp(norm=norm), []

    def apply(params, state, inputs, **options):
        if len(inputs) == len(task.query.mask):
            jax.debug.callback(lambda _: calls.append(1), inputs[0, 0])
        return network.apply(params, state, inputs, **options)

    learner = learners.mamlpp(network._replace(apply=apply), inner_steps=3, multi_step_until=9, **REGRESSION)
    params, state = begin(learner, task)
    jax.jit(learner.loss)(params, state._replace(meta_step=jnp.int32(meta_step)), task)
    jax.effects_barrier()
    assert len(calls) == passes


def test_norms_of_mamlpp_must_leave_parameters_that_move(task):
    learner = learners.mamlpp(mlp(), norms=lambda path: True, **REGRESSION)
    with pytest.raises(ValueError, match="norms chooses every parameter of the model; some must be left"):
        learner.init(jax.random.key(0), task)


def test_the_order_of_mamlpp_changes_at_its_meta_step(task):
    annealed = mamlpp(first_order_until=1)
    params, state = begin(annealed, task)
    before, after = (
        meta_gradient(annealed, params, state._replace(meta_step=jnp.int32(step)), task).model for step in (0, 1)
    )
    first, second = (
        meta_gradient(mamlpp(first_order_until=until), params, state._replace(meta_step=jnp.int32(step)), task).model
        for until, step in ((9, 0), (0, 1))
    )
    close((before, after), (first, second), atol=0)
    assert optax.tree.norm(optax.tree.sub(before, after)) > 1e-3


@pytest.mark.parametrize(
    ("annealed", "modes"),
    [
        ({}, [("reverse", False), ("mixed", True), ("reverse", True)]),
        ({"first_order_until": 9}, [("mixed", True)]),
        ({"multi_step_until": 0}, [("mixed", True)]),
        *(
            pytest.param(annealed, [("reverse", False), ("reverse", True)], marks=pytest.mark.long)
            for annealed in ({"first_order_until": 9}, {"multi_step_until": 0})
        ),
    ],
)
def test_every_mode_of_mamlpp_is_the_same_meta_gradient(task, annealed, modes):
    learner, key = mamlpp(**annealed), jax.random.key(3)
    params, state = begin(learner, task)

    def gradient(**options):
        subject = mamlpp(**annealed, **options)
        return jax.jit(jax.grad(lambda params: subject.loss(params, state, task, key=key)[0]))(params)

    expected = gradient()
    for differentiation, checkpoint in modes:
        close(gradient(differentiation=differentiation, checkpoint=checkpoint), expected, atol=1e-10)


def test_a_checkpointed_mamlpp_stores_less(task):
    def temporary_bytes(checkpoint):
        learner = mamlpp(inner_steps=20, checkpoint=checkpoint)
        params, state = begin(learner, task)
        gradient = jax.jit(lambda params: meta_gradient(learner, params, state, task))
        return gradient.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(checkpoint=True) < 0.75 * temporary_bytes(checkpoint=False)


def test_the_weights_of_the_losses_sum_to_one_and_end_at_the_last_step(x64):
    weights = jnp.stack([step_weights(jnp.int32(step), 5, 100) for step in range(101)])
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
    assert (jnp.diff(weights[:, -1]) >= 0).all()
    np.testing.assert_allclose(weights[0], 0.2, rtol=1e-12)
    # What no weight falls below, as in the authors' code.
    np.testing.assert_allclose(weights[99, 0], 0.03 / 5, rtol=1e-12)
    np.testing.assert_array_equal(weights[-1], [0, 0, 0, 0, 1])


def test_each_inner_step_has_its_own_statistics_and_each_meta_step_is_counted(task):
    learner = mamlpp()
    params, state = begin(learner, task)
    _, (state, _) = learner.loss(params, state, task)
    assert state.meta_step == 1
    means = state.model["batch_stats"]["Normalise_0"]["mean"]
    assert means.shape == (3, 8)
    assert not np.allclose(means[0], means[2])


def test_mamlpp_adapts_with_the_rates_norms_and_statistics_of_each_step(task):
    model = models.mlp(hidden=(8,), norm="running")
    learner = learners.mamlpp(model, inner_steps=2, **REGRESSION)
    params, state = jax.tree.map(
        lambda leaf: leaf * jnp.linspace(0.5, 1.5, leaf.size).reshape(leaf.shape), begin(learner, task)
    )

    def at(step, tree):
        return jax.tree.map(lambda leaf: leaf[step], tree)

    def outputs(step, fast, inputs):
        return model.apply(join(fast, at(step, params.norms)), at(step, state.model), inputs)[0]

    def loss(fast, step):
        return losses.squared_error(outputs(step, fast, task.support.inputs), task.support.targets, task.support.mask)

    fast = params.model
    for step in range(2):
        slope = jax.grad(loss)(fast, step)
        fast = jax.tree.map(lambda leaf, rate, slope: leaf - rate * slope, fast, at(step, params.rates), slope)
    adapted = learner.adapt(params, state, task.support)
    close(adapted.params, fast)
    close(learner.predict(params, state, adapted, task.query.inputs), outputs(1, fast, task.query.inputs))


def test_mamlpp_by_its_last_steps_loss_is_first_order_maml_until_the_order_changes(task):
    learner = learners.mamlpp(mlp(), inner_steps=3, inner_rate=RATE, multi_step_until=0, **REGRESSION)
    fomaml = learners.fomaml(mlp(), inner_steps=3, **SGD, **REGRESSION)
    params, state = begin(learner, task)
    start, start_state = begin(fomaml, task)
    expected = meta_gradient(fomaml, start._replace(model=params.model), start_state, task)
    close(meta_gradient(learner, params, state, task).model, expected.model)


def test_steps_beyond_training_use_the_last_steps_rates_norms_and_statistics(task):
    trained, longer = mamlpp(), mamlpp(test_steps=5)
    params, state = begin(trained, task)
    _, (state, _) = trained.loss(params, state, task)
    repeated = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[-1:], leaf[-1:]]), (params[1:], state.model))
    five = mamlpp(inner_steps=5)
    adapted = longer.adapt(params, state, task.support)
    expected = five.adapt(params._replace(norms=repeated[0][0], rates=repeated[0][1]),
                          state._replace(model=repeated[1]), task.support)  # fmt: skip
    close(adapted, expected)


# Proto-MAML.


CHARACTERS = data.glyphs(ways=3, shots=2, queries=2)


def test_proto_maml_without_steps_is_a_prototypical_network(x64):
    task = CHARACTERS(jax.random.key(0))
    encoder = models.mlp(hidden=(6,), outputs=None)
    learner, protonet = learners.proto_maml(encoder, inner_steps=0), learners.protonet(encoder)
    params, state = begin(learner, task)
    adapted = learner.adapt(params, state, task.support)
    encoder_params = HeadParams(params.model, {})
    expected = protonet.predict(
        encoder_params, state, protonet.adapt(encoder_params, state, task.support), task.query.inputs
    )
    outputs = learner.predict(params, state, adapted, task.query.inputs)
    close(jax.nn.softmax(outputs), jax.nn.softmax(expected))


def test_proto_maml_descends_from_the_prototypes_and_learns_through_them(x64):
    task = CHARACTERS(jax.random.key(0))
    encoder = models.mlp(hidden=(6,), outputs=None)
    learner = learners.proto_maml(encoder, inner_steps=2, **SGD)
    params, state = begin(learner, task)

    def start(weights):
        features, _ = encoder.apply(weights, state, task.support.inputs)
        points = task.support.targets.T @ features / 2  # of two shots
        return weights, 2 * points.T, -jnp.square(points).sum(-1)

    def loss(fast, examples):
        weights, kernel, bias = fast
        outputs = encoder.apply(weights, state, examples.inputs)[0] @ kernel + bias[None]
        return -(examples.targets * jax.nn.log_softmax(outputs)).sum(-1).mean()

    def descended(weights):
        fast = start(weights)
        for _ in range(2):
            slopes = jax.lax.stop_gradient(jax.grad(loss)(fast, task.support))
            fast = jax.tree.map(lambda leaf, slope: leaf - RATE * slope, fast, slopes)
        return fast

    close(tuple(learner.adapt(params, state, task.support).params), descended(params.model))
    expected = jax.grad(lambda weights: loss(descended(weights), task.query))(params.model)
    close(meta_gradient(learner, params, state, task).model, expected)


def test_proto_maml_of_half_precision_starts_at_finite_weights():
    inputs = 7 + jax.random.normal(jax.random.key(0), (4, 1600), jnp.float16)
    examples = Examples(inputs, jnp.repeat(jnp.eye(2, dtype=jnp.float16), 2, axis=0), jnp.ones(4, jnp.float16))
    learner = learners.proto_maml(models.mlp(hidden=(), outputs=None), test_steps=0)
    params, state = learner.init(jax.random.key(1), jmeta.Task(examples, examples))
    outputs = learner.predict(params, state, learner.adapt(params, state, examples), inputs)
    np.testing.assert_array_equal(outputs.argmax(1), [0, 0, 1, 1])


def test_proto_maml_refuses_a_loss_that_is_not_over_classes():
    with pytest.raises(ValueError, match="loss_fn is not over classes"):
        learners.proto_maml(mlp(outputs=None), **REGRESSION)


# All of them.

BY_RATE = ("meta_sgd", "meta_curvature", "mamlpp")  # which take a rate in place of an optimizer
NAMES = ("maml", "fomaml", "anil", "boil", "reptile", "imaml", "cavia", "proto_maml", *BY_RATE)


@pytest.mark.parametrize("name", NAMES)
def test_more_steps_at_test_than_in_training_lower_the_support_loss_and_leave_the_loss_as_it_is(x64, name):
    over_classes = name == "proto_maml"
    loss_fn, sample = (losses.cross_entropy, CHARACTERS) if over_classes else (losses.squared_error, TASK)
    model = mlp(outputs=None) if over_classes else mlp(context=3 if name == "cavia" else 0)
    rate = {"inner_rate": 0.01} if name in BY_RATE else {"inner_optimizer": optax.sgd(0.01)}
    task = sample(jax.random.key(0))
    few, many = (
        getattr(learners, name)(model, inner_steps=2, test_steps=steps, loss_fn=loss_fn, **rate) for steps in (2, 20)
    )
    params, state = begin(few, task)

    def support_loss(learner):
        adapted = learner.adapt(params, state, task.support)
        outputs = learner.predict(params, state, adapted, task.support.inputs)
        return loss_fn(outputs, task.support.targets, task.support.mask)

    assert support_loss(many) < support_loss(few)
    close(*jax.jit(lambda params: [learner.loss(params, state, task)[0] for learner in (few, many)])(params))


@pytest.mark.parametrize("name", ["maml", "reptile"])
def test_a_key_chooses_the_examples_of_each_minibatch(task, name):
    learner = getattr(learners, name)(mlp(), inner_steps=1, test_steps=1, inner_batch=2, **SGD, **REGRESSION)
    params, state = begin(learner, task)
    found = [learner.adapt(params, state, task.support, key=key).params for key in jax.random.split(jax.random.key(0))]
    assert optax.tree.norm(optax.tree.sub(*found)) > 1e-3


@pytest.mark.parametrize("name", ["maml", "anil", "boil"])
def test_inside_shard_map_each_device_adapts_to_its_own_tasks(x64, over_two_devices, name):
    learner = getattr(learners, name)(mlp(), inner_steps=2, **SGD, **REGRESSION)
    tasks = jax.vmap(TASK)(jax.random.split(jax.random.key(0), 2))
    params, state = begin(learner, jax.tree.map(lambda leaf: leaf[0], tasks))

    def mean_loss(params, tasks):
        return jax.vmap(lambda task: learner.loss(params, state, task)[0])(tasks).mean()

    divided = over_two_devices(
        jax.grad(lambda params, tasks: jax.lax.pmean(mean_loss(params, tasks), "tasks")),
        (PartitionSpec(), PartitionSpec("tasks")),
        PartitionSpec(),
    )
    close(divided(params, tasks), jax.jit(jax.grad(mean_loss))(params, tasks))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("option", "message"),
    [({"inner_steps": -1}, "inner_steps is -1"), ({"test_steps": -2}, "test_steps is -2")],
)
def test_a_negative_number_of_steps_is_refused(name, option, message):
    with pytest.raises(ValueError, match=message):
        getattr(learners, name)(mlp(), **option)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (learners.maml, {"inner_batch": 0}, "inner_batch is 0"),
        (learners.maml, {"inner_batch": 2, "meta_gradient": "implicit", "proximal": 1.0}, "inner_batch is 2"),
        (learners.meta_sgd, {"inner_rate": 0.0}, "inner_rate is 0.0"),
        (learners.meta_curvature, {"inner_rate": -1.0}, "inner_rate is -1.0"),
        (learners.mamlpp, {"inner_rate": float("nan")}, "inner_rate is nan"),
        (learners.mamlpp, {"inner_steps": 0}, "inner_steps is 0"),
        (learners.mamlpp, {"differentiation": "forward"}, "differentiation is 'forward'"),
        (learners.mamlpp, {"multi_step_until": -1}, "multi_step_until is -1"),
        (learners.imaml, {"proximal": 0.0}, "proximal is 0.0"),
        (learners.maml, {"inner_optimizer": 0.1}, "inner_optimizer is 0.1; it must be an optax transformation"),
        (learners.maml, {"loss_fn": "mse"}, "loss_fn is 'mse'; it must be a function (outputs, targets, mask)"),
        (learners.anil, {"head": "head"}, "head is 'head'; it must be a function from a path"),
        (learners.boil, {"head": "head"}, "head is 'head'; it must be a function from a path"),
        (learners.cavia, {"context": "context"}, "context is 'context'; it must be a function from a path"),
        (learners.mamlpp, {"norms": "norm"}, "norms is 'norm'; it must be a function from a path"),
    ],
)
def test_refuses_what_no_learner_can_do(factory, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        factory(mlp(), **options)
