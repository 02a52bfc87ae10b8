"""A map of images: a scatter by class, a grid of the images themselves, and who their neighbours are, by layer."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from zfscope.figures.canvas import GREY, canvas, clipped, drawn, entitle, open_axes
from zfscope.figures.fonts import LabelFont
from zfscope.images import grid, to_pil

# Apart for the colour-blind too: Okabe and Ito's, with Tol's for the last ones; the shape differs as well.
COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#332288", "#999933", "#882255", "#000000"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">")
NAMED = 20  # classes with a colour and a shape of their own; the others are grey
OTHER = "#b5b5b5"
CURVES = {"network": ("#0072b2", "o", "trained network"), "random_weights": ("#d55e00", "s", "random weights")}
FRAME, MARGIN = 2, 24  # pixels around an image of the grid, around all


class ClassStyle(NamedTuple):
    """How a class is drawn: its name in the legend, colour and marker, and which images belong to it."""

    name: str
    colour: str
    marker: str
    mask: np.ndarray  # (N,) bool


def class_styles(labels: np.ndarray, classes: Sequence[str]) -> list[ClassStyle]:
    """A colour and a shape for each class among ``labels (N,)``, in the order of ``classes``; all others together grey.

    Of more than 20 classes those with the most images have their own.
    """
    counts = np.bincount(labels, minlength=len(classes))
    named = np.sort(np.argsort(-counts, kind="stable")[: min(NAMED, int((counts > 0).sum()))])
    styles = [
        ClassStyle(
            f"{clipped(classes[number], 26)} ({counts[number]:,})",
            COLOURS[place % len(COLOURS)],
            MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
            labels == number,
        )
        for place, number in enumerate(named.tolist())
    ]
    rest = ~np.isin(labels, named)
    if rest.any():
        others = len(np.unique(labels[rest]))
        name = f"{others:,} other class{'es' if others > 1 else ''} ({rest.sum():,})"
        styles.insert(0, ClassStyle(name, OTHER, ".", rest))
    return styles


def embedding_figure(places: np.ndarray, labels: np.ndarray, classes: Sequence[str], *, title: str = "") -> Image.Image:
    """Draw a dot for each image at its place ``(N, 2)``, in the colour and shape of its class.

    ``labels (N,)`` are positions in ``classes``. The axes of a t-SNE mean nothing, so they have no numbers.
    """
    styles = class_styles(labels, classes)
    figure = Figure(figsize=(10.5, 8), dpi=140, layout="constrained")
    axis = figure.subplots()
    entitle(figure, title)
    size = float(np.clip(30_000 / len(places), 14, 90))
    order = np.random.RandomState(0).permutation(len(places))  # no class lies upon all others
    for style in styles:
        axis.scatter([], [], size + 25, style.colour, marker=style.marker, linewidths=0, label=style.name)
    for chunk in np.array_split(order, 20):
        for style in styles:
            own = places[chunk[style.mask[chunk]]]
            axis.scatter(*own.T, size, style.colour, marker=style.marker, linewidths=0.3, edgecolors="white")
    axis.set_aspect("equal", adjustable="datalim")
    axis.set(xticks=[], yticks=[], xlabel="t-SNE: near images are alike; directions and far distances mean nothing")
    axis.spines[:].set_color("#d0d0d0")
    legend = figure.legend(loc="outside right upper", frameon=False, title="class (images)", fontsize=10)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return drawn(figure)


def embedding_grid(
    tiles: Tensor, rows: int, columns: int, labels: np.ndarray, classes: Sequence[str], *, title: str = ""
) -> Image.Image:
    """Draw images in their cells, each in a frame of its class's colour, with the classes' names above.

    ``tiles`` are uint8 ``(rows * columns, 3, h, w)``, row by row; ``labels (rows * columns,)`` are positions in
    ``classes``.
    """
    count, _, height, width = tiles.shape
    if count != rows * columns or len(labels) != count:
        raise ValueError(f"{rows} x {columns} cells need as many tiles and labels, but have {count} and {len(labels)}")
    styles = class_styles(labels, classes)
    framed = torch.empty(count, 3, height + 2 * FRAME, width + 2 * FRAME, dtype=torch.uint8)
    for style in styles:
        colour = torch.tensor(ImageColor.getrgb(style.colour), dtype=torch.uint8).view(1, 3, 1, 1)
        framed[torch.from_numpy(style.mask)] = colour
    framed[:, :, FRAME:-FRAME, FRAME:-FRAME] = tiles
    picture = to_pil(grid(framed, columns, pad=1))
    legend = "each cell shows an image that lies near it on the map; the colour of its frame is its class"
    scale = min(2.5, max(1.0, picture.width / 1600))
    font = LabelFont(14 * scale)
    widths = [math.ceil(font.getlength(style.name) + 40 * scale) for style in styles]
    line, room = round(24 * scale), max(picture.width, *widths)
    corners, left, top = [], 0, 0
    for width in widths:
        if left and left + width > room:
            left, top = 0, top + line
        corners.append((left, top))
        left += width
    above = top + line + 8
    sheet, draw, start = canvas(room + 2 * MARGIN, above + picture.height + MARGIN, title, legend, margin=MARGIN)
    for style, (left, top) in zip(styles, corners, strict=True):
        _draw_class(draw, style, MARGIN + left, start + top, font, scale)
    sheet.paste(picture, (MARGIN, start + above))
    return sheet


def _draw_class(
    draw: ImageDraw.ImageDraw, style: ClassStyle, left: int, top: int, font: LabelFont, scale: float
) -> None:
    """A square of a class's colour and its name."""
    side = round(14 * scale)
    draw.rectangle((left, top + 3, left + side, top + 3 + side), style.colour)
    draw.text((left + side + 6 * scale, top), style.name, "black", font)


def neighbours_figure(
    layers: Sequence[str],
    shares: Mapping[str, np.ndarray],
    pixels: np.ndarray,
    *,
    chance: float,
    neighbours: int,
    title: str = "",
) -> Image.Image:
    """Draw how many of the nearest neighbours share the class, by layer, for trained and for random weights.

    ``shares`` are percent by ``network`` and ``random_weights``, ``(L, draws)``, NaN where a layer tells no images
    apart; ``pixels (draws,)`` and ``chance`` are percent as well. Bars are two standard errors over draws.
    """
    figure = Figure(figsize=(max(7.2, 1.6 + 0.75 * len(layers)), 5.0), dpi=130, layout="constrained")
    axis = figure.subplots()
    entitle(figure, title)
    places = np.arange(len(layers))
    told = " (bars: two standard errors)" if pixels.size > 1 else ""
    for number, (way, values) in enumerate(shares.items()):
        colour, marker, name = CURVES[way]
        mean, error = mean_and_error(values)
        style = {"color": colour, "marker": marker, "capsize": 4, "linewidth": 2}
        label = name + told * (number == 0)
        axis.errorbar(places + 0.06 * (number - 0.5), mean, np.nan_to_num(2 * error), label=label, **style)
    mean, error = mean_and_error(pixels[None])
    axis.axhline(mean[0], color="#444444", linestyle="--", label=f"pixels, {mean[0]:.3g} %")
    if np.isfinite(error[0]):
        axis.axhspan(mean[0] - 2 * error[0], mean[0] + 2 * error[0], color="#444444", alpha=0.15, linewidth=0)
    axis.axhline(chance, color=GREY, linestyle=":", label=f"chance, {chance:.3g} %")
    axis.set_xticks(places, [clipped(layer, 18) for layer in layers])
    if sum(len(layer) for layer in layers) > 70:
        axis.tick_params(axis="x", labelrotation=40)
    axis.set_xlabel("features of layer")
    nearest = "nearest neighbour" if neighbours == 1 else f"{neighbours} nearest neighbours"
    axis.set_ylabel(f"of the {nearest} in the same class, %")
    every = np.concatenate([*map(np.ravel, shares.values()), pixels, [chance]])
    low, high = np.nanmin(every), np.nanmax(every)
    axis.set_ylim(max(0, 10 * math.floor(low / 10 - 0.5)), min(102, 10 * math.ceil(high / 10 + 0.5)))
    axis.grid(axis="y", color="#e4e4e4")
    axis.set_axisbelow(True)
    open_axes(axis)
    axis.legend(frameon=False, loc="best")
    return drawn(figure)


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over the draws of each row, ``(L,)`` each; draws that are NaN are left out.

    The error is NaN where fewer than two draws are left, the mean where none is.
    """
    known = np.isfinite(values)
    count = known.sum(1)
    safe = np.where(known, values, 0)
    mean = np.where(count > 0, safe.sum(1) / np.maximum(count, 1), np.nan)
    squares = np.where(known, (values - mean[:, None]) ** 2, 0).sum(1)
    return mean, np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1) / np.maximum(count, 1)), np.nan)
