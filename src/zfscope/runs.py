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
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout

RESULTS = "results.json"
RECORD = ".hydra"  # what a run was started with
LOCK = ".lock"
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
    """A run's ``results.json``, or None if it has none yet.

    Raises:
        ValueError: If the file is damaged, or holds something else; ``metrics`` and ``conditions`` are mappings.
    """
    path = Path(folder) / RESULTS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number without end, too many brackets
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{path} is not JSON{where}; remove it and evaluate the run again") from None
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), dict) for key in ("metrics", "conditions")
    ):
        raise ValueError(f"{path} holds no metrics and conditions; remove it and evaluate the run again")
    return content


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


@contextmanager
def replacing_results(folder: str | Path) -> Iterator[Path]:
    """Write figures, arrays and ``results.json`` of a run, in place of its earlier ones when all are written.

    Yields a folder beside them; its content moves into ``folder`` when the block ends, ``results.json`` last. If the
    block raises, the earlier ones stay as they were.
    """
    folder = Path(folder)
    new = folder / ".results.tmp"
    shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
    new.mkdir()
    try:
        yield new
        written = {path.name for path in new.iterdir()}
        for name in sorted(written | {"figures", "arrays.npz"}, key=lambda name: name == RESULTS):
            if (folder / name).is_dir():
                (folder / name).rename(new / f"old {name}")
            if name in written:
                (new / name).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(new)


def checksum(path: str | Path) -> str:
    """CRC-32 of a file, eight hex digits; at the speed of memory, twice as fast as over a memory map."""
    value = 0
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            value = zlib.crc32(piece, value)
    return f"{value:08x}"


def finished_conditions(folder: str | Path) -> Mapping[str, Any] | None:
    """The conditions in the results of a run that has finished; None of one that has not, or whose file is broken."""
    try:
        results = read_results(folder)
    except ValueError:
        return None
    if results is None or results.get("state", "finished") != "finished":
        return None
    return results["conditions"]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an ``.npz``; ``numpy.load`` reads it without pickle."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def is_below(place: str | Path, folder: str | Path) -> bool:
    """Whether a path lies in a folder or is it."""
    return Path(os.path.abspath(place)).is_relative_to(os.path.abspath(folder))


def kind_of_run(folder: str | Path) -> str | None:
    """What a folder holds: ``training``, the name of an analysis, or None where nothing was done in it yet."""
    folder = Path(folder)
    if (folder / "checkpoints").is_dir():
        return "training"
    results = read_results(folder)
    if results is None or results.get("state") != "finished":
        return None
    name = results["conditions"].get("name")
    return name if isinstance(name, str | None) else "unknown"


def write_record(folder: str | Path, files: Mapping[str, str]) -> None:
    """Note what a run was started with: ``.hydra/config.yaml``, ``hydra.yaml`` and ``overrides.yaml``, by name."""
    place = Path(folder) / RECORD
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        with replacing(place / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def read_overrides(folder: str | Path) -> list[str]:
    """The overrides that a run was started with, as they were typed; none where their file is missing or damaged."""
    try:
        overrides = yaml.safe_load(Path(folder, RECORD, "overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return []
    return [text for text in overrides if isinstance(text, str)] if isinstance(overrides, list) else []


def run_id(folder: str | Path) -> str:
    """The run's id for its loggers, made once: a resumed run goes on under the same one."""
    path = Path(folder) / RECORD / "run_id"
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    number = secrets.token_hex(4)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(number + "\n", encoding="utf-8")
    return number


@contextmanager
def lock(folder: str | Path, key: str = "hydra.run.dir") -> Iterator[None]:
    """Hold a run folder for this process alone; the file ``.lock`` stays."""
    held = FileLock(Path(folder) / LOCK, timeout=0)
    try:
        held.acquire()
    except Timeout:
        message = f"the run folder {folder} is locked by another process; wait for it or choose another {key}"
        raise RunFolderLocked(message) from None
    except OSError as error:
        raise _unwritable(key, folder, error) from None
    try:
        yield
    finally:
        held.release()


@contextmanager
def claim(
    folder: str | Path,
    *,
    numbered: bool = False,
    check: Callable[[Path], None] = lambda folder: None,
    key: str = "hydra.run.dir",
) -> Iterator[Path]:
    """Make a run folder, or take one that is there, and hold it; yields its path.

    With ``numbered`` a folder that is there is left alone, and ``folder_2``, ``folder_3``, … is made. ``check`` raises
    if what is in the folder must stay. If the block raises before anything was done in the folder, it is removed with
    the folders that were made above it. ``key`` names the folder in messages.

    Raises:
        RunFolderLocked: If another process holds the folder.
        OSError: If it cannot be made or written.
    """
    wanted = folder = Path(folder)
    number, made = 1, None
    while made is None:
        try:
            made = _make(folder)
        except FileExistsError:
            if not numbered and folder.is_dir():
                made = []
            elif not numbered:
                raise NotADirectoryError(f"{key}={folder}: a file is in the way; choose another folder") from None
            else:
                number += 1
                folder = wanted.with_name(f"{wanted.name}_{number}")
        except OSError as error:
            raise _unwritable(key, folder, error) from None
    with lock(folder, key):
        try:
            check(folder)
            yield folder
        except BaseException:
            _remove_unused(made)
            raise


def check_writable(folder: str | Path, key: str, needed: int = 0) -> None:
    """Refuse a folder that cannot be written or made, or whose disk has less than ``needed`` bytes left.

    Nothing is left behind; ``key`` names the folder in the message.
    """
    place = Path(folder).expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(f"{key}={folder} cannot be written ({error.strerror}); choose another folder") from None
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OSError(
            f"{key}={folder} needs {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free; free space or choose "
            "another folder"
        )


def _make(folder: Path) -> list[Path]:
    """Make a folder that must not be there yet; returns it with those above it that were missing, deepest first."""
    missing = [place for place in folder.absolute().parents if not place.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    return [folder.absolute(), *missing]


def _unwritable(key: str, folder: str | Path, error: OSError) -> OSError:
    return OSError(f"{key}={folder} cannot be written ({error.strerror}); choose another folder")


def _remove_unused(made: Sequence[Path]) -> None:
    """Remove a folder in which nothing was done, and the empty ones above it."""
    for number, folder in enumerate(made):
        names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        if names - ({RECORD, LOCK} if number == 0 else set()):
            break
        shutil.rmtree(folder, ignore_errors=True)


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
