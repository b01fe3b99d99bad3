"""MAML as jmeta has it, and as users of JAX and Flax write it without it.

Each peer is `(workload, weights, tasks, dtype) -> step`, and `step()` gives the meta-gradient of the mean query
loss over the tasks, by the names of the weights.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict

import jmeta
from benchmarks import flops
from jmeta import learners, losses, models
from jmeta.functional.partition import path_name


def learner_of(workload, **options) -> jmeta.Learner:
    """jmeta's MAML for a workload."""
    options |= {"inner_optimizer": optax.sgd(workload.inner_rate), "inner_steps": workload.inner_steps}
    options["meta_gradient"] = "second_order" if workload.second_order else "first_order"
    if workload.image is None:
        return learners.maml(models.mlp(), loss_fn=losses.squared_error, **options)
    network = models.conv4(outputs=workload.ways, width=workload.width, strided=workload.strided)
    return learners.maml(network, **options)


def as_tasks(tasks, dtype) -> jmeta.Task:
    """A batch of jmeta's tasks."""
    return jmeta.Task(*(jmeta.Examples(*_arrays(part, dtype), jnp.ones(part[0].shape[:2], dtype)) for part in tasks))


def _arrays(part, dtype):
    return tuple(jnp.asarray(leaf, dtype) for leaf in part)


def initial_weights(workload, tasks) -> dict[str, np.ndarray]:
    """Weights that all peers start from, by their names."""
    task = jax.tree.map(lambda leaf: leaf[0], as_tasks(tasks, np.float32))
    params, _ = jax.jit(learner_of(workload).init)(jax.random.key(0), task)
    return as_numpy(by_name(params.model))


def jmeta_step(workload, weights, tasks, dtype) -> Callable:
    """jmeta's train step; its update by gradient descent of rate 1 tells the meta-gradient."""
    learner, batch = learner_of(workload), as_tasks(tasks, dtype)
    task = jax.tree.map(lambda leaf: leaf[0], batch)
    state = jmeta.init_state(learner, optax.sgd(1.0), jax.random.key(0), task)
    model = jax.tree.map_with_path(lambda path, _: jnp.asarray(weights[path_name(path)], dtype), state.params.model)
    state = state._replace(params=state.params._replace(model=model))
    train_step = jmeta.make_train_step(learner, optax.sgd(1.0), max_task_norm=math.inf)

    @jax.jit
    def step(state, batch):
        after, _ = train_step(state, batch)
        return jax.tree.map(jnp.subtract, state.params.model, after.params.model)

    return lambda: by_name(jax.block_until_ready(step(state, batch)))


def by_name(tree):
    """The leaves of a tree by their paths."""
    return {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def as_numpy(gradient) -> dict[str, np.ndarray]:
    """The gradient in the layout of the weights, which it has."""
    return {name: np.asarray(leaf) for name, leaf in gradient.items()}


class Conv4(nn.Module):
    """The network of Flax's own layers."""

    outputs: int
    width: int
    strided: bool

    @nn.compact
    def __call__(self, x):
        for block in range(4):
            stride = 2 if self.strided else 1
            x = nn.Conv(self.width, (3, 3), strides=stride, use_bias=False, param_dtype=x.dtype)(x)
            x = nn.BatchNorm(False, param_dtype=x.dtype, name=f"Normalise_{block}")(x)
            x = nn.relu(x)
            x = x if self.strided else nn.max_pool(x, (2, 2), (2, 2))
        x = x.mean((1, 2)) if self.strided else x.reshape(len(x), -1)
        return nn.Dense(self.outputs, param_dtype=x.dtype, name="head")(x)


class MLP(nn.Module):
    """The network of Flax's own layers."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Dense(40, param_dtype=x.dtype)(x))
        return nn.Dense(1, param_dtype=x.dtype, name="head")(x)


def _query_loss(workload):
    """`(weights, support, query) -> loss` of one task after the inner steps, in a Python loop of optax updates."""
    inner = optax.sgd(workload.inner_rate)
    network = MLP() if workload.image is None else Conv4(workload.ways, workload.width, workload.strided)

    def loss(params, x, y):
        outputs = network.apply({"params": params, "batch_stats": {}}, x, mutable=["batch_stats"])[0]
        if workload.image is None:
            return jnp.square(outputs - y).mean()
        return optax.softmax_cross_entropy(outputs, y).mean()

    def query_loss(params, support, query):
        state = inner.init(params)
        for _ in range(workload.inner_steps):
            gradient = jax.grad(loss)(params, *support)
            gradient = gradient if workload.second_order else jax.lax.stop_gradient(gradient)
            updates, state = inner.update(gradient, state)
            params = optax.apply_updates(params, updates)
        return loss(params, *query)

    return query_loss


def _params(weights, dtype):
    return unflatten_dict({tuple(name.split("/")): jnp.asarray(leaf, dtype) for name, leaf in weights.items()})


def naive_vmap(workload, weights, tasks, dtype) -> Callable:
    """Flax's layers, `jax.grad` of the mean of a vmapped loss."""
    params, query_loss = _params(weights, dtype), _query_loss(workload)
    step = jax.jit(jax.grad(lambda params, tasks: jax.vmap(query_loss, (None, 0, 0))(params, *tasks).mean()))
    batch = [_arrays(part, dtype) for part in tasks]
    return lambda: by_name(jax.block_until_ready(step(params, batch)))


def optax_loop(workload, weights, tasks, dtype) -> Callable:
    """One task after another, each with the jitted outer step of optax's example of meta-learning."""
    params, differentiate = _params(weights, dtype), jax.jit(jax.grad(_query_loss(workload)))
    batch = [_arrays(part, dtype) for part in tasks]
    each = [jax.tree.map(lambda leaf, task=task: leaf[task], batch) for task in range(workload.tasks)]

    def step():
        gradients = [differentiate(params, *task) for task in each]
        return by_name(jax.block_until_ready(jax.tree.map(lambda *leaves: sum(leaves) / workload.tasks, *gradients)))

    return step


def operations(workload, tasks) -> int:
    """Floating-point operations of the meta-gradient of one task, by reverse mode: the fewest of all."""
    learner = learner_of(workload, differentiation="reverse")
    task = jax.tree.map(lambda leaf: leaf[0], as_tasks(tasks, np.float32))
    params, state = jax.eval_shape(learner.init, jax.random.key(0), task)
    return flops.count(jax.grad(learner.loss, has_aux=True), params, state, task)
