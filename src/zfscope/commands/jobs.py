"""A command from what was typed to its exit code: one run, or the jobs of a sweep with their table.

A refusal is one line and exit code 2 (``HYDRA_FULL_ERROR=1`` shows all). A job of a sweep whose values are refused, or
that fails, is a line of the table at its end, and the exit code is 1.
"""

import argparse
import atexit
import gc
import io
import multiprocessing
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from pydantic import ValidationError

from zfscope import stops
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.commands.configs import SCHEMAS, Plan, kind_of_config, prepare
from zfscope.commands.nesting import check_yaml
from zfscope.commands.overrides import CONF
from zfscope.commands.resumption import overrides_of
from zfscope.console import console, print_anywhere, sweep_table
from zfscope.runs import RECORD, claim, kind_of_run, read_results, write_record, write_results
from zfscope.schema import check, shown
from zfscope.training.spec import TrainConfig

# Other ranks of one run, by who started them (torchrun and Lightning, srun, jsrun), share its folder.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
_claimed: set[Path] = set()  # run folders that this process holds
_failed: dict[Path, str] = {}  # jobs of this process's sweep that could not even write that they failed


class Refused(BaseException):
    """Carries a refusal past Hydra, which would print lines of its own for an ``Exception``."""


def run_command(name: str, main: Callable[[], Any]) -> int:
    """Run ``train`` or ``analyze`` as typed; ``main`` is what ``hydra.main`` decorates; each job calls ``run_job``.

    Returns the exit code: 0, or 1 if a job of a sweep failed; a refused command exits with 2.
    """
    print_anywhere()
    _leave_quickly()
    console.quiet = is_other_rank()  # the first one speaks
    if console.quiet:
        warnings.simplefilter("ignore")
    shows_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
    earlier = warnings.formatwarning
    if not shows_all:
        warnings.formatwarning = warning_line
    plan, folder, stopped = None, None, None
    try:
        # Hydra then raises instead of printing a page and leaving with 1.
        with env_override({"HYDRA_FULL_ERROR": "1"}), stops.listening(follows=is_other_rank()):
            arguments = _read_arguments(name)
            _check_before_hydra(arguments)
            if _is_hydras_own(arguments):
                main()
                return 0
            plan = prepare(name, arguments)
            with _claim(name, plan) as folder:
                sys.argv[1:] = plan.typed(folder)
                if plan.note:
                    console.print(plan.note, markup=False, soft_wrap=True)
                main()
    except stops.Stopped as stop:
        stopped = stop
    except (Refused, *refusals()) as error:
        if shows_all:
            raise
        print(f"{name}.py: {one_line(error.__cause__ if isinstance(error, Refused) else error)}", file=sys.stderr)
        sys.exit(2)  # the error is held until the end: torch waits 5 s for each worker of a loader that failed
    finally:
        warnings.formatwarning = earlier
    code = 0
    if plan is not None and folder is not None and plan.in_sweep:
        jobs = zip(plan.places(folder), plan.overrides or [], strict=True)
        results = [_outcome(job, overrides) for job, overrides in jobs]
        console.print(sweep_table(results))
        code = int(any(result.get("state") != "finished" for result in results))
    if stopped is None or is_other_rank():
        return code
    print(f"{name}.py: stopped by {stopped}; {_what_is_left(plan, folder)}", file=sys.stderr)
    return stopped.exit_code


def run_job(name: str, values: DictConfig) -> float:
    """Check and run one job, called by Hydra; in a sweep a failure is this job's alone and stands in its results."""
    if multiprocessing.get_start_method(allow_none=True) == "loky":  # joblib's, which starts no process of a loader
        methods = multiprocessing.get_all_start_methods()
        multiprocessing.set_start_method("fork" if "fork" in methods else "spawn", force=True)
    job = HydraConfig.get()
    in_sweep = job.mode == RunMode.MULTIRUN
    folder = Path(job.runtime.output_dir if in_sweep else str(job.run.dir))
    typed = OmegaConf.to_container(job.overrides.task, resolve=False)  # as typed: ${oc.env:…} may hold a secret
    resuming = name == "train" and values.resume is not None
    entered = False
    try:
        held = folder in _claimed or is_other_rank()
        kind = kind_of_config(name, values)
        with nullcontext() if held else claim(folder, check=lambda place: check_content(place, kind, resuming)):
            entered = True
            config = check(SCHEMAS[name], OmegaConf.to_container(values, resolve=True))
            overrides = overrides_of(folder, typed) if resuming else typed
            record = _recorder(folder, values, overrides)
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
        if entered and (name == "train" or kind_of_run(folder) is None):
            write_results(folder, {}, {"overrides": typed}, state="failed", cause=cause)
        else:  # the folder is another run's, or has an earlier result
            _failed[folder] = cause
        return float("nan")


def _outcome(job: Path, overrides: Sequence[str]) -> Mapping[str, Any]:
    """The results of a sweep's job; of one that did not come to any its state."""
    if job.absolute() in _failed:
        return {"state": "failed", "cause": _failed[job.absolute()]}
    state = "no results" if (job / RECORD).is_dir() else "not run"
    return read_results(job) or {"state": state, "conditions": {"overrides": list(overrides)}}


def _what_is_left(plan: Plan | None, folder: Path | None) -> str:
    """What a command that was stopped leaves, and how it goes on."""
    if plan is None or folder is None or not folder.is_dir():
        return "nothing had begun, nothing is left"
    places = [place for place in plan.places(folder) if (place / "checkpoints" / "last.ckpt").is_file()]
    begun = next((place for place in places if plan.resuming or not read_results(place)), None)
    if begun is not None:
        return f"go on with python train.py resume={begun}"
    if not plan.in_sweep and (read_results(folder) or {}).get("state") == "finished":
        return f"{folder} is finished"
    return f"{folder} holds what was finished" if plan.in_sweep else f"nothing in {folder} is finished"


def check_content(folder: Path, kind: str, resuming: bool = False, key: str = "hydra.run.dir") -> None:
    """Refuse a run folder whose content would be lost; an analysis may replace its own earlier result.

    ``kind`` is what will run there: ``training``, or the name of an analysis; ``key`` says in messages where else.
    """
    earlier = kind_of_run(folder)
    if earlier is None or (earlier == kind and (resuming or kind != "training")):
        return
    if earlier == kind:
        raise ValueError(f"{folder} holds a run; go on with resume={folder}, or choose another {key}")
    what = "a training" if earlier == "training" else f"the result of analysis={earlier}"
    raise ValueError(f"{folder} holds {what}, which would be lost; choose another {key}")


def is_other_rank() -> bool:
    """Whether this process is another rank of a run than the first: it neither holds nor records the run's folder."""
    ranks = (os.environ.get(name) for name in RANKS)
    return next((rank for rank in ranks if rank is not None), "0") != "0"


def refusals() -> tuple[type[BaseException], ...]:
    """The errors that a person can mend: told in one line, without a traceback."""
    lightning = sys.modules.get("lightning.pytorch.utilities.exceptions")  # not loaded: it has raised nothing yet
    errors = (ValueError, TypeError, OSError, ImportError, HydraException, OmegaConfBaseException, yaml.YAMLError)
    return (*errors, lightning.MisconfigurationException) if lightning else errors


def one_line(error: BaseException) -> str:
    """An error as one line that a terminal shows, its middle left out where it is very long."""
    return shown(_told_by(error))


def _told_by(error: BaseException) -> str:
    """The line of an error that tells most; what a loader's process raised is found at the end of its report."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught ") and len(lines) > 1:
        return lines[-1].partition(": ")[2] or lines[-1]
    unset = re.search(r"Environment variable '(.+)' not found", lines[0])
    if isinstance(error, InterpolationResolutionError) and unset:
        return f"{error.full_key}: the environment variable {unset[1]} is not set; set it, or give the value itself"
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        return f"{error.override}: a value is typed as key=value"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {lines[0]}; a value with such characters is put in quotes: 'key=\"value\"'"
    if isinstance(error, HydraException | OmegaConfBaseException | ValidationError | yaml.YAMLError):
        return " ".join(lines)
    return lines[0]


def warning_line(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning as one line, without the place in the code that it comes from."""
    return f"warning: {' '.join(str(message).split())}\n"


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


def _read_arguments(name: str) -> argparse.Namespace:
    """What was typed: flags may stand between overrides, though Hydra wants those in one row and gets them so."""
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise ValueError(f"{message}; a value is typed as key=value, and python {name}.py --hydra-help lists the flags")

    parser.error = refuse
    arguments = parser.parse_intermixed_args()
    waiting, flags = list(arguments.overrides), []
    for word in sys.argv[1:]:
        if waiting and word == waiting[0]:
            waiting.pop(0)
        elif word != "--":
            flags.append(word)
    sys.argv[1:] = [*arguments.overrides, *flags]
    return arguments


def _check_before_hydra(arguments: argparse.Namespace) -> None:
    """Refuse flags that would go past the checks of ``prepare``, and files that would not let Hydra end."""
    for folder in (CONF, *([arguments.config_dir] if arguments.config_dir else [])):
        for path in sorted(Path(folder).rglob("*.yaml")):
            check_yaml(path)
    if is_other_rank():  # started by the first one, with the folder of the run's config
        return
    if arguments.experimental_rerun:
        raise ValueError(
            "--experimental-rerun unpickles a file, which may hold any code; resume=RUN goes on with a run"
        )
    for flag in ("config_path", "config_name"):
        if getattr(arguments, flag) is not None:
            name = flag.replace("_", "-")
            raise ValueError(f"--{name} would replace conf/; a folder with options of your own is --config-dir=DIR")


def _is_hydras_own(arguments: argparse.Namespace) -> bool:
    """Whether Hydra answers by itself: help, a config, completion."""
    asks = arguments.help or arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion
    return bool(asks)


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
        for place, kind in zip(plan.places(folder), plan.kinds, strict=True):
            check_content(place, kind, plan.resuming, key)

    with claim(plan.folder, numbered=not plan.named, check=check_all, key=key) as folder:
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

    return train(config, folder, overrides, config.group or sweep, accepted=record if config.resume else None)


def _recorder(folder: Path, values: DictConfig, overrides: list[str]) -> Callable[[], None]:
    """Writes what a run was started with into its folder; other ranks of the run write nothing."""

    def record() -> None:
        if not is_other_rank():
            write_record(folder, files)

    files = {
        "config.yaml": OmegaConf.to_yaml(OmegaConf.create(_lasting(values))),
        "hydra.yaml": OmegaConf.to_yaml(HydraConfig.instance().cfg),
        "overrides.yaml": OmegaConf.to_yaml(OmegaConf.create(overrides)),
    }
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
