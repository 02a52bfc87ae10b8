"""Command lines of any kind: taken, or refused in one line that leaves nothing."""

import pytest

from tests.fuzz.cases import counts, try_cases
from tests.fuzz.grammar import command_lines
from zfscope.commands import lines


@counts(8, 2000)
def test_a_command_line_is_taken_or_refused_in_one_line(typed, record_property, count):
    try_cases(record_property, count, command_lines(), lambda case: typed(case[0], *case[1]))


def test_control_a_refusal_that_shows_what_was_typed_as_it_is_gets_noticed(typed, monkeypatch):
    assert typed("train", "model='al\x1b[31mex'")
    monkeypatch.setattr(lines, "shown", str)

    with pytest.raises(AssertionError, match="control characters"):
        typed("train", "model='al\x1b[31mex'")
