"""The figures, one function each: tensors in, a PIL picture out. No plotting state is kept between calls."""

import math

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zfscope.images import cross_out, enlarge, grid, to_pil, to_tiles
from zfscope.layers import filter_rms

DEAD_SHARE = 0.01  # a filter is called dead below this share of the median RMS


def filter_sheet(weight: Tensor, rms: Tensor | None = None, title: str = "") -> Image.Image:
    """Draw first-layer filters, all on one scale, so that a dominating filter and dead ones are seen.

    Args:
        weight: Filters, shape ``(C, C_in, h, w)``: RGB where ``C_in`` is 3, else the mean over ``C_in`` in grey.
        rms: RMS of each filter, shape ``(C,)``, written below it; computed where not given.
        title: Written above.

    Returns:
        A picture. The label of a dead filter (below 1 % of the median RMS) is red; a filter with NaN or infinity is
        crossed out.

    Raises:
        ValueError: If ``weight`` is no set of filters or ``rms`` has another length.

    Source: Zeiler & Fergus (2014), Fig. 6: first-layer filters without scaling each. RMS and marks are ours.
    """
    if weight.ndim != 4 or not weight.numel():
        raise ValueError(f"weight must be filters (C, C_in, h, w), at least one, but came with {tuple(weight.shape)}")
    weight = weight.detach().float().cpu()
    rms = filter_rms(weight) if rms is None else rms.detach().float().cpu()
    if rms.shape != weight.shape[:1]:
        raise ValueError(f"rms must hold one value for each of {len(weight)} filters, but came with {tuple(rms.shape)}")
    shown = weight if weight.shape[1] == 3 else weight.mean(dim=1, keepdim=True)
    broken = ~torch.isfinite(weight).flatten(1).all(dim=1)
    sound = shown[~broken]
    limit = float(sound.abs().amax()) if len(sound) else 0.0
    median = float(rms[~broken].median()) if len(sound) else 0.0

    tiles = cross_out(enlarge(to_tiles(shown, limit=limit), at_least=48), broken)
    columns = min(len(tiles), 16 if len(tiles) > 32 else 8)
    height, width = tiles.shape[2:]
    below, right, top = 18, 6, 44
    sheet = to_pil(grid(tiles, columns, (below, right)))
    heading, small = ImageFont.load_default(14), ImageFont.load_default(11)
    legend = f"one scale: black {-limit:.3g}, white {limit:.3g}; below: RMS, red if dead"
    room = max(heading.getlength(title), small.getlength(legend)) + 2 * right
    figure = Image.new("RGB", (max(sheet.width, math.ceil(room)), sheet.height + top - below), "white")
    figure.paste(sheet, (0, top - below))  # the sheet begins with an empty strip
    draw = ImageDraw.Draw(figure)
    draw.text((right, 5), title, "black", heading)
    draw.text((right, 25), legend, "#444444", small)
    for index, value in enumerate(rms.tolist()):
        row, column = divmod(index, columns)
        dead = value < DEAD_SHARE * median or value == 0
        text = f"{value:.3f}" if 0.01 <= value < 100 else f"{value:.1e}" if value else "0"
        place = right + column * (width + right) + width / 2, top + row * (height + below) + height + 2
        draw.text(place, text, "#b00020" if dead or broken[index] else "black", small, anchor="ma")
    return figure
