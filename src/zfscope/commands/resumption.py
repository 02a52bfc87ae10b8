"""``resume=RUN``: a run goes on from its own config, ``RUN/.hydra/config.yaml``, with the values that are typed.

``resume=SWEEP``: a sweep is repeated as it was typed, by ``SWEEP/multirun.yaml``.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zfscope.commands.guard import check_interpolations, check_stored
from zfscope.commands.lines import one_line
from zfscope.commands.nesting import check_yaml
from zfscope.commands.overrides import is_group, is_hydras, parse, quoted
from zfscope.runs import RECORD, is_below, kind_of_run, read_overrides, why_no_training
from zfscope.schema import CONF, flatten, leaves
from zfscope.secrets import is_from_environment
from zfscope.training.spec import FIXED_KEYS

# What Hydra needs to go on from a config that chooses no groups of its own.
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")

MULTIRUN = "multirun.yaml"  # Hydra's, in the folder of a sweep: its config with what was typed
# Of what was typed for Hydra itself: what a repetition takes from a sweep's folder, and what it sets by itself.
TAKEN = re.compile(
    r"hydra/launcher=(basic|joblib|slurm|submitit_local|submitit_slurm)|hydra\.sweep\.subdir=.*"
    r"|hydra\.sweeper\.max_batch_size=\d+|hydra\.launcher\.(n_jobs|timeout_min|signal_delay_s|array_parallelism|nodes|"
    r"(cpus|gpus|tasks)_per_\w+|mem_\w+|gres|partition|qos|account|constraint|exclude|name)=[\w.:,@+-]*"
)
SET = re.compile(r"hydra\.(sweep\.dir|output_subdir|mode)=.*|~hydra\.sweeper\.params\..*")
LAUNCHER = re.compile(r"\+*hydra(/launcher|\.launcher\.[\w.]+)=.*")


@dataclass(frozen=True)
class Resumption:
    """A run to go on with."""

    folder: Path
    config_folder: Path  # where its config.yaml is
    overrides: list[str]  # what is typed, as Hydra takes it on top of that config
    note: str | None = None  # one line to tell before it starts


def read_resumption(overrides: Sequence[str], config_dir: str | None = None) -> Resumption | None:
    """The run that ``resume=RUN`` names, with what else is typed; None without ``resume=``.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If its config cannot be read, or a group is chosen: the run's own config has no groups any more.
    """
    parsed = parse(overrides)
    runs = [override for override in parsed if override.key_or_group == "resume"]
    if not runs or runs[-1].value() is None:
        return None
    if runs[-1].is_sweep_override():
        raise ValueError(f"{runs[-1].input_line}: resume= goes on with one run; give its folder in quotes")
    if "://" in str(runs[-1].value()):
        raise ValueError(f"resume={runs[-1].value()} is a URL; download the run first and give its folder")
    folder = Path(str(runs[-1].value()).replace("\\${", "${"))
    if folder.is_file():  # a checkpoint of the run
        folder = folder.parent.parent
    config_folder = (folder / RECORD).absolute()
    path = config_folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"resume={folder}: no run there ({path} is missing); {why_no_training(folder)}")
    kind = kind_of_run(folder)
    if kind not in (None, "training"):
        raise ValueError(f"resume={folder}: {why_no_training(folder)}")
    for file in (path, config_folder / "overrides.yaml"):
        check_yaml(file)
    try:
        content = _plain(OmegaConf.load(path))
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(f"resume={folder}: {path} cannot be read ({cause}); mend or restore it") from None
    check_stored(path, content)
    keys, typed, beside = flatten(content), [], {override.key_or_group for override in parsed}
    _check_environment(folder, keys, beside)
    for override in parsed:
        group = override.key_or_group
        if group == "hydra.run.dir" and os.path.abspath(str(override.value())) != os.path.abspath(folder):
            raise ValueError(
                f"{override.input_line}: resume={folder} goes on in its own folder; leave hydra.run.dir out"
            )
        if is_group(group) or (config_dir and "." not in group and Path(config_dir, group).is_dir()):
            if refusal := _group_refusal(override, keys, beside, folder):
                raise ValueError(refusal)
            continue  # the run's own
        typed.append(override.input_line)
        if not override.is_delete() and not override.is_hydra_override():
            known = group in keys or any(key.startswith(f"{group}.") for key in keys)
            if known == override.is_add():  # the check of the values tells what is no key
                typed[-1] = "++" + override.input_line.lstrip("+")
    note, place = None, os.path.expanduser(str(keys.get("data.cache")))
    if "data.cache" not in {override.key_or_group for override in parsed} and not is_below(place, Path.cwd()):
        note = f"data.cache={place} of this run lies outside the working directory; unless typed, data_cache is used"
        typed.append("data.cache=data_cache")
    return Resumption(folder, config_folder, [*QUIET, *typed], note)


def read_sweep(name: str, overrides: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """What was typed for the sweep that ``resume=SWEEP`` names, with its folder; None where it names none.

    Second comes what of that counts as typed now: all that is, the folder, and how the jobs are launched.

    The launcher may be another one. What could run foreign code or read the environment, and came from the sweep's
    folder, which may be a stranger's, must be typed again.

    Raises:
        ValueError: If the sweep cannot be read, is of the other command, or if something else is typed than for it.
    """
    parsed = parse(overrides)
    places = [Path(str(one.value())) for one in parsed if one.key_or_group == "resume" and not one.is_sweep_override()]
    if not places or not (path := places[-1] / MULTIRUN).is_file() or (places[-1] / RECORD / "config.yaml").is_file():
        return None
    folder, typed = places[-1], [one.input_line for one in parsed if one.key_or_group != "resume"]
    check_yaml(path)
    try:
        hydra = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]
        command, own = hydra["job"]["name"], [*hydra["overrides"]["hydra"], *hydra["overrides"]["task"]]
        recorded = [one.input_line for one in parse(own) if not SET.fullmatch(one.input_line)]
    except (KeyError, TypeError):
        raise ValueError(f"resume={folder}: {path} is no record of a sweep; restore it") from None
    except (yaml.YAMLError, UnicodeDecodeError, HydraException, ValueError) as error:
        raise ValueError(f"resume={folder}: {path} cannot be read ({one_line(error)}); restore it") from None
    if command != name:
        raise ValueError(f"resume={folder}: it is a sweep of {command}.py; python {command}.py resume={folder}")
    for text in typed:
        if text not in map(_unswept, recorded) and text not in recorded and not LAUNCHER.fullmatch(text):
            raise ValueError(f"{text}: resume={folder} repeats a sweep, which was typed without that; leave it out")
    keys = {_key_of(text) for text in typed}
    launcher_typed = any(LAUNCHER.fullmatch(text) for text in typed)
    left = [one for one in recorded if _key_of(one) not in keys and not (launcher_typed and LAUNCHER.fullmatch(one))]
    again = [
        text
        for text in left
        if is_from_environment(text) or _key_of(text) == "trust" or (is_hydras(text) and not TAKEN.fullmatch(text))
    ]
    if again:
        raise ValueError(f"resume={folder}: of this sweep must be typed again: {shlex.join(map(_unswept, again))}")
    now = [*typed, *(text for text in left if LAUNCHER.fullmatch(text)), f"hydra.sweep.dir={quoted(folder)}"]
    return [*left, *typed, now[-1]], now


def _unswept(override: str) -> str:
    """An override as it was typed, where a single value of the jobs alone was recorded as a sweep over it."""
    return re.sub(r"=choice\(([^,]*)\)$", r"=\1", override)


def own_config(folder: Path, now: DictConfig) -> DictConfig:
    """The config with which a sweep's job goes on that was begun before: its run's own, as with ``resume=RUN``.

    ``now`` is what ``conf/`` gives for the same job today. What may lead to foreign code, to the environment or out of
    the working directory is as it is there.
    """
    path = folder / RECORD / "config.yaml"
    check_yaml(path)
    content, today = _plain(OmegaConf.load(path)), flatten(_plain(now))
    check_stored(path, content)
    keys = flatten(content)
    _check_environment(folder, keys, {key for key in keys if keys[key] == today.get(key)})
    own = OmegaConf.create(content | {"resume": str(folder)})
    own.trust, own.data.cache = now.trust, now.data.cache
    check_interpolations(own)
    return own


def _check_environment(folder: Path, keys: Mapping[str, Any], typed: set[str]) -> None:
    """Refuse keys of a run's config that lead to the environment and were not typed; none of them is resolved."""
    again = []
    for key, value in keys.items():
        is_typed = any(key == other or key.startswith(f"{other}.") for other in typed)
        if not is_typed and any(is_from_environment(text) for _, text in leaves(value)):
            shown = f"[{','.join(map(str, value))}]" if isinstance(value, list) else value
            again.append(f"'{key}={shown}'")
    if again:
        raise ValueError(
            f"resume={folder}: what a run's config takes from the environment must be typed again; type "
            + " ".join(again)
        )


def overrides_of(folder: Path, typed: Sequence[str]) -> list[str]:
    """All overrides of a run that goes on: those that it was started with, then those typed now."""
    new = {override.key_or_group for override in parse(typed)}
    old = [text for text in read_overrides(folder) if _key_of(text) not in new]
    return [*old, *(text for text in typed if _key_of(text) != "resume")]


def difference(folder: Path) -> str | None:
    """One line that says where today's conf/ would give other values than a run has; None where it would not."""
    stored = flatten(_plain(OmegaConf.load(folder / RECORD / "config.yaml")))
    try:
        with initialize_config_dir(CONF, job_name="train", version_base="1.3"):
            today = flatten(_plain(compose("train", read_overrides(folder))))
    except HydraException:
        return "conf/ has not all that this run was started with; it goes on with its own config"
    names = [key for key in stored if key in today and stored[key] != today[key] and key != "resume"]
    if not names:
        return None
    first = f"{names[0]}={stored[names[0]]} (conf/ has {today[names[0]]} now)"
    more = f" and {len(names) - 1} more values" if len(names) > 1 else ""
    return f"this run goes on with its own {first}{more}"


def _plain(config: Any) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=False)


def _key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _group_refusal(override: Override, keys: Mapping[str, Any], typed: set[str], folder: Path) -> str | None:
    """Why a group's option is not taken, with the keys to type instead; None where it is what the run has anyway.

    ``keys`` are the values of the run's own config, ``typed`` the keys that are typed beside the option.
    """
    group, option = override.key_or_group, override.value()
    today = _composed_with(override, folder)
    fixed = [key for key in today if FIXED_KEYS.fullmatch(key) and key != "seed" and today[key] != keys.get(key)]
    if fixed:
        own = [key for key in fixed if key.startswith(f"{group.partition('/')[0]}.")] or fixed
        other = next((key for key in own if key.endswith(".name")), own[0])
        has = f"this one has {other}={keys.get(other)}"
        start = f"start a new run with weights={folder} {override.input_line}"
        return f"{override.input_line}: the {group} of a run cannot change in its middle ({has}); {start}"
    path = Path(CONF, group, f"{option}.yaml")
    place, values = group.replace("/", "."), {}
    if path.is_file():
        package = re.search(r"^# @package (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        place = package[1] if package else place
        prefix = "" if place == "_global_" else f"{place}."
        values = flatten(_plain(OmegaConf.load(path)), prefix)
        values = {key: value for key, value in values.items() if not key.startswith(f"{prefix}defaults")}
    changed = {key: value for key, value in values.items() if keys.get(key) != value and not FIXED_KEYS.fullmatch(key)}
    if not values:  # as of callbacks=none: what the run has and the option has not
        others = [key for key in keys if key.startswith(f"{place}.") and key not in today]
        changed = {".".join(key.split(".")[:2]): None for key in others}
    changed = {key: value for key, value in changed.items() if key not in typed}
    if today and not changed:
        return None
    instead = " ".join(f"{key}={'null' if value is None else value}" for key, value in list(changed.items())[:6])
    way_out = f"type its keys instead: {instead}" if instead else "type single keys instead"
    return f"{override.input_line} chooses a whole group, but the run goes on from its own config; {way_out}"


def _composed_with(override: Override, folder: Path) -> dict[str, Any]:
    """What ``conf/`` gives today with all that a run was started with and this option; empty where it does not."""
    others = [text for text in read_overrides(folder) if _key_of(text) != override.key_or_group]
    try:
        with initialize_config_dir(CONF, job_name="train", version_base="1.3"):
            return flatten(_plain(compose("train", [*others, override.input_line])))
    except HydraException:
        return {}
