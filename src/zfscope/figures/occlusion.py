"""Fig. 7: what a network says while a square slides over an image, on top of the image."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from zfscope.figures.canvas import EDGE, GREY, canvas, clipped, short, shortened
from zfscope.figures.fonts import LabelFont, one_line
from zfscope.images import grid, to_pil
from zfscope.occlusion.positions import spans
from zfscope.occlusion.sensitivity import Sensitivity

RAMP = (255 * colormaps["viridis"](np.linspace(0, 1, 256))[:, :3]).astype(np.float32)
# The target class is green wherever it is seen; Okabe & Ito's colours, told apart by colour-blind eyes too.
TARGET, OTHERS, REST = "#009e73", ("#e69f00", "#d55e00", "#56b4e9", "#cc79a7", "#0072b2", "#f0e442"), "#555555"
OPACITY = 0.55  # of colours over the image
SIDE, GAP, HEADING, BELOW = 224, 18, 24, 46  # pixels: shown side of an image, around it, above and below


def occlusion_panel(
    image: Tensor,
    sensitivity: Sensitivity,
    *,
    classes: Sequence[str] | None = None,
    projection: Tensor | None = None,
    others: tuple[Tensor, Tensor] | None = None,
    title: str = "",
    with_map: bool = True,
) -> Image.Image:
    """Draw one image with its occlusion maps as overlays, and what the strongest feature map responds to.

    ``image`` is the picture, uint8 ``(3, H, W)``; ``projection`` that map's strongest activation in it, a tile
    ``(3, H, W)``; ``others`` its strongest in other images, projections and patches, ``(k, 3, h, w)`` each. Without
    ``with_map``, of a network that has no feature maps, the panels (b) and (c) are left out.

    Returns:
        A picture: (a) the image with the square where the probability drops most; (b) the feature map's sum; (c) its
        projections; (d) the probability of the target class, from 0 to 1, or on its own scale where the square changes
        it by less than 0.1, as of a network that is very sure; (e) the most probable class. A position is
        coloured around the square's centre, a stride wide; where no centre comes, the image stays as it is. On each
        colour bar a mark stands at the value of the whole image.

    Source: Zeiler & Fergus (2014), Fig. 7. The square at the largest drop, the scale of (d) and the marks are ours.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise ValueError(f"image must be uint8 (3, H, W), but came as {image.dtype} {tuple(image.shape)}")
    heading, small = LabelFont(13), LabelFont(12)
    picture = np.asarray(to_pil(_shown(image)))
    height, width = picture.shape[:2]
    cells = [
        _cells(length, pixels, sensitivity.size, sensitivity.stride)
        for length, pixels in zip(image.shape[1:], (height, width), strict=True)
    ]
    grey = picture.mean(2, keepdims=True).repeat(3, 2)
    maps = sensitivity.occlusion
    target = _name(classes, sensitivity.target)

    labels, colours, entries = _legend(maps.label, sensitivity.target, classes)
    low, high = min(0.0, float(maps.activation.min())), max(float(maps.activation.max()), sensitivity.activation)
    least, most = _probability_scale(sensitivity)
    activation, probability = _ramp(maps.activation, low, high), _ramp(maps.probability, least, most)
    strongest = f"map {maps.feature_map}"
    square = _square(picture, height / image.shape[1], sensitivity)
    scale = (low, high, sensitivity.activation)
    columns = [
        (f"(a) {sensitivity.size} px square, largest drop", square, None),
        (f"(b) {sensitivity.layer}, {strongest}: sum", _overlay(grey, activation, cells), scale),
        (f"(d) probability of {target}", _overlay(grey, probability, cells), (least, most, sensitivity.probability)),
        ("(e) most probable class", _overlay(grey, colours[labels], cells), None),
    ]
    tiles = [] if projection is None else [(f"(c) {strongest}: projection", to_pil(_shown(projection)), None)]
    if others is not None and len(others[0]):
        names = "(c) from other images", "… and their patches"
        tiles += [(name, _tiled(batch, height, width), None) for name, batch in zip(names, others, strict=True)]
    columns[1:2] = [columns[1], *tiles] if with_map else []

    listed = max(small.getlength(text) for _, text in entries) + 20
    across = sum(max(drawn.width, 150) + GAP for _, drawn, _ in columns) + math.ceil(listed)
    differs = sensitivity.label != sensitivity.target
    answer = f", but most probable is {_name(classes, sensitivity.label)}" if differs else ""
    legend = (
        f"unoccluded: {target} {sensitivity.probability:.2f}{answer};   stride {sensitivity.stride} px;   "
        "colours lie where the square's centre was;   | on a scale: unoccluded"
    )
    legend += "" if (least, most) == (0, 1) else ";   (d) is on its own scale: it hardly changes"
    room = GAP + across, HEADING + height + BELOW
    figure, draw, top = canvas(*room, title, legend, margin=GAP)
    x, y = GAP, top + HEADING
    for name, shown, scale in columns:
        space = max(shown.width, 150)
        draw.text((x, y - 6), shortened(name, heading, space), "black", heading, anchor="ls")
        figure.paste(shown, (x, y))
        if scale is not None:
            _draw_scale(figure, draw, (x, y + shown.height + 8, shown.width), scale, small)
        x += space + GAP
    for row, (colour, text) in enumerate(entries):
        line = y + 18 * row
        draw.rectangle((x - 8, line + 2, x + 4, line + 14), tuple(_over(_rgb(colour), 127.5).astype(int).tolist()))
        draw.text((x + 10, line), text, "black", small)
    return figure


def _shown(image: Tensor) -> Tensor:
    """A picture enlarged by a whole number, or reduced, to about the side that is shown."""
    longer = max(image.shape[1:])
    if longer <= 1.35 * SIDE:
        times = max(1, round(SIDE / longer))
        return image.repeat_interleave(times, 1).repeat_interleave(times, 2)
    size = [max(1, round(length * SIDE / longer)) for length in image.shape[1:]]
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0]


def _cells(length: int, pixels: int, size: int, stride: int) -> np.ndarray:
    """Which position each shown pixel of a side belongs to, -1 where none: half-way to the neighbouring centres."""
    first, last = spans(length, size, stride)
    centres = ((first + last) / 2).numpy()
    middles = (centres[1:] + centres[:-1]) / 2
    edges = np.concatenate([[centres[0] - stride / 2], middles, [centres[-1] + stride / 2]])
    places = (np.arange(pixels) + 0.5) * length / pixels
    positions = np.searchsorted(edges, places, side="right") - 1
    return np.where(positions < len(centres), positions, -1)


def _overlay(grey: np.ndarray, colours: np.ndarray, cells: Sequence[np.ndarray]) -> Image.Image:
    """Colours ``(R, C, 3)`` over a grey picture ``(H, W, 3)``."""
    rows, columns = cells
    over = _over(colours[rows][:, columns], grey)
    inside = (rows >= 0)[:, None, None] & (columns >= 0)[None, :, None]
    return Image.fromarray(np.where(inside, over, grey).astype(np.uint8))


def _over(colours: np.ndarray, grey: np.ndarray | float) -> np.ndarray:
    return OPACITY * colours + (1 - OPACITY) * grey


def _ramp(values: Tensor, low: float, high: float) -> np.ndarray:
    """Values ``(R, C)`` as colours ``(R, C, 3)``; what is not finite is the lowest."""
    shares = (torch.nan_to_num(values.float(), low) - low) / max(high - low, 1e-12)
    return RAMP[(255 * shares.clamp(0, 1)).round().long().numpy()]


def _probability_scale(sensitivity: Sensitivity) -> tuple[float, float]:
    """The lowest and the highest value of the colours: 0 and 1, or what the square leaves of a probability that stays.

    A change below 0.001 stays invisible.
    """
    values = sensitivity.occlusion.probability.nan_to_num(sensitivity.probability)
    least = min(float(values.min()), sensitivity.probability)
    most = max(float(values.max()), sensitivity.probability)
    return (least, most) if 0.001 <= most - least < 0.1 else (0, 1)


def _legend(
    labels: Tensor, target: int, classes: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
    """For each position the row of its colour; the colours; what the legend says, most frequent first."""
    numbers, places, counts = labels.unique(return_inverse=True, return_counts=True)
    order = counts.argsort(descending=True, stable=True).tolist()
    free = iter(OTHERS)
    colours = [REST] * len(numbers)
    entries, rest = [], 0
    for row in order:
        number, share = int(numbers[row]), 100 * int(counts[row]) / labels.numel()
        colour = TARGET if number == target else next(free, None)
        if colour is None:
            rest += int(counts[row])
            continue
        colours[row] = colour
        entries.append((colour, f"{clipped(_name(classes, number), 20)}  {share:.0f} %"))
    if rest:
        entries.append((REST, f"others  {100 * rest / labels.numel():.0f} %"))
    return places.numpy(), np.stack([_rgb(colour) for colour in colours]), entries


def _name(classes: Sequence[str] | None, number: int) -> str:
    return one_line(str(classes[number])) if classes is not None and number < len(classes) else f"class {number}"


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32)


def _square(picture: np.ndarray, scale: float, sensitivity: Sensitivity) -> Image.Image:
    """The picture with the square's outline where it takes most of the probability."""
    shown = Image.fromarray(picture)
    row, column = divmod(int(sensitivity.drop.nan_to_num(-math.inf).argmax()), sensitivity.drop.shape[1])
    corner = column * sensitivity.stride, row * sensitivity.stride
    x, y, side = (scale * pixels for pixels in (*corner, sensitivity.size))
    # Both lines are within the picture, also at its edge.
    left, top = max(0, round(x) - 1), max(0, round(y) - 1)
    right = max(left + 2, min(round(x + side), shown.width - 1))
    bottom = max(top + 2, min(round(y + side), shown.height - 1))
    draw = ImageDraw.Draw(shown)
    draw.rectangle((left, top, right, bottom), outline="black")
    draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline="white")
    return shown


def _tiled(tiles: Tensor, height: int, width: int) -> Image.Image:
    """Tiles ``(k, 3, h, w)`` as a square grid that fits into a picture's size."""
    columns = math.ceil(math.sqrt(len(tiles)))
    side = min(height, width) // columns - 2
    size = [max(1, round(length * side / max(tiles.shape[2:]))) for length in tiles.shape[2:]]
    return to_pil(grid(F.interpolate(tiles, size, mode="bicubic", antialias=True), columns, 2, EDGE))


def _draw_scale(
    figure: Image.Image,
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int, int],
    scale: tuple[float, float, float],
    font: LabelFont,
) -> None:
    """A colour bar at ``(x, y, width)`` from the lowest to the highest value, with a mark at a third one."""
    x, y, width = place
    low, high, marked = scale
    ramp = np.broadcast_to(_over(RAMP, 127.5)[None], (10, 256, 3)).astype(np.uint8)
    figure.paste(Image.fromarray(ramp).resize((width, 10)), (x, y))
    place_of_mark = x + (width - 1) * (marked - low) / max(high - low, 1e-12)
    draw.line((place_of_mark, y - 4, place_of_mark, y + 13), "black", 2)
    for value, at, anchor in ((low, x, "la"), (high, x + width, "ra")):
        text = f"{value:.4f}" if 0 < high - low < 0.1 and 0 <= low <= high <= 1 else _number(value)
        draw.text((at, y + 14), text, GREY, font, anchor=anchor)


def _number(value: float) -> str:
    return "0" if value == 0 else "1" if value == 1 else ("-" if value < 0 else "") + short(abs(value))
