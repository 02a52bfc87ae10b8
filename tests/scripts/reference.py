"""Write docs/reference.md: every key of ``conf/``, its values, its default and what it means.

    python tests/scripts/reference.py            write
    python tests/scripts/reference.py --check    exit with 1 if docs/reference.md says something else

Keys, values and defaults are read from the schemas. What a key means is the comment behind it, in the schema or in a
file of its group of ``conf/``.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from zfscope.analyses.spec import Analysis, AnalyzeConfig
from zfscope.data.spec import DataConfig
from zfscope.networks.spec import ConvLayer, DenseLayer, ModelConfig
from zfscope.training.spec import LoggerConfig, OptimConfig, TrainConfig, TrainerConfig

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference.md"
HEAD = """# Reference: every key

<!-- written by tests/scripts/reference.py -->

A key is typed as KEY=VALUE behind `train.py` or `analyze.py`, such as `data.batch_size=64` or `analysis.top=4`.

*Default* is the schema's. A file of `conf/`, such as `conf/data/phantom.yaml`, or an experiment may say otherwise;
`python train.py --cfg job` prints what holds in the end. A key that is not here is refused. Below `trainer.` all
keywords of `lightning.Trainer` are taken, below `callbacks.NAME.` the arguments of the class that
`conf/callbacks/default.yaml` names.
"""
Section = tuple[str, str, type[BaseModel], str]  # title, prefix of its keys, schema, files that explain it


def sections() -> Iterator[Section]:
    """The tables of the page."""
    yield "Of `train.py`", "", TrainConfig, "train.yaml"
    yield "Data: `data=NAME`", "data.", DataConfig, "data/**/*.yaml"
    yield "Network: `model=NAME`", "model.", ModelConfig, "model/*.yaml"
    yield "A conv layer: `model.conv1` to `model.conv5`", "model.conv1.", ConvLayer, "model/*.yaml"
    yield "A dense layer: `model.fc6` to `model.fc8`", "model.fc6.", DenseLayer, "model/*.yaml"
    yield "Recipe: `optim=NAME`", "optim.", OptimConfig, "optim/**/*.yaml"
    yield "Trainer: `trainer=NAME`", "trainer.", TrainerConfig, "trainer/*.yaml"
    yield "Logger: `logger=NAME`", "logger.", LoggerConfig, "logger/*.yaml"
    yield "Of `analyze.py`", "", AnalyzeConfig, "analyze.yaml"
    for options in get_args(get_args(Analysis)[0]):
        name = options.model_fields["name"].default
        yield f"analysis={name}", "analysis.", options, f"analysis/{name}.yaml"


def page() -> str:
    """The whole text."""
    return "\n".join([HEAD, *("\n".join(table(*section)) + "\n" for section in sections())])


def table(title: str, prefix: str, schema: type[BaseModel], files: str) -> list[str]:
    """One table, below the first sentence of its schema's docstring."""
    lines = [f"## {title}", "", _about(schema), "", "| key | values | default | |", "|---|---|---|---|"]
    return lines + [_row(*found, files) for found in _fields(schema, prefix)]


def unexplained() -> list[str]:
    """Keys without a comment."""
    return [
        f"{files}: {key}"
        for _, prefix, schema, files in sections()
        for key, owner, name, _ in _fields(schema, prefix)
        if not _meaning(owner, name, files)
    ]


def _fields(schema: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel], str, FieldInfo]]:
    """Key, owner, name and field of each key; those of a nested schema follow their own."""
    for name, field in schema.model_fields.items():
        parts = _schemas(field.annotation)
        if name == "name" and isinstance(field.default, str) and prefix == "analysis.":
            continue
        if parts and schema in (TrainConfig, AnalyzeConfig) and name not in ("checkpoints", "evaluate"):
            continue  # has tables of its own
        if not parts or type(None) in get_args(field.annotation):
            yield f"{prefix}{name}", schema, name, field
        if set(parts) & {ConvLayer, DenseLayer}:
            continue  # has a table of its own
        for part in parts:
            yield from _fields(part, f"{prefix}{name}.")


def _row(key: str, owner: type[BaseModel], name: str, field: FieldInfo, files: str) -> str:
    default = "required" if field.is_required() else _text(field.get_default(call_default_factory=True))
    values = " or ".join(dict.fromkeys(_values(field.annotation, field.metadata)))
    cells = f"`{key}`", values, default, _meaning(owner, name, files)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _schemas(annotation: Any) -> list[type[BaseModel]]:
    """The schemas that a value may be of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [schema for part in get_args(annotation) for schema in _schemas(part)]


def _values(annotation: Any, limits: Any = ()) -> list[str]:
    """What an annotation admits, in words."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _values(inner, [*limits, *more])
    if get_origin(annotation) in (Union, types.UnionType):
        return [word for part in get_args(annotation) for word in _values(part, limits)]
    if get_origin(annotation) is Literal:
        return [", ".join(map(_text, get_args(annotation)))]
    if annotation in (type(None), bool, Any):
        return [{type(None): "null", bool: "true or false", Any: "any"}[annotation]]
    if annotation in (int, float):
        return [("whole number" if annotation is int else "number") + _range(limits)]
    if get_origin(annotation) is tuple:
        parts = get_args(annotation)
        inner = " or ".join(_values(parts[0]))
        return [f"list: {inner}" if parts[-1] is Ellipsis else f"list of {len(parts)}: {inner}"]
    if get_origin(annotation) is dict or annotation is dict:
        return ["keys and values"]
    schemas = _schemas(annotation)
    return ["keys (below)"] if schemas else ["text"]


def _range(limits: Any) -> str:
    """The limits of a number: ``, 0 or more``."""
    told = []
    flat = [part for limit in limits for part in (getattr(limit, "metadata", None) or [limit])]
    for sign, word in (("gt", "above {}"), ("ge", "{} or more"), ("lt", "below {}"), ("le", "{} or less")):
        told += [word.format(getattr(part, sign)) for part in flat if getattr(part, sign, None) is not None]
    return "".join(f", {word}" for word in told)


def _text(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value) or "''"


def _about(schema: type[BaseModel]) -> str:
    about = textwrap.dedent(inspect.getdoc(schema) or "").split("\n\n")[0]
    about = re.sub(r"^``analysis=\w+``: (.)", lambda first: first[1].upper(), " ".join(about.split()))
    return re.sub(r"``([^`]*)``", r"`\1`", about)


def _meaning(owner: type[BaseModel], name: str, files: str) -> str:
    """The comment behind a key: in its schema or a schema below it, else in the files of its group."""
    for schema in owner.__mro__:
        if schema is BaseModel:
            break
        if found := re.search(rf"^    {name}: .*?  # (.*)$", inspect.getsource(schema), re.MULTILINE):
            return found[1]
    for path in sorted((ROOT / "conf").glob(files)):
        if found := re.search(rf"^ *{name}: [^#\n]*#\s*(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            return found[1]
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    return int(not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page())


if __name__ == "__main__":
    sys.exit(main())
