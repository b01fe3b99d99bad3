"""Checkpoints of training, saved and restored exactly by Orbax.

Orbax writes a checkpoint under a temporary name and renames it when it is complete, so
a half-written one is never taken for a checkpoint.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jmeta.trees import by_path, first_difference
from jmeta.types import TrainState

KEEP = 2  # the last checkpoint, and one to go back to
METADATA = "_CHECKPOINT_METADATA"  # in every checkpoint's folder
PARTS = {METADATA, "commit_success.txt", "config", "metrics", "state"}  # all that is there


def save(
    directory: str | os.PathLike,
    state: TrainState,
    *,
    config: dict[str, Any] | None = None,
    score: float | None = None,
) -> None:
    """Saves a training state under its step; the two newest are kept, and the one with the highest score.

    Args:
        directory: the folder of this run's checkpoints, created if missing.
        state: parameters, state, optimizer state, PRNG key and step.
        config: a JSON-serialisable dict from which the learner can be rebuilt.
        score: how good the state is, by which `best_step` finds it; None or NaN if that
            is not known.

    Raises:
        ValueError: if there is already a checkpoint of this step or a later one, which
            would be taken for the newest; or a folder named by a number that holds
            anything but parts of a checkpoint, which would be taken for one and deleted.

    Example:
        >>> import tempfile
        >>> state = TrainState({}, (), (), jax.random.key(0), 0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step, score in enumerate([0.7, 0.9, 0.8, 0.6], start=1):
        ...         save(folder, state._replace(step=step), score=score)
        ...     print(sorted(saved_steps(folder)), best_step(folder))
        [2, 3, 4] 2
    """
    import orbax.checkpoint as ocp  # a fifth of a second that `import jmeta` does not need

    _check_numbered(Path(directory))
    items = {"state": ocp.args.StandardSave(_flat(state)), "config": ocp.args.JsonSave(config or {})}
    with _manager(directory, create=True) as manager:
        if (newest := manager.latest_step()) is not None and state.step <= newest:
            raise ValueError(
                f"{directory} already has a checkpoint of step {newest}; a new one must be of a later step than that, "
                f"not {state.step}."
            )
        # Without any metrics Orbax would log a warning.
        manager.save(
            int(state.step),
            args=ocp.args.Composite(**items),
            metrics={"score": None if score is None else float(score)},
            force=True,
        )
        manager.wait_until_finished()


def restore(directory: str | os.PathLike, like: TrainState, *, step: int | None = None) -> TrainState:
    """A checkpoint, bit for bit.

    Args:
        directory: the folder of the run's checkpoints.
        like: a state of the same learner and optimizer, as returned by `init_state`.
        step: which one, such as `best_step(directory)`; None for the newest.

    Returns:
        The saved state.

    Raises:
        FileNotFoundError: if there is no complete checkpoint, or none of this step.
        ValueError: if the checkpoint is of another learner, model or optimizer, or cannot be read.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> state = TrainState({"w": jnp.ones(2)}, (), (), jax.random.key(0), jnp.int32(3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, state)
        ...     print(restore(folder, like=state).params["w"])
        [1. 1.]
    """
    import orbax.checkpoint as ocp

    with _manager(directory) as manager:
        newest, steps = _newest(manager, directory), manager.all_steps()
        if step is not None and step not in steps:
            raise FileNotFoundError(
                f"there is no checkpoint of step {step} in {directory}; there are {', '.join(map(str, sorted(steps)))}."
            )
        saved = _read(manager, directory, newest if step is None else step, state=ocp.args.StandardRestore())
    _check_alike(directory, saved, _flat(like))
    leaves = [_as(leaf, saved[name]) if name in saved else leaf for name, leaf in by_path(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def restore_config(directory: str | os.PathLike) -> dict[str, Any]:
    """The configuration saved with the newest checkpoint.

    Args:
        directory: the folder of the run's checkpoints.

    Returns:
        What was given to `save` as `config`; empty if nothing was.

    Raises:
        FileNotFoundError: if there is no complete checkpoint.
        ValueError: if it cannot be read.
    """
    import orbax.checkpoint as ocp

    with _manager(directory) as manager:
        step = _newest(manager, directory)
        return _read(manager, directory, step, config=ocp.args.JsonRestore())


def check_config(directory: str | os.PathLike, config: dict[str, Any]) -> dict[str, Any]:
    """Raises a `ValueError` unless the newest checkpoint was saved with the values of `config`.

    Args:
        directory: the folder of the run's checkpoints.
        config: as given to `save`, or a part of it.

    Returns:
        The whole saved configuration.
    """
    saved = restore_config(directory)
    for name, value in json.loads(json.dumps(config)).items():  # as it is read back: tuples become lists
        if saved.get(name) != value:  # an option left out, None, may be newer than the checkpoint
            found = f"its {name} is {saved[name]!r}" if name in saved else f"it has no {name}"
            raise ValueError(f"the checkpoints in {directory} are of another run: {found}, not {value!r}.")
    return saved


def latest_step(directory: str | os.PathLike) -> int | None:
    """The step of the newest complete checkpoint, or None."""
    return max(saved_steps(directory), default=None)


def best_step(directory: str | os.PathLike) -> int | None:
    """The step of the checkpoint with the highest score, the newest of equals; None if none has a score."""
    if not Path(directory).is_dir():
        return None
    with _manager(directory) as manager:
        best = manager.best_step()
        is_scored = best is not None and _score(manager.metrics(best)) > -math.inf
    return best if is_scored else None


def saved_steps(directory: str | os.PathLike) -> list[int]:
    """The steps of all complete checkpoints."""
    if not Path(directory).is_dir():
        return []
    with _manager(directory) as manager:
        return list(manager.all_steps())


def _check_numbered(directory):
    """Raises a `ValueError` for a numbered folder without a checkpoint: Orbax would take it for one and delete it."""
    for path in directory.glob("[0-9]*"):
        # A killed run may have left only some parts of one that was being deleted; another Orbax may write more parts.
        parts = {part.name for part in path.iterdir()} if path.is_dir() and path.name.isdigit() else set()
        if parts - PARTS and METADATA not in parts:
            raise ValueError(f"{directory} has a folder {path.name} that is not a checkpoint; choose another folder.")


def _newest(manager, directory):
    if manager.latest_step() is None:
        inside = Path(directory) / "checkpoints"
        remedy = f"; those of the run in it are in {inside}" if inside.is_dir() else ""
        raise FileNotFoundError(f"there is no checkpoint in {directory}{remedy}.")
    return manager.latest_step()


@contextlib.contextmanager
def _manager(directory: str | os.PathLike, *, create: bool = False) -> Iterator[Any]:
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

    if not create and not Path(directory).is_dir():
        raise FileNotFoundError(f"there is no checkpoint in {directory}: the folder does not exist.")
    best = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        best_fn=_score,  # without it no score would be written
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(KEEP), best]),
        create=create,
        cleanup_tmp_directories=create,  # what a killed save has left; whoever only reads leaves it alone
        enable_async_checkpointing=False,
    )
    with ocp.CheckpointManager(Path(directory).absolute(), options=options) as manager:
        yield manager


def _score(metrics):
    score = metrics.get("score")
    return -math.inf if score is None or math.isnan(score) else score


def _read(manager, directory, step, **item):
    """One item of a checkpoint."""
    import orbax.checkpoint as ocp

    (name,) = item
    try:
        return manager.restore(step, args=ocp.args.Composite(**item))[name]
    except (MemoryError, OSError):  # the machine's fault, not the checkpoint's
        raise
    except Exception as error:  # of many classes, depending on what is damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the checkpoint {directory}/{step} cannot be read ({reason}); if there is an older one, move that "
            "folder aside to continue from the older one."
        ) from error


def _flat(state: TrainState) -> dict[str, np.ndarray]:
    """The numbers of all leaves by path, for any learner's or optimizer's tree; no class needs to be unpickled.

    Empty arrays, which Orbax does not save, are left out.
    """
    return {name: np.asarray(_numbers(leaf)) for name, leaf in by_path(state).items() if np.size(leaf)}


def _numbers(leaf):
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if hasattr(leaf, "dtype") else jax.numpy.asarray(leaf)  # Python's numbers take JAX's dtype


def _is_key(leaf):
    return jax.numpy.issubdtype(jax.numpy.result_type(leaf), jax.dtypes.prng_key)


def _as(leaf, numbers):
    """The numbers as an array, or as a PRNG key if the leaf is one."""
    numbers = jax.numpy.asarray(numbers)
    return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else numbers


def _check_alike(directory, saved, expected):
    if difference := first_difference(saved, expected):
        name, found, wanted = difference
        raise ValueError(
            f"the checkpoint in {directory} is of another learner, model or optimizer: "
            f"its {name} is {found}, where {wanted} is expected."
        )
