"""The run folder: what lies where, who writes to it, and reading many of them back.

``RUN/checkpoints/{best,last,epoch_NNN}.ckpt``, ``RUN/results.json``, ``RUN/figures/``, ``RUN/.hydra/``.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = "results.json"


def write_results(
    folder: str | Path,
    metrics: Mapping[str, Mapping[str, Any]],
    conditions: Mapping[str, Any],
    *,
    state: str = "finished",
    cause: str | None = None,
) -> Path:
    """Write ``results.json``: beside its target, then renamed.

    Args:
        folder: The run folder.
        metrics: ``{"val/top1_error": {"value": 38.1, "unit": "%", "paper": 38.4}}``; errors in percent.
        conditions: Under which they were measured.
        state: ``finished``, ``failed`` or ``stopped``.
        cause: One line why a run failed.

    Returns:
        The file's path.
    """
    content = {"metrics": metrics, "conditions": conditions, "state": state, "cause": cause}
    path = Path(folder) / RESULTS
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


@contextmanager
def replacing(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
    """Write a file whole or not at all: every file of this project goes through here.

    Args:
        path: The file to write; its folder exists.
        sync: Whether the file must be on the disk before it takes its name (checkpoints).

    Yields:
        A temporary path beside ``path``. It takes the place of ``path`` when the block ends, and is removed when the
        block raises.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if sync:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_results(folder: str | Path) -> dict[str, Any] | None:
    """A run's ``results.json``, or None if it has none yet.

    Raises:
        ValueError: If the file is no JSON.
    """
    path = Path(folder) / RESULTS
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON (line {error.lineno}); remove it and evaluate the run again") from None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an ``.npz`` beside its target, then rename it; it is read with ``numpy.load``, without pickle."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def identity(folder: str | Path) -> str:
    """The run's id for its loggers, made once: a resumed run goes on under the same one."""
    path = Path(folder) / ".hydra" / "run_id"
    if path.is_file():
        return path.read_text().strip()
    number = secrets.token_hex(4)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(number + "\n")
    return number


class RunFolderLocked(ValueError):
    """Another process works in a run folder; what lies there is its."""


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold a run folder for this process alone.

    Raises:
        RunFolderLocked: If another process works in it.
    """
    path = Path(folder) / ".lock"
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunFolderLocked(
                f"another process works in {folder}; wait for it or choose another hydra.run.dir"
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def remove_unused(folder: str | Path) -> None:
    """Take back a run folder in which nothing was done yet, and the empty folders above it."""
    folder = Path(folder)
    ours = {".hydra", ".lock", "train.log", "analyze.log"}
    if not folder.is_dir() or any(entry.name not in ours for entry in folder.iterdir()):
        return
    for entry in [*(folder / ".hydra").glob("*"), folder / ".hydra", *folder.glob("*.log"), folder / ".lock", folder]:
        if entry.is_dir():
            entry.rmdir()
        else:
            entry.unlink(missing_ok=True)
    if folder.parent.is_dir() and [entry.name for entry in folder.parent.iterdir()] == ["multirun.yaml"]:
        (folder.parent / "multirun.yaml").unlink()
        folder.parent.rmdir()
        folder = folder.parent
    for above in folder.parents:
        if above.name not in {"outputs", "sweeps", "analyses"}:
            break
        try:
            above.rmdir()
        except OSError:
            break


def _finite(value: Any) -> Any:
    """JSON knows no NaN: such a number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
