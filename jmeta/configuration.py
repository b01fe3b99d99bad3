"""A learner, its network and its tasks by name, as given by options and a run's folder."""

import dataclasses
import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro

from jmeta import data, learners, losses, models
from jmeta.checks import check_counts, check_positive
from jmeta.functional import MetaGradientOptions
from jmeta.training import MAX_TASK_NORM
from jmeta.types import Array, Learner, Model, Task


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The tasks."""

    ways: int | None = None
    """Classes in a task. Left out: 5."""
    shots: int | None = None
    """Support examples of each class (of the whole task in regression). Left out: 1, and 10 on sinusoids."""
    queries: int | None = None
    """Query examples of each class (of the whole task in regression). Left out: 15, and 10 on sinusoids."""


OF_CLASSES = {"ways": 5, "shots": 1, "queries": 15}


class Source(NamedTuple):
    """A source of tasks."""

    description: str
    sampler: Callable  # (sizes of a task, split, data_dir) -> sample
    sizes: Mapping[str, int] = OF_CLASSES  # of a task, where none are given
    files: bool = False  # whether it reads files, from `data_dir`
    classes: int | None = None  # in its training data, if one classifier can be trained on all; None: new in each task
    regression: bool = False
    model: str = "conv4"
    inner_rate: float | None = None  # for gradient descent in the weights; None: the learner's own


def _omniglot(sizes: dict[str, int], split: str, data_dir: str | None) -> Callable[[Array], Task]:
    return data.episodes(data.omniglot(split, data_dir=data_dir), **sizes)


SOURCES = {
    "glyphs": Source(
        "endless handwritten-like characters, drawn on the device; no files",
        lambda sizes, split, data_dir: data.glyphs(**sizes),
    ),
    "omniglot": Source(
        "1,623 handwritten characters of 50 alphabets (Lake et al., 2015)",
        _omniglot,
        files=True,
        classes=4112,  # 1,028 characters in four rotations each
    ),
    "sinusoid": Source(
        "regression of sine waves (Finn et al., 2017)",
        lambda sizes, split, data_dir: data.sinusoid(**sizes),
        sizes={"shots": 10, "queries": 10},  # Finn et al. (2017)
        regression=True,
        model="mlp",
        inner_rate=0.01,  # Finn et al. (2017); at rates for classification its loss diverges
    ),
}

LEARNERS = {name: getattr(learners, name) for name in learners.__all__}
MODELS = {"conv4": models.conv4, "mlp": models.mlp, "resnet12": models.resnet12}
# Learners whose default rate of gradient descent is for classification. The other gradient-based learners use their own
# on any source: cavia's is for a context, reptile's for Adam, and imaml needs a minimum.
DESCEND_IN_WEIGHTS = {"anil", "boil", "fomaml", "maml", "mamlpp", "meta_curvature", "meta_sgd"}
# Learners whose model has an output layer as wide as the targets; the models of others are encoders.
HEADED = DESCEND_IN_WEIGHTS | {"cavia", "imaml", "reptile"}
# Options of a regression, where they are not the squared error alone.
REGRESSION: dict[str, dict[str, Any]] = {"cnp": {"loss_fn": losses.gaussian_nll}, "r2d2": {"scale": 1.0}}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What is needed to rebuild a run. Options left out take the default of the learner or the network."""

    learner: str = "maml"
    """Which algorithm; `jmeta learners` lists them."""
    data: str = "glyphs"
    """Where tasks come from; `jmeta data list` lists the sources."""
    data_dir: str | None = None
    """The folder of TensorFlow Datasets' data sets."""
    protocol: Annotated[Protocol, tyro.conf.arg(name="")] = Protocol()
    """The training tasks."""
    model: str | None = None
    """conv4, mlp or resnet12; the source's own if left out."""
    norm: str | None = None
    """Normalisation policy: batch, running, group, layer or none."""
    width: int | None = None
    """Filters of each block of conv4."""
    strided: bool | None = None
    """Whether conv4 halves by strides instead of pooling."""
    context: int | None = None
    """Parameters of the context that cavia adapts, for mlp and conv4."""
    inner_steps: int | None = None
    """Inner gradient steps in meta-training."""
    test_steps: int | None = None
    """Inner gradient steps in evaluation."""
    inner_rate: float | None = None
    """Learning rate of the inner loop, which is then plain gradient descent. Left out: the learner's own, but 0.01 on
    sinusoids for those whose own is for classification."""
    inner_batch: int | None = None
    """Support examples per inner step. Left out: all of them, but 10 for reptile."""
    multi_step_until: int | None = None
    """Meta-steps in which mamlpp counts the loss after every inner step."""
    first_order_until: int | None = None
    """Meta-steps in which mamlpp treats inner gradients as constants."""
    meta_gradient: str | None = None
    """How the meta-gradient is taken: second_order, first_order, implicit or truncated."""
    differentiation: str | None = None
    """How exact inner steps are differentiated: mixed or reverse."""
    checkpoint: bool | None = None
    """Whether inner steps are recomputed instead of stored."""
    last_steps: int | None = None
    """How many inner steps are exact under truncated."""
    proximal: float | None = None
    """Weight of the proximal term of the inner objective."""
    cg_steps: int | None = None
    """Maximum number of conjugate gradient steps under implicit."""
    damping: float | None = None
    """Added to the proximal weight in the meta-gradient under implicit."""
    distance: str | None = None
    """Distance of a prototypical network: euclidean, cosine or mahalanobis."""
    classes: int | None = None
    """Number of classes that a transfer baseline is trained on. Left out: those of the training data."""
    batch_size: int = 16
    """Tasks per meta-step."""
    learning_rate: float = 1e-3
    """Learning rate of the outer optimizer, Adam."""
    decay_steps: int | None = None
    """Meta-steps over which that rate falls to zero along a cosine, at least those of the run; left out, the rate is
    constant."""
    nonfinite: str = "skip"
    """What to do with tasks whose loss or meta-gradient is not finite: skip or raise."""
    max_task_norm: float | None = MAX_TASK_NORM
    """Longer meta-gradients of a task are scaled down to this length; None or inf for no bound."""
    seed: int = 0
    """Determines the initial parameters and all tasks."""


# Learners' options that have the same name in a configuration.
LEARNER_OPTIONS = (
    "inner_steps",
    "test_steps",
    "inner_batch",
    "distance",
    "multi_step_until",
    "first_order_until",
    *MetaGradientOptions.__annotations__,
)
OPTION_NAMES = {"inner_optimizer": "inner_rate"}  # options with another name there


def build_learner(configuration: Configuration) -> Learner:
    """The learner that a configuration describes.

    Raises:
        ValueError: for an unknown name, an option that the learner or the model does not have, a rate that is
            not positive, or a transfer baseline on a source without classes of its own.
    """
    source = _named("data", configuration.data, SOURCES)
    factory = _named("learner", configuration.learner, LEARNERS)
    _check_numbers(configuration)
    parameters = inspect.signature(factory).parameters
    rate = configuration.inner_rate
    if rate is None and configuration.learner in DESCEND_IN_WEIGHTS:
        rate = source.inner_rate
    options: dict[str, Any] = {name: getattr(configuration, name) for name in LEARNER_OPTIONS}
    options["classes"] = _classes(configuration, source) if "classes" in parameters else configuration.classes
    if rate is not None:
        options |= {"inner_rate": rate} if "inner_rate" in parameters else {"inner_optimizer": optax.sgd(rate)}
    if source.regression:
        options |= {"loss_fn": losses.squared_error} | REGRESSION.get(configuration.learner, {})
    return factory(_build_model(configuration, source), **_accepted(factory, configuration.learner, options))


def _check_numbers(configuration: Configuration) -> None:
    """Raises a `ValueError` for a number that is not finite, or a rate that is not positive."""
    for name, value in dataclasses.asdict(configuration).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}; it must be a finite number.")
    rates = {name: getattr(configuration, name) for name in ("learning_rate", "inner_rate")}
    check_positive(**{name: rate for name, rate in rates.items() if rate is not None})


def _classes(configuration: Configuration, source: Source) -> int | None:
    """How many classes a transfer baseline is trained on: as many as one asks for, or those of the source."""
    classes = configuration.classes
    if source.classes is None and not source.regression:
        raise ValueError(
            f"{configuration.learner} is trained to classify all classes of its data, but {configuration.data} has new "
            "ones in every task; use --data omniglot."
        )
    if classes is not None and source.classes is not None and classes < source.classes:
        raise ValueError(
            f"classes is {classes}, but {configuration.data} has {source.classes}, each of which needs an output; "
            "leave it out."
        )
    return source.classes if classes is None else classes


def build_optimizer(configuration: Configuration) -> optax.GradientTransformation:
    """The outer optimizer that a configuration describes; raises a `ValueError` for a decay of fewer than 1 step."""
    rate, steps = configuration.learning_rate, configuration.decay_steps
    if steps is None:
        return optax.adam(rate)
    check_counts(least=1, decay_steps=steps)
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def _build_model(configuration: Configuration, source: Source) -> Model:
    name = configuration.model or source.model
    factory = _named("model", name, MODELS)
    width = 1 if source.regression else task_sizes(configuration.data, configuration.protocol)["ways"]
    if configuration.context is not None and configuration.learner != "cavia":
        raise ValueError(f"context was given, but {configuration.learner} adapts none; cavia does.")
    options = {name: getattr(configuration, name) for name in ("norm", "width", "strided", "context")}
    outputs = width if configuration.learner in HEADED else None
    return factory(outputs=outputs, **_accepted(factory, name, options))


def _accepted(factory: Callable, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, all of which the factory must have."""
    given = {option: value for option, value in options.items() if value is not None}
    parameters = inspect.signature(factory).parameters
    known = parameters.keys() | (MetaGradientOptions.__annotations__ if "options" in parameters else {})
    for option in given:
        if option in known:
            continue
        if option == "loss_fn":
            raise ValueError(f"{name} classifies; it cannot be trained on a source of regression tasks.")
        raise ValueError(f"{OPTION_NAMES.get(option, option)} was given, but {name} has no such option.")
    return given


def _named(kind: str, name: str, known: dict[str, Any]) -> Any:
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
    raise ValueError(f"{kind} {name!r} is unknown; did you mean {nearest!r}? There are {', '.join(sorted(known))}.")


def task_sizes(name: str, protocol: Protocol) -> dict[str, int]:
    """The sizes of a source's tasks: those that the protocol gives, and the source's own for the rest."""
    own = _named("data", name, SOURCES).sizes
    given = dataclasses.asdict(protocol)
    return {name: size if given[name] is None else given[name] for name, size in own.items()}


def build_sampler(name: str, protocol: Protocol, split: str, data_dir: str | None) -> Callable[[Array], Task]:
    """The sampler of a source's tasks."""
    return _named("data", name, SOURCES).sampler(task_sizes(name, protocol), split, data_dir)


def check_protocol(name: str, *, ways: int | None, data_dir: str | None) -> None:
    """Raises a `ValueError` for options that the source cannot use: ways without classes, or a folder without files."""
    source = _named("data", name, SOURCES)
    if ways is not None and source.regression:
        raise ValueError(f"--ways {ways} was given, but {name} has no classes.")
    if data_dir is not None and not source.files:
        raise ValueError(f"--data-dir {data_dir} was given, but {name} reads no files.")


def stand_in(configuration: Configuration) -> Callable[[Array], Task]:
    """A sampler of tasks with the shapes a run was trained on, which reads no data set.

    Every classification source has images of 28 x 28 x 1. Classes are numbered from 0, which every learner
    accepts.
    """
    sizes = task_sizes(configuration.data, configuration.protocol)
    if SOURCES[configuration.data].regression:
        return SOURCES["sinusoid"].sampler(sizes, "train", None)
    sample = SOURCES["glyphs"].sampler(sizes, "train", None)
    return lambda key: sample(key)._replace(class_ids=jnp.arange(sizes["ways"], dtype=jnp.int32))


def identity(configuration: Configuration) -> dict[str, Any]:
    """What a checkpoint must share with a run that continues it: all but where the data lie, which may move."""
    values = dataclasses.asdict(configuration)
    del values["data_dir"]
    return values


def key_of(seed: int) -> Array:
    """The key for a seed; raises a `ValueError` if the seed is too large."""
    try:
        return jax.random.key(seed)
    except OverflowError:
        raise ValueError(f"seed is {seed}; it must be a whole number of 64 bits.") from None
