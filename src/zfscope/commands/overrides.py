"""What was typed: paths and numbers that are meant as text, earlier spellings, experiments of the other command."""

import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException

from zfscope.commands.nesting import check_brackets
from zfscope.schema import CONF, nearest, takes_text
from zfscope.training.spec import TRAINER_KEYWORDS

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
# Keys whose values are paths; Hydra's grammar knows no ~, =, # or brackets in them.
PATHS = re.compile(
    r"resume|checkpoint|weights|weights_file|image|data\.(root|cache|exclude)|analysis\.(boxes|other(\.root)?)|hydra\.(run|sweep)\.dir"
)


def read_typed(name: str, overrides: Sequence[str], schema: Any, config_dir: str | None = None) -> list[str]:
    """The overrides of ``train`` or ``analyze`` as Hydra understands them; refused are those that can be seen wrong.

    A path may hold what Hydra's grammar does not know (``resume=outputs/lr=0.1``, ``data.root=~/images``). A number
    where ``schema`` wants text stays as it was typed (``name=2026``). ``config_dir`` is a further folder of groups.
    """
    for override in overrides:
        if override.lstrip("+~").startswith("="):
            raise ValueError(f"{override}: the key before = is missing; a value is typed as key=value")
        for spelling, advice in RESPELT[name].items():
            if match := re.fullmatch(spelling, override):
                raise ValueError(f"{override} is spelt otherwise now: {match.expand(advice)}")
    # Whether conf/trainer has a keyword of the Trainer or not, it can be set, with + or without.
    overrides = [re.sub(r"^\+(trainer\.)", r"++\1", override) for override in overrides]
    overrides = [re.sub(_further_keywords(), r"++\g<0>", override) for override in overrides]
    overrides = [_text(_path(override), schema) for override in overrides]
    parsed = parse(overrides)
    check_experiments(name, parsed)
    for override in parsed:
        if override.is_delete():
            _check_removal(override, schema)
        else:
            _check_option(override, schema, [Path(CONF), Path(CONF, name), *([Path(config_dir)] if config_dir else [])])
    return overrides


def _check_removal(override: Override, schema: Any) -> None:
    """Refuse ``~key`` of a value or of a group that the schema knows; what else is there may be removed."""
    key = override.key_or_group
    if is_group(key):
        field = schema.model_fields.get(key)
        if field is not None and field.is_required():
            options = ", ".join(sorted(path.stem for path in Path(CONF, key).glob("*.yaml")))
            raise ValueError(
                f"{override.input_line}: a group cannot be removed, only chosen: {key}=…; there are {options}"
            )
    elif key in schema.model_fields or ("." in key and not key.startswith(("callbacks.", "trainer.", "hydra."))):
        raise ValueError(f"{override.input_line}: a value cannot be removed, only changed: {key}=…")


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


def groups_of(name: str) -> str:
    """The groups of ``train`` or ``analyze`` with their options, a line each, for ``--help``.

    Hydra's own listing has the groups of both commands, for their folders lie side by side.
    """
    loader = GlobalHydra.instance().config_loader()  # it knows a --config-dir too
    defaults = yaml.safe_load(Path(CONF, f"{name}.yaml").read_text(encoding="utf-8"))["defaults"]
    keys = [next(iter(entry)).split()[-1] for entry in defaults if isinstance(entry, dict)]
    groups = {key for key in keys if is_group(key)}
    below = {f"{group}/{folder.name}" for group in groups for folder in Path(CONF, group).iterdir() if folder.is_dir()}
    (other,) = EXPERIMENTS.keys() - {name}
    hidden = {"data": {"unset"}, "experiment": {path.stem for path in EXPERIMENTS[other].glob("*.yaml")}}
    lines = []
    for group in sorted(groups | below - {"optim/parts"}):
        own = {path.stem for path in Path(CONF, name, group).glob("*.yaml")}
        options = own.union(loader.get_group_options(group)) - hidden.get(group, set())
        lines.append(f"{group}: {', '.join(sorted(options))}\n")
    return "".join(lines)


def parse(overrides: Sequence[str]) -> list[Override]:
    """What Hydra reads in overrides."""
    for override in overrides:
        check_brackets(override, override)
    return _parser().parse_overrides(list(overrides))


def quoted(value: str | Path) -> str:
    """Any text as a value that Hydra takes as it is, without interpolation."""
    return QuotedString(str(value).replace("${", "\\${"), Quote.double).with_quotes()


def is_hydras(override: str) -> bool:
    """Whether an override is for Hydra itself: its launcher, the folders."""
    return re.match(r"[+~]*hydra[./]", override) is not None


def is_group(key: str) -> bool:
    """Whether a key names a group of ``conf/``, of which an option is chosen."""
    return bool(key) and "." not in key and not key.startswith("hydra/") and Path(CONF, key).is_dir()


def _check_option(override: Override, schema: Any, folders: Sequence[Path]) -> None:
    """Refuse an option that a group has not, with those that it has in these folders."""
    group, value = override.key_or_group.partition("@")[0], override.value()
    if not is_group(group):
        return
    field = schema.model_fields.get(group)
    needed = field is not None and field.is_required()
    several = (
        value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) and not needed else [value]
    )
    known = {path.stem for folder in folders for path in Path(folder, group).glob("*.yaml")}
    for option in several:
        option = getattr(option, "text", option)  # of a quoted one
        is_name = isinstance(option, str) and re.fullmatch(r"[\w.-]*", option)  # else an interpolation, or a path
        wrong = is_name or isinstance(option, int | float | list | dict) or (option is None and needed)
        if wrong and str(option) not in known:
            shown = option if isinstance(value, ChoiceSweep) else override.input_line.partition("=")[2]
            more = f"; a model of timm is model=timm model.name={option}" if group == "model" and is_name else ""
            nearby = nearest(str(option), sorted(known))
            raise ValueError(f"{group}={shown}: the group {group} has no such option; {nearby}{more}")


@cache
def _further_keywords() -> str:
    """A pattern of the Trainer's keywords that ``conf/trainer`` does not have, at the beginning of an override."""
    files = Path(CONF, "trainer").glob("*.yaml")
    own = {key for path in files for key in yaml.safe_load(path.read_text(encoding="utf-8"))}
    return rf"^trainer\.({'|'.join(name for name in TRAINER_KEYWORDS if name not in own)})(?=[=.])"


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _path(override: str) -> str:
    """A path that is there, or that Hydra's grammar does not know, is quoted; ``~`` is expanded."""
    key, equals, value = override.partition("=")
    if not equals or not PATHS.fullmatch(key.lstrip("+")) or not value.strip():
        return override
    literal = None
    try:
        (parsed,) = parse([override])
        meaning = parsed.value()
        if isinstance(meaning, str) and meaning.startswith("~"):
            literal = meaning
        elif meaning is not None and (meaning != value or "${" in value) and _is_there(value):
            literal = value
    except (HydraException, OverrideParseException):
        if _is_there(value) or not (value[0] in "[\"'" or "," in value):
            literal = value
    return override if literal is None else f"{key}={quoted(os.path.expanduser(literal))}"


def _is_there(value: str) -> bool:
    return os.path.lexists(os.path.expanduser(value))


def _text(override: str, schema: Any) -> str:
    """Where the schema wants text, numbers and what Hydra's grammar does not know stay as typed."""
    key, equals, value = override.partition("=")
    if not equals or not takes_text(schema, key.lstrip("+").split(".")):
        return override
    value = value.strip()
    try:
        (parsed,) = parse([override])
        if isinstance(parsed.value(), int | float):
            return f"{key}={quoted(value)}"
        if isinstance(parsed.value(), list) and any(isinstance(item, int | float) for item in parsed.value()):
            items = [item.strip() for item in value[1:-1].split(",")]
            if len(items) == len(parsed.value()) and not any(character in value for character in "\"'()"):
                return f"{key}=[{','.join(map(quoted, items))}]"
    except (HydraException, OverrideParseException):
        if value and not (value[0] in "[\"'" or "," in value):  # else told when all is parsed
            return f"{key}={quoted(value)}"
    return override
