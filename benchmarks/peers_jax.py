"""MAML and prototypical networks as users of JAX, Flax and optax write them.

Each kind of work is `(peer, workload, weights, tasks, dtype) -> step`; what `step()` gives is told in workloads.py.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict


class Conv4(nn.Module):
    """The network of Flax's own layers; `outputs` 0 makes an encoder."""

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
        return nn.Dense(self.outputs, param_dtype=x.dtype, name="head")(x) if self.outputs else x


class ResNet12(nn.Module):
    """The network of Flax's own layers."""

    outputs: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for block, width in enumerate(self.widths):
            y = x
            for layer in range(2):
                y = nn.leaky_relu(self._convolve_and_normalise(4 * block + layer, width, 3, y), 0.1)
            y = self._convolve_and_normalise(4 * block + 2, width, 3, y)
            y += self._convolve_and_normalise(4 * block + 3, width, 1, x)
            x = nn.max_pool(nn.leaky_relu(y, 0.1), (2, 2), (2, 2))
        return nn.Dense(self.outputs, param_dtype=x.dtype, name="head")(x.mean((1, 2)))

    def _convolve_and_normalise(self, layer, width, size, x):
        x = nn.Conv(width, (size, size), use_bias=False, param_dtype=x.dtype, name=f"Conv_{layer}")(x)
        return nn.BatchNorm(False, param_dtype=x.dtype, name=f"Normalise_{layer}")(x)


class MLP(nn.Module):
    """The network of Flax's own layers."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Dense(40, param_dtype=x.dtype)(x))
        return nn.Dense(1, param_dtype=x.dtype, name="head")(x)


def meta_gradient(peer, workload, weights, tasks, dtype) -> Callable:
    """The meta-gradient of a batch of tasks."""
    params, (prepare, differentiate) = _params(weights, dtype), PEERS[peer](workload)
    batch = prepare(tasks, dtype)
    return lambda: jax.block_until_ready(differentiate(params, batch))


def training(peer, workload, weights, tasks, dtype) -> Callable:
    """Meta-steps: tasks drawn by NumPy, meta-gradient, Adam."""
    draw, start, optimizer = workload.loader(), _params(weights, dtype), optax.adam(1e-3)
    prepare, differentiate = PEERS[peer](workload)
    begun = optimizer.init(start)

    @jax.jit
    def update(params, state, gradient):
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    def step():
        params, state = start, begun
        for _ in range(workload.meta_steps):
            params, state = update(params, state, differentiate(params, prepare(draw(), dtype)))
        return jax.block_until_ready(params)

    return step


def evaluation(peer, workload, weights, tasks, dtype) -> Callable:
    """The mean query loss, a compiled function of one task in a loop over tasks."""
    params, each = _params(weights, dtype), _one_by_one(tasks, dtype)
    query_loss = jax.jit(_query_loss(workload))
    return lambda: {"loss": sum(jax.device_get([query_loss(params, *task) for task in each])) / len(each)}


def _params(weights, dtype):
    return {name: jnp.asarray(leaf, dtype) for name, leaf in weights.items()}


def _arrays(tasks, dtype):
    return [tuple(jnp.asarray(leaf, dtype) for leaf in part) for part in tasks]


def _one_by_one(tasks, dtype):
    number = len(tasks[0][0])
    return [_arrays([[leaf[task] for leaf in part] for part in tasks], dtype) for task in range(number)]


def _query_loss(workload):
    """`(params, support, query) -> loss` of one task."""
    if workload.learner == "protonet":
        return _prototype_loss(workload)
    inner, network = optax.sgd(workload.inner_rate), _network(workload)

    def loss(params, x, y):
        outputs = _apply(network, params, x)
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


def _network(workload):
    if workload.image is None:
        return MLP()
    if workload.network == "resnet12":
        return ResNet12(workload.ways, workload.resnet_widths)
    return Conv4(workload.ways, workload.width, workload.strided)


def _prototype_loss(workload):
    encoder = Conv4(0, workload.width, workload.strided)

    def query_loss(params, support, query):
        features = _apply(encoder, params, jnp.concatenate([support[0], query[0]]))
        features, queries = jnp.split(features, [len(support[0])])
        prototypes = (support[1].T @ features) / workload.shots
        distances = jnp.square(queries[:, None] - prototypes[None]).sum(-1)
        return optax.softmax_cross_entropy(-distances, query[1]).mean()

    return query_loss


def _apply(network, params, x):
    variables = {"params": unflatten_dict(params, sep="/"), "batch_stats": {}}
    return network.apply(variables, x, mutable=["batch_stats"])[0]


# Each peer is `(workload) -> (prepare, differentiate)`: tasks to arrays, and `(params, arrays) -> meta-gradient`.


def naive_vmap(workload):
    """`jax.grad` of the mean of a vmapped loss."""
    query_loss = _query_loss(workload)
    return _arrays, jax.jit(jax.grad(lambda params, batch: jax.vmap(query_loss, (None, 0, 0))(params, *batch).mean()))


def optax_loop(workload):
    """One task after another, each with the jitted outer step of optax's example of meta-learning."""
    one = jax.jit(jax.grad(_query_loss(workload)))

    def mean(params, tasks):
        gradients = [one(params, *task) for task in tasks]
        return jax.tree.map(lambda *leaves: sum(leaves) / len(tasks), *gradients)

    return _one_by_one, mean


PEERS = {"naive_vmap": naive_vmap, "optax_loop": optax_loop}
