"""What all inputs share: many are tried, and each is taken, or refused in one line within ten seconds."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SECONDS = 10
LONGEST = 2000  # characters of a refusal


class Hangs(BaseException):
    """A case took longer than ``SECONDS``; no ``Exception``, which a refusal would be."""


def counts(quick: int, slow: int) -> pytest.MarkDecorator:
    """How many cases ``make test`` and ``make test-all`` try: the argument ``count`` of a test."""
    return pytest.mark.parametrize("count", [quick, pytest.param(slow, marks=pytest.mark.slow)])


def try_cases(record_property: Callable, count: int, strategy: st.SearchStrategy, check: Callable[[Any], None]) -> None:
    """Let ``check`` look at so many cases of a strategy; the smallest one that fails is shown."""
    tried = 0

    @settings(max_examples=count)
    @given(strategy)
    def try_case(case: Any) -> None:
        nonlocal tried
        tried += 1
        with in_time():
            check(case)

    try_case()
    record_property("cases", tried)


@contextmanager
def in_time() -> Iterator[None]:
    """Ends a block that works longer than ``SECONDS``, or waits ten times as long."""

    def end(*_: Any) -> None:
        raise Hangs(f"more than {SECONDS} s")

    # Time of this process: on a machine that others use too, the clock would not be its fault.
    timers = {signal.ITIMER_PROF: (signal.SIGPROF, SECONDS), signal.ITIMER_REAL: (signal.SIGALRM, 10 * SECONDS)}
    earlier = {number: signal.signal(number, end) for number, _ in timers.values()}
    for timer, (_, seconds) in timers.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in earlier.items():
            signal.signal(number, handler)


def check_message(message: str) -> None:
    """A refusal is one line that a terminal can show."""
    assert message.strip(), "a refusal without a word"
    assert message.isprintable(), f"control characters or line breaks: {message!r}"
    assert len(message) <= LONGEST, f"{len(message)} characters: {message[:200]}"


def refusal(function: Callable[..., Any], *arguments: Any, errors: Any = (ValueError, OSError)) -> str | None:
    """What a function says where it refuses its arguments; None where it takes them. Other errors are a fault."""
    try:
        function(*arguments)
    except errors as error:
        check_message(str(error))
        return str(error)
    return None


def everything_in(folder: Path) -> dict[Path, bytes | None]:
    """All files below a folder with their content, and all folders."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
