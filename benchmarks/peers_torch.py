"""MAML and prototypical networks as users of PyTorch write them: `torch.autograd`, `torch.func`, higher,
TorchOpt, learn2learn.

Each kind of work is `(peer, workload, weights, tasks, dtype) -> step`; what `step()` gives is told in workloads.py.
"""

import functools
from collections.abc import Callable

import jax
import torch
import torch._dynamo  # which `torch.optim` and `torch.func` import where they are first used: no part of a first call
from torch.nn import functional

DEVICE = "cuda" if jax.default_backend() == "gpu" else "cpu"
torch.backends.cuda.matmul.allow_tf32 = True  # as in its convolutions, and in both of JAX
torch.backends.cudnn.benchmark = True  # it too chooses among cuDNN's algorithms by trying them

Weights = dict[str, torch.Tensor]


def network(workload, weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """The workload's network; images are [K, C, H, W]."""
    if workload.image is None:
        x = functional.relu(x @ weights["Dense_0/kernel"] + weights["Dense_0/bias"])
        x = functional.relu(x @ weights["Dense_1/kernel"] + weights["Dense_1/bias"])
    elif workload.network == "resnet12":
        x = resnet12(weights, x)
    else:
        x = conv4(workload, weights, x)
    return x @ weights["head/kernel"] + weights["head/bias"] if "head/kernel" in weights else x


def conv4(workload, weights, x):
    """Features of four blocks."""
    for block in range(4):
        x = functional.relu(convolve_and_normalise(weights, block, x, 2 if workload.strided else 1))
        x = x if workload.strided else functional.max_pool2d(x, 2)
    return x.mean((2, 3)) if workload.strided else x.permute(0, 2, 3, 1).flatten(1)


def resnet12(weights, x):
    """Features of four residual blocks of three convolutions, the input brought to their width by a fourth."""
    for first in range(0, 16, 4):
        y = x
        for layer in (first, first + 1):
            y = functional.leaky_relu(convolve_and_normalise(weights, layer, y), 0.1)
        y = convolve_and_normalise(weights, first + 2, y) + convolve_and_normalise(weights, first + 3, x)
        x = functional.max_pool2d(functional.leaky_relu(y, 0.1), 2)
    return x.mean((2, 3))


def convolve_and_normalise(weights, layer, x, stride=1):
    """A layer by its number, with the statistics of the batch."""
    x = convolution(x, weights[f"Conv_{layer}/kernel"], stride)
    scale, bias = weights[f"Normalise_{layer}/scale"], weights[f"Normalise_{layer}/bias"]
    return functional.batch_norm(x, None, None, scale, bias, training=True, eps=1e-5)


def convolution(x, kernel, stride):
    """With the "SAME" padding of TensorFlow and JAX: at stride 2 the odd pixel is behind."""
    if stride == 1:
        return functional.conv2d(x, kernel, padding=kernel.shape[2] // 2)
    over = [max((-(-side // stride) - 1) * stride + 3 - side, 0) for side in x.shape[2:]]
    return functional.conv2d(
        functional.pad(x, [over[1] // 2, -(-over[1] // 2), over[0] // 2, -(-over[0] // 2)]), kernel, stride=stride
    )


def loss_of(workload, outputs, targets):
    """Mean squared error, or cross-entropy of class numbers."""
    return (
        functional.mse_loss(outputs, targets) if workload.image is None else functional.cross_entropy(outputs, targets)
    )


def meta_gradient(peer, workload, weights, tasks, dtype) -> Callable:
    """The meta-gradient of a batch of tasks."""
    differentiate, parts = PEERS[peer](workload, as_leaves(weights, dtype)), as_parts(workload, tasks, dtype)
    return lambda: finished(differentiate(*parts))


def training(peer, workload, weights, tasks, dtype) -> Callable:
    """Meta-steps: tasks drawn by NumPy, meta-gradient, Adam."""
    draw, leaves, start = workload.loader(), as_leaves(weights, dtype), as_leaves(weights, dtype)
    differentiate = PEERS[peer](workload, leaves)

    def step():
        optimizer = torch.optim.Adam(leaves.values(), lr=1e-3)
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(start[name])
        for _ in range(workload.meta_steps):
            gradient = differentiate(*as_parts(workload, draw(), dtype))
            for name, leaf in leaves.items():
                leaf.grad = gradient[name]
            optimizer.step()
        return finished(leaves)

    return step


def evaluation(peer, workload, weights, tasks, dtype) -> Callable:
    """The mean query loss, in a loop over tasks."""
    leaves, parts = as_leaves(weights, dtype), as_parts(workload, tasks, dtype)

    def step():
        losses = []
        for xs, ys, xq, yq in zip(*parts, strict=True):
            fast = descend(workload, leaves, xs, ys, create_graph=False)
            with torch.no_grad():
                losses.append(loss_of(workload, network(workload, fast, xq), yq))
        return {"loss": torch.stack(losses).mean().cpu()}

    return step


def as_leaves(weights, dtype) -> Weights:
    """Weights to differentiate, kernels [O, I, H, W]."""
    layout = {name: leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf for name, leaf in weights.items()}
    return {name: torch.tensor(leaf.astype(dtype), device=DEVICE, requires_grad=True) for name, leaf in layout.items()}


def as_parts(workload, tasks, dtype) -> list[torch.Tensor]:
    """Support inputs and targets and the queries', with an axis of tasks; images are channels first."""
    parts = []
    for inputs, targets in tasks:
        if workload.image is None:
            parts += [_tensor(inputs.astype(dtype)), _tensor(targets.astype(dtype))]
        else:
            images = inputs.transpose(0, 1, 4, 2, 3).astype(dtype)
            parts += [_tensor(images), _tensor(targets.argmax(-1))]
    return parts


def _tensor(array):
    return torch.tensor(array, device=DEVICE)


def finished(gradient: Weights) -> Weights:
    """The gradient, computed, in the layout of the weights."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    leaves = {name: leaf.detach() for name, leaf in gradient.items()}
    return {name: leaf.permute(2, 3, 1, 0) if leaf.ndim == 4 else leaf for name, leaf in leaves.items()}


def descend(workload, leaves, x, y, *, create_graph) -> Weights:
    """The weights after the inner steps."""
    fast = leaves
    for _ in range(workload.inner_steps):
        loss = loss_of(workload, network(workload, fast, x), y)
        gradient = torch.autograd.grad(loss, list(fast.values()), create_graph=create_graph)
        fast = {k: w - workload.inner_rate * g for (k, w), g in zip(fast.items(), gradient, strict=True)}
    return fast


def prototype_loss(workload, weights, xs, ys, xq, yq):
    """The loss of a prototypical network on one task."""
    features, queries = network(workload, weights, torch.cat([xs, xq])).split([len(xs), len(xq)])
    prototypes = features.new_zeros(workload.ways, features.shape[1]).index_add(0, ys, features) / workload.shots
    return functional.cross_entropy(-(queries[:, None] - prototypes).square().sum(-1), yq)


# Each peer is `(workload, leaves) -> differentiate`, and `differentiate(*parts)` gives the meta-gradient by name.


def autograd_loop(workload, leaves) -> Callable:
    """`torch.autograd.grad` in a loop over tasks."""

    def query_loss(xs, ys, xq, yq):
        if workload.learner == "protonet":
            return prototype_loss(workload, leaves, xs, ys, xq, yq)
        fast = descend(workload, leaves, xs, ys, create_graph=workload.second_order)
        return loss_of(workload, network(workload, fast, xq), yq)

    def differentiate(*parts):
        for leaf in leaves.values():
            leaf.grad = None
        for task in zip(*parts, strict=True):
            (query_loss(*task) / len(parts[0])).backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    return differentiate


def _functional(workload):
    """The meta-gradient of one task by `torch.func.grad`."""
    net = functools.partial(network, workload)

    def support_loss(weights, x, y):
        return loss_of(workload, net(weights, x), y)

    def query_loss(weights, xs, ys, xq, yq):
        for _ in range(workload.inner_steps):
            at = weights if workload.second_order else {name: leaf.detach() for name, leaf in weights.items()}
            gradient = torch.func.grad(support_loss)(at, xs, ys)
            weights = {name: leaf - workload.inner_rate * gradient[name] for name, leaf in weights.items()}
        return loss_of(workload, net(weights, xq), yq)

    return torch.func.grad(query_loss)


def func_loop(workload, leaves) -> Callable:
    """`torch.func.grad` in a loop over tasks."""
    weights, gradient = {name: leaf.detach() for name, leaf in leaves.items()}, _functional(workload)

    def differentiate(*parts):
        gradients = [gradient(weights, *task) for task in zip(*parts, strict=True)]
        return {name: sum(each[name] for each in gradients) / len(gradients) for name in weights}

    return differentiate


def func_vmap(workload, leaves) -> Callable:
    """`torch.func.vmap` of `torch.func.grad`."""
    weights = {name: leaf.detach() for name, leaf in leaves.items()}
    gradients = torch.func.vmap(_functional(workload), in_dims=(None, 0, 0, 0, 0))
    return lambda *parts: {name: leaf.mean(0) for name, leaf in gradients(weights, *parts).items()}


class Network(torch.nn.Module):
    """The network as a module, for libraries that patch modules; its parameters are the leaves' own memory."""

    def __init__(self, workload, leaves: Weights):
        super().__init__()
        self.workload, self.names = workload, list(leaves)
        for name, leaf in leaves.items():
            self.register_parameter(name, torch.nn.Parameter(leaf.detach()))

    def forward(self, x):
        return network(self.workload, {name: getattr(self, name) for name in self.names}, x)


def higher_loop(workload, leaves) -> Callable:
    """higher's patched module and differentiable optimizer, in a loop over tasks."""
    import higher

    module = Network(workload, leaves)
    inner = torch.optim.SGD(module.parameters(), lr=workload.inner_rate)

    def differentiate(*parts):
        module.zero_grad()
        for xs, ys, xq, yq in zip(*parts, strict=True):
            with higher.innerloop_ctx(module, inner, copy_initial_weights=False) as (fast, optimizer):
                for _ in range(workload.inner_steps):
                    optimizer.step(loss_of(workload, fast(xs), ys))
                (loss_of(workload, fast(xq), yq) / len(parts[0])).backward()
        return {name: leaf.grad for name, leaf in module.named_parameters()}

    return differentiate


def torchopt_loop(workload, leaves) -> Callable:
    """TorchOpt's differentiable optimizer, in a loop over tasks."""
    import torchopt

    module = Network(workload, leaves)
    inner = torchopt.MetaSGD(module, lr=workload.inner_rate)

    def differentiate(*parts):
        module.zero_grad()
        meta = dict(module.named_parameters())
        start, begun = torchopt.extract_state_dict(module, by="reference"), torchopt.extract_state_dict(inner)
        for xs, ys, xq, yq in zip(*parts, strict=True):
            for _ in range(workload.inner_steps):
                inner.step(loss_of(workload, module(xs), ys))
            (loss_of(workload, module(xq), yq) / len(parts[0])).backward()
            torchopt.recover_state_dict(module, start)
            torchopt.recover_state_dict(inner, begun)
        return {name: leaf.grad for name, leaf in meta.items()}

    return differentiate


def learn2learn_loop(workload, leaves) -> Callable:
    """learn2learn's MAML, cloned for each task, in a loop over tasks."""
    import learn2learn

    module = Network(workload, leaves)
    maml = learn2learn.algorithms.MAML(module, lr=workload.inner_rate, first_order=not workload.second_order)

    def differentiate(*parts):
        module.zero_grad()
        for xs, ys, xq, yq in zip(*parts, strict=True):
            fast = maml.clone()
            for _ in range(workload.inner_steps):
                fast.adapt(loss_of(workload, fast(xs), ys))
            (loss_of(workload, fast(xq), yq) / len(parts[0])).backward()
        return {name: leaf.grad for name, leaf in module.named_parameters()}

    return differentiate


PEERS = {
    "autograd_loop": autograd_loop,
    "func_loop": func_loop,
    "func_vmap": func_vmap,
    "higher_loop": higher_loop,
    "torchopt_loop": torchopt_loop,
    "learn2learn_loop": learn2learn_loop,
}
