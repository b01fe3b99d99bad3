"""States, meta-steps and loops of them."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jmeta
from jmeta import data, learners, losses, models, training
from jmeta.types import Examples, Task

SAMPLE = data.sinusoid(shots=5, queries=5)
OPTIMIZER = optax.adam(1e-3)
LEARNER = learners.maml(models.mlp(hidden=(8,)), inner_optimizer=optax.sgd(0.01), loss_fn=losses.squared_error)
META_GRADIENT = jax.jit(jax.grad(LEARNER.loss, has_aux=True))


def batch(tasks=8):
    return jax.vmap(SAMPLE)(jax.random.split(jax.random.key(1), tasks))


@functools.cache
def compiled_step(chunk=None):
    return jax.jit(jmeta.make_train_step(LEARNER, OPTIMIZER, tasks_per_chunk=chunk))


def single(tasks):
    """The tasks of a batch, one by one."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tasks) for i in range(len(tasks.query.mask))]


def begin(subject=LEARNER, **options):
    return jmeta.init_state(subject, OPTIMIZER, jax.random.key(0), SAMPLE(jax.random.key(1)), **options)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_state_is_the_same_made_alone_by_vmap_or_inside_a_jit():
    make = functools.partial(jmeta.init_state, LEARNER, OPTIMIZER, task=SAMPLE(jax.random.key(1)))
    keys = jax.random.split(jax.random.key(0), 2)
    alone = make(keys[0]).params
    vmapped, jitted, inside = jax.vmap(make)(keys), jax.jit(jax.vmap(make))(keys), jax.jit(lambda: make(keys[0]))()
    for params in (*(jax.tree.map(lambda leaf: leaf[0], many.params) for many in (vmapped, jitted)), inside.params):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), params, alone)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_every_chunking_gives_the_same_step(x64, chunk):
    state, tasks = begin(), batch(5)  # which the last two do not divide
    whole, metrics = compiled_step(100)(state, tasks)
    parts, others = compiled_step(chunk)(state, tasks)
    chex.assert_trees_all_close((whole.params, metrics), (parts.params, others), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("tasks", "chunk"), [(8, None), (5, 2), (1, None)])
def test_a_step_divided_over_devices_is_the_same_for_any_number_of_tasks(x64, tasks, chunk):
    divided = jax.jit(jmeta.make_train_step(LEARNER, OPTIMIZER, tasks_per_chunk=chunk, devices=jax.devices()))
    state, tasks = begin(), bad_tasks(batch(tasks), 3)
    one, metrics = compiled_step(100)(state, tasks)
    two, others = divided(state, tasks)
    chex.assert_trees_all_close((one.params, metrics), (two.params, others), rtol=1e-10, atol=1e-12)
    assert len(two.step.devices()) == len(jax.devices()) > 1


def test_tasks_are_vmapped_as_many_at_a_time_as_one_asks(monkeypatch):
    sizes, summed = [], training.sum_over_chunks
    monkeypatch.setattr(training, "sum_over_chunks", lambda *args: sizes.append(args[2]) or summed(*args))
    jax.eval_shape(jmeta.make_train_step(LEARNER, OPTIMIZER, tasks_per_chunk=3), begin(), batch(6))
    assert set(sizes) == {3}


def test_a_step_is_the_mean_gradient_over_tasks_and_one_update(x64):
    optimizer = optax.sgd(0.1)
    state, tasks = begin()._replace(opt_state=optimizer.init({})), batch(3)
    after, _ = jax.jit(jmeta.make_train_step(LEARNER, optimizer))(state, tasks)
    gradients = [META_GRADIENT(state.params, state.state, task)[0] for task in single(tasks)]
    expected = jax.tree.map(lambda p, *g: p - 0.1 * sum(g) / 3, state.params, *gradients)
    chex.assert_trees_all_close(after.params, expected, rtol=1e-10, atol=1e-12)
    assert after.step == 1


def test_running_statistics_are_the_mean_over_tasks(x64):
    subject = learners.protonet(models.mlp(hidden=(4,), outputs=None, norm="running"))
    sample = data.glyphs(ways=2, shots=1, queries=1)
    tasks = jax.vmap(sample)(jax.random.split(jax.random.key(1), 5))
    state = jmeta.init_state(subject, OPTIMIZER, jax.random.key(0), sample(jax.random.key(1)))
    loss = jax.jit(subject.loss)
    states = [loss(state.params, state.state, task)[1][0] for task in single(tasks)]
    expected = jax.tree.map(lambda *leaves: sum(leaves) / 5, *states)
    for options in ({"tasks_per_chunk": 3}, {"devices": jax.devices()}):
        after, _ = jax.jit(jmeta.make_train_step(subject, OPTIMIZER, **options))(state, tasks)
        chex.assert_trees_all_close(after.state, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("devices", [None, jax.devices()])
def test_a_step_compiles_once(devices):
    chex.clear_trace_counter()
    train_step = jmeta.make_train_step(LEARNER, OPTIMIZER, devices=devices)
    step = jax.jit(chex.assert_max_traces(train_step, n=1), donate_argnums=0)
    state = begin(devices=devices)
    for seed in range(3):
        tasks = jax.vmap(SAMPLE)(jax.random.split(jax.random.key(seed), 4))
        state, _ = step(state, tasks)
    assert state.step == 3


def test_the_trace_of_the_loss_by_init_serves_the_choice_of_a_chunk_and_the_gradient():
    traces, network = [], models.mlp(hidden=(8,))

    def apply(*arguments, **keywords):
        traces.append(1)
        return network.apply(*arguments, **keywords)

    learner = learners.maml(network._replace(apply=apply), loss_fn=losses.squared_error)
    state, once = begin(learner), len(traces)
    tasks = jax.vmap(SAMPLE)(jax.random.split(jax.random.key(0), 5))
    for options in ({}, {"tasks_per_chunk": 2}, {"devices": jax.devices()}):
        jax.jit(jmeta.make_train_step(learner, OPTIMIZER, **options)).trace(state, tasks)
    assert 0 < once == len(traces)


def test_a_second_state_of_the_same_functions_compiles_nothing():
    traces = []

    def init(*arguments):
        traces.append(1)
        return LEARNER.init(*arguments)

    learner = LEARNER._replace(init=init)
    for rate in (0.1, 0.2):
        jmeta.init_state(learner, optax.adam(rate), jax.random.key(0), SAMPLE(jax.random.key(1)))
    assert len(traces) == 1


def test_a_network_in_half_precision_keeps_it_in_a_loop():
    half = models.from_linen(nn.Dense(1, param_dtype=jnp.bfloat16))
    learner = learners.maml(half, inner_optimizer=optax.sgd(0.01), loss_fn=losses.squared_error)
    loop = jmeta.make_train_loop(jmeta.make_train_step(learner, OPTIMIZER), SAMPLE, batch_size=2, steps=2)
    state, metrics = jax.jit(loop)(begin(learner))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    assert np.isfinite(metrics["loss"]).all()


@pytest.mark.parametrize("part", ["support", "query"])
def test_labels_are_refused_for_targets(part):
    task = data.glyphs(ways=2, shots=1, queries=1)(jax.random.key(0))
    labelled = getattr(task, part)._replace(targets=jnp.arange(2))
    learner = learners.protonet(models.mlp(outputs=None))
    with pytest.raises(ValueError, match=rf"task.{part}.targets have shape \(2,\); they must be \[K, N\] one-hot"):
        jmeta.init_state(learner, OPTIMIZER, jax.random.key(0), task._replace(**{part: labelled}))


def test_a_batch_is_refused_for_a_task_and_a_task_for_a_batch():
    with pytest.raises(ValueError, match=r"task.support has inputs of shape \(3, 5, 1\).*; for one task they must be"):
        jmeta.init_state(LEARNER, OPTIMIZER, jax.random.key(0), batch(3))
    with pytest.raises(ValueError, match=r"tasks is of type list; a step takes one jmeta\.Task whose arrays"):
        compiled_step()(begin(), [SAMPLE(jax.random.key(1))])
    for tasks in (SAMPLE(jax.random.key(1)), jax.tree.map(lambda leaf: leaf[:0], batch())):
        with pytest.raises(ValueError, match=r"tasks.query.mask has shape .*; a step takes a batch of tasks"):
            compiled_step()(begin(), tasks)


def test_a_batch_of_more_support_sets_than_query_sets_is_refused():
    tasks = batch(4)
    ragged = tasks._replace(support=jax.tree.map(lambda leaf: leaf[:2], tasks.support))
    with pytest.raises(ValueError, match=r"tasks.support.inputs has shape \(2, .*; the first axis .* the tasks, 4"):
        compiled_step(1)(begin(), ragged)


@pytest.mark.parametrize("optimizer", [0.1, optax.adam, None])
def test_what_is_no_outer_optimizer_is_refused(optimizer):
    with pytest.raises(ValueError, match=r"optimizer is .*; it must be an optax transformation"):
        jmeta.init_state(LEARNER, optimizer, jax.random.key(0), SAMPLE(jax.random.key(1)))


def test_real_numbers_are_refused_where_the_loss_is_over_classes():
    points = Examples(jnp.ones((4, 1)), jnp.linspace(-1, 1, 8).reshape(4, 2), jnp.ones(4))
    task, model = Task(points, points), models.mlp(outputs=2)
    with pytest.raises(ValueError, match="targets are neither one-hot nor probabilities"):
        jmeta.init_state(learners.maml(model), OPTIMIZER, jax.random.key(0), task)
    jmeta.init_state(learners.maml(model, loss_fn=losses.squared_error), OPTIMIZER, jax.random.key(0), task)
    with pytest.raises(ValueError, match="classes are numbered, but its targets are neither one-hot nor probabilities"):
        jmeta.init_state(
            learners.maml(model, loss_fn=losses.squared_error),
            OPTIMIZER,
            jax.random.key(0),
            task._replace(class_ids=jnp.arange(2)),
        )
    soft = points._replace(targets=jnp.full((4, 60), 1 / 60, jnp.bfloat16))
    jmeta.init_state(learners.maml(models.mlp(outputs=60)), OPTIMIZER, jax.random.key(0), Task(soft, soft))


def test_a_query_set_of_other_ways_than_the_support_set_is_refused():
    support, query, _ = data.glyphs(ways=3, shots=1, queries=1)(jax.random.key(0))
    task = Task(support, query._replace(targets=jnp.eye(4)[:3]))
    learner = learners.protonet(models.mlp(outputs=None))
    make = functools.partial(jmeta.init_state, learner, OPTIMIZER, jax.random.key(0))
    for made in (make, jax.jit(make)):
        with pytest.raises(ValueError, match=r"targets of 3 columns and task.query of 4; they must be the same"):
            made(task)


@pytest.mark.parametrize("kind", [jnp.asarray, np.asarray])
def test_a_class_beyond_those_of_a_baseline_is_refused_before_it_trains(kind):
    table = data.class_table(np.arange(12.0).reshape(12, 1), np.repeat(np.arange(6), 2))
    task = data.episodes(table, ways=6, shots=1, queries=1)(jax.random.key(0))
    learner = learners.baseline(models.mlp(outputs=None), classes=5)
    with pytest.raises(ValueError, match="the task has class id 5, but classes is 5; classes must exceed every id"):
        jmeta.init_state(learner, OPTIMIZER, jax.random.key(0), jax.tree.map(kind, task))


def test_a_step_may_be_donated_the_state_whatever_the_optimizer_keeps():
    key = jax.random.key(3)
    for optimizer in (optax.contrib.prodigy(), optax.chain(optax.add_noise(0.1, 0.5, key), optax.sgd(0.1))):
        state = jmeta.init_state(LEARNER, optimizer, jax.random.key(0), SAMPLE(jax.random.key(1)))
        step = jax.jit(jmeta.make_train_step(LEARNER, optimizer), donate_argnums=0)
        assert step(step(state, batch(2))[0], batch(2))[0].step == 2
    assert not key.is_deleted()


def test_a_mask_with_an_axis_too_many_is_refused():
    task = SAMPLE(jax.random.key(1))
    wrong = task._replace(query=task.query._replace(mask=jnp.ones_like(task.query.targets)))
    with pytest.raises(ValueError, match=r"task.query has .* and a mask of \(5, 1\); for one task they must be"):
        jmeta.init_state(LEARNER, OPTIMIZER, jax.random.key(0), wrong)
    with pytest.raises(ValueError, match=r"mask has shape \(5, 1\), but the values it masks have \(5,\)"):
        LEARNER.loss(*LEARNER.init(jax.random.key(0), task), wrong)


@pytest.mark.parametrize(
    "key", [0, None, jnp.zeros(2), np.zeros(3, np.uint32), np.uint32(0), jax.random.split(jax.random.key(0))]
)
def test_what_is_no_key_is_refused(key):
    with pytest.raises(ValueError, match=r"key is [\s\S]*; it must be one PRNG key"):
        jmeta.init_state(LEARNER, OPTIMIZER, key, SAMPLE(jax.random.key(1)))
    with pytest.raises(ValueError, match=r"key is [\s\S]*; it must be one PRNG key"):
        jmeta.evaluate(LEARNER, begin(), SAMPLE, key=key, episodes=2)


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_a_key_that_draws_otherwise_under_vmap_stands_for_one_that_does_not(kind):
    task = SAMPLE(jax.random.key(1))
    states = [jmeta.init_state(LEARNER, OPTIMIZER, jax.random.key(3, impl=one), task) for one in (kind, "threefry2x32")]
    chex.assert_trees_all_equal(*(state._replace(key=jax.random.key_data(state.key)) for state in states))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": 7.0}, "a metric 'loss', a name that training reserves; rename it"),
        ({"step": 1.0}, "a metric 'step', a name that training reserves; rename it"),
        ({"validation_loss": 1.0}, "a metric 'validation_loss', a name that training reserves; rename it"),
        ({"each": jnp.ones(2)}, "the learner's metric 'each' is .*; each must be a scalar"),
        ({"both": {"one": 1.0}}, "the learner's metric 'both' is .*; each must be a scalar"),
    ],
)
def test_metrics_that_training_cannot_report_are_refused(metrics, message):
    def loss(*arguments, **options):
        value, (state, _) = LEARNER.loss(*arguments, **options)
        return value, (state, metrics)

    step = jmeta.make_train_step(LEARNER._replace(loss=loss), OPTIMIZER)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(step, begin(), batch())


def test_an_optimizer_that_asks_for_the_loss_is_given_the_mean_over_tasks():
    def update(updates, state, params=None, *, value, **_):
        return updates, value

    optimizer = optax.GradientTransformationExtraArgs(lambda params: jnp.float32(0), update)
    state = jmeta.init_state(LEARNER, optimizer, jax.random.key(0), SAMPLE(jax.random.key(1)))
    after, metrics = jax.jit(jmeta.make_train_step(LEARNER, optimizer))(state, batch())
    assert after.opt_state == metrics["loss"] > 0


def test_what_is_no_learner_no_task_or_no_bound_is_refused():
    with pytest.raises(ValueError, match=r"learner is of type Model; it must be a jmeta\.Learner"):
        begin(models.mlp())
    with pytest.raises(ValueError, match=r"learner is of type NoneType"):
        jmeta.make_train_step(None, OPTIMIZER)
    with pytest.raises(ValueError, match=r"optimizer is None; it must be an optax transformation"):
        jmeta.make_train_step(LEARNER, None)
    with pytest.raises(ValueError, match=r"the task is of type tuple; it must be a jmeta\.Task"):
        jmeta.init_state(LEARNER, OPTIMIZER, jax.random.key(0), (1, 2))
    with pytest.raises(ValueError, match="max_task_norm is None; it must be above 0, or infinite for no bound"):
        jmeta.make_train_step(LEARNER, OPTIMIZER, max_task_norm=None)


def test_a_state_of_another_learner_is_told_and_so_are_inputs_of_another_width():
    step = jmeta.make_train_step(LEARNER, OPTIMIZER)
    other = begin(learners.cnp(models.mlp(hidden=(), outputs=None), loss_fn=losses.gaussian_nll))
    with pytest.raises(ValueError, match=r"\(params, state\)\[0\].* of the state is .*; the state is of another"):
        jax.eval_shape(step, other, batch())
    tasks = batch()
    wider = (part._replace(inputs=jnp.repeat(part.inputs, 2, axis=-1)) for part in (tasks.support, tasks.query))
    with pytest.raises(ValueError, match=r"Dense_0'\]\['kernel'\] of the state is \[1, 8\], .* need \[2, 8\]"):
        jax.eval_shape(step, begin(), Task(*wider))


def test_a_loss_over_classes_that_is_not_marked_is_warned_of():
    def unmarked(outputs, targets, mask):
        return losses.cross_entropy(outputs, targets, mask)

    sample = data.glyphs(ways=3, shots=1, queries=1)
    with pytest.warns(UserWarning, match=r"one-hot, .* mark the loss with losses\.classification"):
        jmeta.init_state(
            learners.maml(models.mlp(hidden=(), outputs=3), loss_fn=unmarked),
            OPTIMIZER,
            jax.random.key(0),
            sample(jax.random.key(1))._replace(class_ids=None),
        )


def test_a_loss_that_gives_back_another_state_is_refused():
    subject = LEARNER._replace(
        init=lambda key, task: (jnp.zeros(()), {"mean": jnp.zeros(8)}),
        loss=lambda params, state, task, *, key=None: (params**2, ({"mean": jnp.zeros(1)}, {})),
    )
    told = r"given a state whose \['mean'\] is float32\[8\], but returned one where it is float32\[1\]"
    with pytest.raises(ValueError, match=told):
        jax.eval_shape(jmeta.make_train_step(subject, OPTIMIZER), begin(subject), batch(2))


@jax.tree_util.register_pytree_node_class
class Counted:
    """A state of a class that does not say what is equal."""

    def __init__(self, count):
        self.count = count

    def tree_flatten(self):
        return (self.count,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def test_a_state_may_be_of_any_class():
    subject = LEARNER._replace(
        init=lambda key, task: (jnp.zeros(()), Counted(jnp.zeros(()))),
        loss=lambda params, state, task, *, key=None: (params**2, (Counted(state.count + 1), {})),
    )
    state, _ = jax.jit(jmeta.make_train_step(subject, OPTIMIZER))(begin(subject), batch(2))
    assert state.state.count == 1


def constant(dtype, gradient):
    """A learner whose meta-gradient is the same on each task, and whose loss is 1."""

    def loss(params, state, task, *, key=None):
        slope = jnp.asarray(gradient, dtype)
        loss = (params @ slope - jax.lax.stop_gradient(params @ slope) + 1).astype(dtype)
        return loss, (state, {"third": jnp.float32(1 / 3)})

    return LEARNER._replace(init=lambda key, task: (jnp.zeros(len(gradient), dtype), ()), loss=loss)


@pytest.mark.parametrize("chunk", [1, 600])
def test_half_precision_is_added_up_in_single(chunk):
    subject, optimizer = constant(jnp.bfloat16, [1.0, 2.0, 3.0]), optax.sgd(1.0)
    state = jmeta.init_state(subject, optimizer, jax.random.key(0), SAMPLE(jax.random.key(1)))
    step = jax.jit(jmeta.make_train_step(subject, optimizer, tasks_per_chunk=chunk))
    state, metrics = step(state, batch(600))
    assert state.params.dtype == jnp.bfloat16
    np.testing.assert_array_equal(state.params.astype(float), [-1.0, -2.0, -3.0])
    assert metrics["loss"] == 1
    np.testing.assert_allclose(metrics["third"], 1 / 3, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], 14**0.5, rtol=1e-6)


def test_a_tasks_meta_gradient_is_behind_one_barrier():
    """Which saves time, as was measured (docs/decisions/0006-nonfinite-tasks.md, 0009-linear.md)."""
    subject, optimizer = constant(jnp.float32, [1.0, 2.0]), optax.sgd(1.0)
    state = jmeta.init_state(subject, optimizer, jax.random.key(0), SAMPLE(jax.random.key(1)))
    step = jax.make_jaxpr(jmeta.make_train_step(subject, optimizer, tasks_per_chunk=2))(state, batch(2))
    assert str(step).count("optimization_barrier") == 1


def test_a_gradient_whose_square_half_precision_does_not_hold_is_scaled_down():
    subject, optimizer = constant(jnp.float16, [300.0, 400.0]), optax.sgd(1.0)
    state = jmeta.init_state(subject, optimizer, jax.random.key(0), SAMPLE(jax.random.key(1)))
    state, metrics = jax.jit(jmeta.make_train_step(subject, optimizer, max_task_norm=100.0))(state, batch(2))
    assert metrics["nonfinite_tasks"] == 0
    np.testing.assert_allclose(state.params.astype(float), [-60.0, -80.0], rtol=1e-3)


def test_a_loop_is_the_steps_one_after_another():
    step = jmeta.make_train_step(LEARNER, OPTIMIZER)
    looped, metrics = jax.jit(jmeta.make_train_loop(step, SAMPLE, batch_size=4, steps=3))(begin())
    once = jax.jit(jmeta.make_train_loop(step, SAMPLE, batch_size=4, steps=1))
    state = begin()
    for _ in range(3):
        state, _ = once(state)
    assert metrics["loss"].shape == (3,)
    chex.assert_trees_all_close(looped.params, state.params, rtol=1e-5)


def test_a_loop_as_an_accelerator_would_run_it_ends_with_the_same_parameters(x64, as_an_accelerator_would):
    loop = jmeta.make_train_loop(jmeta.make_train_step(LEARNER, OPTIMIZER), SAMPLE, batch_size=3, steps=2)

    def params_and_losses(params):
        state, metrics = loop(begin()._replace(params=params))
        return state.params, metrics["loss"]

    start = begin().params
    found, expected = as_an_accelerator_would(params_and_losses, start), jax.jit(params_and_losses)(start)
    chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_loop_gives_every_task_and_every_step_a_key_of_its_own():
    def train_step(state, keys):
        return state, jnp.concatenate([jax.random.key_data(keys), jax.random.key_data(state.key)[None]])

    _, keys = jmeta.make_train_loop(train_step, lambda key: key, batch_size=4, steps=3)(begin())
    assert keys.shape[:2] == (3, 5)
    assert len({tuple(key) for key in np.asarray(keys).reshape(15, -1)}) == 15


def bad_tasks(tasks, *bad):
    """The tasks, of which these have no finite loss."""
    targets = tasks.query.targets.at[jnp.array(bad)].set(jnp.nan)
    return tasks._replace(query=tasks.query._replace(targets=targets))


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_a_task_that_is_not_finite_is_left_out_of_the_mean_and_counted(x64, chunk):
    state, tasks = begin(), batch(4)
    after, metrics = compiled_step(chunk)(state, bad_tasks(tasks, 1, 2))
    rest = jax.tree.map(lambda leaf: leaf[jnp.array([0, 3])], tasks)
    expected, others = compiled_step()(state, rest)
    chex.assert_trees_all_close(
        (after.params, after.opt_state, metrics["loss"], metrics["gradient_norm"]),
        (expected.params, expected.opt_state, others["loss"], others["gradient_norm"]),
        rtol=1e-10,
        atol=1e-12,
    )
    assert (metrics["nonfinite_tasks"], others["nonfinite_tasks"]) == (2, 0)


def test_tasks_whose_inner_loop_diverges_are_counted_and_change_no_parameter():
    wild = learners.maml(models.mlp(hidden=(8,)), inner_optimizer=optax.sgd(30.0), inner_steps=20,
                         loss_fn=losses.squared_error)  # fmt: skip
    state = begin(wild)
    after, metrics = jax.jit(jmeta.make_train_step(wild, OPTIMIZER))(state, batch(4))
    report = jmeta.evaluate(wild, state, SAMPLE, key=jax.random.key(1), episodes=6)
    assert metrics["nonfinite_tasks"] == 4
    assert_same(after.params, state.params)
    assert report.nonfinite == (~np.isfinite(report.per_episode["loss"])).sum() == 6


def test_an_infinite_meta_gradient_of_a_finite_loss_is_left_out_too():
    def loss(params, state, task, *, key=None):
        return jnp.sqrt(params) * task.query.targets.sum(), (state, {})

    subject = jmeta.Learner(lambda key, task: (jnp.zeros(()), ()), None, None, loss)
    step = jax.jit(jmeta.make_train_step(subject, OPTIMIZER, tasks_per_chunk=1))
    state, metrics = step(begin(subject), batch(2))
    assert metrics["nonfinite_tasks"] == 2
    assert state.params == 0


def counting(dtype):
    """A learner whose state counts meta-steps, and a running mean that the third target of a task makes NaN."""

    def loss(params, state, task, *, key=None):
        count, mean = state
        mean = mean + jnp.where(task.query.targets[2, 0] > 99, jnp.nan, 1.0)
        return jnp.square(params - task.query.targets.mean()), ((count + jnp.ones((), dtype), mean), {})

    start = jnp.asarray(np.iinfo(np.int32).max // 2 if dtype != jnp.bool_ else True, dtype)
    return jmeta.Learner(lambda key, task: (jnp.zeros(()), (start, jnp.zeros(()))), None, None, loss)


@pytest.mark.parametrize(
    ("dtype", "chunk"), [(jnp.int32, 1), (jnp.int32, 2), (jnp.int32, 4), (jnp.uint32, 2), (jnp.bool_, 2)]
)
def test_a_count_in_the_state_is_not_summed_over_tasks(dtype, chunk):
    subject = counting(dtype)
    state = begin(subject)
    step = jmeta.make_train_step(subject, OPTIMIZER, tasks_per_chunk=chunk)
    after, _ = jax.jit(jmeta.make_train_loop(step, SAMPLE, batch_size=3, steps=2))(state)
    before, count = state.state[0], after.state[0]
    assert count.dtype == dtype
    assert count == (True if dtype == jnp.bool_ else before + 2)


def test_a_task_that_would_spoil_the_running_state_is_left_out():
    subject, tasks = counting(jnp.int32), batch(3)
    tasks = tasks._replace(query=tasks.query._replace(targets=tasks.query.targets.at[1, 2].set(100)))
    after, metrics = jax.jit(jmeta.make_train_step(subject, OPTIMIZER))(begin(subject), tasks)
    assert metrics["nonfinite_tasks"] == 1
    assert after.state[1] == 1


@pytest.mark.parametrize(("size", "left_out"), [(1e15, 0), (1e30, 2)])
def test_by_default_a_huge_meta_gradient_moves_no_further_than_the_bound(size, left_out):
    def loss(params, state, task, *, key=None):
        return size * params.sum(), (state, {})

    subject = jmeta.Learner(lambda key, task: (jnp.zeros(4), ()), None, None, loss)
    step = jax.jit(jmeta.make_train_step(subject, optax.sgd(1.0)))
    after, metrics = step(begin(subject)._replace(opt_state=optax.sgd(1.0).init({})), batch(2))
    assert metrics["nonfinite_tasks"] == left_out  # the square of 1e30 is no float32, nor is such a length
    np.testing.assert_allclose(after.params, jnp.full(4, 0.0 if left_out else -50.0), rtol=1e-6)


def test_a_step_without_a_finite_task_changes_no_parameter_and_has_no_loss():
    state = begin()
    after, metrics = compiled_step()(state, bad_tasks(batch(2), 0, 1))
    assert_same((after.params, after.opt_state, after.state), (state.params, state.opt_state, state.state))
    assert after.step == 1
    assert np.isnan(metrics["loss"])
    assert np.isnan(metrics["gradient_norm"])  # or the mean over steps would count it as zero
    assert metrics["nonfinite_tasks"] == 2


def test_a_step_told_to_raise_gives_back_the_state_it_was_given():
    state = begin()
    step = jax.jit(jmeta.make_train_step(LEARNER, OPTIMIZER, nonfinite="raise"))
    after, metrics = step(state, bad_tasks(batch(3), 1))
    assert_same(after._replace(key=0), state._replace(key=0))
    assert after.key == state.key
    assert metrics["nonfinite_tasks"] == 1
    assert step(state, batch(3))[0].step == 1


def test_a_step_told_to_raise_gives_back_the_state_that_an_update_would_ruin():
    state, optimizer = begin(), optax.scale(jnp.inf)
    step = jax.jit(jmeta.make_train_step(LEARNER, optimizer, nonfinite="raise"))
    after, metrics = step(state._replace(opt_state=optimizer.init(state.params)), batch(3))
    assert_same((after.params, after.step), (state.params, state.step))
    assert metrics["nonfinite_tasks"] == 0


def test_a_tasks_meta_gradient_is_scaled_down_to_the_bound_and_never_up(x64):
    optimizer = optax.sgd(1.0)
    state, tasks = begin()._replace(opt_state=optimizer.init({})), batch(2)
    gradients = [META_GRADIENT(state.params, state.state, task)[0] for task in single(tasks)]
    norms = [optax.tree.norm(gradient) for gradient in gradients]
    bound = float(sum(norms) / 2)  # between the two
    after, _ = jax.jit(jmeta.make_train_step(LEARNER, optimizer, max_task_norm=bound))(state, tasks)
    scales = [min(1, bound / norm) for norm in norms]
    assert min(scales) < 1 == max(scales)
    expected = jax.tree.map(
        lambda p, *g: p - sum(scale * leaf for scale, leaf in zip(scales, g, strict=True)) / 2,
        state.params,
        *gradients,
    )
    chex.assert_trees_all_close(after.params, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("steps", -1), ("steps", True)])
def test_refuses_a_loop_that_cannot_be(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        jmeta.make_train_loop(None, SAMPLE, **{"batch_size": 1, "steps": 1} | {name: value})
