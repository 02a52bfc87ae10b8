"""Pairs of images side by side, most alike first, so that an eye can judge where copies end and likeness begins."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from zfscope.figures.canvas import EDGE, EMPTY, GREY, RED, canvas, shortened
from zfscope.figures.fonts import LabelFont

TILE, GAP, ROOM, LINE = 136, 4, 20, 17  # pixels: an image, between two of a pair, around a pair, a text line
COLUMNS = 4


@dataclass(frozen=True)
class Pair:
    """Two images, what they are called, how they correlate, and how many times nearer they are than others."""

    images: tuple[Image.Image, Image.Image]
    names: tuple[str, str]
    correlation: float
    nearer: float


def overlap_sheet(same: Sequence[Pair], others: Sequence[Pair], title: str, legend: str) -> Image.Image:
    """Draw pairs that count as copies of one image, then the most alike of those that do not.

    Under each pair stand its correlation, how many times nearer its images are than others, and both names, of which
    the end is kept where there is no room.
    """
    groups = [("Counted as copies", same, "black"), ("Not counted, the most alike", others, RED)]
    step = 2 * TILE + GAP + ROOM, TILE + 3 * LINE + ROOM // 2
    heights = [2 * LINE + max(-(-len(pairs) // COLUMNS) * step[1], LINE) for _, pairs, _ in groups]
    widest = min(max(len(same), len(others), 1), COLUMNS)
    figure, draw, top = canvas(widest * step[0] + ROOM, sum(heights) + ROOM // 2, title, legend, margin=ROOM)
    heading, small = LabelFont(14), LabelFont(11)
    for (text, pairs, colour), height in zip(groups, heights, strict=True):
        draw.text((ROOM, top + LINE + 6), text, colour, heading, anchor="ls")
        if not pairs:
            draw.text((ROOM, top + 2 * LINE + 4), "none", GREY, small, anchor="ls")
        for number, pair in enumerate(pairs):
            left = ROOM + number % COLUMNS * step[0]
            _draw_pair(figure, draw, pair, (left, top + 2 * LINE + number // COLUMNS * step[1]), small)
        top += height
    return figure


def _draw_pair(
    figure: Image.Image, draw: ImageDraw.ImageDraw, pair: Pair, place: tuple[int, int], font: LabelFont
) -> None:
    left, top = place
    for side, image in enumerate(pair.images):
        x = left + side * (TILE + GAP)
        draw.rectangle((x, top, x + TILE - 1, top + TILE - 1), (EMPTY,) * 3, (EDGE,) * 3)
        tile = _fitted(image)
        figure.paste(tile, (x + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
    width = 2 * TILE + GAP
    nearer = ">999" if pair.nearer > 999 else f"{pair.nearer:.0f}" if pair.nearer >= 9.95 else f"{pair.nearer:.1f}"
    lines = [f"r = {pair.correlation:.3f},  {nearer} times nearer", *pair.names]
    for number, line in enumerate(lines):
        colour = GREY if number else "black"
        draw.text((left, top + TILE + 3 + number * LINE), shortened(line, font, width, end=True), colour, font)


def _fitted(image: Image.Image) -> Image.Image:
    """The whole image, as large as its square allows; small ones are enlarged in whole pixels."""
    ratio = TILE / max(image.size)
    size = tuple(max(1, min(TILE, round(side * ratio))) for side in image.size)
    return image.resize(size, Image.Resampling.NEAREST if ratio >= 3 else Image.Resampling.LANCZOS)
