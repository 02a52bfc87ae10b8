"""What the ledger's pages say of transfers and public networks: numbers as text, ready for the templates."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from zfscope.report.ledger import Line
from zfscope.report.public import PublicTable
from zfscope.report.transfer import WAYS, Row, Target

COLUMNS = ("parameters", "image size", "optimiser", "steps")
AHEAD, BEHIND, OPEN = "ahead", "behind", "undecided"


def standing(line: Line) -> str:
    """Where a difference to the best from scratch lies: by the side of 0 that holds its whole interval."""
    low, high = line.interval or (-1.0, 1.0)
    return AHEAD if low > 0 else BEHIND if high < 0 else OPEN


def transfer_sections(targets: Sequence[Target], folders: Callable[[Sequence[str]], str]) -> list[dict[str, Any]]:
    """For each target its heading, columns, rows and what is said of them; ``folders`` writes names of folders."""
    return [
        {
            "title": f"To {target.data}",
            "about": f"{target.protocol}; mean accuracy per class in %"
            + ("" if target.chance is None else f", by chance {target.chance:.3g}"),
            "columns": [*COLUMNS, *(f"{size} per class" for size in target.sizes)],
            "rows": [_row(row, target.sizes) for row in target.rows],
            "told": list(told(target)),
            "notes": [
                f"{row.network}, {WAYS[row.way]}: "
                + folders(sorted({folder for line in row.cells.values() for folder in line.runs}))
                for row in target.rows
            ],
        }
        for target in targets
    ]


def told(target: Target) -> Iterable[str]:
    """A sentence for each pretrained network: where it is ahead of the best from scratch, where not."""
    for row in target.rows:
        if row.way != "pretrained":
            continue
        by_standing: dict[str, list[str]] = {}
        for size in row.cells:
            key = standing(row.ahead[size]) if size in row.ahead else "not compared"
            by_standing.setdefault(key, []).append(str(size))
        words = {
            AHEAD: "ahead of the best from scratch at",
            BEHIND: "behind it at",
            OPEN: "undecided at",
            "not compared": "nothing from scratch to compare with at",
        }
        parts = [f"{text} {', '.join(by_standing[key])}" for key, text in words.items() if key in by_standing]
        yield f"{row.network}: {'; '.join(parts)} images per class."


def public_sections(tables: Sequence[PublicTable]) -> list[dict[str, Any]]:
    """For each analysis its heading and rows; the condition of several rows stands once, behind a letter."""
    sections = []
    for table in tables:
        notes: dict[tuple[str, bool, tuple[str, ...]], str] = {}
        rows = []
        for row in table.rows:
            first = row.cells[0][1]
            key = (first.condition, first.stand_in, first.runs)
            letter = notes.setdefault(key, chr(97 + len(notes) % 26) * (1 + len(notes) // 26))
            cells = [{"place": place, "number": _number(line)} for place, line in row.cells]
            rows.append(
                {
                    "network": row.network,
                    "measure": row.measure,
                    "cells": cells,
                    "letter": letter,
                    "stand_in": first.stand_in,
                }
            )
        sections.append(
            {
                "title": table.title,
                "about": table.about,
                "places": table.places,
                "width": max(len(row["cells"]) for row in rows),
                "rows": rows,
                "notes": [
                    {"letter": letter, "stand_in": stand_in, "text": condition, "runs": runs}
                    for (condition, stand_in, runs), letter in notes.items()
                ],
            }
        )
    return sections


def _row(row: Row, sizes: Sequence[int]) -> dict[str, Any]:
    return {
        "name": row.network,
        "way": WAYS[row.way],
        "stand_in": row.stand_in,
        "about": _about(row.about),
        "cells": [_cell(row, size) for size in sizes],
    }


def _about(about: Mapping[str, Any]) -> list[str]:
    """Parameters, image size, optimiser, steps as text."""
    parameters, size, optimiser = (about.get(name) for name in ("parameters", "image_size", "optimiser"))
    rate, batch = about.get("lr"), about.get("batch_size")
    details = [str(optimiser), *([f"rate {rate:g}"] if isinstance(rate, float) else [])]
    details += [] if batch is None else [f"batch {batch}"]
    steps = sorted({step for step in about["steps"].values() if isinstance(step, int)})
    return [
        f"{parameters:,}" if isinstance(parameters, int) else "",
        "" if size is None else f"{size} px",
        ", ".join(details) if optimiser else "",
        "" if not steps else " to ".join(f"{step:,}" for step in dict.fromkeys((steps[0], steps[-1]))),
    ]


def _cell(row: Row, size: int) -> dict[str, Any]:
    line, ahead = row.cells.get(size), row.ahead.get(size)
    if line is None:
        return {"number": "", "over": "", "best": False, "ahead": "", "interval": "", "standing": ""}
    spread = "" if line.spread is None else f" ± {line.spread:.1f}"
    interval = ""
    if ahead is not None and ahead.interval is not None:
        interval = f"({ahead.interval[0]:+.1f} to {ahead.interval[1]:+.1f})"
    return {
        "number": f"{line.value:.1f}{spread}",
        "over": line.over,
        "best": size in row.best,
        "ahead": "" if ahead is None else f"{ahead.value:+.1f}",
        "interval": interval,
        "standing": "" if ahead is None else standing(ahead),
    }


def _number(line: Line) -> str:
    """Three significant digits are enough for shares and for percent."""
    spread = "" if line.spread is None else f" ± {line.spread:.2g}"
    return f"{line.value:.3g}{spread}"
