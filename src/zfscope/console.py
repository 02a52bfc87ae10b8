"""What a person reads while it runs: the network before training, results after it, a sweep's jobs at its end, bars."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Table

Item = TypeVar("Item")

console = Console()


def print_anywhere() -> None:
    """Let characters that the terminal's encoding has not (Greek in the C locale) be printed by their numbers."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test's or a notebook's stream may be none of Python's own
            stream.reconfigure(errors="backslashreplace")


def progress(iterable: Iterable[Item], description: str, total: float | None = None) -> Iterator[Item]:
    """The items one by one, under a bar with the time left; it vanishes at the end."""
    return iter(track(iterable, description, total=total, console=console, transient=True))


def network_table(rows: Iterable[Sequence[str]], parameters: int, image_size: int) -> Table:
    """Each layer with its map sizes, receptive field and parameters (``Network.summary``), as in the paper's Fig. 3."""
    title = f"{parameters:,} parameters, input {image_size}x{image_size} px"
    headings = ("filters", "map sizes", "receptive field / stride, px", "parameters")
    return _table(title, rows, "layer", **dict.fromkeys(headings, "right"))


def results_table(metrics: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Measured numbers, the paper's beside them where it has one."""
    has_paper = any(metric.get("paper") is not None for metric in metrics.values())
    rows = []
    for name, metric in metrics.items():
        digits = 0 if isinstance(metric["value"], int) else 2
        paper = "" if metric.get("paper") is None else f"{metric['paper']:.1f} {metric['unit']}"
        rows.append((name, f"{metric['value']:.{digits}f} {metric['unit']}", *([paper] if has_paper else [])))
    return _table(title, rows, "metric", **dict.fromkeys(["value", "paper"] if has_paper else ["value"], "right"))


def sweep_table(jobs: Sequence[Mapping[str, Any]]) -> Table:
    """One row a job (its ``results.json``): what sets it apart, error, sizes, parameters, minutes, state and cause."""
    overrides = [job.get("conditions", {}).get("overrides", []) for job in jobs]
    shared = set.intersection(*map(set, overrides)) if len(jobs) > 1 else set()
    rows = []
    for number, job in enumerate(jobs):
        conditions, metrics = job.get("conditions", {}), job.get("metrics", {})
        errors = (metrics.get(f"{part}/top1_error") for part in ("test", "val"))
        error = next((metric["value"] for metric in errors if metric is not None), None)
        parameters, seconds = conditions.get("parameters"), conditions.get("seconds")
        state = job.get("state", "no results")
        row = (
            str(number),
            " ".join(override for override in overrides[number] if override not in shared),
            "" if error is None else f"{error:.2f}",
            "/".join(map(str, conditions.get("map_sizes", []))),
            "" if parameters is None else f"{parameters:,}",
            "" if seconds is None else f"{seconds / 60:.1f}",
            state if not job.get("cause") else f"{state}: {job['cause']}",
        )
        rows.append(row)
    sides = {"overrides": "left", "error %": "right", "map sizes": "left", "parameters": "right", "minutes": "right"}
    return _table(f"{len(jobs)} jobs", rows, "job", **sides, state="left")


def _table(title: str, rows: Iterable[Sequence[str]], first: str, **sides: Any) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for heading, side in sides.items():
        table.add_column(heading, justify=side, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
