"""Table 3 as bars, the paper's beside ours; transfers as curves, a panel for each data set."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from zfscope.figures.canvas import GREY, clipped, drawn, entitle, open_axes
from zfscope.report.ledger import Cell
from zfscope.report.paper import TABLES
from zfscope.report.transfer import WAYS, Target

PAPER, OURS, STAND_IN = "#c9ced6", "#0b5fa5", "#e08a2e"
# Told apart by people who do not tell red from green. Source: Okabe & Ito (2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS = "osD^vP*X"
DASHES = {"pretrained": "-", "scratch": "--", "random_weights": ":"}


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


def transfers_figure(targets: Sequence[Target]) -> Image.Image:
    """Draw a panel for each data set: accuracy by training images per class, a curve for each network and way.

    Whiskers are the standard deviation over seeds, or over folds where there is one seed. A network has one colour and
    marker in all ways and panels; the line says the way, and the marker is filled where it was pretrained.

    Source: Zeiler & Fergus (2014), Fig. 9, has one network; the others are ours.
    """
    names = sorted({row.architecture for target in targets for row in target.rows})
    looks = {name: (COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]) for n, name in enumerate(names)}
    heights = [max(4.2, 0.9 + 0.3 * len(target.rows)) for target in targets]
    figure = Figure(figsize=(13.0, sum(heights) + 0.5), dpi=120, layout="constrained")
    panels = figure.subplots(len(targets), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, target in zip(panels, targets, strict=True):
        places = {size: float(np.log(size)) for size in target.sizes}  # few images lie as far apart as many
        beside = 0.008 * (max(places.values()) - min(places.values()) or 1.0)
        for number, row in enumerate(target.rows):
            colour, marker = looks[row.architecture]
            shift = (number - (len(target.rows) - 1) / 2) * beside
            panel.errorbar(
                [places[size] + shift for size in row.cells],
                [line.value for line in row.cells.values()],
                [line.spread or 0.0 for line in row.cells.values()],
                color=colour, marker=marker, linestyle=DASHES[row.way], capsize=3, linewidth=1.8, markersize=6,
                markerfacecolor=colour if row.way == "pretrained" else "white",
                label=f"{clipped(row.network, 60)}, {WAYS[row.way]}",
            )  # fmt: skip
        if target.chance is not None:
            panel.axhline(target.chance, color=GREY, linewidth=1)
            place = {"xycoords": ("axes fraction", "data"), "ha": "center", "va": "bottom", "color": GREY}
            panel.annotate("chance", (0.5, target.chance), **place)
        panel.set_title(f"to {clipped(target.data, 60)}; {target.protocol}", fontsize=12, loc="left", parse_math=False)
        panel.set_xticks(list(places.values()), [f"{size}" for size in places])
        panel.minorticks_off()
        panel.set_xlabel("training images per class")
        panel.set_ylabel("mean accuracy per class, %")
        panel.grid(axis="y", color="#e4e4e4")
        panel.set_axisbelow(True)
        open_axes(panel)
        legend = panel.legend(
            frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=10, handlelength=3.5
        )
        for text in legend.get_texts():
            text.set_parse_math(False)  # names come from runs
    stand_ins = all(row.stand_in for target in targets for row in target.rows)
    entitle(figure, "Transfer" + (": stand-ins, none comparable with the paper's numbers" if stand_ins else ""))
    return drawn(figure)
