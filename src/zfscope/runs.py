"""The run folder: its files, its lock, and the one way in which this project writes a file.

``RUN/checkpoints/{best,last,epoch_NNN}.ckpt``, ``RUN/results.json``, ``RUN/figures/``, ``RUN/.hydra/``.
"""

import functools
import json
import math
import os
import secrets
import shutil
import subprocess
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout

RESULTS = "results.json"
PACKAGES = ("zfscope", "torch", "torchvision", "lightning", "timm", "numpy")


class RunFolderLocked(ValueError):
    """The run folder is locked by another process."""


def write_results(
    folder: str | Path,
    metrics: Mapping[str, Mapping[str, Any]],
    conditions: Mapping[str, Any],
    *,
    state: str = "finished",
    cause: str | None = None,
) -> Path:
    """Write ``results.json``; returns its path.

    Metrics are ``{"val/top1_error": {"value": 38.1, "unit": "%", "paper": 38.4}}``, errors in percent; ``conditions``
    say under which they were measured; ``state`` is ``finished`` or ``failed``, ``cause`` one line why.
    """
    content = {"metrics": metrics, "conditions": conditions, "state": state, "cause": cause}
    path = Path(folder) / RESULTS
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_results(folder: str | Path) -> dict[str, Any] | None:
    """A run's ``results.json``, or None if it has none yet."""
    path = Path(folder) / RESULTS
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON (line {error.lineno}); remove it and evaluate the run again") from None


@contextmanager
def replacing(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
    """Write a file whole or not at all: every file of this project goes through here.

    Yields a temporary path beside ``path``, which takes its place when the block ends and is removed when the block
    raises. With ``sync`` the file is on the disk before it takes its name (checkpoints).
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


def checksum(path: str | Path) -> str:
    """CRC-32 of a file, eight hex digits; at the speed of memory, twice as fast as over a memory map."""
    value = 0
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            value = zlib.crc32(piece, value)
    return f"{value:08x}"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an ``.npz``; ``numpy.load`` reads it without pickle."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_overrides(folder: str | Path) -> list[str]:
    """The overrides that a run was started with, as they were typed.

    Raises:
        FileNotFoundError: If the folder holds no run.
    """
    path = Path(folder) / ".hydra" / "overrides.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"resume={folder}: no run there ({path} is missing); give the folder of a run")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def write_overrides(folder: str | Path, overrides: Sequence[str]) -> None:
    """Note the overrides that a resumed run goes on with."""
    with replacing(Path(folder) / ".hydra" / "overrides.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(list(overrides), allow_unicode=True), encoding="utf-8")


def run_id(folder: str | Path) -> str:
    """The run's id for its loggers, made once: a resumed run goes on under the same one."""
    path = Path(folder) / ".hydra" / "run_id"
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    number = secrets.token_hex(4)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(number + "\n", encoding="utf-8")
    return number


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold a run folder for this process alone."""
    path = Path(folder) / ".lock"
    held = FileLock(path, timeout=0)
    try:
        held.acquire()
    except Timeout:
        message = f"the run folder {folder} is locked by another process; wait for it or choose another hydra.run.dir"
        raise RunFolderLocked(message) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        held.release()


def remove_unused(folder: str | Path) -> None:
    """Remove a run folder in which nothing was done yet, and the empty folders above it."""
    folder = Path(folder)
    started_with = {".hydra", ".lock"}
    if not folder.is_dir() or any(entry.name not in started_with for entry in folder.iterdir()):
        return
    shutil.rmtree(folder)
    for above in folder.parents:
        if above.name not in {"outputs", "sweeps", "analyses"} or any(above.iterdir()):
            break
        above.rmdir()


@functools.cache
def code_version() -> tuple[str | None, bool | None]:
    """The git commit of this code and whether files differ from it; None where it is not under git."""
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        answer = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    lines = answer.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), None)
    return commit, any(not line.startswith("#") for line in lines)


def environment(device: Any, precision: str | int | None) -> dict[str, Any]:
    """What a number may depend on besides config and data: code, libraries, device, precision, threads."""
    import torch

    commit, dirty = code_version()
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": python_version()} | {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if str(device).startswith("cuda") else str(device),
        "precision": None if precision is None else str(precision),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _finite(value: Any) -> Any:
    """JSON knows no NaN: such a number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
