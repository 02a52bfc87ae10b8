"""Fig. 8 and Table 1 as one picture: images with one part hidden after the other, and how alike features change."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from zfscope.figures.canvas import EDGE, RED, canvas, clipped, drawn
from zfscope.figures.fonts import LabelFont
from zfscope.images import enlarge, grid, to_pil

GAP, MARGIN, LINE = 6, 24, 26  # pixels around tiles, around all, of a line of text
CONTROLS = {
    "random": ("#8a8a8a", "random places (bar: 95 %)"),
    "on_object": ("#3b7dd8", "random places on the object"),
    "same_place": ("#c77f00", "a random place, the same in all images"),
}


def correspondence_sheet(
    pictures: Tensor, parts: Sequence[str], deltas: Mapping[str, Mapping[str, Tensor]], *, title: str = ""
) -> Image.Image:
    """Draw the images as the network sees them and, below, Delta of each part beside that of random masks.

    ``pictures`` show the image, each part hidden, a random place hidden; uint8 ``(R, P + 2, 3, h, w)``. ``deltas``
    holds by layer shares 0-1: ``part (P,)``, and ``random``, ``on_object``, ``same_place`` ``(P, masks)`` of masks of
    that part's sizes. A red mark is the part's Delta, a dot that of a random mask, a bar their middle 95 %.

    Source: Zeiler & Fergus (2014), Fig. 8 (the sheet) and Table 1 (the numbers); the dots are ours.
    """
    if not deltas or pictures.ndim != 5 or not len(pictures) or pictures.shape[1:3] != (len(parts) + 2, 3):
        raise ValueError(
            f"give one layer or more, and pictures (R, {len(parts) + 2}, 3, h, w) for {len(parts)} parts, not "
            f"{len(deltas)} layers and {tuple(pictures.shape)}"
        )
    names = ["image", *(clipped(part.replace("_", " "), 16) for part in parts), "random place"]
    tiles = enlarge(pictures.flatten(0, 1), at_least=140)
    tiles = to_pil(grid(tiles, len(names), GAP, EDGE))
    chart = _chart(names[1:-1], deltas, width=max(tiles.width, 900, 300 * len(deltas)))
    described = "a part hidden, or a random place of the first part's size"
    legend = f"{len(pictures)} images as the network sees them: {described}"
    width = max(tiles.width, chart.width) + 2 * MARGIN
    figure, draw, top = canvas(width, LINE + tiles.height + chart.height + MARGIN, title, legend, margin=MARGIN)
    font = LabelFont(15)
    pitch = (tiles.width - GAP) / len(names)
    for column, name in enumerate(names):
        draw.text((MARGIN + GAP + (column + 0.5) * pitch - GAP / 2, top + LINE - 8), name, "black", font, anchor="ms")
    figure.paste(tiles, (MARGIN, top + LINE))
    figure.paste(chart, (MARGIN, top + LINE + tiles.height + MARGIN // 2))
    return figure


def _chart(names: Sequence[str], deltas: Mapping[str, Mapping[str, Tensor]], width: int) -> Image.Image:
    """A panel for each layer: the parts' Delta in percent beside those of random masks of the same sizes."""
    figure = Figure(figsize=(width / 120, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(deltas), squeeze=False)[0]
    for axis, (layer, values) in zip(axes, deltas.items(), strict=True):
        for offset, (kind, (colour, label)) in zip((-0.08, 0.14, 0.36), CONTROLS.items(), strict=True):
            draws = 100 * values[kind].double()
            low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=1)
            places = torch.arange(len(names)) + offset
            axis.vlines(places, low, high, color=colour, linewidth=3, label=label)
            sideways = torch.linspace(-0.08, 0.08, draws.shape[1])  # dots side by side, the same at every drawing
            axis.scatter(
                (places[:, None] + sideways).flatten(), draws.flatten(), s=6, color=colour, alpha=0.45, linewidths=0
            )
        places = torch.arange(len(names)) - 0.3
        axis.scatter(places, 100 * values["part"], s=70, color=RED, marker="D", label="the part", zorder=3)
        axis.set_xticks(range(len(names)), names, parse_math=False)
        axis.set_xlim(-0.55, len(names) - 0.45)
        axis.set_title(layer, fontsize=11, parse_math=False)
        axis.grid(alpha=0.25, axis="y")
    axes[0].set_ylabel("mean feature sign change, %")
    columns = 4 if width >= 1100 else 2
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    return drawn(figure)
