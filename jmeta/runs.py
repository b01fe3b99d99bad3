"""Reads a run of `jmeta train` from its folder."""

import dataclasses
import json
import os
from pathlib import Path

import jax

from jmeta import checkpoints
from jmeta.configuration import build_learner, build_optimizer, Configuration, identity, key_of, Protocol, stand_in
from jmeta.training import init_state
from jmeta.types import Learner, TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """The contents of `run.json` in a run's folder."""

    configuration: Configuration
    steps: int
    save_every: int
    log_every: int
    episodes: int


def read_run(folder: Path) -> Run:
    """The contents of `run.json` in a folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    path = folder / "run.json"
    if not path.exists():
        if (folder / "checkpoints").exists():
            remedy = f"what fit saved there is read by jmeta.checkpoints.restore('{folder}/checkpoints', like=state)"
        else:
            remedy = f"start one: jmeta train --out {folder}"
        raise FileNotFoundError(f"there is no run of jmeta train in {folder}: {path} is missing; {remedy}")
    try:
        saved = json.loads(path.read_text())
        configuration = saved.pop("configuration")
        return Run(Configuration(**configuration | {"protocol": Protocol(**configuration["protocol"])}), **saved)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not what `jmeta train` writes: {error}") from error


def load(folder: str | os.PathLike, *, step: int | None = None) -> tuple[Learner, TrainState]:
    """The learner and a saved state of a run.

    Args:
        folder: the folder that `jmeta train` was given as `--out`.
        step: of which checkpoint, such as `checkpoints.best_step("runs/x/checkpoints")`;
            None for the newest.

    Returns:
        The learner, rebuilt from the run's configuration, and its training state.

    Raises:
        FileNotFoundError: if there is no run or no such checkpoint in it.
        ValueError: if `run.json` is damaged, or the checkpoint belongs to another learner.
    """
    folder = Path(folder)
    configuration = read_run(folder).configuration
    checkpoints.check_config(folder / "checkpoints", identity(configuration))
    learner = build_learner(configuration)
    key = key_of(configuration.seed)
    like = init_state(learner, build_optimizer(configuration), key, jax.jit(stand_in(configuration))(key))
    return learner, checkpoints.restore(folder / "checkpoints", like, step=step)
