"""The strict base of all schemas of ``conf/``, their check, and the wording of refusals.

Every room owns the schema of its keys (``networks/spec.py``, ``data/spec.py``, …). One check at the start of a command
turns a mistyped key or an impossible value into one line that names the key, the value and the way out.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from zfscope.secrets import with_texts

_HERE = Path(__file__).resolve()
# The configs of an installed package, else those beside train.py.
CONF = str(next(folder for folder in (_HERE.parent / "conf", _HERE.parents[2] / "conf") if folder.is_dir()))

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _as_path(value: str) -> str:
    if "://" in value:
        raise ValueError(f"{value} is a URL; download it first and give its path")
    return os.path.expanduser(value)


Text = Annotated[str, BeforeValidator(_as_text)]  # a number in YAML is meant as a name
PathText = Annotated[str, BeforeValidator(_as_text), AfterValidator(_as_path)]


MOST_NAMES = 30  # in a message; timm has more than a thousand models


class Strict(BaseModel):
    """A group of keys that knows all its names."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    _texts: dict[tuple, str] = PrivateAttr(default_factory=dict)

    @property
    def texts(self) -> Mapping[tuple, str]:
        """The interpolations that stand in records instead of values from the environment, by place."""
        return self._texts

    def recorded(self) -> dict[str, Any]:
        """The values as they may be recorded: those from the environment as their interpolations."""
        return with_texts(self.model_dump(), self._texts)

    @classmethod
    def place(cls, values: Mapping[str, Any], location: Sequence[str]) -> str:
        """What a refusal of the value at ``location`` shall say beside key and value; nothing by default."""
        return ""


Config = TypeVar("Config", bound=BaseModel)


def check(
    schema: type[Config], values: Mapping[str, Any], group: str = "", texts: Mapping[tuple, str] | None = None
) -> Config:
    """Read a composed config, nested mappings of any kind, into a class of one of the rooms' ``spec.py``.

    ``group`` says where the values stand in the whole config, for messages: ``data``; ``texts`` what stands in records
    instead of some values.

    Raises:
        ValueError: For the first key that is unknown, of the wrong type or out of range: one line.
    """
    values = plain(values)
    try:
        config = schema.model_validate(values)
        if texts:
            config._texts.update(texts)
        return config
    except ValidationError as error:
        # A misspelt key is the cause of a missing one, so it is told first.
        problem = min(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
        # The branches of a union each have their say about one value.
        rest = len({re.split("[=:]", _sentence(schema, values, one))[0] for one in error.errors(include_url=False)}) - 1
        more = f" (and {rest} more mistake{'s' * (rest > 1)})" if rest else ""
        prefix = f"{group}." if group else ""
        if issubclass(schema, Strict):
            more = schema.place(values, [str(part) for part in problem["loc"]]) + more
        sentence = _sentence(schema, values, problem).replace("give it as ", f"give it as {prefix}")
        raise ValueError(shown(prefix + sentence + more)) from None


@contextmanager
def about(key: str, value: Any) -> Iterator[None]:
    """Let refusals of a block begin with the key that was typed and its value: ``weights=zoo/x: …``.

    One that names a key of its own keeps its words. Kinds of errors stay, but for those that cannot be made of a text.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if re.match(rf"{re.escape(key)}\b|[\w.]+=\S", str(error)):
            raise
        kind = type(error)
        if error.args != (str(error),):  # as those of Python's own, made of a number, a text and a path
            kind = next(one for one in (OSError, ImportError, ValueError) if isinstance(error, one))
        raise kind(f"{key}={printable(str(value))}: {error}") from error


def nearest(name: str, names: Sequence[str]) -> str:
    """``did you mean …?`` for a misspelt name, or the names to choose from."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return "there are " + listed(sorted(names), MOST_NAMES) if names else "nothing can be set there"


def plain(value: Any) -> Any:
    """Nested mappings and sequences of any kind (OmegaConf's among them) as dicts and lists."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted key; an empty one leaves nothing."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that is no mapping and no list, places in lists by their number."""
    if isinstance(values, Mapping | list | tuple):
        for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values


def printable(path: str | os.PathLike) -> str:
    """A path or name in one line of valid UTF-8: line breaks, control characters and undecodable bytes escaped."""
    text = os.fspath(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(text: str, most: int = 1000) -> str:
    """Any text in one line that a terminal shows, its middle left out where it has more than ``most`` characters."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names for a message: the first few, then how many more."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + rest


def _sentence(schema: type[BaseModel], values: Any, problem: Mapping[str, Any]) -> str:
    # pydantic names the branch of a union in the location; people know only the keys that they wrote.
    location = [str(part) for part in problem["loc"]]
    path: list[str] = []
    value = values
    for part in location:
        if isinstance(value, Mapping) and part in value:
            value = value[part]
            path.append(part)
        elif isinstance(value, Sequence) and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None
            path.append(part)
        elif part == location[-1] and problem["type"] == "missing":
            path.append(part)
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"{key}={value!r}: there is no such key; {nearest(path[-1], _fields(schema, path[:-1]))}"
    if problem["type"] == "missing":
        return f"{key} is missing; give it as {key}=…"
    message = problem["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list, such as [a,b]")
    message = message[0].lower() + message[1:] if message[:2] != message[:2].upper() else message
    if problem["type"] == "value_error" and path and re.match(rf"{path[-1]}=\S*: ", message):
        return ".".join([*path[:-1], message])
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key or 'config'}={value!r}: {message}"


def takes_text(schema: type[BaseModel], path: Sequence[str]) -> bool:
    """Whether the value where ``path`` leads is text, or a list of texts, and never a number."""

    def kinds(annotation: Any) -> set[Any]:
        arguments = get_args(annotation)
        return {annotation} if not arguments else set().union(*(kinds(argument) for argument in arguments))

    fields = [known.model_fields.get(path[-1]) for known in _models_at(schema, path[:-1])]
    found = set().union(*(kinds(field.annotation) for field in fields if field is not None))
    return str in found and not found & {int, float, bool, Any}


def _fields(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The names that are allowed where ``path`` leads."""
    return sorted({name for known in _models_at(schema, path) for name in known.model_fields})


def _models_at(schema: type[BaseModel], path: Sequence[str]) -> list[type[BaseModel]]:
    """The schemas of the group where ``path`` leads, found by following the annotations."""

    def models(annotation: Any) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [model for argument in get_args(annotation) for model in models(argument)]

    schemas: list[type[BaseModel]] = [schema]
    for part in path:
        if part.isdigit():  # a place in a list
            continue
        fields = [known.model_fields[part] for known in schemas if part in known.model_fields]
        schemas = [model for field in fields for model in models(field.annotation)]
    return schemas
