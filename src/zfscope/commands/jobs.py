"""A command from what was typed to its exit code: one run, or the jobs of a sweep with their table.

A refusal is one line and exit code 2 (``HYDRA_FULL_ERROR=1`` shows all). A job of a sweep whose values are refused, or
that fails, is a line of the table at its end, and the exit code is 1.
"""

import atexit
import gc
import io
import logging
import multiprocessing
import os
import shlex
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from zfscope import stops
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.commands import folders, slurm
from zfscope.commands.configs import SCHEMAS, Plan, kind_of_config, prepare
from zfscope.commands.environment import read, start
from zfscope.commands.flags import check_flags, is_hydras_own, is_other_rank, read_flags
from zfscope.commands.lines import one_line, refusals, tell_traceback, thread_line, warning_line
from zfscope.commands.resumption import overrides_of, own_config
from zfscope.commands.sweeps import is_left, outcomes, run_left
from zfscope.console import as_typed, console, print_anywhere, sweep_table
from zfscope.files import FULL, cannot_write
from zfscope.networks.devices import peak_memory
from zfscope.runs import (
    RESULTS,
    RunFolderLocked,
    claim,
    finished_conditions,
    kind_of_run,
    read_overrides,
    read_results,
    write_record,
    write_results,
)
from zfscope.schema import check
from zfscope.secrets import masked, masked_all
from zfscope.training.spec import TrainConfig

_claimed: set[Path] = set()  # run folders that this process holds
_failed: dict[Path, str] = {}  # jobs of this process's sweep that could not even write that they failed


class Refused(BaseException):
    """Carries a refusal past Hydra, which would print lines of its own for an ``Exception``."""


def run_command(name: str, main: Callable[[], Any]) -> int:
    """Run ``train`` or ``analyze`` as typed; ``main`` is what ``hydra.main`` decorates; each job calls ``run_job``.

    Returns the exit code: 0, or 1 if a job of a sweep failed; a refused command exits with 2.
    """
    print_anywhere()
    start()
    _leave_quickly()
    console.quiet = is_other_rank()  # the first one speaks
    if console.quiet:
        warnings.simplefilter("ignore")
    shows_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
    earlier = warnings.formatwarning
    warnings.formatwarning = warning_line if not shows_all else lambda *told, **more: masked(earlier(*told, **more))
    earlier_hook, threading.excepthook = threading.excepthook, thread_line
    logging.raiseExceptions = shows_all  # else a library whose log file meets a full disk prints pages
    plan, folder, stopped = None, None, None
    try:
        arguments = read_flags(name)
        # Hydra then raises instead of printing a page and leaving with 1.
        with env_override({"HYDRA_FULL_ERROR": "1"}), stops.listening(*slurm.signals(), follows=is_other_rank()):
            check_flags(arguments)
            if is_hydras_own(arguments):
                main()
                return 0
            plan = prepare(name, arguments)
            with _claim(name, plan) as folder:
                sys.argv[1:] = plan.typed(folder)
                if plan.note:
                    console.print(plan.note, markup=False, soft_wrap=True)
                if plan.in_sweep and not is_other_rank():
                    run_left(folder, plan.sweep_jobs(folder), main)
                else:
                    main()
    except stops.Stopped as stop:
        stopped = stop
    except (Refused, *refusals()) as error:
        if shows_all:
            tell_traceback(error)
            raise
        error = _with_its_file(error.__cause__ if isinstance(error, Refused) else error, folder)
        if plan is not None and plan.in_sweep and isinstance(error, RunFolderLocked):
            console.print(sweep_table(outcomes(plan.folder, plan.sweep_jobs(plan.folder), {}, is_running=True)))
        way_on = _way_on(plan, folder) if isinstance(error, stops.MachineFault) else None
        more = f"; what was saved is whole: {way_on}" if way_on else ""
        print(as_typed(f"{name}.py: {one_line(error)}{more}"), file=sys.stderr)
        sys.exit(2)  # the error is held until the end: torch waits 5 s for each worker of a loader that failed
    except Exception as error:
        tell_traceback(error)
        raise
    finally:
        warnings.formatwarning = earlier
        threading.excepthook = earlier_hook
    code = 0
    if plan is not None and folder is not None and plan.in_sweep:
        results = outcomes(folder, plan.sweep_jobs(folder), _failed)
        console.print(sweep_table(results))
        code = int(any(result.get("state", "finished") != "finished" for result in results))
        if any(map(is_left, results)) and stopped is None:
            way = f"what is missing or failed runs with {_again(name, folder)}"
            console.print(way, markup=False, highlight=False, soft_wrap=True)
    if stopped is None or is_other_rank():
        return code
    left = _what_is_left(name, plan, folder)
    if stopped.signal in slurm.signals():
        left = f"{slurm.requeue()}; {left}"
    print(as_typed(f"{name}.py: stopped by {stopped}; {left}"), file=sys.stderr)
    return stopped.exit_code


def run_job(name: str, values: DictConfig) -> float:
    """Check and run one job, called by Hydra; in a sweep a failure is this job's alone and stands in its results.

    In a process that a launcher started, joblib's or submitit's, a signal stops the job as it stops a command.
    """
    if multiprocessing.get_start_method(allow_none=True) == "loky":  # joblib's, which starts no process of a loader
        methods = multiprocessing.get_all_start_methods()
        multiprocessing.set_start_method("fork" if "fork" in methods else "spawn", force=True)
        os.environ["LOKY_MAX_CPU_COUNT"] = os.environ.get("OMP_NUM_THREADS", "1")  # joblib's division of the cores
    if stops.is_listening() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return _run_job(name, values)
    number, since = HydraConfig.get().job.num, time.monotonic()
    print_anywhere()
    warnings.formatwarning = warning_line
    try:
        with stops.listening(*slurm.signals(), follows=is_other_rank()):
            return _run_job(name, values)
    except stops.Stopped as stop:
        requeued = f"; {slurm.requeue()}" if slurm.is_submitted() and stop.signal in slurm.signals() else ""
        console.print(f"job {number} stopped by {stop}{requeued}", style="red", markup=False, soft_wrap=True)
        if slurm.is_submitted():
            sys.exit(stop.exit_code)
        return float("nan")  # joblib could not send the stop to its parent
    finally:
        took = f"job {number} took {(time.monotonic() - since) / 60:.1f} min"
        console.print(f"{took} in a process of at most {peak_memory() / 2**30:.2f} GB", markup=False, highlight=False)


def _run_job(name: str, values: DictConfig) -> float:
    job = HydraConfig.get()
    in_sweep = job.mode == RunMode.MULTIRUN
    folder = Path(job.runtime.output_dir if in_sweep else str(job.run.dir))
    typed = OmegaConf.to_container(job.overrides.task, resolve=False)  # as typed: ${oc.env:…} may hold a secret
    resuming = name == "train" and values.resume is not None
    entered = False
    try:
        held = folder in _claimed or is_other_rank()
        own = folders.Job(folder, typed, kind_of_config(name, values))

        def check_folder(place: Path) -> None:
            if in_sweep:
                folders.check_job(own)
            else:
                folders.check_content(place, own.kind, resuming)

        with nullcontext() if held else claim(folder, check=check_folder):
            entered = True
            is_repeated = in_sweep and folders.goes_on(own)
            if is_repeated:
                values = own_config(folder, values)
            if in_sweep and finished_conditions(folder) is None:  # failed the time before, or is damaged
                (folder / RESULTS).unlink(missing_ok=True)
            real, texts = read(values)
            config = check(SCHEMAS[name], real, texts=texts)
            sys.argv[1:] = map(masked, sys.argv[1:])  # W&B records them
            overrides = read_overrides(folder) if is_repeated else overrides_of(folder, typed) if resuming else typed
            record = _recorder(folder, values, overrides, typed if in_sweep else None)
            if name == "analyze":
                return _analyze(config, folder, overrides, record)
            return _train(config, folder, overrides, record, Path(job.sweep.dir).name if in_sweep else None)
    except Exception as error:
        if is_other_rank() and stops.asked():  # the first one has left
            return float("nan")
        if not in_sweep:
            if not isinstance(error, refusals()):
                raise
            raise Refused from error
        cause = one_line(error)
        console.print(f"job {job.job.num} failed: {cause}", style="red", markup=False)
        _failed[folder] = cause  # the folder may be another run's, have an earlier result, or lie on a full disk
        if entered and (name == "train" or kind_of_run(folder) is None):
            with suppress(stops.MachineFault):
                write_results(folder, {}, {"overrides": typed}, state="failed", cause=cause)
                del _failed[folder]
        return float("nan")


def _again(name: str, folder: Path) -> str:
    """The command that runs what is left of a sweep."""
    return as_typed(shlex.join(["python", f"{name}.py", f"resume={folder}"]))


def _what_is_left(name: str, plan: Plan | None, folder: Path | None) -> str:
    """What a command that was stopped leaves, and how it goes on."""
    if plan is None or folder is None or not folder.is_dir():
        return "nothing had begun, nothing is left"
    if plan.in_sweep:
        with suppress(OSError):
            if queued := len(slurm.queue(folder)):
                return f"{queued} jobs stay in the queue of Slurm; {_again(name, folder)} lists them"
        return f"go on with {_again(name, folder)}"
    if (way_on := _way_on(plan, folder)) is not None:
        return way_on
    if (read_results(folder) or {}).get("state") == "finished":
        return f"{folder} is finished"
    return f"nothing in {folder} is finished"


def _way_on(plan: Plan | None, folder: Path | None) -> str | None:
    """How a training that ended early goes on; None where there is none."""
    if plan is None or folder is None or not (folder / "checkpoints" / "last.ckpt").is_file():
        return None
    return f"go on with python train.py resume={folder}" if plan.resuming or not read_results(folder) else None


def _with_its_file(error: BaseException, folder: Path | None) -> BaseException:
    """An error of a full disk with its file, or at least the run's folder: loggers and libraries may leave it out."""
    if not isinstance(error, OSError) or error.errno not in FULL:
        return error
    return cannot_write(os.fsdecode(error.filename or folder or "."), error)


@contextmanager
def _loading() -> Iterator[None]:
    """Say that torch and Lightning are loaded; keep the format of warnings, which Lightning replaces."""
    if "torch" not in sys.modules and not is_other_rank():
        console.print("loading torch and Lightning")  # a few seconds, from a cold disk half a minute
    earlier = warnings.formatwarning
    try:
        yield
    finally:
        warnings.formatwarning = earlier


@cache
def _leave_quickly() -> None:
    """Registered first, so run after all other exit handlers: the interpreter then need not search a million objects.

    That search takes two seconds once torch is imported. What it would have flushed is flushed here.
    """

    def freeze() -> None:
        kind = io.IOBase.__base__  # of all files, and unlike IOBase no abstract class, whose isinstance takes seconds
        for file in (item for item in gc.get_objects() if issubclass(type(item), kind)):
            with suppress(Exception):
                if not file.closed and file.writable():
                    file.flush()
        gc.freeze()

    atexit.register(freeze)


@contextmanager
def _claim(name: str, plan: Plan) -> Iterator[Path]:
    """Hold the folder of a run, or of a whole sweep, while it runs."""
    _failed.clear()
    if is_other_rank():
        yield plan.folder
        with suppress(OSError):  # Hydra makes a folder; by the clock it may be another than the first rank's
            plan.folder.rmdir()
        return

    key = "hydra.sweep.dir" if plan.in_sweep else "hydra.run.dir"

    def check_all(folder: Path) -> None:
        if plan.in_sweep:
            for job in plan.sweep_jobs(folder):
                folders.check_job(job)
        else:
            folders.check_content(folder, plan.kinds[0], plan.resuming)

    with claim(plan.folder, numbered=not plan.named, check=check_all, key=key, stop=stops.Stopped) as folder:
        if not plan.in_sweep:
            _claimed.add(folder)
        try:
            yield folder
        finally:
            _claimed.discard(folder)


def _analyze(config: AnalyzeConfig, folder: Path, overrides: list[str], record: Callable[[], None]) -> float:
    with _loading():
        from zfscope.analyses.run import analyze

    earlier = kind_of_run(folder)  # its record stays with its result until there is a new one
    if not earlier:
        record()
    analyze(config, folder, overrides)
    if earlier:
        record()
    return float("nan")


def _train(
    config: TrainConfig, folder: Path, overrides: list[str], record: Callable[[], None], sweep: str | None
) -> float:
    if sweep is not None and config.trainer.strategy == "ddp":
        raise ValueError("DDP starts the whole sweep anew on each rank; use trainer.strategy=ddp_spawn in sweeps")
    if config.resume is None:
        record()
    with _loading():
        from zfscope.training.run import train

    return train(config, folder, overrides, sweep, accepted=record if config.resume else None)


def _recorder(folder: Path, values: DictConfig, overrides: list[str], in_sweep: list[str] | None) -> Callable[[], None]:
    """Writes what a run was started with into its folder; other ranks of the run write nothing.

    ``in_sweep`` are the overrides that make it a certain job of a sweep.
    """

    def record() -> None:
        if not is_other_rank():
            write_record(folder, files)

    files = {
        "config.yaml": OmegaConf.to_yaml(OmegaConf.create(_lasting(values))),
        "hydra.yaml": OmegaConf.to_yaml(masked_all(OmegaConf.to_container(HydraConfig.instance().cfg, resolve=False))),
        "overrides.yaml": OmegaConf.to_yaml(OmegaConf.create(overrides)),
    }
    if in_sweep is not None:
        files[folders.JOB] = OmegaConf.to_yaml(OmegaConf.create(in_sweep))
    if (job := slurm.job_id()) is not None:
        files[slurm.JOB] = f"{job}\n"
    return record


def _lasting(values: DictConfig) -> Any:
    """The config, with what only this job knows (its number, the time) as values; other interpolations stay."""
    raw, resolved = (OmegaConf.to_container(values, resolve=resolve) for resolve in (False, True))

    def walk(raw: Any, resolved: Any) -> Any:
        if isinstance(raw, Mapping):
            return {key: walk(value, resolved[key]) for key, value in raw.items()}
        if isinstance(raw, list):
            return [walk(*pair) for pair in zip(raw, resolved, strict=True)]
        return resolved if isinstance(raw, str) and ("${hydra:" in raw or "${now:" in raw) else raw

    return walk(raw, resolved) | ({"resume": None} if "resume" in raw else {})
