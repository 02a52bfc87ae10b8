"""The ledger: the paper's numbers beside ours, its claims as measured, and what was read.

Source: Zeiler & Fergus (2014), Tables 1 to 7.
"""

import io
import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from PIL import Image

from zfscope.analyses.question import Question, Result
from zfscope.figures import ablations_figure, transfers_figure
from zfscope.report.claims import measure
from zfscope.report.ledger import count_numbers, fill
from zfscope.report.page import VERDICTS, pages
from zfscope.report.paper import TABLES
from zfscope.report.public import public_tables
from zfscope.report.readings import read_runs
from zfscope.report.transfer import Row, targets

NAMED = 5  # runs that were left out, in the lines printed


def analyse(question: Question) -> Result:
    """What is filled and what holds; ``ledger.md``, ``ledger.json``, ``ledger.html``."""
    runs, causes = read_runs(question.options.runs)
    cells, findings = fill(runs), measure(runs)
    picture, moved = ablations_figure(cells), targets(runs)
    chart = transfers_figure(moved) if moved else None
    numbers, claims = count_numbers(cells), Counter(finding.verdict for finding in findings)
    content = {
        "numbers": numbers,
        "claims": [
            {
                **{name: getattr(finding.claim, name) for name in ("statement", "paper", "measured", "caveat")},
                "design": {**asdict(finding.claim.design), "power": round(finding.claim.design.power, 3)},
                "verdict": finding.verdict,
                "decided_by": [line.condition for line in finding.deciding],
                "measures": [
                    {
                        "name": measure.name,
                        "unit": measure.unit,
                        "found": [{**asdict(line), "verdict": finding.verdict_of(line, measure)} for line in lines],
                    }
                    for measure, lines in finding.results
                ],
            }
            for finding in findings
        ],
        "cells": [
            {**asdict(cell), "unit": "" if cell.column == "parameters" else TABLES[cell.table - 1].unit}
            for cell in cells
        ],
        "transfer": [asdict(target) | {"rows": [_row(row) for row in target.rows]} for target in moved],
        "public": [asdict(table) for table in public_tables(runs)],
        "runs": {run.folder: run.kind for run in runs},
        "left_out": causes,
    }
    files = {
        "ledger.json": json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        **pages(cells, findings, runs, causes, png_of(picture), chart and png_of(chart)),
    }
    metrics = {
        "numbers/papers_data": {"value": numbers["papers_data"], "unit": f"of {numbers['all']}"},
        "numbers/stand_in": {"value": numbers["stand_in"], "unit": f"of {numbers['all']}"},
        **{f"claims/{name}": {"value": claims[name], "unit": f"of {len(findings)}"} for name in VERDICTS},
        "runs": {"value": len(runs), "unit": "read"},
        "runs/left_out": {"value": len(causes), "unit": ""},
    }
    left_out = [f"left out: {folder} ({cause})" for folder, cause in causes.items()]
    more = [f"and {len(left_out) - NAMED} more, in ledger.md"] if len(left_out) > NAMED else []
    figures = {"table3": picture, **({"transfer": chart} if chart else {})}
    return Result(metrics, figures=figures, files=files, notes=[*left_out[:NAMED], *more])


def png_of(picture: Image.Image) -> bytes:
    """A picture as the content of a PNG."""
    png = io.BytesIO()
    picture.save(png, "png")
    return png.getvalue()


def _row(row: Row) -> dict[str, Any]:
    """A row of a transfer as JSON has it."""
    return {**asdict(row), "best": sorted(row.best)}
