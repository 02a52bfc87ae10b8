"""The run folder: its files and its lock.

``RUN/checkpoints/{best,last,epoch_NNN}.ckpt``, ``RUN/results.json``, ``RUN/figures/``, ``RUN/.hydra/``.
"""

import errno
import functools
import json
import math
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import yaml
from filelock import BaseFileLock, FileLock, Timeout

from zfscope.files import remove_unfinished, write_text
from zfscope.secrets import masked_all

RESULTS = "results.json"
RECORD = ".hydra"  # what a run was started with
LOCK = ".lock"
MOST_MISSED = 20  # starts that remove a folder just before it is locked
UNFINISHED_RESULTS, FINISHED_RESULTS = ".results.tmp", ".results.new"  # of an analysis; the latter move into its folder
OF_RESULTS = ("figures", "atlas", "arrays.npz", "quarantine.csv")  # what a result may lack that an earlier one had
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
    content = masked_all({"metrics": metrics, "conditions": conditions, "state": state, "cause": cause})
    path = Path(folder) / RESULTS
    write_text(path, json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n", sync=True)
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
def replacing_results(folder: str | Path) -> Iterator[Path]:
    """Write figures, arrays, tables and ``results.json`` of a run, in place of its earlier ones when all are written.

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


def finished_conditions(folder: str | Path) -> Mapping[str, Any] | None:
    """The conditions in the results of a run that has finished; None of one that has not, or whose file is broken."""
    try:
        results = read_results(folder)
    except ValueError:
        return None
    if results is None or results.get("state", "finished") != "finished":
        return None
    return results["conditions"]


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


def trainings_in(folder: str | Path) -> list[Path]:
    """The trainings whose folders lie in a folder, as the jobs of a sweep do: 2 before 10."""
    inside = (place for place in Path(folder).iterdir() if (place / "checkpoints").is_dir())
    return sorted(inside, key=natural)


def natural(path: Path) -> list[str | int]:
    """Sort key of paths: 2 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def why_no_training(path: str | Path) -> str:
    """What a path that was typed is instead of a training, and which trainings there are: the end of a refusal."""
    path = Path(path)
    kind = kind_of_run(path) if path.is_dir() else None
    if kind not in (None, "training"):
        of = (read_results(path) or {}).get("conditions", {}).get("checkpoint")
        way = f"it looked at {of}" if isinstance(of, str) else "give the folder of a run"
        return f"it is the result of analysis={kind}, not a training; {way}"
    if path.is_dir() and (inside := trainings_in(path)):
        what = "a sweep" if (path / "multirun.yaml").is_file() else "a folder of runs"
        return f"it is {what}: {_newest(inside)}; give one of them"
    if (path / RECORD).is_dir() and not (path / "checkpoints").is_dir():
        return "it kept no checkpoint: it ended before its first step, or was no training"
    beside = [place for place in (trainings_in(path.parent) if path.parent.is_dir() else []) if place != path]
    return (f"there are {_newest(beside)}; " if beside else "") + "give the folder of a run"


def write_record(folder: str | Path, files: Mapping[str, str]) -> None:
    """Note what a run was started with: ``.hydra/config.yaml``, ``hydra.yaml`` and ``overrides.yaml``, by name."""
    place = Path(folder) / RECORD
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(place / name, text)


def read_overrides(folder: str | Path, file: str = "overrides.yaml") -> list[str]:
    """The overrides that a run was started with, as they were typed; none where their file is missing or damaged."""
    try:
        overrides = yaml.safe_load(Path(folder, RECORD, file).read_text(encoding="utf-8"))
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


def is_locked(folder: str | Path) -> bool:
    """Whether a process holds a run folder; nothing is made there."""
    if not Path(folder, LOCK).is_file():
        return False
    try:
        _acquired(Path(folder), "").release()
    except (RunFolderLocked, OSError) as error:
        return isinstance(error, RunFolderLocked)
    return False


@contextmanager
def claim(
    folder: str | Path,
    *,
    numbered: bool = False,
    check: Callable[[Path], None] = lambda folder: None,
    key: str = "hydra.run.dir",
    stop: type[BaseException] | tuple[type[BaseException], ...] = (),
) -> Iterator[Path]:
    """Make a run folder, or take one that is there, and hold it; yields its path.

    With ``numbered`` a folder that is there is left alone, and ``folder_2``, ``folder_3``, … is made. ``check`` raises
    if what is in the folder must stay. If the block raises before anything was done in the folder, it is removed with
    the folders that were made above it; after a ``stop`` also where a logger alone has written. ``key`` names the
    folder in messages.

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
    except BaseException as error:
        _remove_unused(made, stopped=isinstance(error, stop))
        raise
    finally:
        held.release()


def _newest(folders: Sequence[Path], most: int = 6) -> str:
    """Folders for a message, of many the last ones by name: names begin with a date."""
    more = f"{len(folders) - most} more and " if len(folders) > most else ""
    return more + ", ".join(map(str, folders[-most:]))


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


def _remove_unused(made: Sequence[Path], stopped: bool) -> None:
    """Remove a folder that this process holds and in which nothing was done, and the empty ones above it.

    Of a command that a signal ``stopped``, a logger's files alone are nothing either. The lock goes last: from then on
    another start may take the folder, which then stays, as ``rmdir`` sees.
    """
    if not made:
        return
    names = {entry.name for entry in made[0].iterdir()} - {LOCK}
    reached = any(next(made[0].rglob(name), None) for name in ("*.ckpt", RESULTS, "figures", "*_submission.sh"))
    if reached or (names - {RECORD, "multirun.yaml", ".submitit"} and not stopped):
        return
    with suppress(OSError):
        for name in names:
            path = made[0] / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
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
