"""Configs as they will run: what was typed is composed and checked, job by job, and every job gets its folder."""

import argparse
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from zfscope.analyses.spec import AnalyzeConfig
from zfscope.commands.environment import only_typed, read, seen
from zfscope.commands.folders import Job
from zfscope.commands.guard import check_composed, check_place
from zfscope.commands.overrides import PATHS, groups_of, is_hydras, parse, quoted, read_typed
from zfscope.commands.resumption import Resumption, difference, read_resumption, read_sweep
from zfscope.commands.slurm import check_launcher, with_resumption
from zfscope.files import check_writable
from zfscope.networks.spec import ModelConfig
from zfscope.runs import is_below
from zfscope.schema import CONF, check, flatten, nearest
from zfscope.training.spec import TRAINER_KEYWORDS, TrainConfig

SCHEMAS = {"train": TrainConfig, "analyze": AnalyzeConfig}
MOST_JOBS = 2000  # of a sweep: each is composed before the first one runs, in some 50 ms
UNKNOWN = re.compile(r"Could not (?:override|delete from config\.) '([^']+)'")
# For conf/analyze.yaml: where its second search path is, from any working directory.
OmegaConf.register_new_resolver("conf", lambda: CONF, replace=True)
OmegaConf.register_new_resolver("groups", groups_of, replace=True)  # for --help


@dataclass(frozen=True)
class Plan:
    """A command that was composed and checked: where it will work, and what Hydra shall read."""

    folder: Path  # of the run, or of the whole sweep
    named: bool  # the folder was typed; else it comes from conf/
    arguments: list[str]  # for Hydra, all but the folder
    kinds: list[str]  # of each job: training, or the name of an analysis
    jobs: list[Path] | None = None  # the folders of a sweep's jobs
    overrides: list[list[str]] | None = None  # what sets these apart
    resuming: bool = False
    note: str | None = None  # one line to tell before it starts

    @property
    def in_sweep(self) -> bool:
        """Whether this is a sweep."""
        return self.jobs is not None

    def sweep_jobs(self, folder: Path) -> list[Job]:
        """The jobs of a sweep, with the folder that was taken."""
        own = [[text for text in job if not is_hydras(text)] for job in self.overrides]
        return [Job(*job) for job in zip(self.places(folder), own, self.kinds, strict=True)]

    def typed(self, folder: Path) -> list[str]:
        """What Hydra shall read, with the folder that was taken."""
        key = "hydra.sweep.dir" if self.in_sweep else "hydra.run.dir"
        return [*self.arguments, f"{key}={quoted(folder)}"]

    def places(self, folder: Path) -> list[Path]:
        """The folder of each job, with the folder that was taken."""
        if self.jobs is None:
            return [folder]
        inside = [job.is_relative_to(self.folder) for job in self.jobs]
        jobs = zip(self.jobs, inside, strict=True)
        return [folder / job.relative_to(self.folder) if below else job for job, below in jobs]


def prepare(name: str, arguments: argparse.Namespace) -> Plan:
    """Compose and check all that was typed for ``train`` or ``analyze``; nothing is written.

    Raises:
        ValueError: For what cannot be: one line.
    """
    overrides = read_typed(name, arguments.overrides, SCHEMAS[name], arguments.config_dir)
    if name == "train" and not arguments.multirun:
        overrides = with_resumption(overrides)
    typed = parse(overrides)
    repeated = read_sweep(name, overrides)
    if repeated is not None:
        overrides, typed = repeated[0], parse(repeated[1])
        arguments.multirun = True
    resumption = read_resumption(overrides, arguments.config_dir) if name == "train" and repeated is None else None
    if resumption is not None:
        if arguments.multirun:
            raise ValueError(f"resume={resumption.folder} goes on with one run; leave out --multirun")
        only_typed(parse(overrides))
        return _plan_resumption(resumption)
    with composing(CONF, name, arguments.config_dir) as hydra:
        try:
            run = None if arguments.multirun else _run_config(name, overrides)
            main = None if run else _main_config(hydra, name, overrides, arguments.multirun)
            in_sweep = arguments.multirun or (run is None and main.hydra.mode == RunMode.MULTIRUN)
            if in_sweep:
                if replaced := _replaced(main, overrides):
                    overrides = [*overrides, *replaced]
                    main = _main_config(hydra, name, overrides, arguments.multirun)
                folder, jobs, kinds, own = _jobs(name, main, typed)
            else:
                run = run or compose(name, overrides, return_hydra_config=True)
                folder, kinds, jobs, own = _single_run(name, run, typed), [kind_of_config(name, run)], None, None
        except HydraException as error:
            unknown = UNKNOWN.search(str(error))
            if unknown is None:
                raise
            raise ValueError(_unknown_key(name, unknown[1], overrides)) from error
    key = "hydra.sweep.dir" if in_sweep else "hydra.run.dir"
    for place_key, place in [(key, folder), *(("hydra.sweep.subdir", job) for job in jobs or ())]:
        if place_key == key or not is_below(place, folder):
            check_place(place_key, place, typed)
    flags = [f"--config-dir={arguments.config_dir}"] if arguments.config_dir else []
    flags += ["--multirun"] if arguments.multirun else []
    named = key in {override.key_or_group for override in typed}
    return Plan(folder, named, [*flags, *overrides, "hydra.output_subdir=null"], kinds, jobs, own)


def kind_of_config(name: str, config: DictConfig) -> str:
    """What a job of a command is: ``training``, or the name of an analysis."""
    return "training" if name == "train" else str(OmegaConf.select(config, "analysis.name"))


@contextmanager
def composing(folder: str, name: str, config_dir: str | None = None) -> Iterator[Hydra]:
    """Hydra with the search path that a command has whose configs are in a folder."""
    with initialize_config_dir(folder, job_name=name, version_base="1.3"):
        if config_dir is not None:
            if not Path(config_dir).is_dir():
                raise FileNotFoundError(f"--config-dir={config_dir}: there is no such folder")
            search_path = GlobalHydra.instance().config_loader().get_search_path()
            place = SearchPathQuery(provider="schema")
            search_path.prepend(provider="command-line", path=f"file://{Path(config_dir).absolute()}", anchor=place)
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2(name, search_path)
        try:
            yield GlobalHydra.instance().hydra
        finally:
            HydraConfig.instance().cfg = None


def _plan_resumption(resumption: Resumption) -> Plan:
    with composing(str(resumption.config_folder), "config"):
        try:
            config = compose("config", resumption.overrides, return_hydra_config=True)
        except HydraException as error:
            unknown = UNKNOWN.search(str(error))
            if unknown is None:
                raise
            raise ValueError(_unknown_key("config", unknown[1], resumption.overrides)) from error
        _single_run("train", config, parse(resumption.overrides))
    arguments = [f"--config-path={resumption.config_folder}", "--config-name=config", *resumption.overrides]
    arguments.append("hydra.output_subdir=null")
    note = resumption.note or difference(resumption.folder)
    return Plan(resumption.folder, True, arguments, ["training"], resuming=True, note=note)


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
                for number, override in enumerate(parse(overrides))
                if unknown and override.key_or_group == unknown[1] and not override.is_sweep_override()
            ]
            if not numbers or unknown[1].startswith("hydra."):
                raise
            others = [override for number, override in enumerate(overrides) if number not in numbers]
            if not in_sweep and not _sweeps_by_itself(hydra, name, others):
                raise
            for number in numbers:
                key, _, value = overrides[number].partition("=")
                value = value or "''"
                overrides[number] = f"{key}=choice({value})"


def _sweeps_by_itself(hydra: Hydra, name: str, overrides: Sequence[str]) -> bool:
    """Whether a config is a sweep without ``--multirun``, also where overrides are of its jobs alone."""
    try:
        return _main_config(hydra, name, list(overrides), False).hydra.mode == RunMode.MULTIRUN
    except HydraException:
        return False


def _replaced(main: DictConfig, overrides: Sequence[str]) -> list[str]:
    """What takes out of a config's sweep (``hydra.sweeper.params``) the keys that are typed: these have the say."""
    typed = {override.key_or_group for override in parse(overrides)}
    # Hydra's grammar has no spelling to remove a key with a dot in it; such a one is refused as typed twice.
    own = [key for key in main.hydra.sweeper.get("params") or {} if key in typed and "." not in key]
    return [f"~hydra.sweeper.params.{key}" for key in own]


def _run_config(name: str, overrides: list[str]) -> DictConfig | None:
    """The config of a single run; None for a sweep by its config (``hydra.mode``) and for what does not compose."""
    try:
        config = compose(name, overrides, return_hydra_config=True)
    except HydraException:
        return None
    return None if config.hydra.mode == RunMode.MULTIRUN else config


def _single_run(name: str, config: DictConfig, typed: Sequence[Override]) -> Path:
    """The folder of a run whose values were checked."""
    HydraConfig.instance().set_config(config)
    check_composed(name, config, typed)
    launcher = next((one.input_line for one in typed if one.key_or_group == "hydra/launcher"), None)
    if launcher is not None and config.hydra.runtime.choices.get("hydra/launcher") != "basic":
        raise ValueError(f"{launcher}: a launcher starts the jobs of a sweep; add --multirun, also for a single job")
    checked = _check_values(name, config, typed)
    if name == "train":
        check_writable(checked.data.cache, "data.cache")
    if checked.logger.name == "wandb":
        for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            if variable in os.environ:
                check_writable(os.environ[variable], variable)
    _check_working_folder(config)
    return _folder(config, "run", typed)


def _jobs(
    name: str, main: DictConfig, all_typed: Sequence[Override]
) -> tuple[Path, list[Path], list[str], list[list[str]]]:
    """The folder of a sweep whose jobs all compose; folder, kind and overrides of each, as BasicSweeper makes them."""
    typed = OmegaConf.to_container(main.hydra.overrides.task, resolve=False)
    from_config = [f"{key}={value}" for key, value in (main.hydra.sweeper.get("params") or {}).items()]
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(config_loader=loader).parse_overrides([*from_config, *typed])
    keys = [override.get_key_element().lstrip("+~") for override in overrides]
    number_of_jobs = 1.0
    for override, key in zip(overrides, keys, strict=True):
        if override.is_sweep_override() and override.is_discrete_sweep():
            number_of_jobs *= _values_in(override)
        if not number_of_jobs:
            raise ValueError(f"{override.input_line} is empty: a sweep needs one value or more")
        if override.is_sweep_override() and keys.count(key) > 1:  # Hydra would keep one of them without a word
            raise ValueError(f"{override.input_line}: a sweep takes {key} once; write all its values in one list")
    if number_of_jobs > MOST_JOBS:
        raise ValueError(
            f"this sweep has {number_of_jobs:,.0f} jobs; at most {MOST_JOBS:,} are composed in one, split it"
        )
    (jobs,) = BasicSweeper.split_arguments(overrides, None)
    common = OmegaConf.to_container(main.hydra.overrides.hydra, resolve=False)
    HydraConfig.instance().set_config(main)
    check_composed(name, main, all_typed)
    check_launcher(OmegaConf.select(main, "hydra.launcher._target_"))
    _check_working_folder(main)
    sweep = _folder(main, "sweep", all_typed)
    folders: list[Path] = []
    kinds: list[str] = []
    refused: list[ValueError] = []
    for number, job in enumerate(jobs):
        config = _job_config(name, [*common, *job], [word for word in job if word not in jobs[0]])
        OmegaConf.copy_cache(main, config)
        with open_dict(config):
            config.hydra.job.num = config.hydra.job.id = number
        HydraConfig.instance().set_config(config)
        _check_read_once(config, main, next((one for one in job if one.startswith("experiment=")), f"job {number}"))
        check_composed(name, config, all_typed)
        _check_working_folder(config)
        own = _folder(config, "sweep", all_typed)
        if own != sweep and number:
            raise ValueError(f"hydra.sweep.dir must be one folder for all jobs, but is {sweep} and {own}")
        sweep = own
        folders.append(Path(sweep, str(config.hydra.sweep.subdir)))
        kinds.append(kind_of_config(name, config))
        try:
            _check_values(name, config, all_typed)
        except ValueError as error:  # a line of the table at the sweep's end
            refused.append(error)
    if len(refused) == len(jobs):
        all_jobs = f"all {len(jobs)} jobs of the sweep are refused, the first one" if len(jobs) > 1 else "the only job"
        raise ValueError(f"{all_jobs}: {refused[0]}")
    twice = next((folder for number, folder in enumerate(folders) if folder in folders[:number]), None)
    if twice is not None:
        raise ValueError(f"two jobs of the sweep would have the folder {twice}; tell them apart in hydra.sweep.subdir")
    return sweep, folders, kinds, [list(job) for job in jobs]


def _job_config(name: str, overrides: Sequence[str], own: Sequence[str]) -> DictConfig:
    """The config of a job; ``own`` are the overrides that tell it from the first one, which has composed."""
    try:
        return compose(name, overrides, return_hydra_config=True)
    except HydraException as error:
        unknown = UNKNOWN.search(str(error))
        if unknown is None or not own or not unknown[1].startswith("analysis."):
            raise
        job = " ".join(own)
        raise ValueError(
            f"{unknown[1]}: the job {job} has no such key, others of the sweep have; type them alone"
        ) from error


def _values_in(override: Override) -> float:
    """How many values an override has in a sweep, without making them: a range may have more than memory holds."""
    value = override.value()
    if not isinstance(value, RangeSweep):
        return sum(1 for _ in override.sweep_string_iterator())
    try:
        return max(0, math.ceil((float(value.stop) - float(value.start)) / float(value.step)))
    except (ArithmeticError, ValueError):  # infinity and NaN, or a step of 0
        raise ValueError(f"{override.input_line}: a range has finite ends, and a step that is not 0") from None


def _check_values(name: str, config: DictConfig, typed: Sequence[Override]) -> Any:
    values = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    real, texts = read(values)
    checked = check(SCHEMAS[name], real, texts=texts)
    cache = checked.data.cache if name == "train" else checked.data.get("cache")
    if cache is not None:
        check_place("data.cache", cache, typed)
    return checked


def _folder(config: DictConfig, kind: str, typed: Sequence[Override]) -> Path:
    """The folder of a ``run`` or ``sweep``; a typed one may lie where the environment says, itself or by a path."""
    is_typed = f"hydra.{kind}.dir" in {override.key_or_group for override in typed}
    with seen(PATHS) if is_typed else nullcontext():
        return Path(os.path.expanduser(str(config.hydra[kind].dir)))


def _check_working_folder(config: DictConfig) -> None:
    if config.hydra.job.chdir:
        raise ValueError("hydra.job.chdir=true would change what the typed paths mean; leave it out")


def _check_read_once(config: DictConfig, main: DictConfig, source: str) -> None:
    """Refuse what a swept option says about launcher, sweeper and callbacks: Hydra reads these before it composes the
    jobs, without what is swept, and ignores a job's own without a word.
    """
    for part in ("launcher", "sweeper", "callbacks"):
        ignored, read = (
            flatten(OmegaConf.to_container(one.hydra[part], resolve=False) or {}) for one in (config, main)
        )
        choice = config.hydra.runtime.choices.get(f"hydra/{part}")
        if ignored != read and choice != main.hydra.runtime.choices.get(f"hydra/{part}"):
            key, typed = f"hydra/{part}", f"hydra/{part}={choice}"
        elif ignored != read:
            name = next(name for name in [*ignored, *read] if ignored.get(name) != read.get(name))
            key = f"hydra.{part}.{name}"
            plus = "" if name in read else "+"
            typed = f"{plus}{key}={ignored.get(name)}".removeprefix("+hydra.sweeper.params.")
        else:
            continue
        raise ValueError(f"{source} sets {key}, which Hydra ignores in an option that is swept; type {typed} beside it")


def _unknown_key(name: str, key: str, overrides: Sequence[str]) -> str:
    """What to tell about an override of a key that does not exist: the nearest one that does."""
    others = [
        override.input_line
        for override in parse(overrides)
        if override.key_or_group != key and not override.is_hydra_override() and not override.is_sweep_override()
    ]
    try:
        node: Any = compose(name, others, return_hydra_config=True)
    except HydraException:  # another mistake beside this one
        node = compose(name, return_hydra_config=True)
    *path, last = key.split(".")
    while path and isinstance(node, DictConfig) and path[0] in node:
        node = node[path.pop(0)]
    if path:  # a part of the way is not there, such as fc6 of a model of timm
        last = path[0]
    source = node.get("source") if key.startswith("model.") and isinstance(node, DictConfig) else None
    if source in ("timm", "torchvision") and last in ModelConfig.model_fields:
        return f"{key}: a model of {source} is taken as it is; layers are changed in those of conf/model, model=zfnet …"
    names = [str(known) for known in node if str(known) != last] if isinstance(node, DictConfig) else []
    if key.startswith("trainer."):
        names = [*TRAINER_KEYWORDS]
    return f"{key}: there is no key {last!r}; {nearest(last, names)}"
