"""The command line: every job is composed, checked and given its folder before Hydra runs it.

A refusal is one line and exit code 2 (``HYDRA_FULL_ERROR=1`` shows all). A sweep is composed whole before it starts;
a job whose values are refused, or that fails, is a line of the table at its end, and the exit code is 1.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.utils import env_override
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from zfscope.analyses.spec import AnalyzeConfig
from zfscope.console import console, sweep_table
from zfscope.runs import RunFolderLocked, lock, read_overrides, read_results, remove_unused, write_results
from zfscope.schema import check, nearest
from zfscope.training.spec import TrainConfig

CONF = str(Path(__file__).resolve().parents[2] / "conf")
SCHEMAS = {"train": TrainConfig, "analyze": AnalyzeConfig}
# A command's experiments are those in its folder: analyze.py has a second search path (hydra.searchpath in its config).
EXPERIMENTS = {"train": Path(CONF, "experiment"), "analyze": Path(CONF, "analyze", "experiment")}
# Overrides that were spelt otherwise once, and what to write now.
RESPELT = {
    "train": {
        r"experiment=\S*ensemble_.*": "train.py -m experiment=table3_zfnet seed=0,1,2,3,4 hydra.sweep.dir=outputs/six, "
        "then train.py experiment=table3_zfnet_wide seed=5 hydra.run.dir=outputs/six/5"
    },
    "analyze": {r"data\.name=(.*)": r"data=\1", r"analysis\.other\.name=(.*)": r"data@analysis.other=\1"},
}
# For conf/analyze.yaml: where its second search path is, from any working directory.
OmegaConf.register_new_resolver("conf", lambda: CONF, replace=True)


class Refused(BaseException):
    """Carries a refusal past Hydra, which would print lines of its own for an ``Exception``."""


def run_command(name: str, main: Callable[[], Any]) -> int:
    """Run ``train`` or ``analyze`` as typed; ``main`` is what ``hydra.main`` decorates; each job calls ``run_job``.

    Returns the exit code: 0, or 1 if a job of a sweep failed; a refused command exits with 2.
    """
    shows_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
    arguments = get_args_parser().parse_args()
    try:
        with env_override({"HYDRA_FULL_ERROR": "1"}):  # Hydra then raises instead of printing a page and leaving with 1
            jobs = [] if _is_hydras_own(arguments) else prepare(name, arguments)
            main()
    except (Refused, *refusals()) as error:
        if shows_all:
            raise
        print(f"{name}.py: {one_line(error.__cause__ if isinstance(error, Refused) else error)}", file=sys.stderr)
        sys.exit(2)  # the error is held until the end: torch waits 5 s for each worker of a loader that failed
    if not jobs:
        return 0
    results = [read_results(folder) or {} for folder in jobs]
    console.print(sweep_table(results))
    return int(any(result.get("state") != "finished" for result in results))


def run_job(name: str, values: DictConfig) -> float:
    """Check and run one job, called by Hydra; in a sweep a failure is this job's alone and stands in its results."""
    job = HydraConfig.get()
    folder, in_sweep = Path(job.runtime.output_dir), job.mode == RunMode.MULTIRUN
    typed = OmegaConf.to_container(job.overrides.task, resolve=False)  # as typed: ${oc.env:…} may hold a secret
    overrides = [override for override in typed if not override.startswith("resume=")]
    try:
        config = check(SCHEMAS[name], OmegaConf.to_container(values, resolve=True))
        if name == "analyze":
            from zfscope.analyses.run import analyze

            with lock(folder):
                analyze(config, folder, overrides)
            return float("nan")
        if in_sweep and config.trainer.model_dump().get("strategy") == "ddp":
            raise ValueError("DDP starts the whole sweep anew on each rank; use +trainer.strategy=ddp_spawn in sweeps")
        from zfscope.training.run import train

        return train(config, folder, overrides, config.group or (Path(job.sweep.dir).name if in_sweep else None))
    except Exception as error:
        if not in_sweep:
            if not isinstance(error, refusals()):
                raise
            if not isinstance(error, RunFolderLocked):
                remove_unused(folder)
            raise Refused from error
        cause = one_line(error)
        console.print(f"job {job.job.num} failed: {cause}", style="red", markup=False)
        write_results(folder, {}, {"overrides": overrides}, state="failed", cause=cause)
        return float("nan")


def prepare(name: str, arguments: argparse.Namespace) -> list[Path]:
    """Compose and check all that was typed, and fix the folders; Hydra then reads ``sys.argv`` as completed here.

    Returns the folder of each job of a sweep; none if this is a single run. Nothing is written before all is checked.
    """
    overrides = list(arguments.overrides)
    resuming = None
    if name == "train":
        resuming, overrides = resume_overrides(overrides)
    for override in overrides:
        for spelling, advice in RESPELT[name].items():
            if match := re.fullmatch(spelling, override):
                raise ValueError(f"{override} is spelt otherwise now: {match.expand(advice)}")
    check_experiments(name, _parsed(overrides))
    for override in _parsed(overrides):
        key = override.key_or_group
        if override.is_delete() and "." in key and not key.startswith(("callbacks.", "trainer.", "hydra.")):
            raise ValueError(f"{override.input_line}: a value cannot be removed, only changed: {key}=…")
    with _composing(name, arguments.config_dir) as hydra:
        try:
            run = None if arguments.multirun else _run_config(name, overrides)
            main = None if run else _main_config(hydra, name, overrides, arguments.multirun)
            in_sweep = arguments.multirun or (run is None and main.hydra.mode == RunMode.MULTIRUN)
            if in_sweep:
                folders, fixed = _jobs(name, main)
            else:
                folders, fixed = _single_run(name, run or compose(name, overrides, return_hydra_config=True))
        except HydraException as error:
            unknown = re.search(r"Could not override '([^']+)'", str(error))
            if unknown is None:
                raise
            raise ValueError(_unknown_key(name, unknown[1], overrides)) from error
    for folder in folders:
        if name == "train" and resuming is None and (folder / "checkpoints").exists():
            raise ValueError(f"{folder} holds a run; go on with resume={folder}, or choose another hydra.run.dir")
    flags = [f"--config-dir={arguments.config_dir}"] if arguments.config_dir else []
    sys.argv[1:] = [*(["--multirun"] if arguments.multirun else []), *flags, *overrides, *fixed]
    return folders if in_sweep else []


def resume_overrides(overrides: Sequence[str]) -> tuple[Path | None, list[str]]:
    """For ``resume=RUN``: RUN, and the overrides that it was started with, the new ones, and RUN as the run folder."""
    parsed = _parsed(overrides)
    runs = [override.value() for override in parsed if override.key_or_group == "resume"]
    if not runs or runs[-1] is None:
        return None, list(overrides)
    folder = Path(str(runs[-1]))
    new = {override.key_or_group for override in parsed}
    old = [override.input_line for override in _parsed(read_overrides(folder)) if override.key_or_group not in new]
    # Hydra would note the new overrides before they are checked; training notes them, after.
    return folder, [*old, *overrides, f"hydra.run.dir={_quoted(folder)}", "hydra.output_subdir=null"]


def check_experiments(name: str, overrides: Sequence[Override]) -> None:
    """Refuse an experiment whose file lies with the other command's."""
    (other,) = EXPERIMENTS.keys() - {name}
    for override in overrides:
        typed = override.input_line if override.key_or_group == "experiment" else ""
        for experiment in re.findall(r"[\w/-]+", typed.partition("=")[2]):
            files = {command: folder / f"{experiment}.yaml" for command, folder in EXPERIMENTS.items()}
            if files[other].is_file() and not files[name].is_file():
                raise ValueError(
                    f"experiment={experiment} belongs to {other}.py: python {other}.py experiment={experiment} …"
                )


def refusals() -> tuple[type[BaseException], ...]:
    """The errors that a person can mend: told in one line, without a traceback."""
    lightning = sys.modules.get("lightning.pytorch.utilities.exceptions")  # not loaded: it has raised nothing yet
    errors = (ValueError, TypeError, OSError, ImportError, HydraException, OmegaConfBaseException)
    return (*errors, lightning.MisconfigurationException) if lightning else errors


def one_line(error: BaseException) -> str:
    """An error as one line; what a loader's process raised is found at the end of its report."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught ") and len(lines) > 1:
        return lines[-1].partition(": ")[2] or lines[-1]
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {lines[0]}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return " ".join(lines)
    return lines[0]


def _is_hydras_own(arguments: argparse.Namespace) -> bool:
    """Whether Hydra answers by itself (help, a config, completion), or runs what is not in conf/."""
    asks = arguments.help or arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion
    return bool(asks or arguments.experimental_rerun or arguments.config_path or arguments.config_name)


@contextmanager
def _composing(name: str, config_dir: str | None) -> Iterator[Hydra]:
    """Hydra with the search path that the command will have."""
    with initialize_config_dir(CONF, job_name=name, version_base="1.3"):
        if config_dir is not None:
            search_path = GlobalHydra.instance().config_loader().get_search_path()
            place = SearchPathQuery(provider="schema")
            search_path.prepend(provider="command-line", path=f"file://{Path(config_dir).absolute()}", anchor=place)
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2(name, search_path)
        try:
            yield GlobalHydra.instance().hydra
        finally:
            HydraConfig.instance().cfg = None


def _main_config(hydra: Hydra, name: str, overrides: list[str], in_sweep: bool) -> DictConfig:
    """The config that Hydra composes before any job.

    In a sweep, a key that only its jobs have (``data.root``, where each job brings another data set) is rewritten in
    ``overrides`` as a sweep over its one value, which Hydra applies to the jobs alone.
    """
    while True:
        try:
            return hydra.compose_config(name, overrides, RunMode.MULTIRUN, validate_sweep_overrides=False)
        except HydraException as error:
            unknown = re.search(r"Could not override '([^']+)'", str(error))
            numbers = [
                number
                for number, override in enumerate(_parsed(overrides))
                if unknown and override.key_or_group == unknown[1] and not override.is_sweep_override()
            ]
            if not in_sweep or not numbers or unknown[1].startswith("hydra."):
                raise
            for number in numbers:
                key, _, value = overrides[number].partition("=")
                value = value or "''"
                overrides[number] = f"{key}=choice({value})"


def _run_config(name: str, overrides: list[str]) -> DictConfig | None:
    """The config of a single run; None for a sweep by its config (``hydra.mode``) and for what does not compose."""
    try:
        config = compose(name, overrides, return_hydra_config=True)
    except HydraException:
        return None
    return None if config.hydra.mode == RunMode.MULTIRUN else config


def _single_run(name: str, config: DictConfig) -> tuple[list[Path], list[str]]:
    """The folder of a run whose values were checked, and the override that fixes it."""
    HydraConfig.instance().set_config(config)
    values = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    check(SCHEMAS[name], OmegaConf.to_container(values, resolve=True))
    folder = Path(str(config.hydra.run.dir))
    return [folder], [f"hydra.run.dir={_quoted(folder)}"]


def _jobs(name: str, main: DictConfig) -> tuple[list[Path], list[str]]:
    """The folders of a sweep whose jobs all compose, and the override that fixes them; as BasicSweeper makes them."""
    typed = OmegaConf.to_container(main.hydra.overrides.task, resolve=False)
    from_config = [f"{key}={value}" for key, value in (main.hydra.sweeper.get("params") or {}).items()]
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(config_loader=loader).parse_overrides([*from_config, *typed])
    for override in overrides:
        if override.is_sweep_override() and override.is_discrete_sweep() and not [*override.sweep_string_iterator()]:
            raise ValueError(f"{override.input_line} is empty: a sweep needs one value or more")
    (jobs,) = BasicSweeper.split_arguments(overrides, None)
    common = OmegaConf.to_container(main.hydra.overrides.hydra, resolve=False)
    HydraConfig.instance().set_config(main)
    sweeps, folders = {str(main.hydra.sweep.dir)}, []
    for number, job in enumerate(jobs):
        config = compose(name, [*common, *job], return_hydra_config=True)
        OmegaConf.copy_cache(main, config)
        with open_dict(config):
            config.hydra.job.num = config.hydra.job.id = number
        HydraConfig.instance().set_config(config)
        sweeps.add(str(config.hydra.sweep.dir))
        folders.append(Path(config.hydra.sweep.dir, config.hydra.sweep.subdir))
    return folders, [f"hydra.sweep.dir={_quoted(sweep)}" for sweep in sweeps] if len(sweeps) == 1 else []


def _unknown_key(name: str, key: str, overrides: Sequence[str]) -> str:
    """What to tell about an override of a key that does not exist: the nearest one that does."""
    others = [
        override.input_line
        for override in _parsed(overrides)
        if override.key_or_group != key and not override.is_hydra_override() and not override.is_sweep_override()
    ]
    try:
        node: Any = compose(name, others)
    except HydraException:  # another mistake beside this one
        node = compose(name)
    *path, last = key.split(".")
    while path and isinstance(node, DictConfig) and path[0] in node:
        node = node[path.pop(0)]
    last = path[0] if path else last
    names = [str(known) for known in node] if isinstance(node, DictConfig) else []
    way_out = "; a further keyword of the Trainer is written +trainer.NAME=…" if key.startswith("trainer.") else ""
    return f"{key}: there is no key {last!r}; {nearest(last, names)}{way_out}"


def _parsed(overrides: Sequence[str]) -> list[Override]:
    return _parser().parse_overrides(list(overrides))


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _quoted(path: str | Path) -> str:
    return QuotedString(str(path), Quote.double).with_quotes()
