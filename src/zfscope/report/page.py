"""The ledger for reading: as Markdown, and as one web page that needs nothing beside it.

Whatever comes from a run is escaped: names of folders and classes, causes of failures.
"""

from __future__ import annotations

import base64
import html
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from zfscope.report.claims import DOES_NOT, HOLDS, NOT_RUN, UNDECIDED, Finding, verdict
from zfscope.report.ledger import Cell, Line, count_numbers
from zfscope.report.paper import TABLES, Table
from zfscope.report.readings import TRAINING, Run

VERDICTS = {HOLDS: "✓", DOES_NOT: "✗", UNDECIDED: "?", NOT_RUN: "–"}

TITLE = "The ledger"

ABOUT = (
    "Every number of Tables 1 to 7 of Zeiler & Fergus, Visualizing and Understanding Convolutional Networks (2014), "
    "beside ours, and the paper's claims as measured."
)

CELLS = "In each cell the paper's number, below it ours, with the letter of its condition."

STAND_IN = (
    "A stand-in was found on other data, or by another network, than the paper's: it shows which way an experiment "
    "points, but the two numbers are not comparable."
)

RULE = (
    "Effects are signed so that above 0 the paper is right. A claim holds if the whole 95 % interval of its first "
    "measure lies above 0, does not hold if below, and is undecided otherwise, where there is no interval, or where "
    "conditions disagree. Intervals are Student's t over networks of differing seed; where there is one network alone, "
    "over its folds or images, which is said."
)

# Of one table: number of the footnote by condition, seeds and runs.
Notes = dict[tuple[str, tuple[Any, ...], tuple[str, ...], bool], str]


def markdown(cells: Sequence[Cell], findings: Sequence[Finding], runs: Sequence[Run], causes: Mapping[str, str]) -> str:
    """The ledger as Markdown; ``figures/table3.png`` beside it."""
    summary = _summary(cells, findings, runs, causes)
    parts = [f"# {TITLE}", _md(ABOUT), "\n".join(f"- {name}: {_md(', '.join(each))}" for name, each in summary.items())]
    parts += ["## Claims", _md(RULE)]
    heading = ["effect", "95 % interval", "n", "condition"]
    rows = [
        [
            _md(finding.claim.statement),
            f"**{finding.verdict}**",
            *(_md_effect(found[0], each.unit) if found else [""] * 4),
        ]
        for finding in findings
        for each, found in finding.found[:1]
    ]
    parts += [_md_table(["claim", "verdict", *heading], rows)]
    for number, finding in enumerate(findings, 1):
        claim = finding.claim
        said = {"Paper": claim.paper, "Measured": claim.measured, "Mind": claim.caveat}
        parts += [f"### {number}. {_md(claim.statement)} *{finding.verdict}*"]
        parts += ["\n".join(f"- {name}: {_md(text)}" for name, text in said.items())]
        rows = [
            [_md(each.name), verdict(line), *_md_effect(line, each.unit)]
            for each, found in finding.found
            for line in found
        ]
        parts += [_md_table(["measure", "verdict", *heading], rows) if rows else "No run measures it."]
    parts += ["## Tables", _md(f"{CELLS} {STAND_IN}")]
    for table in TABLES:
        notes: Notes = {}
        columns, rows = _grid(table, cells, lambda cell, notes=notes: _md_cell(cell, notes))
        parts += [f"### Table {table.number}. {_md(table.title)}", _md(_about(table))]
        parts += [_md_table(["", *columns], [[_md(name), *row] for name, row in rows])]
        listed = [f"- [{letter}] {'*stand-in* ' * note[3]}{_md(_note(note))}" for note, letter in notes.items()]
        parts += ["\n".join(listed) or "Nothing run."]
        parts += ["![Table 3 as bars](figures/table3.png)"] if table.number == 3 else []
    used = _used(cells, findings)
    if causes:
        parts += ["## Runs left out", _md_table(["folder", "cause"], [map(_md, each) for each in causes.items()])]
    rows = [[_md(run.folder), run.kind, used.get(run.folder, "")] for run in runs]
    parts += ["## Runs read", _md_table(["folder", "what", "fills"], rows)]
    return "\n\n".join(parts) + "\n"


def page(
    cells: Sequence[Cell],
    findings: Sequence[Finding],
    runs: Sequence[Run],
    causes: Mapping[str, str],
    picture: bytes,
) -> str:
    """The ledger as one web page that needs nothing beside it: no script, no other host; ``picture`` is a PNG."""
    summary = "".join(
        f"<li><b>{_text(name)}</b>{''.join(f'<span>{_text(line)}</span>' for line in lines)}</li>"
        for name, lines in _summary(cells, findings, runs, causes).items()
    )
    used = _used(cells, findings)
    body = [
        f"<header><h1>{TITLE}</h1><p>{_text(ABOUT)}</p><ul class=summary>{summary}</ul></header>",
        f"<section><h2>Claims</h2><p class=quiet>{_text(RULE)}</p>{_claims_table(findings)}",
        *(_claim(number, finding) for number, finding in enumerate(findings, 1)),
        "</section><section><h2>Tables</h2>",
        f"<p class=quiet>{_text(CELLS)} {MARK} {_text(STAND_IN)}</p>",
        *(_table(table, cells, picture) for table in TABLES),
        f"</section><section><h2>Runs</h2><p class=quiet>{len(runs)} read"
        + (f", {len(causes)} left out" if causes else "")
        + ".</p>",
    ]
    if causes:
        rows = "".join(f"<tr><td>{_text(name)}<td class=bad>{_text(cause)}" for name, cause in causes.items())
        body.append(f"<h3>Left out</h3><table class=list><tr><th>folder<th>cause{rows}</table>")
    rows = "".join(
        f"<tr><td>{_text(run.folder)}<td>{_text(run.kind)}<td>{_text(used.get(run.folder, '–'))}" for run in runs
    )
    body.append(f"<h3>Read</h3><table class=list><tr><th>folder<th>what<th>fills{rows}</table></section>")
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>zfscope: {TITLE.lower()}</title>"
        f'<meta name=viewport content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


STYLE = """
:root{color-scheme:light}
body{margin:0;background:#f5f6f8;color:#1c2430;font:15px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:30px;margin:0 0 4px}
h2{font-size:22px;margin:40px 0 6px}
h3{font-size:16px;margin:0 0 4px}
p{margin:4px 0 10px;max-width:90ch}
a{color:inherit}
svg{vertical-align:middle}
small{display:block;font-size:12px;font-weight:400;color:#566072}
.quiet{color:#566072;font-size:14px}
.bad{color:#a32020}
.summary{list-style:none;padding:0;margin:18px 0 0;display:flex;flex-wrap:wrap;gap:12px}
.summary li{flex:1 1 260px;background:#fff;border:1px solid #dfe3ea;border-radius:8px;padding:12px 16px}
.summary b{font-size:20px}
.summary span{display:block}
article{background:#fff;border:1px solid #dfe3ea;border-radius:8px;padding:16px 20px;margin:14px 0;overflow-x:auto}
article p{font-size:14px;margin:2px 0}
article img{max-width:100%;margin-top:14px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th{font-weight:600;text-align:left;color:#566072;font-size:13px;border-bottom:1px solid #c8ced8}
td{border-bottom:1px solid #eceff3}
th,td{padding:5px 14px 5px 0;vertical-align:top}
table.list,table.effects{width:100%;font-size:13px;margin-top:8px}
table.list{background:#fff}
table.effects td:last-child{min-width:200px}
table.list th,table.list td{padding-left:10px;overflow-wrap:anywhere}
.numbers th,.numbers td{text-align:right}
.numbers th:first-child,.numbers td:first-child{text-align:left}
.paper,.other td{color:#6b7585}
.ours{display:block;font-weight:600;white-space:nowrap}
.standin{color:#a85a00}
sup{font-weight:400;font-size:11px}
.mark{background:#fdf0dc;color:#8a4a00;border-radius:3px;padding:0 5px;font-size:12px;white-space:nowrap}
.notes{list-style:none;padding:0;margin:10px 0 0;font-size:12.5px;color:#566072}
.notes li{margin:3px 0;overflow-wrap:anywhere}
.badge{border-radius:12px;padding:1px 10px;font-size:13px;font-weight:600;white-space:nowrap}
.holds{background:#dcf2e1;color:#15692f}
.does-not-hold{background:#fbe0e0;color:#a32020}
.undecided{background:#fdf0dc;color:#8a4a00}
.not-run{background:#e8ebf0;color:#566072}
@media print{body{background:#fff}article{break-inside:avoid}}
"""


def _summary(
    cells: Sequence[Cell], findings: Sequence[Finding], runs: Sequence[Run], causes: Mapping[str, str]
) -> dict[str, list[str]]:
    """What stands on top, by heading."""
    numbers, claims = count_numbers(cells), Counter(finding.verdict for finding in findings)
    lines = [line for cell in cells for line in cell.ours if line.stand_in]
    data = sorted({re.split(r"[ ,;]", line.condition)[0] for line in lines})
    trainings = sum(run.kind == TRAINING for run in runs)
    return {
        f"{numbers['all']} numbers": [
            f"{numbers['papers_data']} measured on the paper's own data",
            f"{numbers['stand_in']} by stand-ins alone" + (f" (on {', '.join(data)})" if data else ""),
            f"{numbers['blank']} blank",
        ],
        f"{len(findings)} claims": [f"{claims[name]} {text}" for name, text in _COUNTED.items() if claims[name]],
        f"{len(runs)} runs": [
            f"{trainings} trainings",
            f"{len(runs) - trainings} analyses",
            *([f"{len(causes)} more left out: failed or broken"] if causes else []),
        ],
    }


_COUNTED = {HOLDS: "found to hold", DOES_NOT: "found not to hold", UNDECIDED: "undecided", NOT_RUN: "not run"}


def _used(cells: Sequence[Cell], findings: Sequence[Finding]) -> dict[str, str]:
    """By folder, what a run fills."""
    used: dict[str, dict[str, None]] = {}
    for cell in cells:
        for folder in (folder for line in cell.ours for folder in line.runs):
            used.setdefault(folder, {})[f"Table {cell.table}"] = None
    for number, finding in enumerate(findings, 1):
        for folder in (folder for _, found in finding.found for line in found for folder in line.runs):
            used.setdefault(folder, {})[f"claim {number}"] = None
    return {folder: ", ".join(names) for folder, names in used.items()}


def _grid(
    table: Table, cells: Sequence[Cell], cell: Callable[[Cell | None], str]
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Headings, and each row's name with its cells; a column of parameters where there are some."""
    found = {(each.row, each.column): each for each in cells if each.table == table.number}
    columns = dict(table.columns)
    if any(column == "parameters" for _, column in found):
        columns["parameters"] = "parameters"
    return list(columns.values()), [
        (name, [cell(found.get((row, column))) for column in columns]) for row, name in table.rows.items()
    ]


def _about(table: Table) -> str:
    """Unit and note."""
    unit = "Shares, 0 to 1." if table.unit == "0-1" else f"In {table.unit}."
    return f"{unit} {table.note}".strip()


def _letter(notes: Notes, line: Line) -> str:
    """The letter of a line's footnote: a, b, … z, aa."""
    key = (line.condition, line.seeds, line.runs, line.stand_in)
    if key not in notes:
        number, letters = len(notes), ""
        while number >= 0:
            number, letters = number // 26 - 1, chr(97 + number % 26) + letters
        notes[key] = letters
    return notes[key]


def _note(note: tuple[str, tuple[Any, ...], tuple[str, ...], bool]) -> str:
    """Condition, seeds and folders in a line."""
    condition, seeds, folders, _ = note
    return "; ".join(filter(None, [condition, _seeds(seeds), f"from {_folders(folders)}"]))


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


def _over(line: Line) -> str:
    """What a number's spread is over, and which images it is of, in a few words."""
    return ", ".join(filter(None, [line.part, line.over if line.spread is not None else ""]))


def _interval(line: Line) -> str:
    return "none" if line.interval is None else f"{line.interval[0]:+.3g} to {line.interval[1]:+.3g}, {line.how}"


def _md(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(text, quote=False))


def _md_cell(cell: Cell | None, notes: Notes) -> str:
    ours = [
        f"{'*stand-in* ' * line.stand_in}**{_ours(line, cell)}** {_md(_over(line))} [{_letter(notes, line)}]"
        for line in (cell.ours if cell else ())
    ]
    return "<br>".join(filter(None, [_printed(cell), *ours]))


def _md_effect(line: Line, unit: str) -> list[str]:
    condition = f"{'*stand-in* ' * line.stand_in}{_md(_condition(line))}"
    return [f"{line.value:+.3g} {unit}", _md(_interval(line)), str(line.n), condition]


def _md_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """Escaped for HTML."""
    return html.escape(str(text))


MARK = "<span class=mark>stand-in</span>"


def _badge(name: str) -> str:
    return f'<span class="badge {name.replace(" ", "-")}">{VERDICTS[name]} {_text(name)}</span>'


def _claims_table(findings: Sequence[Finding]) -> str:
    rows = []
    for number, finding in enumerate(findings, 1):
        each, found = finding.found[0]
        cells = _effect_cells(found[0], each.unit) if found else "<td><td><td><td>"
        name = f'<a href="#claim-{number}">{_text(finding.claim.statement)}</a>'
        rows.append(f"<tr><td>{name}<td>{_badge(finding.verdict)}{cells}")
    heading = "<tr><th>claim<th>verdict<th>effect<th>95 % interval<th>n<th>condition"
    return f"<article><table class=effects>{heading}{''.join(rows)}</table></article>"


def _claim(number: int, finding: Finding) -> str:
    claim = finding.claim
    rows = "".join(
        f"<tr><td>{_text(each.name)}<td>{_badge(verdict(line))}{_effect_cells(line, each.unit)}"
        for each, found in finding.found
        for line in found
    )
    heading = "<tr><th>measure<th>verdict<th>effect<th>95 % interval<th>n<th>condition"
    return (
        f'<article id="claim-{number}"><h3>{number}. {_text(claim.statement)} {_badge(finding.verdict)}</h3>'
        f"<p><b>Paper.</b> {_text(claim.paper)}</p><p><b>Measured.</b> {_text(claim.measured)}</p>"
        f"<p><b>Mind.</b> {_text(claim.caveat)}</p>"
        + (f"<table class=effects>{heading}{rows}</table>" if rows else "<p class=quiet>No run measures it.</p>")
        + "</article>"
    )


def _effect_cells(line: Line, unit: str) -> str:
    """Effect, interval, n and condition as table cells."""
    mark = f"{MARK} " if line.stand_in else ""
    return (
        f"<td>{line.value:+.3g}<small>{_text(unit)}</small><td>{_plot(line)}<small>{_text(_interval(line))}</small>"
        f"<td>{line.n}<td>{mark}{_text(_condition(line))}"
    )


def _plot(line: Line) -> str:
    """The effect as a dot on its interval, with a mark at 0."""
    low, high = line.interval or (line.value, line.value)
    ends = min(low, 0.0), max(high, 0.0)
    width, height, margin = 150, 16, 6
    span = (ends[1] - ends[0]) or 1.0

    def at(value: float) -> str:
        return f"{margin + (value - ends[0]) / span * (width - 2 * margin):.1f}"

    colour = {HOLDS: "#15692f", DOES_NOT: "#a32020"}.get(verdict(line), "#8a4a00")
    bar = (
        f'<line x1="{at(low)}" x2="{at(high)}" y1="8" y2="8" stroke="{colour}" stroke-width="2"/>'
        if line.interval
        else ""
    )
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="interval">'
        f'<line x1="0" x2="{width}" y1="8" y2="8" stroke="#dfe3ea"/>'
        f'<line x1="{at(0)}" x2="{at(0)}" y1="1" y2="15" stroke="#1c2430"/>{bar}'
        f'<circle cx="{at(line.value)}" cy="8" r="4" fill="{colour}"/></svg>'
    )


def _table(table: Table, cells: Sequence[Cell], picture: bytes) -> str:
    notes: Notes = {}
    columns, rows = _grid(table, cells, lambda cell: _cell(cell, notes))
    body = "".join(
        f"<tr{' class=other' * (key in table.others)}><td>{_text(name)}{''.join(f'<td>{each}' for each in row)}"
        for key, (name, row) in zip(table.rows, rows, strict=True)
    )
    listed = "".join(
        f"<li><b>{letter}</b> {f'{MARK} ' * note[3]}{_text(_note(note))}" for note, letter in notes.items()
    )
    image = base64.b64encode(picture).decode()
    return (
        f"<article><h3>Table {table.number}. {_text(table.title)}</h3><p class=quiet>{_text(_about(table))}</p>"
        f"<table class=numbers><tr><th>{''.join(f'<th>{_text(each)}' for each in columns)}{body}</table>"
        + (f"<ul class=notes>{listed}</ul>" if listed else "<p class=quiet>Nothing run.</p>")
        + (f'<img alt="Table 3 as bars" src="data:image/png;base64,{image}">' if table.number == 3 else "")
        + "</article>"
    )


def _cell(cell: Cell | None, notes: Notes) -> str:
    if cell is None:
        return ""
    ours = "".join(
        f'<span class="ours{" standin" * line.stand_in}">{_ours(line, cell)}<sup> {_letter(notes, line)}</sup>'
        f"<small>{f'{MARK} ' * line.stand_in}{_text(_over(line))}</small></span>"
        for line in cell.ours
    )
    return f"<span class=paper>{_printed(cell)}</span>{ours}"
