"""What long work says in a log, by a clock that is set by hand."""

import io
import re

import pytest
from rich.console import Console

from zfscope import console
from zfscope.console import counting, progress


class Clock:
    """Stands for the module ``time``; ``work`` lets seconds pass."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def work(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


@pytest.fixture
def log(monkeypatch):
    """The lines of a console that is no terminal."""
    text = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=text, width=80))
    return lambda: text.getvalue().splitlines()


def walk(clock, items, description="Features", seconds=1.0, total=None):
    for item in progress(items, description, total):
        clock.work(seconds)
        yield item


def test_the_items_are_handed_on_one_by_one_and_none_is_asked_for_early(clock, log):
    asked = []

    def items():
        for number in range(4):
            asked.append(number)
            yield number

    seen = [(item, list(asked)) for item in walk(clock, items(), seconds=10)]

    assert seen == [(number, list(range(number + 1))) for number in range(4)]


def test_short_work_says_nothing(clock, log):
    list(walk(clock, range(49), seconds=0.1))

    assert log() == []


def test_long_work_says_how_far_it_is_and_how_long_it_will_take(clock, log):
    list(walk(clock, range(12000), "Drawing", seconds=1 / 128))

    assert log()[:3] == [
        "Drawing: 640/12000, 5 s, 1.5 min left",
        "Drawing: 1920/12000, 15 s, 1.3 min left",
        "Drawing: 3200/12000, 25 s, 1.1 min left",
    ]
    assert log()[-1] == "Drawing: 12000/12000, 94 s"


def test_a_single_long_step_says_at_its_end_that_it_is_done(clock, log):
    list(walk(clock, range(1), seconds=95))

    assert log() == ["Features: 1/1, 95 s"]


@pytest.mark.parametrize("hours", [0.16, 2, 300])
@pytest.mark.parametrize("drift", [0.0, 0.004], ids=["even", "slower and slower"])
def test_there_are_about_forty_lines_at_most_and_the_last_ones_come_too(clock, log, hours, drift):
    for number, _ in enumerate(progress(range(1000), "Features")):
        clock.work(3.6 * hours * (1 + drift * number))

    assert 20 <= len(log()) <= 45
    share = [int(re.search(r"(\d+)/1000", line)[1]) for line in log()]
    assert max(later - earlier for earlier, later in zip(share, share[1:], strict=False)) <= 100


def test_a_slow_start_does_not_silence_what_follows(clock, log):
    for number, _ in enumerate(progress(range(6000), "Drawing")):
        clock.work(20 if number == 0 else 1 / 64)

    seconds = [int(re.search(r", (\d+) s", line)[1]) for line in log()]
    assert seconds[:3] == [20, 40, 50]


def test_where_the_total_is_not_known_there_is_no_none_and_no_end(clock, log):
    list(walk(clock, (number for number in range(3000)), "Projecting"))

    assert log()[0] == "Projecting: 5, 5 s"
    assert 15 <= len(log()) <= 45 and not any("None" in line or "left" in line for line in log())


def test_a_loaders_length_is_its_total(clock, log):
    class Loader:
        def __len__(self):
            return 3

        def __iter__(self):
            return iter("abc")

    list(walk(clock, Loader(), seconds=7))

    assert log()[0] == "Features: 1/3, 7 s, 0.2 min left"


def test_a_loop_within_a_step_speaks_in_the_lines_of_the_work(clock, log):
    with counting("Learning", 4) as count:
        for _ in range(4):
            list(walk(clock, range(10), "Training"))
            list(walk(clock, range(10), "Evaluating", seconds=1 / 8))
            count()

    assert log() == [
        # 5 of the 10 steps of the first of four folds are an eighth.
        "Learning: 0/4, 5 s, 0.6 min left (Training 5/10)",
        "Learning: 1/4, 15 s, 0.5 min left (Training 4/10)",
        "Learning: 2/4, 26 s, 0.3 min left (Training 3/10)",
        "Learning: 3/4, 36 s, 0.1 min left (Training 2/10)",
        "Learning: 4/4, 45 s",
    ]


def test_the_time_left_never_jumps_back_when_a_second_loop_begins_within_a_step(clock, log):
    with counting("Learning", 1) as count:
        list(walk(clock, range(100), "Training"))
        list(walk(clock, range(100), "Evaluating"))
        count()

    left = [float(re.search(r"([\d.]+) min left", line)[1]) for line in log()[:-1]]
    assert max(left) < 2.0


def test_a_loop_that_was_left_halfway_is_not_told_of_again(clock, log):
    with counting("Learning", 3) as count:
        for _ in progress(range(5), "halfway"):
            break
        count()
        clock.work(20)
        count()
        clock.work(20)
        count()

    assert log() == ["Learning: 2/3, 20 s, 0.2 min left", "Learning: 3/3, 40 s"]


def test_work_that_failed_leaves_nothing_to_the_next(clock, log):
    with pytest.raises(ValueError, match="broken"), counting("Failing", 3):
        for _ in progress(range(5), "within"):
            raise ValueError("broken")
    stale = progress(range(5), "held by a traceback")
    next(stale)

    list(walk(clock, range(2), seconds=6))

    assert log() == ["Features: 1/2, 6 s, 0.1 min left", "Features: 2/2, 12 s"]


def test_several_steps_are_counted_at_once(clock, log):
    with counting("Drawing", 100) as count:
        for _ in range(2):
            clock.work(10)
            count(50)

    assert log() == ["Drawing: 50/100, 10 s, 0.2 min left", "Drawing: 100/100, 20 s"]


def test_a_description_is_printed_as_it_is(clock, log):
    list(walk(clock, range(2), "Looking at [bold]outputs/RUN[/bold] " + "x" * 90, seconds=6))

    assert log()[0].startswith("Looking at [bold]outputs/RUN[/bold] x") and log()[0].endswith("0.1 min left")


def test_in_a_terminal_there_are_bars_and_no_lines(clock, monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=text, force_terminal=True, width=80))

    with counting("Learning", 2) as count:
        for _ in range(2):
            inner = list(walk(clock, range(3), "Training", seconds=30))
            count()

    assert inner == [0, 1, 2]
    assert "Learning" in text.getvalue() and "Training" in text.getvalue() and "min left" not in text.getvalue()
