"""The ledger: the paper's numbers beside ours, its claims as measured, and what was read.

Source: Zeiler & Fergus (2014), Tables 1 to 7.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from zfscope.analyses.spec import AnalyzeConfig
from zfscope.figures import ablations_figure
from zfscope.report.claims import measure, verdict
from zfscope.report.ledger import count_numbers, fill
from zfscope.report.page import VERDICTS, markdown, page
from zfscope.report.paper import TABLES
from zfscope.report.readings import read_runs


def ledger(
    subject: None, data: None, config: AnalyzeConfig, device: torch.device, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write ``ledger.md``, ``ledger.json``, ``ledger.html`` and ``figures/table3.png``; give what is filled and holds.

    Raises:
        FileNotFoundError: If a folder of ``analysis.runs`` is not there, or holds no results.
    """
    runs, causes = read_runs(config.analysis.runs)
    cells, findings = fill(runs), measure(runs)
    (folder / "figures").mkdir(exist_ok=True)
    picture = folder / "figures" / "table3.png"
    ablations_figure(cells).save(picture)
    numbers, claims = count_numbers(cells), Counter(finding.verdict for finding in findings)
    content = {
        "numbers": numbers,
        "claims": [
            {
                **{name: getattr(finding.claim, name) for name in ("statement", "paper", "measured", "caveat")},
                "verdict": finding.verdict,
                "measures": [
                    {
                        "name": each.name,
                        "unit": each.unit,
                        "found": [{**asdict(line), "verdict": verdict(line)} for line in found],
                    }
                    for each, found in finding.found
                ],
            }
            for finding in findings
        ],
        "cells": [
            {**asdict(cell), "unit": "" if cell.column == "parameters" else TABLES[cell.table - 1].unit}
            for cell in cells
        ],
        "runs": {run.folder: run.kind for run in runs},
        "left_out": causes,
    }
    (folder / "ledger.json").write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    (folder / "ledger.md").write_text(markdown(cells, findings, runs, causes))
    (folder / "ledger.html").write_text(page(cells, findings, runs, causes, picture.read_bytes()))
    return {
        "numbers/papers_data": {"value": numbers["papers_data"], "unit": f"of {numbers['all']}"},
        "numbers/stand_in": {"value": numbers["stand_in"], "unit": f"of {numbers['all']}"},
        **{f"claims/{name}": {"value": claims[name], "unit": f"of {len(findings)}"} for name in VERDICTS},
        "runs": {"value": len(runs), "unit": "read"},
        "runs/left_out": {"value": len(causes), "unit": ""},
    }
