"""The `jmeta` command."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import itertools
import json
import math
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, Literal

import jax
import tyro

from jmeta import checkpoints, data, demo
from jmeta.configuration import (
    build_learner,
    build_optimizer,
    build_sampler,
    check_protocol,
    Configuration,
    identity,
    key_of,
    LEARNERS,
    Protocol,
    SOURCES,
    stand_in,
    task_sizes,
)
from jmeta.evaluation import evaluate
from jmeta.files import sole_writer, to_json, write_whole
from jmeta.fitting import check_schedule, check_taken, fit
from jmeta.runs import load, read_run, Run
from jmeta.training import check_policy
from jmeta.types import Array, Task

Benchmark = Literal["order", "learners", "linear_regression"]  # those in benchmarks/ that the command runs


@dataclasses.dataclass(frozen=True)
class Train:
    """Meta-train a learner: a new run in --out, or one to --resume."""

    configuration: Annotated[Configuration, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Configuration)
    out: Path | None = None
    """Folder of a new run."""
    resume: Path | None = None
    """Folder of a run to continue, with its own configuration."""
    steps: int | None = None
    """Meta-steps in the whole run. Left out: 2000, or those of the resumed run."""
    save_every: int = 500
    """Meta-steps between checkpoints and validations; a multiple of log_every."""
    log_every: int = 10
    """Meta-steps between lines of metrics."""
    episodes: int = 200
    """Validation episodes."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate a run on test tasks; options left out are as in the run."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    ways: int | None = None
    """Classes in a task."""
    shots: int | None = None
    """Support examples of each class."""
    queries: int | None = None
    """Query examples of each class."""
    test_steps: int | None = None
    """Inner gradient steps."""
    data: str | None = None
    """A source other than the one the run was trained on."""
    data_dir: str | None = None
    """The folder of TensorFlow Datasets' data sets."""
    best: bool = False
    """The checkpoint that was best in validation, not the newest."""
    episodes: int = 600
    """Test episodes."""
    seed: int = 0
    """Determines the test episodes."""
    out: Path | None = None
    """File for the whole report, as JSON, with the run, its step, the source of the tasks and the seed."""


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Prepare a data set for reading."""

    name: Annotated[Literal["omniglot"], tyro.conf.Positional]
    """The data set."""
    archives: Path | None = None
    """Folder with the official archives; without it they are downloaded."""
    data_dir: str | None = None
    """The folder of TensorFlow Datasets' data sets."""


@dataclasses.dataclass(frozen=True)
class ListData:
    """List the sources of tasks."""


@dataclasses.dataclass(frozen=True)
class ListLearners:
    """List the learners."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Meta-train a small learner on glyphs and draw what it learned; two minutes."""

    out: Path = Path("demo.png")
    """File for the picture."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """Run a benchmark, in a clone of the repository; `jmeta bench order --help` lists the options."""

    name: Annotated[Benchmark, tyro.conf.Positional]
    """order: second order against first order; learners: all learners on the same tasks;
    linear_regression: a Transformer against the best possible predictor."""


def _subcommand(name: str) -> Any:
    return tyro.conf.subcommand(name, prefix_name=False)


DataCommand = Annotated[Prepare, _subcommand("prepare")] | Annotated[ListData, _subcommand("list")]


@dataclasses.dataclass(frozen=True)
class Data:
    """Prepare and list data."""

    command: Annotated[DataCommand, tyro.conf.arg(name="")]


Command = (
    Annotated[Train, _subcommand("train")]
    | Annotated[Evaluate, _subcommand("evaluate")]
    | Annotated[Data, _subcommand("data")]
    | Annotated[ListLearners, _subcommand("learners")]
    | Annotated[Bench, _subcommand("bench")]
    | Annotated[Demo, _subcommand("demo")]
)


def train(command: Train) -> None:
    """`jmeta train`."""
    folder, run = _begun(command) if command.resume is None else _resumed(command.resume, command)
    configuration = run.configuration
    check_schedule(run.steps, configuration.batch_size, run.log_every, run.save_every, run.episodes)
    max_task_norm = math.inf if configuration.max_task_norm is None else configuration.max_task_norm
    check_policy(configuration.nonfinite, max_task_norm)
    learner, optimizer, key = build_learner(configuration), build_optimizer(configuration), key_of(configuration.seed)
    decay_steps = configuration.decay_steps
    if decay_steps is not None and decay_steps < run.steps:
        raise ValueError(
            f"steps is {run.steps}, but after decay_steps, {decay_steps}, the rate is zero and no parameter moves; "
            f"steps must be at most {decay_steps}."
        )
    tasks, validation = (
        build_sampler(configuration.data, configuration.protocol, split, configuration.data_dir)
        for split in ("train", "val")
    )
    task = tasks(jax.random.key(0))  # a real one, because a transfer baseline checks its classes
    jax.eval_shape(lambda key: learner.init(key, task), jax.random.key(0))
    with sole_writer(folder), warnings.catch_warnings():  # only now, so that a mistake leaves no folder behind
        warnings.filterwarnings("ignore", "SIG(INT|TERM) (ended the run|came in the last)")  # as is told below
        if command.resume is None:
            _check_empty(folder)  # another run may have started there since
        write_whole(folder / "run.json", json.dumps(dataclasses.asdict(run), indent=1) + "\n")
        state = fit(
            learner,
            optimizer,
            tasks,
            validation=validation,
            key=key,
            steps=run.steps,
            batch_size=configuration.batch_size,
            episodes=run.episodes,
            out=folder,
            config=identity(configuration),
            log_every=run.log_every,
            save_every=run.save_every,
            nonfinite=configuration.nonfinite,  # type: ignore[arg-type]  # checked there
            max_task_norm=max_task_norm,
            devices=jax.local_devices(),
        )
    if state.step < run.steps:
        print(f"stopped at meta-step {state.step}; continue with: jmeta train --resume {folder}", flush=True)
        raise KeyboardInterrupt
    print(f"trained for {state.step} meta-steps; evaluate with: jmeta evaluate {folder}")


def _begun(command: Train) -> tuple[Path, Run]:
    """The folder, which holds no run yet, and the new run that the options describe."""
    if command.out is None:
        raise ValueError("train needs --out, the folder of a new run, or --resume, the folder of a run to continue.")
    _check_empty(command.out)
    configuration = command.configuration
    if configuration.max_task_norm == math.inf:  # which JSON cannot represent
        configuration = dataclasses.replace(configuration, max_task_norm=None)
    check_protocol(configuration.data, ways=configuration.protocol.ways, data_dir=configuration.data_dir)
    sizes = task_sizes(configuration.data, configuration.protocol)  # recorded in full, in case a default changes
    data_dir = _from_anywhere(configuration.data_dir)
    configuration = dataclasses.replace(configuration, protocol=Protocol(**sizes), data_dir=data_dir)
    steps = 2000 if command.steps is None else command.steps
    return command.out, Run(configuration, steps, command.save_every, command.log_every, command.episodes)


def _from_anywhere(data_dir: str | None) -> str | None:
    """The folder as a resumed run finds it, wherever that is started; an address is refused where it is read."""
    if data_dir is None or "://" in data_dir:
        return data_dir
    return str(Path(data_dir).expanduser().absolute())


def _check_empty(folder: Path) -> None:
    if (folder / "run.json").exists():
        raise ValueError(f"{folder} already holds a run; continue it with: jmeta train --resume {folder}")
    for name in ("metrics.jsonl", "checkpoints"):
        if (folder / name).exists():
            raise ValueError(f"{folder} holds {name} that jmeta train did not write; choose another folder.")


def _check_resumed(arguments: list[str]) -> None:
    """Raises a `ValueError` for options of `jmeta train` that a resumed run would ignore."""
    given = {argument.partition("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")}
    if "--resume" in given and (others := given - {"--resume", "--steps", "--data-dir", "--help"}):
        raise ValueError(
            f"--resume continues a run with its own configuration; only --steps and --data-dir may be given with it, "
            f"not {', '.join(sorted(others))}."
        )


def _resumed(folder: Path, command: Train) -> tuple[Path, Run]:
    """The folder and its run, with the steps and the folder of its data that are given."""
    run = read_run(folder)
    if data_dir := _from_anywhere(command.configuration.data_dir):
        check_protocol(run.configuration.data, ways=None, data_dir=data_dir)
        run = dataclasses.replace(run, configuration=dataclasses.replace(run.configuration, data_dir=data_dir))
    if command.steps is None:
        return folder, run
    check_taken(folder, checkpoints.latest_step(folder / "checkpoints") or 0, command.steps)
    return folder, dataclasses.replace(run, steps=command.steps)


def evaluate_run(command: Evaluate) -> None:
    """`jmeta evaluate`."""
    configuration = read_run(command.run).configuration
    given = {name: getattr(command, name) for name in ("ways", "shots", "queries")}
    protocol = dataclasses.replace(configuration.protocol, **{k: v for k, v in given.items() if v is not None})
    name = command.data or configuration.data
    check_protocol(name, ways=command.ways, data_dir=command.data_dir)
    key = key_of(command.seed)
    if command.out is not None:
        _check_file(command.out)
    sample = build_sampler(name, protocol, "test", command.data_dir or configuration.data_dir)
    learner, state = load(command.run, step=_best_step(command.run) if command.best else None)
    if command.test_steps is not None:
        learner = build_learner(dataclasses.replace(configuration, test_steps=command.test_steps))
    trained, tested = (_input_shape(of) for of in (stand_in(configuration), sample))
    if trained != tested:
        raise ValueError(
            f"{command.run} was trained on inputs of shape {trained}, but {name} has inputs of shape {tested}."
        )
    report = evaluate(learner, state, sample, key=key, episodes=command.episodes, devices=jax.local_devices())
    try:
        if command.out is not None:
            made_by = {"run": str(command.run), "step": int(state.step), "data": name, "seed": command.seed}
            write_whole(command.out, to_json(made_by | json.loads(report.to_json()), indent=1) + "\n")
    finally:
        print(f"step {state.step}: {report}")


def _best_step(folder: Path) -> int:
    step = checkpoints.best_step(folder / "checkpoints")
    if step is None:
        raise ValueError(f"--best was given, but no checkpoint in {folder} was validated.")
    return step


def _check_file(out: Path) -> None:
    """Raises a `ValueError` if the file cannot be written, before there is anything to lose."""
    try:
        out = out.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise ValueError(f"--out {out} leads nowhere: {error}.") from error
    if not out.parent.is_dir():
        raise ValueError(f"--out {out} is in a folder that does not exist.")
    if out.exists() and not out.is_file():
        raise ValueError(f"--out {out} is not a regular file; it must be one, or not exist yet.")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out {out} is in a folder that you may not write to.")


def _input_shape(sample: Callable[[Array], Task]) -> tuple[int, ...]:
    return jax.eval_shape(sample, jax.random.key(0)).support.inputs.shape[1:]


def _first_line(function: Callable) -> str:
    return (inspect.getdoc(function) or "").split("\n")[0]


def _paper(function: Callable) -> str:
    return (sys.modules[function.__module__].__doc__ or "").split("\n")[0].rstrip(".")


def list_learners() -> None:
    """`jmeta learners`."""
    for name, factory in LEARNERS.items():
        print(f"{name:15} {_paper(factory)}. {_first_line(factory)}")


def list_data() -> None:
    """`jmeta data list`."""
    for name, source in SOURCES.items():
        print(f"{name:12} {source.description}")


def run(command: Any) -> None:
    """Runs one command."""
    match command:
        case Train():
            train(command)
        case Evaluate():
            evaluate_run(command)
        case Data(Prepare(archives=archives, data_dir=data_dir)):
            builder = data.prepare_omniglot(data_dir=data_dir, archives=archives)
            print(f"omniglot is ready in {builder.data_dir}")
        case Data(ListData()):
            list_data()
        case ListLearners():
            list_learners()
        case Demo(out):
            demo.run(out)


def bench(name: str, arguments: list[str]) -> None:
    """`jmeta bench`: the benchmark of that name, with its own options."""
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if error.name not in ("benchmarks", f"benchmarks.{name}"):
            raise
        raise ValueError("the benchmarks are not in the package; run this in a clone of the repository.") from None

    @functools.wraps(module.main)
    def parsed(*args, **kwargs):
        return args, kwargs

    args, kwargs = _parsed_in_a_line(parsed, prog=f"jmeta bench {name}", args=arguments)
    module.main(*args, **kwargs)


def main(arguments: list[str] | None = None) -> int:
    """The entry point.

    Returns:
        The exit code: 0; 2 after one line about a user's mistake; 1 after one about a
        run that diverged; 130 after an interrupt, or when a signal stopped training;
        141 if the output was closed, as `head` does when it has read enough.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        try:
            match arguments:
                case ["bench", name, *options] if name in get_args(Benchmark):
                    bench(name, options)
                case _:
                    if arguments[:1] == ["train"]:
                        _check_resumed(arguments)
                    run(_parsed_in_a_line(Command, prog="jmeta", description="Meta-learning in JAX.", args=arguments))
        finally:  # also when a help page ends the program
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would flush into the pipe again
        return 141
    except (ValueError, OSError, ModuleNotFoundError) as error:
        return _reported(error, 2)
    except FloatingPointError as error:
        return _reported(error, 1)
    except KeyboardInterrupt:
        return _reported("interrupted", 130)
    return 0


def _reported(message: object, code: int) -> int:
    print(f"jmeta: {message}", file=sys.stderr)
    return code


def _parsed_in_a_line(target: Any, **kwargs: Any) -> Any:
    """The arguments as tyro parses them; its framed message about a mistake becomes one line."""
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            return tyro.cli(target, **kwargs)
    except SystemExit as exit:
        if not exit.code:
            raise
        # Frames and rules are box-drawing characters, or ASCII where the terminal has none.
        lines = (line.strip("│╭╮╰╯─|+- ") for line in written.getvalue().splitlines()[1:])
        first = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines))
        raise ValueError(" ".join(first).rstrip(".") + "; see jmeta --help") from None


if __name__ == "__main__":
    sys.exit(main())
