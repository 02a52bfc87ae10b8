"""What a person reads while it runs: the network before training, how far long work is, results, a sweep's jobs."""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import length_hint
from typing import Any, TypeVar

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.progress import Progress, track
from rich.table import Table
from rich.text import Text

from zfscope.secrets import masked

IN_CLONE = re.compile(r"(?:\bpython )?\b(train|analyze)\.py\b")
Item = TypeVar("Item")


class MaskingConsole(Console):
    """Prints values from the environment as their interpolations."""

    def render_str(self, text: str, **options: Any) -> Text:
        """All texts go through here before they are broken into lines; of tables those that are no ``Text`` yet."""
        return super().render_str(masked(text), **options)


console = MaskingConsole()


def as_typed(text: str) -> str:
    """A message that names ``python train.py`` or ``train.py``, as ``zfscope train`` where that was typed."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return IN_CLONE.sub(r"zfscope \1", text) if spec is not None and spec.name.startswith("zfscope.") else text


def print_anywhere() -> None:
    """Let characters that the terminal's encoding has not (Greek in the C locale) be printed by their numbers."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test's or a notebook's stream may be none of Python's own
            stream.reconfigure(errors="backslashreplace")


# Of lines about long work: seconds before the first one, the fewest between two, and how many a piece of work takes.
FIRST_AFTER, LEAST_BETWEEN, MOST_LINES = 5.0, 10.0, 40


def progress(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """The items one by one, under a bar with the time left that vanishes at the end; in a log with a line now and then.

    A line is ``description: 1200/11000, 35 s, 4.2 min left``, of an unknown total ``description: 1200, 35 s``.
    """
    total = total if total is not None else length_hint(iterable) or None
    if console.is_terminal:
        yield from track(iterable, description, total=total, console=console, transient=True)
        return
    lines = _counting or _Lines()
    loop = lines.begin(description, total)
    for item in iterable:
        yield item
        lines.advance(loop)
    lines.end(loop)


@contextmanager
def counting(description: str, total: int) -> Iterator[Callable[..., None]]:
    """Count the steps of long work: what it gives is called after each, or with the number of steps that were made.

    Shown as ``progress`` shows it. In a log long loops within a step speak in its lines, not in lines of their own.
    """
    global _counting
    if console.is_terminal:
        with Progress(*Progress.get_default_columns(), console=console, transient=True) as bars:
            task = bars.add_task(description, total=total)
            yield lambda steps=1: bars.advance(task, steps)
        return
    before = _counting
    lines = _counting = before or _Lines()
    loop = lines.begin(description, total)
    try:
        yield lambda steps=1: lines.advance(loop, steps)
        lines.end(loop)
    finally:
        _counting = before


@dataclass(eq=False)
class _Loop:
    description: str
    total: int | None
    done: int = 0

    @property
    def counted(self) -> str:
        """Its steps: ``1200/11000``, or ``1200``."""
        return f"{self.done}" if self.total is None else f"{self.done}/{self.total}"


class _Lines:
    """Lines about one piece of work: its loop, and the loops within a step of it."""

    def __init__(self) -> None:
        self.since, self.due = time.monotonic(), FIRST_AFTER
        self.loops: list[_Loop] = []
        self.count, self.share = 0, 0.0

    def begin(self, description: str, total: int | None) -> _Loop:
        self.loops.append(_Loop(description, total))
        return self.loops[-1]

    def advance(self, loop: _Loop, steps: int = 1) -> None:
        """Note that steps were made; loops within them are over, also those that were left halfway."""
        loop.done += steps
        if loop in self.loops:
            del self.loops[self.loops.index(loop) + 1 :]
        seconds = time.monotonic() - self.since
        if seconds < self.due or self.loops[0].done == self.loops[0].total:  # the end has a line of its own
            return
        # It never goes back: a step may hold several loops, and the next one starts at 0.
        self.share = max(self.share, self._share())
        left = seconds * (1 - self.share) / self.share if self.share else None
        self._tell(seconds, left)
        # The first estimates may be far too long: never wait longer than the work has lasted.
        wait = seconds / 4 if left is None else min(seconds, left / max(1, MOST_LINES - self.count))
        self.due = seconds + max(LEAST_BETWEEN, wait)

    def end(self, loop: _Loop) -> None:
        """Long work ends with a line that says so."""
        seconds = time.monotonic() - self.since
        if loop is self.loops[0] and seconds >= FIRST_AFTER:
            self._tell(seconds, None)
        if loop in self.loops:
            del self.loops[self.loops.index(loop) :]

    def _share(self) -> float:
        """How much of all is done, 0-1; 0 where the total is not known."""
        share = 0.0
        for loop in reversed(self.loops):
            share = min(1.0, (loop.done + share) / loop.total) if loop.total else 0.0
        return share

    def _tell(self, seconds: float, left: float | None) -> None:
        first, *within = self.loops
        text = f"{first.description}: {first.counted}, {seconds:.0f} s"
        text += "" if left is None else f", {left / 60:.1f} min left"
        text += f" ({', '.join(f'{loop.description} {loop.counted}' for loop in within)})" if within else ""
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.count += 1


_counting: _Lines | None = None  # of the ``counting`` that is under way


def network_table(rows: Iterable[Sequence[str]], parameters: int, image_size: int) -> Table:
    """Each layer with its map sizes, receptive field and parameters (``Network.summary``), as in the paper's Fig. 3.

    What is not known of any layer, as the filters of a model of timm, has no column.
    """
    title = f"{parameters:,} parameters, input {image_size}x{image_size} px"
    rows, headings = list(rows), ("filters", "map sizes", "receptive field / stride, px", "parameters")
    known = [column for column in range(1, 5) if any(row[column] for row in rows)]
    rows = [(row[0], *(row[column] for column in known)) for row in rows]
    return _table(title, rows, "layer", **{headings[column - 1]: "right" for column in known})


def results_table(metrics: Mapping[str, Mapping[str, Any]], title: str, stand_in: str | None = None) -> RenderableType:
    """Measured numbers, the paper's beside them where it has one.

    ``stand_in`` says by what they were measured where that is not the paper's: each of its numbers is then marked, and
    a note below says why they are no comparison.
    """
    mark = "" if stand_in is None else " (stand-in)"
    has_paper = any(metric.get("paper") is not None for metric in metrics.values())
    rows = []
    for name, metric in metrics.items():
        digits = 0 if isinstance(metric["value"], int) else 2
        value = round(metric["value"], digits) or 0  # no minus before a zero
        paper = "" if metric.get("paper") is None else f"{metric['paper']:.1f} {metric['unit']}{mark}"
        rows.append((name, f"{value:.{digits}f} {metric['unit']}", *([paper] if has_paper else [])))
    table = _table(title, rows, "metric", **dict.fromkeys(["value", "paper"] if has_paper else ["value"], "right"))
    if stand_in is None or not has_paper:
        return table
    return Group(table, Text(f"stand-in: ours are by {stand_in}; the paper's numbers beside them are no comparison"))


def sweep_table(jobs: Sequence[Mapping[str, Any]], width: int | None = None) -> RenderableType:
    """One row a job (its ``results.json``): what sets it apart, error, sizes, parameters, minutes, state.

    A column that all jobs leave empty is left out. Below the table stands a line for each job that failed, with the
    cause. Where the table would be wider than ``width`` characters, by default the terminal's, it has fewer columns:
    what was typed and the error stay.
    """
    overrides = [job.get("conditions", {}).get("overrides", []) for job in jobs]
    shared = set.intersection(*map(set, overrides)) if len(jobs) > 1 else set()
    sides = {"overrides": "left", "error %": "right", "map sizes": "left", "parameters": "right", "minutes": "right"}
    sides["state"] = "left"
    rows, causes = [], []
    for number, job in enumerate(jobs):
        conditions, metrics = job.get("conditions", {}), job.get("metrics", {})
        errors = (metrics.get(f"{part}/top1_error") for part in ("test", "val"))
        error = next((metric["value"] for metric in errors if metric is not None), None)
        parameters, seconds = conditions.get("parameters"), conditions.get("seconds")
        state = job.get("state", "no results")
        row = {
            "overrides": "\n".join(override for override in overrides[number] if override not in shared),
            "error %": "" if error is None else f"{error:.2f}",
            "map sizes": "/".join(map(str, conditions.get("map_sizes", []))),
            "parameters": "" if parameters is None else f"{parameters:,}",
            "minutes": "" if seconds is None else f"{seconds / 60:.1f}",
            "state": state,
        }
        rows.append(row)
        if job.get("cause"):
            causes.append(f"job {number} {state}: {job['cause']}")

    def table(headings: Sequence[str]) -> Table:
        cells = [(str(number), *(row[heading] for heading in headings)) for number, row in enumerate(rows)]
        title = f"{len(jobs)} job{'s' * (len(jobs) > 1)}"
        return _table(title, cells, "job", **{heading: sides[heading] for heading in headings})

    width = width or console.width
    filled = [heading for heading in sides if any(row[heading] for row in rows)]
    for left_out in range(4):
        headings = [heading for heading in filled if heading not in ("map sizes", "parameters", "minutes")[:left_out]]
        if Measurement.get(console, console.options.update(width=10_000), table(headings)).maximum <= width:
            break
    return Group(table(headings), *map(Text, causes))


def _table(title: str, rows: Iterable[Sequence[str]], first: str, **sides: Any) -> Table:
    # As text: rich would read [a,b] of an override as markup. A title is not broken for a narrow table.
    title = masked(title)
    table = Table(title=Text(title, "table.title"), min_width=min(len(title), console.width))
    table.add_column(first)
    for heading, side in sides.items():
        table.add_column(heading, justify=side, overflow="fold")
    for row in rows:
        table.add_row(*(Text(masked(cell)) for cell in row))
    return table
