"""What every learner promises, in float64."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jmeta
from jmeta import checkpoints, data, learners, losses, models
from jmeta.checks import as_array, as_examples
from jmeta.functional.partition import in_layer, path_name
from jmeta.models.layers import Dense, Normalise
from jmeta.networks import apply_model, takes_mask
from jmeta.types import Examples, Model, Normalisation, Task

WAYS = 3
CALLS: list[tuple[bool, bool]] = []  # of networks as they are traced: whether in training, and whether with a key


def watched(model: Model) -> Model:
    """The model, whose calls are noted in `CALLS`."""

    @functools.wraps(model.apply)
    def apply(*arguments, train=False, key=None, **options):
        CALLS.append((train, key is not None))
        return model.apply(*arguments, train=train, key=key, **options)

    return model._replace(apply=apply)


def plain_model() -> Model:
    """Two functions and nothing else: no learner may assume Flax."""

    def init(key, inputs):
        return {"w": jax.random.normal(key, (inputs[0].size, WAYS)) / 5}, ()

    def apply(params, state, inputs, *, train=False, key=None):
        return jnp.tanh(inputs.reshape(len(inputs), -1)) @ params["w"], state

    return watched(Model(init, apply))


class TwoNorms(nn.Module):
    """A layer with running statistics, and one with those of the set."""

    norm: str = "batch"

    @nn.compact
    def __call__(self, x, train: bool = False, mask=None):
        for policy in ("running", "batch"):
            x = Normalise(policy)(nn.relu(Dense(4)(x)), train=train, mask=mask)
        return x


def two_norms():
    return watched(models.from_linen(TwoNorms()))


def conv4(outputs):
    return watched(models.conv4(outputs=outputs, width=4))


def mlp(**options):
    return watched(models.mlp(**{"outputs": WAYS, "norm": "layer"} | options))


def transformer(outputs):
    return watched(models.transformer(outputs, width=8, depth=1, heads=2))


def snail(outputs):
    return watched(models.snail(outputs, filters=4, attention=[(4, 3), (4, 3)], length=8))


def mann(outputs):
    return watched(models.mann(outputs, controller=6, slots=5, width=4, heads=2))


def reordered(model, order, size=1):
    """The model with its slots for labels, the first of its inputs, in another order, as rows of weights would be."""

    def tokens_reordered(leaf):
        if leaf.ndim == 1:  # a mask
            return leaf
        slots, rest = jnp.split(leaf, [WAYS * size], axis=1)
        slots = slots.reshape(-1, WAYS, size)[:, jnp.argsort(order)].reshape(slots.shape)
        return jnp.concatenate([slots, rest], axis=1)

    def apply(params, state, inputs, *, mask=None, train=False, key=None):
        inputs = jax.tree.map(tokens_reordered, inputs)
        return apply_model(model, params, state, inputs, mask=mask, train=train, key=key)

    return Model(model.init, apply)


def slots_in(network, order, size=1):
    """The network with its slots for labels and its outputs in another order."""

    def make(outputs):
        model = reordered(network(outputs), order, size)

        def apply(*args, mask=None, **options):
            values, state = model.apply(*args, mask=mask, **options)
            return values[:, order], state

        return Model(model.init, apply)

    return make


SUMMARY = models.mlp(hidden=(6,), outputs=4)  # not watched: a check of shapes calls it as `init` does


def decoder(outputs):
    return watched(models.mlp(hidden=(6,), outputs=outputs))


class Case(NamedTuple):
    learner: jmeta.Learner
    shape: tuple  # of one input
    head: str | None = None  # the layer with a column per class, of a learner that has one
    # Of a learner with a network that has slots for labels: (order) -> the learner with them in that order.
    slots_in: Callable | None = None
    ordered: bool = False  # whether the support set is a sequence to it
    exact: bool = True  # whether its meta-gradient is that of its loss


CASES = {
    "maml": Case(learners.maml(mlp(norm="batch"), inner_steps=2, inner_optimizer=optax.sgd(0.1)), (5,), "head"),
    "maml, conv4": Case(learners.maml(conv4(WAYS), inner_steps=2, inner_optimizer=optax.sgd(0.1)), (8, 8, 1), "head"),
    "maml, truncated": Case(
        learners.maml(plain_model(), inner_steps=3, meta_gradient="truncated", last_steps=2), (5,), "w", exact=False
    ),
    "fomaml": Case(learners.fomaml(mlp(norm="running")), (5,), "head", exact=False),
    "anil": Case(learners.anil(mlp()), (5,), "head"),
    "boil": Case(learners.boil(mlp()), (5,), "head"),
    "meta_sgd": Case(learners.meta_sgd(plain_model()), (5,), "w"),
    "meta_curvature": Case(learners.meta_curvature(mlp()), (5,), "head"),
    "reptile": Case(learners.reptile(mlp(norm="running"), inner_batch=None, test_steps=3), (5,), "head", exact=False),
    "in_context": Case(
        learners.in_context(mlp(outputs=None), sequence=transformer),
        (5,),
        slots_in=lambda order: learners.in_context(mlp(outputs=None), sequence=slots_in(transformer, order)),
    ),
    "imaml": Case(learners.imaml(plain_model(), inner_steps=4), (5,), "w", exact=False),
    "cavia": Case(learners.cavia(mlp(context=3)), (5,), "head"),
    "mann": Case(
        learners.mann(mlp(outputs=None), network=mann),
        (5,),
        slots_in=lambda order: learners.mann(mlp(outputs=None), network=slots_in(mann, order)),
        ordered=True,
    ),
    "cnp": Case(
        learners.cnp(mlp(outputs=None), summary=SUMMARY, decoder=decoder),
        (5,),
        slots_in=lambda order: learners.cnp(
            mlp(outputs=None), summary=reordered(SUMMARY, order), decoder=slots_in(decoder, order, size=4)
        ),
    ),
    "mamlpp": Case(learners.mamlpp(mlp(norm="running"), inner_steps=2, test_steps=4), (5,), "head", exact=False),
    "proto_maml": Case(
        learners.proto_maml(mlp(outputs=None, norm="batch"), inner_steps=2, meta_gradient="second_order"), (5,)
    ),
    "proto_maml, conv4": Case(learners.proto_maml(conv4(None), inner_steps=2), (8, 8, 1), exact=False),
    "matching": Case(learners.matching(mlp(outputs=None)), (5,)),
    "matching, full context": Case(
        learners.matching(
            mlp(outputs=4), support_context=models.bidirectional_lstm(), query_context=models.attention_lstm(steps=2)
        ),
        (5,),
        ordered=True,
    ),
    "relation, images": Case(
        learners.relation(
            watched(models.relation_encoder(width=3)), comparator=watched(models.relation_module(width=3, hidden=4))
        ),
        (8, 8, 1),
    ),
    "relation": Case(
        learners.relation(mlp(outputs=4, norm="running"), comparator=mlp(outputs=1, norm="running")), (5,)
    ),
    "siamese": Case(learners.siamese(mlp(outputs=None, norm="running")), (5,)),
    "protonet": Case(learners.protonet(mlp(outputs=None, norm="batch")), (5,)),
    "protonet, conv4": Case(learners.protonet(conv4(None)), (8, 8, 1)),
    "protonet, plain model": Case(learners.protonet(plain_model()), (5,)),
    "protonet, cosine": Case(
        learners.protonet(mlp(outputs=None, norm="running"), distance="cosine"),
        (5,),
    ),
    "protonet, mahalanobis": Case(learners.protonet(mlp(outputs=4), distance="mahalanobis"), (5,)),
    "protonet, support encoder": Case(learners.protonet(two_norms(), support_encoder=two_norms()), (5,)),
    "r2d2": Case(learners.r2d2(mlp(outputs=None, norm="running")), (5,)),
    "r2d2, plain model": Case(learners.r2d2(plain_model()), (5,)),
    "metaoptnet": Case(learners.metaoptnet(mlp(outputs=None)), (5,)),
    "logistic": Case(learners.logistic(mlp(outputs=None)), (5,)),
    "baseline": Case(learners.baseline(mlp(outputs=None, norm="running"), classes=7), (5,)),
    "baseline_pp": Case(learners.baseline_pp(mlp(outputs=None, norm="running"), classes=7), (5,)),
    "snail": Case(
        learners.snail(mlp(outputs=None), sequence=snail),
        (5,),
        slots_in=lambda order: learners.snail(mlp(outputs=None), sequence=slots_in(snail, order)),
        ordered=True,
    ),
}


def classification_task(key, shape, shots=2, queries=3):
    def examples(key, per_class):
        targets = jnp.repeat(jnp.eye(WAYS), per_class, axis=0)
        inputs = jax.random.normal(key, (WAYS * per_class, *shape))
        return Examples(inputs, targets, jnp.ones(WAYS * per_class))

    support, query = jax.random.split(key)
    return Task(examples(support, shots), examples(query, queries), jnp.arange(WAYS))


class Subject(NamedTuple):
    """A learner with its parameters, a task, and its functions compiled."""

    case: Case
    params: Any
    state: Any
    task: Task
    predictions: Any  # (params, support, query) -> outputs
    loss: Any  # (params, task) -> (loss, aux)
    traces: list  # one entry for each time `loss` was traced


def predictions_of(learner, state):
    @jax.jit
    def predictions(params, support, query):
        adapted = learner.adapt(params, state, support)
        return learner.predict(params, state, adapted, query.inputs, mask=query.mask)

    return predictions


# For what the others show, but for convolutions, for a model without Flax, or for another option.
LONG = {
    *("maml, conv4", "maml, truncated", "proto_maml, conv4", "protonet, conv4", "relation, images"),
    *("protonet, plain model", "r2d2, plain model", "protonet, cosine"),
}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in CASES]
)
def built(request):
    with jax.enable_x64(True):
        case = CASES[request.param]
        task = classification_task(jax.random.key(1), case.shape)
        params, state = jax.jit(case.learner.init)(jax.random.key(0), task)

        traces: list[None] = []

        @jax.jit
        def loss(params, task):
            traces.append(None)
            return case.learner.loss(params, state, task)

        return Subject(case, params, state, task, predictions_of(case.learner, state), loss, traces)


@pytest.fixture
def subject(built, x64):
    return built


def close(one, other, atol=1e-12):
    chex.assert_trees_all_close(one, other, atol=atol, rtol=min(atol, 1e-10))


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def test_the_same_inputs_give_the_same_outputs_without_a_retrace(subject):
    first = subject.loss(subject.params, subject.task)
    traces = len(subject.traces)
    second = subject.loss(subject.params, subject.task)
    assert len(subject.traces) == traces
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_examples_of_numpy_in_double_precision_are_taken_in_that_of_jax(subject):
    """A warning of JAX would be an error here."""
    learner = subject.case.learner
    task = jax.tree.map(np.asarray, subject.task)

    def loss_and_outputs(key):
        params, state = learner.init(key, task)
        adapted = learner.adapt(params, state, task.support, key=key)
        extra = {"mask": task.query.mask} if takes_mask(learner.predict) else {}
        outputs = learner.predict(params, state, adapted, task.query.inputs, **extra)
        return learner.loss(params, state, task, key=key)[0], outputs

    with jax.enable_x64(False):
        shapes = jax.eval_shape(loss_and_outputs, jax.random.key(0))
    assert [shape.dtype for shape in shapes] == [jnp.float32, jnp.float32]


def test_labels_in_place_of_one_hot_targets_are_refused_by_init(subject):
    support = subject.task.support._replace(targets=subject.task.support.targets.argmax(-1))
    with pytest.raises(ValueError, match=r"task.support.targets have shape \(.*,\); they must be \[K, N\] one-hot"):
        jax.eval_shape(subject.case.learner.init, jax.random.key(0), subject.task._replace(support=support))


def test_outputs_have_a_row_per_query_and_a_column_per_class(subject):
    outputs = subject.predictions(subject.params, subject.task.support, subject.task.query)
    assert outputs.shape == (len(subject.task.query.mask), WAYS)
    loss, (state, metrics) = subject.loss(subject.params, subject.task)
    assert loss.shape == ()
    assert set(metrics) == {"accuracy"}
    assert jax.tree.structure(state) == jax.tree.structure(subject.state)


def test_networks_are_in_training_in_the_loss_alone_and_draw_by_its_key_and_by_that_of_adapt(subject):
    learner, key = subject.case.learner, jax.random.key(0)
    task = classification_task(jax.random.key(1), subject.case.shape, shots=1, queries=2)  # not yet traced

    def calls_of(function, *arguments, **options):
        CALLS.clear()
        return jax.eval_shape(function, *arguments, **options), set(CALLS)

    _, in_loss = calls_of(learner.loss, subject.params, subject.state, task, key=key)
    adapted, in_adapt = calls_of(learner.adapt, subject.params, subject.state, task.support, key=key)
    _, in_predict = calls_of(learner.predict, subject.params, subject.state, adapted, task.query.inputs)
    assert (in_loss, in_adapt, in_predict) == ({(True, True)}, {(False, True)}, {(False, False)})


def test_the_loss_moves_all_running_statistics(subject):
    if not jax.tree.leaves(subject.state):
        pytest.skip("its network has none")
    _, (state, _) = subject.loss(subject.params, subject.task)
    for before, after in zip(*map(jax.tree.leaves, (subject.state, state)), strict=True):
        assert (before != after).all()


def test_vmap_over_tasks_gives_each_tasks_loss_and_outputs(subject):
    def loss_and_outputs(task):
        return subject.loss(subject.params, task)[0], subject.predictions(subject.params, task.support, task.query)

    keys = jax.random.split(jax.random.key(5), 3)
    tasks = [classification_task(key, subject.case.shape) for key in keys]
    together = jax.jit(jax.vmap(loss_and_outputs))(stacked(tasks))
    close(together, stacked(map(loss_and_outputs, tasks)), atol=1e-10)


def test_the_order_of_support_examples_changes_nothing(subject):
    if subject.case.ordered:
        pytest.skip("to this learner the support set is a sequence")
    order = jax.random.permutation(jax.random.key(2), len(subject.task.support.mask))
    shuffled = Examples(*(leaf[order] for leaf in subject.task.support))
    outputs = [
        subject.predictions(subject.params, support, subject.task.query) for support in (subject.task.support, shuffled)
    ]
    close(*outputs, atol=1e-10)


def test_permuted_labels_permute_the_outputs(subject):
    order = jnp.array([2, 0, 1])
    support = subject.task.support._replace(targets=subject.task.support.targets[:, order])
    outputs = subject.predictions(subject.params, subject.task.support, subject.task.query)
    if subject.case.slots_in is None:
        permuted = subject.predictions(permuted_head(subject, order), support, subject.task.query)
    else:
        permuted = predictions_of(subject.case.slots_in(order), subject.state)(
            subject.params, support, subject.task.query
        )
    close(permuted, outputs[:, order], atol=1e-10)


def permuted_head(subject, order):
    """The parameters with the axes of classes of the output layer, if there is one, in the order of the labels."""
    is_head = in_layer(subject.case.head)

    def permute(path, leaf):
        axes = [axis for axis, size in enumerate(leaf.shape) if size == WAYS and is_head(path_name(path))]
        return functools.reduce(lambda leaf, axis: jnp.take(leaf, order, axis), axes, leaf)

    return jax.tree_util.tree_map_with_path(permute, subject.params)


def test_a_class_without_examples_changes_nothing(subject):
    if subject.case.head is not None or subject.case.slots_in is not None:
        pytest.skip("the learner keeps the number of ways")
    wider = Task(*(part._replace(targets=jnp.pad(part.targets, ((0, 0), (0, 1)))) for part in subject.task[:2]))
    wider = wider._replace(class_ids=jnp.append(subject.task.class_ids, -1))
    outputs, expected = (subject.predictions(subject.params, *task[:2]) for task in (wider, subject.task))
    close(outputs[:, :WAYS], expected)
    assert (jax.nn.softmax(outputs)[:, WAYS] == 0).all()
    close(*(subject.loss(subject.params, task)[0] for task in (wider, subject.task)))


def padded(examples, rows):
    """The examples and `rows` rows of padding full of numbers that must not matter."""

    def pad(leaf, value):
        return jnp.concatenate([leaf, jnp.full((rows, *leaf.shape[1:]), value, leaf.dtype)])

    return Examples(pad(examples.inputs, 7.0), pad(examples.targets, 0.0), pad(examples.mask, 0.0))


def test_masked_padding_changes_nothing(subject):
    support, query = (padded(part, 2) for part in subject.task[:2])
    loss, (state, metrics) = subject.loss(subject.params, subject.task)
    close(subject.loss(subject.params, subject.task._replace(support=support, query=query)), (loss, (state, metrics)))
    outputs = subject.predictions(subject.params, subject.task.support, subject.task.query)
    close(subject.predictions(subject.params, support, query)[:-2], outputs)


def test_without_batch_statistics_one_query_knows_nothing_of_the_others(subject):
    if Normalisation("batch") in jax.tree.leaves(subject.state, is_leaf=lambda node: isinstance(node, Normalisation)):
        pytest.skip("statistics of the query set are what batch normalisation is")
    query = subject.task.query
    others = query._replace(inputs=query.inputs.at[1:].multiply(-3.0))
    one, other = (subject.predictions(subject.params, subject.task.support, queries) for queries in (query, others))
    np.testing.assert_array_equal(one[0], other[0])
    assert (one[1:] != other[1:]).any()


def test_a_class_that_is_not_there_gets_no_probability(subject):
    real = subject.task.support.targets[:, 2] == 0
    support = subject.task.support._replace(
        mask=real.astype(float), targets=subject.task.support.targets * real[:, None]
    )
    outputs = subject.predictions(subject.params, support, subject.task.query)
    assert (jax.nn.softmax(outputs)[:, 2] == 0).all()


def test_the_meta_gradient_is_finite_not_zero_and_the_slope_of_the_loss(subject):
    task = subject.task
    direction = jax.tree.map(lambda leaf: jnp.cos(1.0 + jnp.arange(leaf.size)).reshape(leaf.shape), subject.params)
    # With biases of zero a unit may be at the kink of ReLU, where a difference is no derivative: so all move a little.
    params = optax.tree.add_scale(subject.params, 0.01, direction)
    gradient = jax.jit(jax.grad(subject.loss, has_aux=True))(params, task)[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert optax.tree.norm(gradient) > 1e-6
    if subject.case.exact:
        above, below = (subject.loss(optax.tree.add_scale(params, step, direction), task)[0] for step in (1e-6, -1e-6))
        np.testing.assert_allclose(optax.tree.vdot(gradient, direction), (above - below) / 2e-6, rtol=1e-5)


@pytest.mark.long  # the compilation of functions for other shapes
def test_an_example_twice_at_half_its_weight_is_that_example_once(subject):
    if subject.case.ordered or subject.case.slots_in is not None:
        pytest.skip("this learner takes examples one by one")

    def first_twice(examples):
        inputs, targets = (jnp.concatenate([leaf[:1], leaf]) for leaf in examples[:2])
        return Examples(inputs, targets, jnp.concatenate([jnp.full(2, 0.5), examples.mask[1:]]))

    support, query = map(first_twice, subject.task[:2])
    outputs, expected = (subject.predictions(subject.params, *task[:2]) for task in ((support, query), subject.task))
    close(outputs[1:], expected, atol=1e-9)
    weighted = subject.task._replace(support=support, query=query)
    close(*(subject.loss(subject.params, task)[0] for task in (weighted, subject.task)), atol=1e-9)


@pytest.mark.long  # the compilation of two functions on two devices
def test_inside_shard_map_each_task_is_adapted_by_itself(subject, over_two_devices):
    """There, what a task's own gradient is taken in is the same on all devices, and the task is not."""
    tasks = jax.vmap(lambda key: classification_task(key, subject.case.shape))(jax.random.split(jax.random.key(5), 4))
    learner, state = subject.case.learner, subject.state

    def outputs(params, tasks):
        return jax.vmap(lambda task: predictions_of(learner, state)(params, task.support, task.query))(tasks)

    def loss(params, tasks):
        return jax.vmap(lambda task: learner.loss(params, state, task)[0])(tasks).mean()

    def on_devices(function, specs):
        return over_two_devices(function, (P(), P("tasks")), specs)

    close(on_devices(outputs, P("tasks"))(subject.params, tasks), outputs(subject.params, tasks), atol=1e-9)
    mean = on_devices(jax.grad(lambda params, tasks: jax.lax.pmean(loss(params, tasks), "tasks")), P())
    close(mean(subject.params, tasks), jax.jit(jax.grad(loss))(subject.params, tasks), atol=1e-9)


@pytest.mark.long  # the compilation of two meta-steps
def test_a_meta_step_as_an_accelerator_would_take_it_is_the_same(subject, as_an_accelerator_would):
    tasks = jax.vmap(lambda key: classification_task(key, subject.case.shape))(jax.random.split(jax.random.key(5), 2))

    def meta_step(params, tasks):
        state = jmeta.TrainState(params, subject.state, optax.sgd(1.0).init(()), jax.random.key(3), jnp.int32(0))
        after, metrics = jmeta.make_train_step(subject.case.learner, optax.sgd(1.0))(state, tasks)
        return after.params, after.state, metrics

    found = as_an_accelerator_would(meta_step, subject.params, tasks)
    close(found, jax.jit(meta_step)(subject.params, tasks), atol=1e-9)


@pytest.mark.long  # the compilation of two meta-steps
def test_a_meta_step_divided_over_devices_is_the_same(subject):
    batch = jax.vmap(lambda key: classification_task(key, subject.case.shape))(jax.random.split(jax.random.key(5), 3))
    optimizer = optax.sgd(1.0)
    state = jmeta.TrainState(subject.params, subject.state, optimizer.init(()), jax.random.key(3), jnp.int32(0))
    steps = [jmeta.make_train_step(subject.case.learner, optimizer, devices=d) for d in (None, jax.devices())]
    (one, metrics), (two, others) = (jax.jit(step)(state, batch) for step in steps)
    close((one.params, one.state, metrics), (two.params, two.state, others), atol=1e-10)


def test_a_train_state_survives_a_checkpoint_bit_for_bit(subject, tmp_path):
    opt_state = optax.adam(1e-3).init(subject.params)
    state = jmeta.TrainState(subject.params, subject.state, opt_state, jax.random.key(3), jnp.ones((), jnp.int32))
    checkpoints.save(tmp_path, state)
    others = jax.tree.map(lambda leaf: jnp.full_like(leaf, 7), state._replace(key=0))
    restored = checkpoints.restore(tmp_path, others._replace(key=jax.random.key(4)))
    chex.assert_trees_all_equal(jax.random.key_data(restored.key), jax.random.key_data(state.key))
    chex.assert_trees_all_equal(restored._replace(key=0), state._replace(key=0))


def test_every_learner_is_under_contract():
    assert {name.split(",")[0] for name in CASES} == set(learners.__all__)


def test_a_network_sees_inputs_and_mask_as_arrays_of_jax():
    def apply(params, state, inputs, *, mask, train, key):
        assert isinstance(inputs, jax.Array)
        return inputs.at[0].set(0) * jnp.ones_like(mask)[:, None], state

    with jax.enable_x64(False):
        outputs, _ = apply_model(Model(plain_model().init, apply), {}, (), np.ones((2, 3)), mask=np.ones(2))
    assert outputs.dtype == jnp.float32


def test_a_regression_of_numpys_examples_with_a_variance_is_taken_in_jaxs_precision():
    task = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), data.sinusoid()(jax.random.key(0)))
    learner = learners.cnp(mlp(outputs=None), loss_fn=losses.gaussian_nll)

    def loss_and_state(key):
        params, state = learner.init(key, task)
        learner.adapt(params, state, task.support)
        return learner.loss(params, state, task, key=key)

    with jax.enable_x64(False):
        loss, _ = jax.eval_shape(loss_and_state, jax.random.key(0))
    assert loss.dtype == jnp.float32


def test_a_regression_learner_reports_no_accuracy(x64):
    learner = learners.maml(models.mlp(), loss_fn=losses.squared_error)
    task = jmeta.data.sinusoid()(jax.random.key(0))
    params, state = learner.init(jax.random.key(1), task)
    _, (_, metrics) = learner.loss(params, state, task)
    assert metrics == {}


@pytest.mark.parametrize("model", [models.conv4(outputs=2, width=4), models.conv4(width=4)])
def test_a_model_that_is_not_as_wide_as_the_ways_is_refused(model):
    task = classification_task(jax.random.key(0), (8, 8, 1))
    with pytest.raises(ValueError, match="output width must be 3"):
        jmeta.init_state(learners.maml(model), optax.sgd(0.1), jax.random.key(0), task)


def test_a_class_with_queries_and_no_support_is_refused():
    task = classification_task(jax.random.key(0), (5,))
    support = task.support._replace(mask=task.support.mask.at[:2].set(0))
    with pytest.raises(ValueError, match="class 0 of the task has queries but no support example"):
        jmeta.init_state(
            learners.protonet(plain_model()), optax.sgd(0.1), jax.random.key(0), task._replace(support=support)
        )


def test_a_model_that_asks_for_the_mask_is_told_it_and_another_is_not():
    def told(params, state, inputs, *, train=False, key=None, mask=None):
        return mask, state

    def untold(params, state, inputs, *, train=False, key=None):
        return inputs, state

    mask = jnp.ones(2)
    wrapped = lambda *args, **options: told(*args, **options)  # noqa: E731
    for apply in (told, wrapped):
        assert apply_model(Model(None, apply), {}, (), jnp.zeros(2), mask=mask)[0] is mask
    assert apply_model(Model(None, untold), {}, (), jnp.zeros(2), mask=mask)[0].sum() == 0


@pytest.mark.parametrize("name", learners.__all__)
def test_what_is_no_model_is_refused(name):
    learner = functools.partial(getattr(learners, name), **{"classes": 9} if name.startswith("baseline") else {})
    task = data.glyphs()(jax.random.key(1))._replace(class_ids=jnp.arange(5))
    for model, kind in ((nn.Dense(3), "Dense"), (models.mlp, "function"), (None, "NoneType")):
        with pytest.raises(
            ValueError, match=f"model is of type {kind}; it must be a jmeta.Model, such as models.conv4"
        ):
            learner(model).init(jax.random.key(0), task)


@pytest.mark.parametrize("name", ["maml", "protonet"])
def test_bytes_are_to_adapt_and_predict_what_episodes_make_of_them(name):
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 1), np.uint8)
    sample = data.episodes(data.class_table(images, [0, 0, 0, 1, 1, 1]), ways=2, shots=1, queries=2)
    learner = getattr(learners, name)(models.mlp(hidden=(8,), outputs=2 if name == "maml" else None))
    task = sample(jax.random.key(0))
    params, state = learner.init(jax.random.key(1), task)
    raw = task.support._replace(inputs=jnp.round(255 * task.support.inputs).astype(jnp.uint8))
    expected = learner.predict(params, state, learner.adapt(params, state, task.support), images / np.float32(255))
    found = learner.predict(params, state, learner.adapt(params, state, raw), images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    trained = task._replace(support=raw)  # the query set as it was: the two may differ
    loss = learner.loss(params, state, task)[0]
    np.testing.assert_allclose(learner.loss(params, state, trained)[0], loss, rtol=1e-5)
    chex.assert_trees_all_equal(learner.init(jax.random.key(1), trained), (params, state))


def test_arrays_may_be_overwritten_as_soon_as_adapt_or_predict_has_returned():
    learner, rng = learners.protonet(models.mlp(hidden=(64,), outputs=None)), np.random.default_rng(0)
    examples = Examples(
        rng.normal(size=(500, 784)).astype(np.float32),
        np.eye(5, dtype=np.float32)[np.arange(500) % 5],
        np.ones(500, np.float32),
    )
    params, state = learner.init(jax.random.key(0), Task(examples, examples))
    expected = learner.adapt(params, state, Examples(*map(jnp.array, examples)))
    support = Examples(*map(np.copy, examples))
    found = learner.adapt(params, state, support)
    support.inputs[:] = 7
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not any(np.shares_memory(*pair) for pair in zip(as_examples("support", examples), examples, strict=True))
    queries = np.copy(examples.inputs)
    outputs = learner.predict(params, state, expected, queries)
    queries[:] = 7
    again = learner.predict(params, state, expected, jnp.asarray(examples.inputs))
    chex.assert_trees_all_close(outputs, again, rtol=1e-4, atol=1e-4)
    assert not np.shares_memory(as_array(queries), queries)


class Dropping(nn.Module):
    """A network that draws at random."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=False)(nn.relu(nn.Dense(8)(x))))


@pytest.mark.parametrize("name", ["maml", "mamlpp", "metaoptnet"])
def test_inside_shard_map_what_varies_may_be_the_key_or_the_inputs_alone(name, over_two_devices):
    if name == "metaoptnet":
        learner = learners.metaoptnet(models.mlp(hidden=(8,), outputs=None), solver_steps=3)
        task, varied = classification_task(jax.random.key(1), (5,)), jnp.arange(1.0, 3.0)
    else:
        options = {"inner_steps": 2, "loss_fn": losses.squared_error}
        learner = getattr(learners, name)(models.from_linen(Dropping()), **options)
        task, varied = data.sinusoid(shots=4, queries=4)(jax.random.key(1)), jax.random.split(jax.random.key(2), 2)
    params, state = learner.init(jax.random.key(0), task)

    def outputs(params, varied):
        def one(value):
            is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
            support = task.support if is_key else task.support._replace(inputs=value * task.support.inputs)
            adapted = learner.adapt(params, state, support, key=value if is_key else None)
            return jax.tree.leaves(adapted)

        return jax.vmap(one)(varied)

    apart = over_two_devices(outputs, (P(), P("tasks")), P("tasks"))
    chex.assert_trees_all_close(apart(params, varied), jax.jit(outputs)(params, varied), rtol=1e-5)


# In the suite one of each function that makes learners.
COMPILED = {"maml", "mamlpp", "relation", "protonet"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in COMPILED else [pytest.mark.long]) for name in CASES]
)
def test_adaptation_and_prediction_are_compiled_once_for_all_calls(name, caplog):
    learner, shape, *_ = CASES[name]
    first, second = (classification_task(jax.random.key(seed), shape) for seed in (0, 1))
    params, state = learner.init(jax.random.key(2), first)

    def predicted(task, seed):
        adapted = learner.adapt(params, state, task.support, key=jax.random.key(seed))
        return learner.predict(params, state, adapted, task.query.inputs, mask=task.query.mask)

    def compilations(*of):
        caplog.clear()
        with jax.log_compiles():
            predicted(*of)
        return [record for record in caplog.records if "ompil" in record.message]

    assert compilations(first, 0)
    assert not compilations(second, 1)


@pytest.mark.parametrize("name", ["maml", "protonet"])
def test_adaptation_and_prediction_can_be_stepped_through(name, x64):
    learner, shape, *_ = CASES[name]
    task = classification_task(jax.random.key(0), shape)
    params, state = learner.init(jax.random.key(2), task)

    def predicted():
        return learner.predict(params, state, learner.adapt(params, state, task.support), task.query.inputs)

    compiled = predicted()
    with jax.disable_jit():
        close(predicted(), compiled)


def test_lists_are_a_support_set_and_other_things_are_told_to_be_none():
    task = classification_task(jax.random.key(0), (5,))
    learner = learners.protonet(plain_model())
    params, state = learner.init(jax.random.key(1), task)
    listed = Examples(*(np.asarray(leaf).tolist() for leaf in task.support))
    close(learner.adapt(params, state, listed), learner.adapt(params, state, task.support), atol=1e-6)
    with pytest.raises(ValueError, match=r"support is of type tuple; it must be jmeta\.Examples"):
        learner.adapt(params, state, tuple(task.support))
