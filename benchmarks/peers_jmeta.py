"""The work that peers do, done by jmeta; and what else is measured of it, its arithmetic and its memory.

Each kind of work is `(peer, workload, weights, tasks, dtype) -> step`, in this file as in those of the peers; what
`step()` gives is told in workloads.py.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jmeta
from benchmarks import flops
from jmeta import data, learners, losses, models
from jmeta.batching import on_each_device
from jmeta.functional.partition import path_name


def learner_of(workload, **options) -> jmeta.Learner:
    """The learner of a workload."""
    if workload.learner == "protonet":
        return learners.protonet(models.conv4(width=workload.width, strided=workload.strided))
    options |= {"inner_optimizer": optax.sgd(workload.inner_rate), "inner_steps": workload.inner_steps}
    options["meta_gradient"] = "second_order" if workload.second_order else "first_order"
    if workload.image is None:
        return learners.maml(models.mlp(), loss_fn=losses.squared_error, **options)
    if workload.network == "resnet12":
        return learners.maml(models.resnet12(outputs=workload.ways, widths=workload.resnet_widths), **options)
    network = models.conv4(outputs=workload.ways, width=workload.width, strided=workload.strided)
    return learners.maml(network, **options)


def as_tasks(tasks, dtype) -> jmeta.Task:
    """A batch of jmeta's tasks."""
    parts = [(*part, np.ones(part[0].shape[:2])) for part in tasks]
    # NumPy converts them: it compiles nothing.
    return jmeta.Task(*(jmeta.Examples(*(jnp.asarray(leaf.astype(dtype)) for leaf in part)) for part in parts))


def _one(batch):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], batch)  # by NumPy, which compiles nothing


def initial_weights(workload, tasks) -> dict[str, np.ndarray]:
    """Weights that all peers start from, by their names."""
    params, _ = jax.jit(learner_of(workload).init)(jax.random.key(0), _one(as_tasks(tasks, np.float32)))
    network, _ = params
    return {name: np.asarray(leaf) for name, leaf in by_name(network).items()}


def by_name(tree):
    """The leaves of a tree by their paths."""
    return {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def devices_of(peer, workload) -> tuple[jax.Device, ...] | None:
    """Those that jmeta divides tasks over: a CPU's, which are its cores where JAX was told so, not more than tasks."""
    if peer == "jmeta_one_device" or jax.default_backend() != "cpu":
        return None
    return tuple(jax.devices()[: workload.tasks])


def _start(workload, weights, batch, dtype, optimizer):
    """The learner, and a state of training that has the weights."""
    learner = learner_of(workload)
    state = jmeta.init_state(learner, optimizer, jax.random.key(0), _one(batch))
    network, rest = state.params  # of MAML its inner rule's parameters, of a head its own: there are none
    network = jax.tree.map_with_path(lambda path, _: jnp.asarray(weights[path_name(path)], dtype), network)
    return learner, state._replace(params=type(state.params)(network, rest))


def meta_gradient(peer, workload, weights, tasks, dtype) -> Callable:
    """The train step, with an optimizer that keeps the meta-gradient."""
    batch = as_tasks(tasks, dtype)
    nowhere = functools.partial(jax.tree.map, lambda leaf: jnp.full_like(leaf, jnp.nan))  # until there is a gradient
    optimizer = optax.GradientTransformation(nowhere, lambda gradient, *_: (gradient, gradient))
    learner, state = _start(workload, weights, batch, dtype, optimizer)
    devices = devices_of(peer, workload)
    train_step = jmeta.make_train_step(learner, optimizer, max_task_norm=math.inf, devices=devices)

    @jax.jit
    def step(state, batch):
        after, _ = train_step(state, batch)
        network, _ = after.opt_state
        return by_name(network)

    state, batch = on_each_device((state, batch), devices)
    return lambda: jax.block_until_ready(step(state, batch))


def training(peer, workload, weights, tasks, dtype) -> Callable:
    """Meta-steps in one dispatch: sampling on the device, meta-gradient, Adam."""
    optimizer = optax.adam(1e-3)
    learner, state = _start(workload, weights, as_tasks(tasks, dtype), dtype, optimizer)
    devices = devices_of(peer, workload)
    train_step = jmeta.make_train_step(learner, optimizer, devices=devices)

    @jax.jit
    def loop(state, sample):
        run = jmeta.make_train_loop(train_step, sample, batch_size=workload.tasks, steps=workload.meta_steps)
        after, _ = run(state)
        # With the whole state, or XLA would leave out the last step of the optimizer's.
        return by_name(after.params[0]), after

    state, sample = on_each_device((state, _sampler(workload)), devices)
    return lambda: jax.block_until_ready(loop(state, sample))[0]


def _sampler(workload):
    if workload.image is None:
        return jax.tree_util.Partial(data.sinusoid(shots=workload.shots, queries=workload.queries))
    images = workload.images()
    table = data.class_table(images.reshape(-1, *workload.image), np.repeat(np.arange(len(images)), images.shape[1]))
    return data.episodes(table, ways=workload.ways, shots=workload.shots, queries=workload.queries)


def evaluation(peer, workload, weights, tasks, dtype) -> Callable:
    """`jmeta.evaluate` on as many episodes, each one of the tasks."""
    batch = as_tasks(tasks, dtype)
    learner, state = _start(workload, weights, batch, dtype, optax.sgd(0.0))
    devices = devices_of(peer, workload)

    def step():
        report = jmeta.evaluate(learner, state, sample, key=jax.random.key(0), episodes=workload.tasks, devices=devices)
        return {"loss": np.asarray(report.loss)}

    sample = on_each_device(jax.tree_util.Partial(_pick, batch), devices)
    return step


def _pick(batch, key):
    index = jax.random.randint(key, (), 0, len(batch.query.mask))
    return jax.tree.map(lambda leaf: leaf[index], batch)


def operations(workload, tasks) -> int:
    """Floating-point operations that one task needs; of a meta-gradient by reverse mode, the fewest of all."""
    learner = learner_of(workload, differentiation="reverse")
    task = _one(as_tasks(tasks, np.float32))
    params, state = jax.eval_shape(learner.init, jax.random.key(0), task)
    if workload.work == "evaluation":
        return flops.count(functools.partial(_outputs, learner), params, state, task)
    return flops.count(jax.grad(learner.loss, has_aux=True), params, state, task)


def _outputs(learner, params, state, task):
    return learner.predict(params, state, learner.adapt(params, state, task.support), task.query.inputs)


def train_step_and_state(
    workload, batch, *, tasks_per_chunk=None, **options
) -> tuple[jax.stages.Wrapped, jmeta.TrainState]:
    """A jitted meta-step and the state that it begins with; the options are the learner's."""
    learner, optimizer = learner_of(workload, **options), optax.sgd(0.1)
    state = jmeta.init_state(learner, optimizer, jax.random.key(0), _one(batch))
    return jax.jit(jmeta.make_train_step(learner, optimizer, tasks_per_chunk=tasks_per_chunk)), state


def compiled_train_step(workload, batch, **options) -> jax.stages.Compiled:
    """A meta-step, which knows its temporary memory; the options are the learner's."""
    step, state = train_step_and_state(workload, batch, **options)
    return step.lower(state, batch).compile()
