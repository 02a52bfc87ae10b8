"""Values that come from the environment: what is said and recorded has their interpolations in their place."""

import os
import re
from collections.abc import Mapping
from typing import Any

FEWEST = 4  # characters of a value that is masked in texts
ANYWHERE = 8  # from so many on it is masked within a word too
FROM_ENVIRONMENT = re.compile(r"\$\{.*\boc\.env\b", re.DOTALL)

_texts: dict[str, str] = {}  # value: its interpolation
_pattern: re.Pattern | None = None


def hide(value: str, text: str) -> None:
    """From here on ``masked`` puts ``text``, an interpolation, in the place of ``value``, however it is written."""
    global _pattern
    forms = [value, value.strip(), repr(value)[1:-1], os.path.expanduser(value), *value.splitlines()]
    new = {form: text for form in forms if len(form.strip()) >= FEWEST and form not in _texts}
    if new:
        _texts.update(new)
        longest_first = sorted(_texts, key=len, reverse=True)
        parts = [
            re.escape(form) if len(form) >= ANYWHERE else rf"(?<![a-zA-Z0-9]){re.escape(form)}(?![a-zA-Z0-9])"
            for form in longest_first
        ]
        _pattern = re.compile("|".join([r"\$\{oc\.[^{}]*\}", *parts]))


def forget() -> None:
    """Mask nothing more: another command begins."""
    global _pattern
    _texts.clear()
    _pattern = None


def masked(text: str) -> str:
    """A text with the interpolations of hidden values instead of these."""
    return text if _pattern is None else _pattern.sub(lambda match: _texts.get(match[0], match[0]), text)


def masked_all(values: Any) -> Any:
    """Nested containers with all their texts masked; keys stay."""
    if isinstance(values, str):
        return masked(values)
    if isinstance(values, Mapping):
        return {key: masked_all(value) for key, value in values.items()}
    return [masked_all(value) for value in values] if isinstance(values, list | tuple) else values


def is_from_environment(value: Any) -> bool:
    """Whether a value is the text of an interpolation that leads to the environment: one that was recorded."""
    return isinstance(value, str) and FROM_ENVIRONMENT.search(value) is not None


def with_texts(values: Any, texts: Mapping[tuple, str], path: tuple = ()) -> Any:
    """Nested containers with other texts at some places, each a tuple of keys and of places in lists."""
    if path in texts:
        return texts[path]
    if isinstance(values, Mapping):
        return {key: with_texts(value, texts, (*path, key)) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(with_texts(value, texts, (*path, place)) for place, value in enumerate(values))
    return values
