"""What every drawn sheet has: a title and a legend above, colours, and a place that says that there is nothing."""

import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from zfscope.figures.fonts import LabelFont, add_fallback_fonts, columns, one_line

RED, GREY = "#b00020", "#606060"  # what is wrong or has changed; notes
EMPTY, EDGE = 244, 208  # greys of a place with nothing to show and of lines around tiles; far from that of a 0
DASHED = (0, (4, 3))


def canvas(
    width: int, height: int, title: str, legend: str, *, margin: int, mark: str = ""
) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """Make a white picture with title and legend above room for ``width`` x ``height`` pixels.

    It is wider where title or legend need more. ``margin`` is left of the text, and at least as much right of it;
    ``mark`` follows the legend and says what a red bar means. Returns the picture, its drawing surface, and the row
    where the room begins.
    """
    scale = min(2.5, max(1.0, width / 1600))  # large sheets are looked at from further away
    heading, small = LabelFont(14 * scale), LabelFont(12 * scale)
    end = margin + small.getlength(legend)
    right = end + small.getlength(mark) + 8 * scale if mark else end
    top = round(44 * scale)
    needed = math.ceil(max(margin + heading.getlength(title), right) + margin)
    figure = Image.new("RGB", (max(width, needed), top + height), "white")
    draw = ImageDraw.Draw(figure)
    draw.text((margin, 5 * scale), title, "black", heading)
    draw.text((margin, 25 * scale), legend, "#444444", small)
    if mark:
        draw.rectangle((end, 26 * scale, end + 3 * scale, 37 * scale), RED)
        draw.text((end + 8 * scale, 25 * scale), mark, "#444444", small)
    return figure, draw, top


def draw_dead(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], font: LabelFont) -> None:
    """Fill a box (left, top, right, bottom; all inside) that has nothing to show, and say why."""
    draw.rectangle(box, (EMPTY,) * 3, (EDGE,) * 3)
    draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), "dead", RED, font, anchor="mm")


def shortened(text: str, font: LabelFont, width: float, *, end: bool = False) -> str:
    """As much of a text as fits into a width: its beginning, or its end (of a path, which tells images apart).

    Line breaks and undecodable bytes of a name, which no font can draw, are escaped, as in `clipped`.
    """
    text = one_line(text)
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength(text + "…") > width:
        text = text[1:] if end else text[:-1]
    return f"…{text}" if end else f"{text}…"


def clipped(text: str, most: int, *, end: bool = False) -> str:
    """A text of at most so many characters, escaped: its beginning, or its end. Wide characters count twice."""
    text = one_line(text)
    if columns(text) <= most:
        return text
    while len(text) > 1 and columns(text) >= most:
        text = text[1:] if end else text[:-1]
    return f"…{text}" if end else f"{text}…"


def entitle(figure: Figure, title: str, size: float = 12) -> None:
    """Write a title above a figure, in as many lines as it needs; a long path is broken."""
    most = int(figure.get_figwidth() * 72 / (0.56 * size))  # characters, of 0.56 times their height on average
    # To textwrap, which counts characters, a wide one is two.
    padded = "".join(c + "\0" * (columns(c) - 1) for c in one_line(title))
    lines = textwrap.wrap(padded, most, break_on_hyphens=False)
    figure.suptitle("\n".join(lines).replace("\0", ""), fontsize=size, parse_math=False)


def open_axes(axes: Axes) -> None:
    """Draw no lines above and to the right."""
    axes.spines[["top", "right"]].set_visible(False)


def short(value: float) -> str:
    """Write a positive number in a few characters."""
    return f"{value:.3g}" if 0.01 <= value < 999.5 else f"{value:.0f}" if 999.5 <= value < 99999.5 else f"{value:.1e}"


class Plot(Image.Image):
    """A matplotlib figure as a picture; ``save(file, "pdf")`` writes its lines and letters, not its pixels."""

    figure: Figure

    def save(self, fp: Any, format: str | None = None, **options: Any) -> None:
        """As Pillow's; as PDF with the letters of their fonts (Type 42) and no date, so that it can be compared."""
        if (format or Path(getattr(fp, "name", fp)).suffix[1:]).lower() != "pdf":
            return super().save(fp, format, **options)
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            self.figure.savefig(fp, format="pdf", metadata={"CreationDate": None})


def drawn(figure: Figure) -> Plot:
    """A matplotlib figure as a picture."""
    add_fallback_fonts(figure)
    agg = FigureCanvasAgg(figure)
    agg.draw()
    picture = Image.fromarray(np.asarray(agg.buffer_rgba())[..., :3].copy())
    picture.__class__, picture.figure = Plot, figure
    return picture
