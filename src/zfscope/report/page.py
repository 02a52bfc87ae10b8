"""The ledger for reading: as Markdown, and as one web page that needs nothing beside it.

What a page says stands in ``templates/``. Whatever comes from a run is escaped: names of folders and classes, causes of
failures.
"""

import base64
import html
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from zfscope.report.claims import Finding
from zfscope.report.designs import DOES_NOT, HOLDS, NO_EFFECT, NOT_RUN, UNDECIDED
from zfscope.report.ledger import Cell, Line, count_numbers
from zfscope.report.paper import TABLES, Table
from zfscope.report.public import PublicTable, public_tables
from zfscope.report.readings import TRAINING, Run
from zfscope.report.sections import public_sections, transfer_sections
from zfscope.report.transfer import Target, targets

VERDICTS = {HOLDS: "✓", DOES_NOT: "✗", NO_EFFECT: "≈", UNDECIDED: "?", NOT_RUN: "–"}
COUNTED = {
    HOLDS: "found to hold",
    DOES_NOT: "found not to hold",
    NO_EFFECT: "without an effect above the margin",
    UNDECIDED: "undecided",
    NOT_RUN: "not run",
}


def pages(
    cells: Sequence[Cell],
    findings: Sequence[Finding],
    runs: Sequence[Run],
    causes: Mapping[str, str],
    picture: bytes,
    chart: bytes | None = None,
) -> dict[str, str]:
    """The ledger's pages by file name, ``ledger.md`` and ``ledger.html``.

    ``causes`` says by folder why a result was left out. ``picture`` is Table 3 as bars, a PNG; the web page holds it,
    the Markdown shows ``figures/table3.png``. ``chart`` is that of transfers, ``figures/transfer.png``.
    """
    moved, public = targets(runs), public_tables(runs)
    content = {
        "marks": VERDICTS,
        "summary": _summary(cells, findings, runs, causes),
        "findings": findings,
        "tables": [_table(table, cells) for table in TABLES],
        "runs": runs,
        "causes": causes,
        "transfers": transfer_sections(moved, _folders),
        "publics": public_sections(public),
        "fills": _fills(cells, findings, runs, moved, public),
        "picture": base64.b64encode(picture).decode(),
        "chart": base64.b64encode(chart).decode() if chart else "",
        "interval": _interval,
        "condition": _condition,
        "positions": _positions,
    }
    escapes = {"ledger.md": _markdown, "ledger.html": lambda value: value}
    return {name: _environment(escape).get_template(f"{name}.j2").render(content) for name, escape in escapes.items()}


def _environment(escape: Any) -> jinja2.Environment:
    """Templates in which every value is escaped where it is put in."""
    loader = jinja2.PackageLoader("zfscope.report", "templates")
    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, finalize=escape, **options
    )


def _markdown(value: Any) -> Any:
    """A value as text that Markdown leaves as it is; what a macro has made of escaped values stays."""
    if isinstance(value, Markup):
        return value
    return Markup(re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(str(value), quote=False)))


def _summary(
    cells: Sequence[Cell], findings: Sequence[Finding], runs: Sequence[Run], causes: Mapping[str, str]
) -> dict[str, list[str]]:
    """What stands on top, by heading."""
    numbers, claims = count_numbers(cells), Counter(finding.verdict for finding in findings)
    stand_ins = [line for cell in cells for line in cell.ours if line.stand_in]
    data = sorted({re.split(r"[ ,;]", line.condition)[0] for line in stand_ins})
    trainings = sum(run.kind == TRAINING for run in runs)
    return {
        f"{numbers['all']} numbers": [
            f"{numbers['papers_data']} measured on the paper's own data",
            f"{numbers['stand_in']} by stand-ins alone" + (f" (on {', '.join(data)})" if data else ""),
            f"{numbers['blank']} blank",
        ],
        f"{len(findings)} claims": [f"{claims[name]} {text}" for name, text in COUNTED.items() if claims[name]],
        _counted(len(runs), "run", "runs"): [
            _counted(trainings, "training", "trainings"),
            _counted(len(runs) - trainings, "analysis", "analyses"),
            *([f"{len(causes)} more left out: failed or broken"] if causes else []),
        ],
    }


def _counted(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _fills(
    cells: Sequence[Cell],
    findings: Sequence[Finding],
    runs: Sequence[Run],
    moved: Sequence[Target],
    public: Sequence[PublicTable],
) -> dict[str, str]:
    """By folder, which tables and claims a run fills."""
    filled = [(f"Table {cell.table}", line) for cell in cells for line in cell.ours]
    filled += [
        (f"claim {number}", line)
        for number, finding in enumerate(findings, 1)
        for _, lines in finding.results
        for line in lines
    ]
    filled += [("Transfer", line) for target in moved for row in target.rows for line in row.cells.values()]
    filled += [("Public networks", line) for table in public for row in table.rows for _, line in row.cells]
    names: dict[str, dict[str, None]] = {run.folder: {} for run in runs}
    for name, line in filled:
        for folder in line.runs:
            names[folder][name] = None
    return {folder: ", ".join(filled) for folder, filled in names.items()}


def _table(table: Table, cells: Sequence[Cell]) -> dict[str, Any]:
    """One table: headings, rows of cells with the lines in them, and a note for each condition."""
    by_place = {(cell.row, cell.column): cell for cell in cells if cell.table == table.number}
    columns = dict(table.columns)
    if any(column == "parameters" for _, column in by_place):
        columns["parameters"] = "parameters"
    letters: dict[tuple[Any, ...], str] = {}

    def content(cell: Cell | None) -> dict[str, Any]:
        lines = [
            {
                "number": _ours(line, cell),
                "stand_in": line.stand_in,
                "over": ", ".join(filter(None, [line.part, line.over if line.spread is not None else ""])),
                "letter": letters.setdefault(
                    (line.condition, line.seeds, line.runs, line.stand_in), _letters(len(letters))
                ),
            }
            for line in (cell.ours if cell else ())
        ]
        return {"printed": _printed(cell), "lines": lines}

    rows = [
        {
            "name": name,
            "reference": row in table.others,
            "cells": [content(by_place.get((row, column))) for column in columns],
        }
        for row, name in table.rows.items()
    ]
    notes = [
        {
            "letter": letter,
            "stand_in": stand_in,
            "text": "; ".join(filter(None, [condition, _seeds(seeds), f"from {_folders(folders)}"])),
        }
        for (condition, seeds, folders, stand_in), letter in letters.items()
    ]
    unit = "Shares, 0 to 1." if table.unit == "0-1" else f"In {table.unit}."
    about = f"{unit} {table.note}".strip()
    shared = {"number": table.number, "title": table.title, "about": about}
    return {**shared, "columns": list(columns.values()), "rows": rows, "notes": notes}


def _letters(number: int) -> str:
    """Footnotes count a, b, … z, aa."""
    letters = ""
    while number >= 0:
        number, letters = number // 26 - 1, chr(97 + number % 26) + letters
    return letters


def _seeds(seeds: Sequence[Any]) -> str:
    if all(isinstance(seed, int) for seed in seeds):
        return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return f"{len(seeds)} repetitions" if len(seeds) > 1 else ""


def _folders(folders: Sequence[str]) -> str:
    """Folders by what they share: outputs/members/{1, 2, 3}."""
    above: dict[str, list[str]] = {}
    for folder in folders:
        parent, slash, name = folder.rpartition("/")
        above.setdefault(parent + slash, []).append(name)
    return ", ".join(
        f"{parent}{{{', '.join(names)}}}" if len(names) > 1 else parent + names[0] for parent, names in above.items()
    )


def _condition(line: Line) -> str:
    return "; ".join(filter(None, [line.condition, line.part, _seeds(line.seeds)]))


def _interval(line: Line) -> str:
    return "none" if line.interval is None else f"{line.interval[0]:+.3g} to {line.interval[1]:+.3g}, {line.how}"


def _number(value: float, cell: Cell) -> str:
    if cell.column == "parameters":
        return f"{value:,.0f}"
    return f"{value:.3f}" if TABLES[cell.table - 1].unit == "0-1" else f"{value:.1f}"


def _ours(line: Line, cell: Cell) -> str:
    """A number with its spread."""
    spread = "" if line.spread is None or cell.column == "parameters" else f" ± {_number(line.spread, cell)}"
    return _number(line.value, cell) + spread


def _printed(cell: Cell | None) -> str:
    """The paper's number as it stands there."""
    if cell is None or cell.paper is None:
        return ""
    spread = "" if cell.paper_spread is None else f" ± {cell.paper_spread:g}"
    return _number(cell.paper, cell) + spread


def _positions(line: Line, margin: float) -> dict[str, str]:
    """Where an effect, the ends of its interval, 0 and the margin lie on a line of 150 pixels, ends of 6 left free."""
    low, high = line.interval or (line.value, line.value)
    left, right = min(low, -margin, 0.0), max(high, margin, 0.0)
    places = {"low": low, "high": high, "value": line.value, "zero": 0.0, "least": -margin, "most": margin}
    return {name: f"{6 + (value - left) / ((right - left) or 1.0) * 138:.1f}" for name, value in places.items()}
