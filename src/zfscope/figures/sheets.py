"""Sheets of tiles: first-layer filters, projections beside patches, projections over the epochs."""

import math

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from zfscope.evolution import jumps
from zfscope.figures.canvas import EDGE, EMPTY, GREY, RED, canvas, draw_dead, short
from zfscope.figures.fonts import LabelFont
from zfscope.images import cross_out, enlarge, grid, to_pil, to_tiles
from zfscope.networks.layers import filter_rms

DEAD_SHARE = 0.01  # a filter is called dead below this share of the median RMS
SHEET_SIDE = 5900  # pixels; where hundreds of blocks can be laid out within it, they are


def filter_sheet(weight: Tensor, title: str = "") -> Image.Image:
    """Draw first-layer filters, all on one scale, so that a dominating filter and dead ones are seen.

    Filters are ``(C, C_in, h, w)``: RGB where ``C_in`` is 3, else the mean over ``C_in`` in grey. Below each stands its
    RMS, red for a dead filter (below 1 % of the median RMS); a filter with NaN or infinity is crossed out.

    Source: Zeiler & Fergus (2014), Fig. 6: first-layer filters without scaling each. RMS and marks are ours.
    """
    if weight.ndim != 4 or not weight.numel():
        raise ValueError(f"weight must be filters (C, C_in, h, w), at least one, but came with {tuple(weight.shape)}")
    weight = weight.detach().float().cpu()
    rms = filter_rms(weight)
    shown = weight if weight.shape[1] == 3 else weight.mean(dim=1, keepdim=True)
    broken = ~torch.isfinite(weight).flatten(1).all(dim=1)
    sound = shown[~broken]
    limit = float(sound.abs().amax()) if len(sound) else 0.0
    median = float(rms[~broken].median()) if len(sound) else 0.0

    tiles = cross_out(enlarge(to_tiles(shown, limit=limit), at_least=48), broken)
    columns = min(len(tiles), 16 if len(tiles) > 32 else 8)
    height, width = tiles.shape[2:]
    below, right = 18, 6
    sheet = to_pil(grid(tiles, columns, (below, right)))
    legend = f"one scale: black {-limit:.3g}, white {limit:.3g}; below: RMS, red if dead"
    figure, draw, top = canvas(sheet.width, sheet.height - below, title, legend, margin=right)
    figure.paste(sheet.crop((0, below, *sheet.size)), (0, top))  # the sheet begins with an empty strip
    small = LabelFont(11)
    for index, value in enumerate(rms.tolist()):
        row, column = divmod(index, columns)
        dead = value < DEAD_SHARE * median or value == 0
        text = f"{value:.3f}" if 0.01 <= value < 100 else f"{value:.1e}" if value else "0"
        place = right + column * (width + right) + width / 2, top + row * (height + below) + height + 2
        draw.text(place, text, RED if dead or broken[index] else "black", small, anchor="ma")
    return figure


def projection_sheet(
    maps: Tensor,
    patches: Tensor,
    projections: Tensor,
    values: Tensor,
    *,
    title: str = "",
    tile: int | None = None,
    columns: int | None = None,
) -> Image.Image:
    """Draw the projections of each feature map's strongest activations beside the image patches that caused them.

    ``maps (M,)`` are numbers, ``patches`` and ``projections`` uint8 tiles ``(M, k, 3, h, w)``, strongest activation
    first (a 0 of a projection is mid grey), ``values (M, k)`` the activations; one that is not above 0 is no winner.
    Tiles larger than ``tile`` pixels (longer side) are reduced to it, smaller ones enlarged by the nearest whole
    number; by default to about 96 pixels for 16 maps, 48 for hundreds. By default as many ``columns`` of blocks stand
    in a row as make the sheet hardly wider than high.

    Returns:
        A picture with a block for each map: above, its number and its strongest activation; projections left, patches
        right, row by row in ``ceil(sqrt(k))`` columns. A place without a winner is empty, a dead map says so. Of all
        tiles the same outermost pixels are left out where the projections have next to nothing: in a ResNet most of a
        receptive field.

    Source: Zeiler & Fergus (2014), Fig. 2: top 9 activations of a random subset of maps, projections left, patches
    right. Numbers, activations and what is said of dead maps are ours.
    """
    _check_sheet(maps, {"patches": patches, "projections": projections}, {"values": values}, tile)
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, but is {columns}")
    count, winners, _, height, width = patches.shape
    values = values.detach().double().cpu()
    missing = ~(values > 0)
    margin = _empty_margin(projections, ~missing)
    patches, projections = (_without(margin, tiles) for tiles in (patches, projections))
    height, width = patches.shape[3:]
    strongest = values.masked_fill(missing, -math.inf).amax(dim=1).tolist()

    height, width = _shown_size(height, width, tile or _tile_side(max(height, width), 2 * count * winners))
    across = math.ceil(math.sqrt(winners))
    down = math.ceil(winners / across)
    large = width >= 72
    gap, middle, room = (2, 8, 28) if large else (1, 5, 18)  # around tiles, between the two halves, between blocks
    above, font = (26, LabelFont(16)) if large else (20, LabelFont(13))
    names = [f"map {number}" for number in maps.tolist()]
    notes = [f"max {short(value)}" if value > 0 else "" for value in strongest]
    labels = max(font.getlength(name + "  " + note) for name, note in zip(names, notes, strict=True))
    half = across * (width + gap) + gap
    block_width = max(2 * half + middle, math.ceil(labels))
    block_height = above + max(down * (height + gap) + gap, above)  # "dead" needs a line of its own
    step_x, step_y = block_width + room, block_height + room // 2  # the number above sets rows apart already
    columns = min(columns or _balanced_columns(count, step_x, step_y), count)

    winner = f"{winners} strongest activations" if winners > 1 else "strongest activation"
    legend = f"{winner} of each map: left the projections (grey is 0, each on its own scale), right the image patches"
    size = columns * step_x + room, math.ceil(count / columns) * step_y + room // 2
    figure, draw, top = canvas(*size, title, legend, margin=room)
    for index, (name, note, value) in enumerate(zip(names, notes, strongest, strict=True)):
        row, column = divmod(index, columns)
        x, y = room + column * step_x, top + row * step_y
        draw.text((x, y + above - 7), name, "black", font, anchor="ls")
        draw.text((x + block_width, y + above - 7), note, GREY, font, anchor="rs")
        if not value > 0:
            draw_dead(draw, (x, y + above, x + block_width - 1, y + block_height - 1), font)
            continue
        for left, tiles in ((x, projections), (x + half + middle, patches)):
            shown = torch.full((across * down, 3, height, width), EMPTY, dtype=torch.uint8)
            shown[:winners][~missing[index]] = _resized(tiles[index].detach().cpu()[~missing[index]], height, width)
            # Grey lines, because a white patch on white paper would have no edge.
            figure.paste(to_pil(grid(shown, across, gap, EDGE)), (left, y + above))
    return figure


def evolution_sheet(
    maps: Tensor, epochs: list[int], projections: Tensor, values: Tensor, indices: Tensor, *, title: str = ""
) -> Image.Image:
    """Draw how the projection of each feature map's strongest activation changes over the epochs.

    A row for each of the maps ``(M,)``, a column for each of the E epochs. ``projections`` are uint8 tiles ``(M, E, 3,
    h, w)``, a 0 mid grey; ``values`` the activations and ``indices`` their images, ``(M, E)``. A red bar before a tile
    marks a jump: the strongest image is another than at the epoch before (at the last one where the map was alive).
    Where the activation is not above 0, NaN or missing, the map is dead, and the tile says so.

    Source: Zeiler & Fergus (2014), Fig. 4: the strongest activation over all training examples, projected, at epochs 1,
    2, 5, 10, 20, 30, 40, 64; sudden jumps come from a change of the strongest image. The bars are ours.
    """
    _check_sheet(maps, {"projections": projections}, {"values": values, "indices": indices}, None)
    count, moments, _, height, width = projections.shape
    if len(epochs) != moments:
        raise ValueError(f"epochs must name the {moments} epochs of the projections, but names {len(epochs)}")
    alive = (values.detach() > 0).cpu() & (indices >= 0).cpu()
    margin = _empty_margin(projections, alive)
    projections = _without(margin, projections)
    height, width = projections.shape[3:]
    jumped, alive = jumps(indices.cpu(), alive).tolist(), alive.tolist()

    height, width = _shown_size(height, width, _tile_side(max(height, width), count * moments))
    large = width >= 72
    gap, room, bar = (10, 28, 4) if large else (8, 18, 4)  # between tiles, around all, width of a mark
    font = LabelFont(16 if large else 13)
    line = 26 if large else 20
    names = [f"map {number}" for number in maps.tolist()]
    headers = [f"epoch {epoch}" for epoch in epochs]
    left = room + math.ceil(max(map(font.getlength, names))) + 2 * gap
    pitch = max(width, math.ceil(max(map(font.getlength, [*headers, "dead"])))) + gap
    step = max(height, line) + gap

    legend = "strongest activation of each map, projected (grey is 0, each on its own scale);   "
    size = left + moments * pitch - gap + room, line + count * step - gap + room
    figure, draw, top = canvas(*size, title, legend, margin=room, mark="before a tile: now another image (a jump)")
    for column, header in enumerate(headers):
        draw.text((left + column * pitch + width / 2, top + line - 8), header, "black", font, anchor="ms")
    for row, name in enumerate(names):
        y = top + line + row * step
        draw.text((left - 2 * gap, y + height / 2), name, "black", font, anchor="rm")
        shown = _resized(projections[row].detach().cpu(), height, width)
        for column in range(moments):
            x = left + column * pitch
            if not alive[row][column]:
                draw_dead(draw, (x, y, x + width - 1, y + height - 1), font)
                continue
            figure.paste(to_pil(shown[column]), (x, y))
            if jumped[row][column]:
                draw.rectangle((x - bar - 2, y, x - 3, y + height - 1), RED)
    return figure


def _check_sheet(maps: Tensor, tiles: dict[str, Tensor], tables: dict[str, Tensor], tile: int | None) -> None:
    """Refuse tiles ``(M, k, 3, h, w)`` and tables ``(M, k)`` that do not belong to the maps ``(M,)``."""
    if maps.ndim != 1 or not len(maps):
        raise ValueError(f"maps must number at least one feature map, shape (M,), but came with {tuple(maps.shape)}")
    first = next(iter(tiles.values())).shape
    for name, batch in tiles.items():
        if batch.ndim != 5 or batch.shape[0] != len(maps) or batch.shape[2] != 3 or not batch.numel():
            raise ValueError(
                f"{name} must have shape ({len(maps)}, k, 3, h, w) for {len(maps)} maps, but came with "
                f"{tuple(batch.shape)}"
            )
        if batch.dtype != torch.uint8:
            raise ValueError(f"{name} must be tiles of uint8, but came as {batch.dtype}")
        if batch.shape != first:
            raise ValueError(
                f"{' and '.join(tiles)} must have one shape, but have {tuple(first)} and {tuple(batch.shape)}"
            )
    for name, table in tables.items():
        if table.shape != first[:2]:
            raise ValueError(
                f"{name} must have shape {tuple(first[:2])} as the tiles have, but came with {tuple(table.shape)}"
            )
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be at least 1 pixel, but is {tile}")


def _empty_margin(projections: Tensor, shown: Tensor) -> int:
    """How many outermost pixels of square tiles hold 1 % of the magnitude of what is shown, on average, or less."""
    side = projections.shape[3]
    distance = (torch.arange(side) - (side - 1) / 2).abs()
    rings = ((side - 1) / 2 - torch.maximum(distance[:, None], distance)).long()  # 0 is the outermost
    strength, tiles = torch.zeros(side, side), 0
    for row, which in zip(projections, shown.cpu(), strict=True):
        if projections.shape[4] != side or not which.any():
            continue
        # 127 and 128 are zero.
        magnitude = (row.detach().cpu()[which].float() - 127.5).abs().sub_(1).clamp_min_(0).sum(1)
        strength += (magnitude / magnitude.sum((1, 2), keepdim=True).clamp_min(1)).sum(0)
        tiles += len(magnitude)
    share = torch.zeros(side).scatter_add_(0, rings.flatten(), strength.flatten()).cumsum(0) / max(1, tiles)
    return min(int((share <= 0.01).sum()), max(0, side // 2 - 8)) if tiles and share[-1] > 0 else 0


def _without(margin: int, tiles: Tensor) -> Tensor:
    return tiles[..., margin : tiles.shape[3] - margin, margin : tiles.shape[4] - margin]


def _tile_side(side: int, count: int) -> int:
    """Choose the shown side of ``count`` tiles of ``side`` pixels: the more there are, the smaller."""
    aim = round(min(96, max(48, 96 * (288 / count) ** 0.25)))  # 16 maps, 9 winners, projections and patches: 288
    most = aim * 4 / 3
    if side > most:
        return aim
    times = math.ceil(aim / side)
    return side * (times if side * times <= most else times - 1)


def _shown_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Size of a tile whose longer side is reduced to ``side``, or enlarged to about it by a whole number."""
    longer = max(height, width)
    times = max(1, round(side / longer)) if longer <= side else side / longer
    return max(1, round(height * times)), max(1, round(width * times))


def _resized(tiles: Tensor, height: int, width: int) -> Tensor:
    """Bring uint8 tiles ``(N, 3, h, w)`` to the shown size: repeated pixels when enlarged, smoothed when reduced."""
    if height >= tiles.shape[2] and width >= tiles.shape[3]:
        return enlarge(tiles, at_least=min(height, width))
    return F.interpolate(tiles, (height, width), mode="bicubic", antialias=True)


def _balanced_columns(count: int, width: int, height: int) -> int:
    """Choose how many blocks of one size stand in a row: a sheet hardly wider than high, few places left empty."""

    def cost(columns: int) -> tuple[float, float]:
        rows = math.ceil(count / columns)
        too_long = max(0, max(columns * width, rows * height) - SHEET_SIDE)
        return too_long, max(columns * width, 1.1 * rows * height) * (rows * columns / count) ** 2

    return min(range(1, count + 1), key=cost)
