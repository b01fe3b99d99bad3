"""What peers are compared on: tasks, how many and of what, a network, and the work that is done with them.

There are three kinds of work, each a function `(peer, workload, weights, tasks, dtype) -> step` in the file of a peer.
`meta_gradient`: the step gives that of the mean query loss over the tasks, by the names of the weights. `training`: it
draws tasks, takes their meta-gradient and updates the weights by Adam, so many times. `evaluation`: it gives the mean
query loss after adaptation.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Tasks = list[tuple[np.ndarray, np.ndarray]]  # inputs and targets of support and query, [T, K, ...]

CLASSES, DRAWINGS = 200, 20  # of the images that episodes are drawn from


class Workload(NamedTuple):
    """Tasks, a network, and what is to be done with them."""

    tasks: int
    ways: int
    shots: int
    queries: int  # of a class
    inner_rate: float = 0.01
    inner_steps: int = 5
    image: tuple[int, int, int] | None = None  # None: sinusoids, and a perceptron of 40-40
    network: str = "conv4"  # of images; or "resnet12"
    width: int = 64  # filters of the first layer
    strided: bool = False
    second_order: bool = True
    learner: str = "maml"  # or "protonet"
    work: str = "meta_gradient"  # or "training" or "evaluation", as above
    meta_steps: int = 1  # of one call, in training

    @property
    def resnet_widths(self) -> tuple[int, ...]:
        """Filters of each block of ResNet-12, 64, 160, 320 and 640 for a width of 64."""
        return tuple(self.width * times // 2 for times in (2, 5, 10, 20))

    def examples(self, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets [T, K, ...] of so many examples of a class, random: time does not depend on them."""
        shape = (self.tasks, self.ways * number)
        if self.image is None:
            return rng.uniform(-5, 5, (*shape, 1)), rng.normal(size=(*shape, 1))
        return rng.normal(size=(*shape, *self.image)), self._targets(number)

    def _targets(self, number):
        return np.tile(np.repeat(np.eye(self.ways), number, axis=0), (self.tasks, 1, 1))

    def images(self) -> np.ndarray:
        """What episodes are drawn from in training, [classes, drawings, H, W, C]."""
        return np.random.default_rng(0).normal(size=(CLASSES, DRAWINGS, *self.image)).astype(np.float32)

    def loader(self) -> Callable[[], Tasks]:
        """A sampler of batches of tasks, by NumPy, as jmeta's own draws them."""
        rng = np.random.default_rng(0)
        if self.image is None:
            return lambda: self._waves(rng)
        images = self.images()
        return lambda: self._episodes(images, rng)

    def _waves(self, rng):
        amplitude, phase = rng.uniform(0.1, 5, (self.tasks, 1, 1)), rng.uniform(0, np.pi, (self.tasks, 1, 1))
        x = rng.uniform(-5, 5, (self.tasks, self.shots + self.queries, 1))
        y = amplitude * np.sin(x - phase)
        return [(x[:, : self.shots], y[:, : self.shots]), (x[:, self.shots :], y[:, self.shots :])]

    def _episodes(self, images, rng):
        classes = np.stack([rng.choice(CLASSES, self.ways, replace=False) for _ in range(self.tasks)])
        drawings = rng.permuted(np.tile(np.arange(DRAWINGS), (self.tasks, self.ways, 1)), axis=-1)
        chosen = images[classes[..., None], drawings[..., : self.shots + self.queries]]
        parts = []
        for part, number in ((chosen[:, :, : self.shots], self.shots), (chosen[:, :, self.shots :], self.queries)):
            parts.append((part.reshape(self.tasks, -1, *self.image), self._targets(number)))
        return parts


SINUSOID = Workload(25, 1, 10, 10)
OMNIGLOT = Workload(8, 5, 1, 15, 0.4, image=(28, 28, 1))
PROTONET = Workload(1, 60, 1, 5, image=(28, 28, 1), learner="protonet")
WORKLOADS = {
    "sinusoid": SINUSOID,
    "sinusoid-training": SINUSOID._replace(work="training", meta_steps=20),
    "omniglot": OMNIGLOT,
    "omniglot-first-order": OMNIGLOT._replace(second_order=False),
    "omniglot-32": OMNIGLOT._replace(tasks=32),
    "omniglot-strided": OMNIGLOT._replace(strided=True),
    "omniglot-training": OMNIGLOT._replace(work="training"),
    "omniglot-evaluation": OMNIGLOT._replace(tasks=600, work="evaluation"),
    "miniimagenet": Workload(2, 5, 5, 15, 0.01, image=(84, 84, 3), width=32),
    "protonet": PROTONET,
    "protonet-training": PROTONET._replace(work="training"),
    "resnet12": Workload(4, 5, 1, 15, 0.01, image=(84, 84, 3), network="resnet12"),
}


def tasks_of(workload: Workload) -> Tasks:
    """The tasks of a workload, always the same."""
    rng = np.random.default_rng(0)
    return [workload.examples(number, rng) for number in (workload.shots, workload.queries)]
