"""Table 3 as bars: what removing and resizing layers does to the error, the paper's beside ours."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from zfscope.figures.canvas import GREY, drawn, open_axes
from zfscope.report.ledger import Cell
from zfscope.report.paper import TABLES

PAPER, OURS, STAND_IN = "#c9ced6", "#0b5fa5", "#e08a2e"


def ablations_figure(cells: Sequence[Cell]) -> Image.Image:
    """Draw a panel for each column of Table 3 and in it two bars a row: the paper's number and ours.

    Ours is the first line of the cell; its whisker is the standard deviation over seeds. A stand-in has another colour:
    only the order of its bars says something, not their length against the paper's.

    Source: Zeiler & Fergus (2014), Table 3; the picture is ours.
    """
    table = TABLES[2]
    by_place = {(cell.row, cell.column): cell for cell in cells if cell.table == 3}
    rows, columns = list(table.rows), list(table.columns)
    figure = Figure(figsize=(12, 6.6), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True)
    places = np.arange(len(rows), dtype=float)
    places += 0.5 * (places >= rows.index("zfnet"))  # a gap between the two networks that are varied
    kinds = set()
    for panel, column in zip(panels, columns, strict=True):
        panel.set_title(f"{table.columns[column]} error, %", fontsize=12)
        for place, row in zip(places, rows, strict=True):
            cell = by_place[row, column]
            middle = place - 0.2 if cell.ours else place  # alone it stands at its row's name
            panel.barh(middle, cell.paper, 0.38, color=PAPER)
            panel.text(cell.paper + 0.8, middle, f"{cell.paper:.1f}", va="center", fontsize=8, color=GREY)
            if not cell.ours:
                continue
            ours = cell.ours[0]
            kinds.add(ours.stand_in)
            spread = ours.spread or 0.0
            panel.barh(place + 0.2, ours.value, 0.38, color=STAND_IN if ours.stand_in else OURS)
            panel.errorbar(ours.value, place + 0.2, xerr=spread or None, color="black", capsize=2, linewidth=1)
            panel.text(ours.value + spread + 0.8, place + 0.2, f"{ours.value:.1f}", va="center", fontsize=8)
        panel.set_xlim(0, 100 if max(panel.get_xlim()) > 88 else max(panel.get_xlim()) * 1.08)
        panel.grid(axis="x", color="#e8e8e8")
        panel.set_axisbelow(True)
        open_axes(panel)
        panel.tick_params(axis="y", length=0)
    panels[0].set_yticks(places, list(table.rows.values()), fontsize=10)
    panels[0].invert_yaxis()
    handles = [Patch(color=PAPER, label="paper, ImageNet")]
    if False in kinds:
        handles.append(Patch(color=OURS, label="ours, ImageNet"))
    if True in kinds:
        handles.append(Patch(color=STAND_IN, label="ours, stand-in: other data or network, not comparable"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return drawn(figure)
