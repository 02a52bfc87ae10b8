"""Run docs/tour.ipynb from top to bottom and keep what its cells show: text, and pictures as JPEG.

python tests/scripts/tour.py            run, and write what the cells show into the notebook
python tests/scripts/tour.py --check    run only
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "tour.ipynb"
LARGEST = 1100  # width of a kept picture, pixels


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with what its code cells show, each run in the names of those before it."""
    names: dict[str, Any] = {"__name__": "tour"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            text, shown = _run_cell("".join(cell["source"]), names, f"cell {count}")
            outputs = (
                [{"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}] if text else []
            )
            cell = {**cell, "execution_count": count, "outputs": outputs + _picture(shown, count)}
        cells.append(cell)
    return {**notebook, "cells": cells}


def _run_cell(source: str, names: dict[str, Any], name: str) -> tuple[str, Any]:
    """What a cell prints, and the value of its last expression."""
    tree, printed, shown = ast.parse(source, name), io.StringIO(), None
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), names)
        if last is not None:
            shown = eval(compile(ast.Expression(last.value), name, "eval"), names)
    return printed.getvalue(), shown


def _picture(shown: Any, count: int) -> list[dict[str, Any]]:
    if not isinstance(shown, Image.Image):
        return []
    picture, file = shown.convert("RGB"), io.BytesIO()
    if picture.width > LARGEST:
        picture = picture.resize((LARGEST, round(picture.height * LARGEST / picture.width)), Image.Resampling.LANCZOS)
    picture.save(file, "jpeg", quality=85)
    data = {"image/jpeg": base64.b64encode(file.getvalue()).decode()}
    return [{"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    done = run(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    if not check:
        NOTEBOOK.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
