"""docs/tour.ipynb: it shows what its cells give today."""

import ast
import json

import pytest

from tests.scripts.tour import NOTEBOOK, run

CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def kinds(cell):
    return [kind for output in cell["outputs"] for kind in output.get("data", ["text"])]


def test_every_cell_was_run_in_order_and_its_outputs_are_kept():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert all(cell["outputs"] for cell in CODE)
    assert sum(kinds(cell).count("image/jpeg") for cell in CODE) >= 6
    assert NOTEBOOK.stat().st_size < 1_500_000


def test_the_tour_needs_the_library_alone():
    for cell in CODE:
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            module = getattr(node, "module", None) or ""
            assert not module.startswith(("zfscope.commands", "zfscope.analyses", "hydra")), module


@pytest.mark.slow
def test_the_tour_runs_from_top_to_bottom():
    done = [cell for cell in run({"cells": CELLS})["cells"] if cell["cell_type"] == "code"]

    assert [kinds(cell) for cell in done] == [kinds(cell) for cell in CODE]
    assert "".join(done[0]["outputs"][0]["text"]).splitlines()[0].endswith("Egyptian cat")
