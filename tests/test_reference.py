"""The page of every key says what the schemas say."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from tests.scripts.reference import PAGE, _values, page, sections, unexplained
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.schema import Count, Share
from zfscope.training.spec import TrainConfig


def test_the_page_is_what_the_script_writes():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/scripts/reference.py"


def test_every_key_is_explained():
    assert not unexplained()


def keys_of(schema, prefix=""):
    for name, field in schema.model_fields.items():
        parts = getattr(field.annotation, "model_fields", None)
        if name != "schedule":  # one of three
            yield from keys_of(field.annotation, f"{prefix}{name}.") if parts else [f"{prefix}{name}"]


@pytest.mark.parametrize("schema", [TrainConfig, AnalyzeConfig])
def test_every_key_of_a_command_is_on_the_page(schema):
    text = page()

    missing = [key for key in keys_of(schema) if f"`{key}`" not in text and not f"{key}.".startswith("analysis.")]

    assert not missing


def test_every_analysis_has_a_table():
    titles = {title for title, *_ in sections()}

    assert {f"analysis={name}" for name in ("projections", "occlusion", "ledger", "transfer")} <= titles


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Count, ["whole number, 1 or more"]),
        (Share, ["number, 0 or more, below 1"]),
        (Literal["a", "b"] | None, ["a, b", "null"]),
        (tuple[Annotated[int, Field(ge=0)], ...], ["list: whole number, 0 or more"]),
        (bool, ["true or false"]),
    ],
)
def test_values_are_told_in_words(annotation, words):
    assert _values(annotation) == words
