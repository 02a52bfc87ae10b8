"""The run folder: its files and its lock.

``RUN/checkpoints/{best,last,epoch_NNN}.ckpt``, ``RUN/results.json``, ``RUN/figures/``, ``RUN/.hydra/``.
"""

import errno
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
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import yaml
from filelock import BaseFileLock, FileLock, Timeout

from zfscope.files import remove_unfinished, write_text

RESULTS = "results.json"
RECORD = ".hydra"  # what a run was started with
LOCK = ".lock"
MOST_MISSED = 20  # starts that remove a folder just before it is locked
UNFINISHED_RESULTS, FINISHED_RESULTS = ".results.tmp", ".results.new"  # of an analysis; the latter move into its folder
OF_RESULTS = ("figures", "arrays.npz")  # what a result may lack that an earlier one had
NONE = "none "  # begins the name of an empty file there, for what the earlier result had and this one has not
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
    write_text(path, json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n", sync=True)
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
def replacing_results(folder: str | Path) -> Iterator[Path]:
    """Write figures, arrays and ``results.json`` of a run, in place of its earlier ones when all are written.

    Yields a folder beside them; its content moves into ``folder`` when the block ends, ``results.json`` last. If the
    block raises, or the process is killed within it, the earlier ones stay as they were. A process that is killed while
    the content moves leaves the rest to the next that takes the folder.
    """
    folder = Path(folder)
    _mend_results(folder)
    new = folder / UNFINISHED_RESULTS
    new.mkdir()
    try:
        yield new
        for name in {*OF_RESULTS} - {path.name for path in new.iterdir()}:
            (new / f"{NONE}{name}").touch()
        new.rename(folder / FINISHED_RESULTS)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _take_results(folder)


def tidy(folder: Path) -> None:
    """Mend what a killed process left in a run folder that this one holds: half-written files, results half moved.

    Links are not followed: the folder may be a stranger's.
    """
    remove_unfinished(folder, held=True)
    for part in (RECORD, "checkpoints", "figures"):
        if not (folder / part).is_symlink():
            for place, _, _ in os.walk(folder / part):
                remove_unfinished(Path(place), held=True)
    _mend_results(folder)


def _mend_results(folder: Path) -> None:
    shutil.rmtree(folder / UNFINISHED_RESULTS, ignore_errors=True)
    _take_results(folder)


def _take_results(folder: Path) -> None:
    """Move what is written whole into its place, or the rest of it."""
    new = folder / FINISHED_RESULTS
    if not new.is_dir() or new.is_symlink():
        return
    for path in sorted(new.iterdir(), key=lambda path: path.name == RESULTS):
        without = path.name.removeprefix(NONE)
        target = folder / (without if without in OF_RESULTS else path.name)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        elif target.is_symlink() or path.name != target.name:
            target.unlink(missing_ok=True)
        if path.name == target.name:
            path.replace(target)
        else:
            path.unlink()
    new.rmdir()


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
    if not isinstance(results, Mapping) or results.get("state", "finished") != "finished":
        return None
    return results.get("conditions") if isinstance(results.get("conditions"), Mapping) else None


def is_below(place: str | Path, folder: str | Path) -> bool:
    """Whether a path lies in a folder or is it."""
    return Path(os.path.abspath(place)).is_relative_to(os.path.abspath(folder))


def kind_of_run(folder: str | Path) -> str | None:
    """What a folder holds: ``training``, the name of an analysis, or None where nothing was done in it yet."""
    folder = Path(folder)
    if (folder / "checkpoints").is_dir():
        return "training"
    results = read_results(folder) or {}
    return results.get("conditions", {}).get("name") if results.get("state") == "finished" else None


def write_record(folder: str | Path, files: Mapping[str, str]) -> None:
    """Note what a run was started with: ``.hydra/config.yaml``, ``hydra.yaml`` and ``overrides.yaml``, by name."""
    place = Path(folder) / RECORD
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(place / name, text)


def read_overrides(folder: str | Path) -> list[str]:
    """The overrides that a run was started with, as they were typed; none where their file is missing or damaged."""
    try:
        overrides = yaml.safe_load(Path(folder, RECORD, "overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    return [text for text in overrides if isinstance(text, str)] if isinstance(overrides, list) else []


def run_id(folder: str | Path) -> str:
    """The run's id for its loggers, made once: a resumed run goes on under the same one."""
    path = Path(folder) / RECORD / "run_id"
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    number = secrets.token_hex(4)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, number + "\n")
    return number


@contextmanager
def lock(folder: str | Path, key: str = "hydra.run.dir") -> Iterator[None]:
    """Hold a run folder for this process alone; the file ``.lock`` stays, and is free when its process has ended."""
    try:
        held = _acquired(Path(folder), key)
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
    wanted, number, missed = Path(folder), 1, 0
    while True:
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
        try:
            made = _make(folder, numbered)
            held = _acquired(folder, key)
            break
        except FileExistsError:
            if not numbered:
                raise NotADirectoryError(f"{key}={folder}: a file is in the way; choose another folder") from None
            number += 1
        except FileNotFoundError as error:  # another start was refused just now, and removed what it had made
            missed += 1
            if missed == MOST_MISSED:
                raise _unwritable(key, folder, error) from None
        except OSError as error:
            raise _unwritable(key, folder, error) from None
    try:
        tidy(folder)
        check(folder)
        yield folder
    except BaseException:
        _remove_unused(made)
        raise
    finally:
        held.release()


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


def _make(folder: Path, new: bool) -> list[Path]:
    """Make a folder, which must not be there yet if it shall be ``new``; returns what was made, the deepest first."""
    missing = [place for place in folder.absolute().parents if not place.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
    try:
        folder.mkdir()
    except FileExistsError:
        if new or not folder.is_dir():
            raise
        return []
    return [folder.absolute(), *missing]


def _acquired(folder: Path, key: str) -> BaseFileLock:
    held = FileLock(folder / LOCK, timeout=0)
    try:
        held.acquire()
    except Timeout:
        message = f"the run folder {folder} is locked by another process; wait for it or choose another {key}"
        raise RunFolderLocked(message) from None
    return held


def _unwritable(key: str, folder: str | Path, error: OSError) -> OSError:
    return OSError(f"{key}={folder} cannot be written ({error.strerror}); choose another folder")


def _remove_unused(made: Sequence[Path]) -> None:
    """Remove a folder that this process holds and in which nothing was done, and the empty ones above it.

    The lock goes last: from then on another start may take the folder, which then stays, as ``rmdir`` sees.
    """
    if not made or {entry.name for entry in made[0].iterdir()} - {RECORD, LOCK}:
        return
    with suppress(OSError):
        shutil.rmtree(made[0] / RECORD, ignore_errors=True)
        (made[0] / LOCK).unlink()
        for folder in made:
            folder.rmdir()


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
