"""What is wrong with an architecture, two networks side by side. Source: Zeiler & Fergus (2014), Fig. 6."""

import math
import textwrap
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from zfscope.diagnostics import NOISE, Diagnosis, dead_maps, near_dead_maps
from zfscope.figures.canvas import DASHED, RED, canvas, drawn, open_axes, shortened
from zfscope.figures.fonts import LabelFont
from zfscope.images import enlarge, grid, to_pil, to_tiles

WIDTH, ROOM, LINE, GAP = 660, 28, 24, 3  # pixels: a network's column, around it, a heading, between tiles
LARGEST = 104  # pixels of a tile's longer side
BANDS = {"low": "#1b3a5c", "middle": "#e0a030", "high": "#b9cbd9"}
NEARLY, ALIVE = "#f0a0a8", "#e4e4e4"


def diagnostics_sheet(networks: Sequence[Diagnosis]) -> Image.Image:
    """Draw what ails one network, or in two side by side.

    From above, a column for each network: the first layer's filters on one scale; the projections of the second layer's
    strongest activations, each on its own scale; the share of each first filter's energy in low, middle and high
    frequencies, filters sorted by the low one; dead maps by layer.

    Source: Zeiler & Fergus (2014), Fig. 6 (b) to (e); the bars are ours.
    """
    columns = [_parts(diagnosis) for diagnosis in networks]
    # Parts of one kind begin at one height, so that they can be compared.
    heights = [max(picture.height for _, picture in row) for row in zip(*columns, strict=True)]
    size = len(columns) * (WIDTH + ROOM) + ROOM, sum(heights) + len(heights) * (LINE + ROOM // 2) + LINE
    title = "Diagnostics"
    legend = "filters: one scale for all of a network (grey is 0); projections: each on its own scale"
    figure, draw, top = canvas(*size, title, legend, margin=ROOM)
    name, heading = LabelFont(16), LabelFont(13)
    for column, (diagnosis, parts) in enumerate(zip(networks, columns, strict=True)):
        x, y = ROOM + column * (WIDTH + ROOM), top
        draw.text((x, y + LINE - 8), diagnosis.name, "black", name, anchor="ls")
        y += LINE
        for (text, picture), height in zip(parts, heights, strict=True):
            draw.text((x, y + LINE - 7), shortened(text, heading, WIDTH), "black", heading, anchor="ls")
            figure.paste(picture, (x, y + LINE))
            y += LINE + height + ROOM // 2
    return figure


def _parts(diagnosis: Diagnosis) -> list[tuple[str, Image.Image]]:
    """Heading and picture of each part; a part that cannot be says why."""
    if diagnosis.first is None:
        filters = bars = ("no conv layer", _blank())
    else:
        size = "x".join(map(str, diagnosis.filters.shape[2:]))
        shown = diagnosis.filters if diagnosis.filters.shape[1] == 3 else diagnosis.filters.mean(1, keepdim=True)
        scale = f"black and white at {float(shown.abs().amax()):.3g}"
        heading = f"{diagnosis.first}: {len(shown)} filters, {size}, stride {diagnosis.stride}; {scale}"
        filters = heading, _tiles(to_tiles(shown), 44)
        medians = ", ".join(f"{band} {100 * getattr(diagnosis.frequencies, band).nanmedian():.0f} %" for band in BANDS)
        beyond = 100 * diagnosis.frequencies.beyond_stride.nanmedian()
        heading = f"Energy of each filter; medians: {medians}; beyond what stride {diagnosis.stride} carries"
        bars = f"{heading} {beyond:.0f} %", _frequency_bars(diagnosis)
    if diagnosis.second is None:
        projected = (textwrap.shorten(diagnosis.missing, 100, placeholder=" …"), _blank())
    else:
        text = f"{diagnosis.second}: {len(diagnosis.tiles)} of {diagnosis.scored} projected maps{diagnosis.rule}"
        if diagnosis.grids:
            score = ", ".join(f"{at.score:.2f} at {period} px" for period, at in diagnosis.grids.items())
            chance = ", ".join(f"{at.chance:.2f}" for at in diagnosis.grids.values())
            text += f"; grid score of these {diagnosis.scored}: {score} (by chance {chance})"
        projected = (text, _tiles(diagnosis.tiles, 72))
    return [filters, projected, bars, ("Dead maps by layer", _dead_bars(diagnosis))]


def _tiles(tiles: Tensor, at_least: int) -> Image.Image:
    """Tiles in rows that fill the column, all pixels of one size; tiles larger than 104 pixels are reduced to that."""
    longer = max(tiles.shape[2:])
    if longer > LARGEST:
        size = [max(1, round(side * LARGEST / longer)) for side in tiles.shape[2:]]
        tiles = F.interpolate(tiles.float(), size, mode="bilinear", antialias=True).round().clamp(0, 255).byte()
    tiles = enlarge(tiles, min(at_least, LARGEST * min(tiles.shape[2:]) // max(tiles.shape[2:])))
    rows = math.ceil(len(tiles) / ((WIDTH - GAP) // (tiles.shape[3] + GAP)))
    return to_pil(grid(tiles, math.ceil(len(tiles) / rows), GAP))


def _frequency_bars(diagnosis: Diagnosis) -> Image.Image:
    """A column for each filter, low frequencies at the bottom; dashed, where those of white noise would end."""
    shares = {band: getattr(diagnosis.frequencies, band).nan_to_num(0.0) for band in BANDS}
    order = shares["low"].argsort(descending=True)
    figure, axes = _axes(170)
    places, bottom = range(len(order)), torch.zeros(len(order))
    for band, colour in BANDS.items():
        values = shares[band][order]
        axes.bar(places, values.numpy(), 0.92, bottom.numpy(), color=colour, label=band)
        bottom = bottom + values
    for level in (NOISE["low"], NOISE["low"] + NOISE["middle"]):
        axes.axhline(level, color="white", linewidth=0.9)  # black alone is lost on the dark bars
        axes.axhline(level, color="black", linewidth=0.9, linestyle=DASHED)
    axes.set(xlim=(-0.6, len(order) - 0.4), ylim=(0, 1), ylabel="share of energy", xlabel="filters, sorted")
    axes.set_xticks([])
    handles, labels = axes.get_legend_handles_labels()
    dashed = axes.plot([], [], color="black", linewidth=0.9, linestyle=DASHED)[0]
    waves = {"low": "waves > 8 px", "middle": "4 to 8 px", "high": "< 4 px"}
    labels = [f"{label} ({waves[label]})" for label in labels]
    labels.append("ends of low and middle in white noise")
    sizes = {"fontsize": 8, "columnspacing": 1.2, "handlelength": 1.6, "handletextpad": 0.5}
    figure.legend([*handles, dashed], labels, loc="upper center", ncols=4, frameon=False, **sizes)
    figure.subplots_adjust(left=0.09, right=0.995, top=0.83, bottom=0.11)
    return drawn(figure)


def _dead_bars(diagnosis: Diagnosis) -> Image.Image:
    """A bar for each layer: all its maps, from the left the dead and the nearly dead ones."""
    if not diagnosis.ranges:
        return _blank()
    figure, axes = _axes(34 + 22 * len(diagnosis.ranges))
    rows = list(diagnosis.ranges)
    for row, layer in enumerate(rows):
        ranges = diagnosis.ranges[layer]
        count = ranges.shape[1]
        dead, nearly = int(dead_maps(ranges).sum()), int(near_dead_maps(ranges).sum())
        left = 0.0
        for number, colour in ((dead, RED), (nearly, NEARLY), (count - dead - nearly, ALIVE)):
            axes.barh(row, number / count, 0.72, left, color=colour)
            left += number / count
        axes.text(1.01, row, f"{dead} dead, {nearly} nearly, of {count}", va="center", fontsize=8)
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    figure.subplots_adjust(left=0.11, right=0.74, top=0.98, bottom=24 / (34 + 22 * len(rows)))
    return drawn(figure)


def _axes(height: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=100)
    axes = figure.add_subplot()
    axes.tick_params(labelsize=8, length=2)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    open_axes(axes)
    return figure, axes


def _blank() -> Image.Image:
    return Image.new("RGB", (WIDTH, 1), "white")
