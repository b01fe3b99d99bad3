"""MAML as users of PyTorch write it: a loop over tasks, `torch.func`, higher and TorchOpt.

Each peer is `(workload, weights, tasks, dtype) -> step`, and `step()` gives the meta-gradient of the mean query
loss over the tasks, by the names and in the layout of the weights.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

Weights = dict[str, torch.Tensor]


def network(workload, weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """The workload's network; images are [K, C, H, W]."""
    if workload.image is None:
        x = functional.relu(x @ weights["Dense_0/kernel"] + weights["Dense_0/bias"])
        x = functional.relu(x @ weights["Dense_1/kernel"] + weights["Dense_1/bias"])
        return x @ weights["head/kernel"] + weights["head/bias"]
    for block in range(4):
        x = convolution(x, weights[f"Conv_{block}/kernel"], 2 if workload.strided else 1)
        scale, bias = weights[f"Normalise_{block}/scale"], weights[f"Normalise_{block}/bias"]
        x = functional.relu(functional.batch_norm(x, None, None, scale, bias, training=True, eps=1e-5))
        x = x if workload.strided else functional.max_pool2d(x, 2)
    x = x.mean((2, 3)) if workload.strided else x.permute(0, 2, 3, 1).flatten(1)
    return x @ weights["head/kernel"] + weights["head/bias"]


def convolution(x, kernel, stride):
    """With the "SAME" padding of TensorFlow and JAX: at stride 2 the odd pixel is behind."""
    if stride == 1:
        return functional.conv2d(x, kernel, padding=1)
    over = [max((-(-side // stride) - 1) * stride + 3 - side, 0) for side in x.shape[2:]]
    return functional.conv2d(
        functional.pad(x, [over[1] // 2, -(-over[1] // 2), over[0] // 2, -(-over[0] // 2)]), kernel, stride=stride
    )


def loss_of(workload, outputs, targets):
    """Mean squared error, or cross-entropy of class numbers."""
    return (
        functional.mse_loss(outputs, targets) if workload.image is None else functional.cross_entropy(outputs, targets)
    )


def as_torch(workload, weights, tasks, dtype) -> tuple[Weights, list[torch.Tensor]]:
    """Weights as leaves, kernels [O, I, H, W]; support inputs and targets and the queries', with an axis of tasks."""
    layout = {name: leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf for name, leaf in weights.items()}
    leaves = {name: torch.tensor(leaf.astype(dtype), requires_grad=True) for name, leaf in layout.items()}
    parts = []
    for inputs, targets in tasks:
        if workload.image is None:
            parts += [torch.tensor(inputs.astype(dtype)), torch.tensor(targets.astype(dtype))]
        else:
            images = inputs.transpose(0, 1, 4, 2, 3).astype(dtype)
            parts += [torch.tensor(images), torch.tensor(targets.argmax(-1))]
    return leaves, parts


def as_numpy(gradient: Weights) -> dict[str, np.ndarray]:
    """The gradient in the layout of the weights."""
    arrays = {name: leaf.detach().numpy() for name, leaf in gradient.items()}
    return {name: leaf.transpose(2, 3, 1, 0) if leaf.ndim == 4 else leaf for name, leaf in arrays.items()}


def autograd_loop(workload, weights, tasks, dtype) -> Callable:
    """`torch.autograd.grad` in a loop over tasks."""
    leaves, parts = as_torch(workload, weights, tasks, dtype)
    net = functools.partial(network, workload)

    def step():
        for leaf in leaves.values():
            leaf.grad = None
        for xs, ys, xq, yq in zip(*parts, strict=True):
            fast = leaves
            for _ in range(workload.inner_steps):
                loss = loss_of(workload, net(fast, xs), ys)
                gradient = torch.autograd.grad(loss, list(fast.values()), create_graph=workload.second_order)
                fast = {k: w - workload.inner_rate * g for (k, w), g in zip(fast.items(), gradient, strict=True)}
            (loss_of(workload, net(fast, xq), yq) / workload.tasks).backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    return step


def _functional(workload):
    """The meta-gradient of one task by `torch.func.grad`."""
    net = functools.partial(network, workload)

    def support_loss(weights, x, y):
        return loss_of(workload, net(weights, x), y)

    def query_loss(weights, xs, ys, xq, yq):
        for _ in range(workload.inner_steps):
            gradient = torch.func.grad(support_loss)(weights, xs, ys)
            if not workload.second_order:
                gradient = {name: leaf.detach() for name, leaf in gradient.items()}
            weights = {name: leaf - workload.inner_rate * gradient[name] for name, leaf in weights.items()}
        return loss_of(workload, net(weights, xq), yq)

    return torch.func.grad(query_loss)


def func_loop(workload, weights, tasks, dtype) -> Callable:
    """`torch.func.grad` in a loop over tasks."""
    leaves, parts = as_torch(workload, weights, tasks, dtype)
    leaves, differentiate = {name: leaf.detach() for name, leaf in leaves.items()}, _functional(workload)

    def step():
        gradients = [differentiate(leaves, *task) for task in zip(*parts, strict=True)]
        return {name: sum(gradient[name] for gradient in gradients) / workload.tasks for name in leaves}

    return step


def func_vmap(workload, weights, tasks, dtype) -> Callable:
    """`torch.func.vmap` of `torch.func.grad`."""
    leaves, parts = as_torch(workload, weights, tasks, dtype)
    leaves = {name: leaf.detach() for name, leaf in leaves.items()}
    differentiate = torch.func.vmap(_functional(workload), in_dims=(None, 0, 0, 0, 0))
    return lambda: {name: leaf.mean(0) for name, leaf in differentiate(leaves, *parts).items()}


class Network(torch.nn.Module):
    """The network as a module, for libraries that patch modules."""

    def __init__(self, workload, weights: Weights):
        super().__init__()
        self.workload, self.names = workload, list(weights)
        for name, leaf in weights.items():
            self.register_parameter(name, torch.nn.Parameter(leaf.detach()))

    def forward(self, x):
        return network(self.workload, {name: getattr(self, name) for name in self.names}, x)


def higher_loop(workload, weights, tasks, dtype) -> Callable:
    """higher's patched module and differentiable optimizer, in a loop over tasks."""
    import higher

    leaves, parts = as_torch(workload, weights, tasks, dtype)
    module = Network(workload, leaves)
    inner = torch.optim.SGD(module.parameters(), lr=workload.inner_rate)

    def step():
        module.zero_grad()
        for xs, ys, xq, yq in zip(*parts, strict=True):
            with higher.innerloop_ctx(module, inner, copy_initial_weights=False) as (fast, optimizer):
                for _ in range(workload.inner_steps):
                    optimizer.step(loss_of(workload, fast(xs), ys))
                (loss_of(workload, fast(xq), yq) / workload.tasks).backward()
        return {name: leaf.grad for name, leaf in module.named_parameters()}

    return step


def torchopt_loop(workload, weights, tasks, dtype) -> Callable:
    """TorchOpt's differentiable optimizer, in a loop over tasks."""
    import torchopt

    leaves, parts = as_torch(workload, weights, tasks, dtype)
    module = Network(workload, leaves)
    inner = torchopt.MetaSGD(module, lr=workload.inner_rate)

    def step():
        module.zero_grad()
        meta = dict(module.named_parameters())
        start, begun = torchopt.extract_state_dict(module, by="reference"), torchopt.extract_state_dict(inner)
        for xs, ys, xq, yq in zip(*parts, strict=True):
            for _ in range(workload.inner_steps):
                inner.step(loss_of(workload, module(xs), ys))
            (loss_of(workload, module(xq), yq) / workload.tasks).backward()
            torchopt.recover_state_dict(module, start)
            torchopt.recover_state_dict(inner, begun)
        return {name: leaf.grad for name, leaf in meta.items()}

    return step
