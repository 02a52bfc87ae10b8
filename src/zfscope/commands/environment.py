"""``${oc.env:NAME}``: the program sees the variable's value, and everything else its text.

The interpolation gives its own text wherever a config is composed, named or recorded. It gives the value where a job
reads its config (``seen``), and to what was typed for Hydra itself. In a run that goes on, whose config may be a
stranger's, only what was typed sees the environment.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.resolvers import oc

from zfscope.commands.overrides import parse
from zfscope.schema import CONF
from zfscope.secrets import forget, hide

NOTHING = "_nothing_"  # no default was given; None is one
# What Hydra makes of the typed overrides: records and names, whatever they hold.
RECORDS = re.compile(r"hydra\.(overrides|runtime|sweeper\.params)\b.*|hydra\.job\.override_dirname")


class _State:
    """What this process's command may see."""

    open = re.compile("")  # keys whose values are seen; matched whole, so none
    typed: frozenset[str] | None = None  # the keys that alone may lead to the environment; None: all


def start() -> None:
    """A command begins: nothing is hidden yet, all keys may lead to the environment."""
    _State.typed = None
    forget()


def only_typed(typed: Sequence[Override]) -> None:
    """From here on only keys that were typed lead to the environment: the config is that of a run."""
    _State.typed = frozenset(override.key_or_group for override in typed)


@contextmanager
def seen(keys: re.Pattern = re.compile(".*")) -> Iterator[None]:
    """Within the block interpolations in these keys give the variables' values, which are hidden from then on."""
    earlier, _State.open = _State.open, keys
    try:
        yield
    finally:
        _State.open = earlier


def read(values: DictConfig) -> tuple[Any, dict[tuple, str]]:
    """A job's config as plain containers: with the values, and the texts that stand in records instead, by place.

    A seed is a number that tells repetitions apart: it stands in records as it is.
    """
    with seen():
        real = OmegaConf.to_container(values, resolve=True)
    texts = dict(_differences(real, OmegaConf.to_container(values, resolve=False), values))
    for place, text in texts.items():  # what is made of a variable and other text
        for value in _texts_in(_at(real, place)):
            if not _is_public(value):
                hide(value, text)
    return real, {place: text for place, text in texts.items() if place != ("seed",)}


def _env(key: str, default: Any = NOTHING, *, _node_: Node, _root_: Any) -> Any:
    """In place of OmegaConf's resolver ``oc.env``."""
    text = f"${{oc.env:{key}}}" if default == NOTHING else f"${{oc.env:{key},{'null' if default is None else default}}}"
    name = _node_._get_full_key(None) or ""
    if RECORDS.fullmatch(name) or not (_State.open.fullmatch(name) or _is_hydras(name, _root_)):
        return text
    if _State.typed is not None and not _is_below(name, _State.typed):
        raise ValueError(f"a run's config is not resolved against the environment; type '{name}={text}' again")
    if key in os.environ and not _is_public(os.environ[key]):
        hide(os.environ[key], text)
    return oc.env(key, *([] if default == NOTHING else [default]))


def _decode(expression: Any, *, _parent_: Any, _node_: Node) -> Any:
    """In place of ``oc.decode``: what it would read in a text that stands for a variable is not known."""
    is_seen = _State.open.fullmatch(_node_._get_full_key(None) or "")
    if not is_seen and isinstance(expression, str) and "${oc." in expression:
        return f"${{oc.decode:{expression}}}"
    return oc.decode(expression, _parent_, _node_)


OmegaConf.register_new_resolver("oc.env", _env, replace=True)
OmegaConf.register_new_resolver("oc.decode", _decode, replace=True)


def _is_hydras(name: str, root: Any) -> bool:
    """Whether a value was typed for Hydra itself, or chooses an option of a group (which Hydra resolves by itself)."""
    if name == "_dummy_":
        return True
    if not name.startswith("hydra."):
        return False
    overrides = OmegaConf.to_container(root.hydra.overrides.hydra, resolve=False)
    return _is_below(name, (override.key_or_group for override in parse(overrides)))


def _is_below(name: str, keys: Iterable[str]) -> bool:
    name = re.sub(r"\[(\w+)\]", r".\1", name)
    return any(name == key or name.startswith(f"{key}.") for key in keys)


@cache
def _public_words() -> frozenset[str]:
    texts = (path.read_text(encoding="utf-8") for path in Path(CONF).rglob("*.yaml"))
    return frozenset(word for text in texts for word in re.findall(r"\w[\w.]*", text))


def _is_public(value: str) -> bool:
    """Whether a value is a word of ``conf/``, as the name of an option: masked, it would garble what is said."""
    return value in _public_words()


def _differences(real: Any, raw: Any, node: Any, place: tuple = ()) -> Iterator[tuple[tuple, str]]:
    """Where the values are not what the config gives without the environment, and what it gives there."""
    if isinstance(raw, dict | list):
        for key, value in raw.items() if isinstance(raw, dict) else enumerate(raw):
            if isinstance(value, str) and "${" in value:
                yield from _differing(real[key], value, node, key, (*place, key))
            elif isinstance(value, dict | list):
                yield from _differences(real[key], value, node[key], (*place, key))


def _differing(real: Any, raw: str, parent: Any, key: Any, place: tuple) -> Iterator[tuple[tuple, str]]:
    try:
        recorded = parent[key]
    except Exception:  # a resolver that cannot read a text in the place of a value
        recorded = raw
    if OmegaConf.is_config(recorded):  # an interpolation of a whole group
        raw_group = OmegaConf.to_container(recorded, resolve=False)
        yield from _differences(real, raw_group, recorded, place)
    elif recorded != real:
        yield place, str(recorded)


def _at(values: Any, place: tuple) -> Any:
    for key in place:
        values = values[key]
    return values


def _texts_in(values: Any) -> Iterator[str]:
    if isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _texts_in(value)
    elif isinstance(values, str):
        yield values
