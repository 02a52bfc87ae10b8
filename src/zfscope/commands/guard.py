"""What configs may say that nobody typed: they come from strangers too, as experiments and run folders do.

Hydra calls what its own part of a config names, before any check of ours; so that part is what ``conf/`` gives, but for
a few values, and everything else has to be typed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from zfscope.runs import is_below
from zfscope.schema import CONF, flatten, leaves
from zfscope.secrets import is_from_environment

# Hydra calls what its own groups name: its own classes alone.
HYDRAS_OWN = re.compile(
    r"hydra\._internal\.core_plugins\.basic_(launcher\.BasicLauncher|sweeper\.BasicSweeper)"
    r"|hydra\.experimental\.callbacks\.[A-Z]\w*"
    r"|hydra_plugins\.hydra_(joblib|submitit)_launcher\.\w+\.[A-Z]\w*"
    r"|(logging(\.handlers)?|colorlog)\.[A-Z]\w*"
)
MOST_STEPS, MOST_TEXT = 50, 100_000  # of interpolations; those of conf/ take 3 steps and make some hundred characters
LOOKING_UP = re.compile(r"\s*oc\.(select|deprecated|dict\.keys|dict\.values)\s*:\s*")  # resolvers that take a key
CALLING = ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")
# What a config may set below hydra., and what differs from job to job or is text alone.
FREE = re.compile(
    r"run\.dir|sweep\.(dir|subdir)|sweeper\.params(\..*)?|mode"
    r"|(overrides|runtime|help|hydra_help)\..*|job\.(name|override_dirname|id|num|config_name|chdir)"
)
FOLDERS = re.compile(r"run\.dir|sweep\.(dir|subdir)")


def check_composed(name: str, config: DictConfig, typed: Sequence[Override]) -> None:
    """Refuse a composed config that could run foreign code; ``typed`` is what stands on the command line.

    Raises:
        ValueError: For ``trust`` or a value below ``hydra.`` that was not typed, and for a class there that is not one
            of Hydra's own and was not typed in ``trust`` either.
    """
    check_interpolations(config)
    keys = {override.key_or_group for override in typed}
    trusted = [str(target) for target in OmegaConf.select(config, "trust") or ()]
    if trusted and "trust" not in keys:
        names = ",".join(trusted)
        raise ValueError(f"trust=[{names}] of a config is not taken; type 'trust=[{names}]', if it is meant")
    for group in CALLING:
        for key, value in _classes_below(config.hydra[group], f"hydra.{group}"):
            if not HYDRAS_OWN.fullmatch(str(value)) and str(value) not in trusted:
                raise ValueError(f"{key}={value} is no class of Hydra's own; leave it out")
    groups = tuple(f"{key.removeprefix('hydra/')}." for key in keys if key.startswith("hydra/"))
    values = tuple(key.removeprefix("hydra.") for key in keys if key.startswith("hydra."))
    own, usual = _flat(config), _usual(name)
    if own["job.env_copy"] and "job.env_copy" in values:
        way = f"+hydra.job.env_set.{own['job.env_copy'][0]}='${{oc.env:{own['job.env_copy'][0]}}}'"
        raise ValueError(f"hydra.job.env_copy would write the values of variables into the sweep's files; type {way}")
    for key in sorted(own.keys() | usual.keys()):
        if any(key == value or key.startswith(f"{value}.") for value in values) or key.startswith(groups):
            continue
        is_folder = FOLDERS.fullmatch(key) is not None and is_from_environment(own.get(key))
        if not is_folder and (own.get(key) == usual.get(key) or FREE.fullmatch(key)):
            continue
        group = key.partition(".")[0]
        choice = config.hydra.runtime.choices.get(f"hydra/{group}")
        way = f"hydra/{group}={choice}" if choice not in (None, "basic", "default", "none") else f"hydra.{key}=…"
        raise ValueError(f"hydra.{key}={own.get(key)!r} of a config is not taken; type {way}, if it is meant")


def check_interpolations(config: DictConfig) -> None:
    """Refuse interpolations that lead too far or make more text than memory holds; nothing is resolved for that."""
    values = dict(leaves(OmegaConf.to_container(config, resolve=False)))
    texts = {key: value for key, value in values.items() if isinstance(value, str)}
    lengths: dict[str, int] = {}  # of what a key makes; 0 while it is counted: a circle is OmegaConf's to tell

    def length(key: str, depth: int = 0) -> int:
        if depth > MOST_STEPS:
            raise ValueError(f"{key}: interpolations lead further than {MOST_STEPS} steps; write the value itself")
        if key not in lengths:
            lengths[key] = 0
            inside = [key] if key in values else [name for name in values if name.startswith(f"{key}.")]
            referred = [to for name in inside if "${" in texts.get(name, "") for to in _referred(name, values)]
            lengths[key] = sum(len(str(values[name])) for name in inside) + sum(
                length(to, depth + 1) for to in referred
            )
        if lengths[key] > MOST_TEXT:
            raise ValueError(f"{key}: its interpolations make {lengths[key]:,} characters; write the value itself")
        return lengths[key]

    for key, text in texts.items():
        if "${" in text:
            length(key)


def check_stored(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a run's own config, before Hydra composes it, that has a part for Hydra: none is ever written there."""
    for key in ("hydra", "defaults"):
        if key in content:
            raise ValueError(f"{path} has a part {key!r}, which no run of this project writes; remove it")
    if re.search(r"^\s*#\s*@package", path.read_text(encoding="utf-8"), re.MULTILINE):
        raise ValueError(f"{path} has a line '# @package', which no run of this project writes; remove it")


def check_place(key: str, place: str | Path, typed: Sequence[Override]) -> None:
    """Refuse a folder outside the working directory that was not typed: who types it knows where it is."""
    if key not in {override.key_or_group for override in typed} and not is_below(place, Path.cwd()):
        raise ValueError(f"{key}={place} of a config lies outside the working directory; type it, if it is meant")


def _referred(key: str, values: Mapping[str, Any]) -> Iterator[str]:
    """The keys that interpolations in a key's text lead to, from the innermost out: ``${paths.${host}}`` leads to two.

    Of resolvers (``${now:…}``) only those lead to a key that look one up.
    """
    text = values[key]
    while match := re.search(r"\$\{([^${}]*)\}", text):
        body, before, found = match[1], text[: match.start()], ""
        reference = LOOKING_UP.sub("", body).split(",")[0].strip(" '\"")
        leads = ":" not in body or LOOKING_UP.match(body)
        if leads:
            name = re.sub(r"\[(\w+)\]", r".\1", reference.lstrip("."))
            dots = len(reference) - len(reference.lstrip("."))
            name = ".".join([*key.split(".")[:-dots], name]) if dots else name
            yield name
            found = str(values.get(name, ""))
        around = before.rpartition("${")[2] if "${" in before else ":"
        if ":" in around and not LOOKING_UP.match(around):
            found = ""
        elif not leads or "${" in found:
            raise ValueError(f"{key}: the name in an interpolation is made by another one; write the name itself")
        text = before + found + text[match.end() :]


def _classes_below(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """What a part of a config names to be called, interpolations followed."""
    if isinstance(node, DictConfig | ListConfig):
        for name in node if isinstance(node, DictConfig) else range(len(node)):
            if not OmegaConf.is_missing(node, name):
                if name in ("_target_", "()", "class"):
                    yield f"{key}.{name}", node[name]
                else:
                    yield from _classes_below(node[name], f"{key}.{name}")


@cache
def _usual(name: str) -> dict[str, Any]:
    """What ``conf/`` gives to Hydra without any option, by dotted key."""
    under_way = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(CONF, job_name=name, version_base="1.3"):
            return _flat(compose(name, return_hydra_config=True))
    finally:
        GlobalHydra.instance().hydra = under_way  # another instance by now


def _flat(config: DictConfig) -> dict[str, Any]:
    return flatten(OmegaConf.to_container(config.hydra, resolve=False))
