"""jmeta: meta-learning in JAX. Every algorithm is a `Learner`: four pure functions, written for one task."""

from jmeta import checkpoints, data, functional, learners, losses, models
from jmeta.evaluation import evaluate, Report
from jmeta.fitting import fit
from jmeta.training import init_state, make_train_loop, make_train_step
from jmeta.types import Examples, Learner, Model, Normalisation, Task, TrainState

__version__ = "0.1.0"

__all__ = [
    "Examples",
    "Learner",
    "Model",
    "Normalisation",
    "Report",
    "Task",
    "TrainState",
    "checkpoints",
    "data",
    "evaluate",
    "fit",
    "functional",
    "init_state",
    "learners",
    "losses",
    "make_train_loop",
    "make_train_step",
    "models",
]
