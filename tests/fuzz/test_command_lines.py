"""Command lines of any kind: taken, or refused in one line that leaves nothing."""

from tests.fuzz.cases import counts, try_cases
from tests.fuzz.grammar import command_lines


@counts(8, 2000)
def test_a_command_line_is_taken_or_refused_in_one_line(typed, record_property, count):
    try_cases(record_property, count, command_lines(), lambda case: typed(case[0], *case[1]))
