"""Tensors as pictures: contrast on one scale or each on its own, grids of tiles, and tiles crossed out.

A tile is an image ``(C, H, W)`` with C = 1 or 3, uint8 in 0-255 once it can be shown.
"""

import math

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def to_tiles(values: Tensor, limit: float | Tensor | None = None) -> Tensor:
    """Turn signed values ``(N, C, H, W)`` into uint8 tiles: 0 is mid grey, the largest magnitude black or white.

    Args:
        values: Any range; NaN and infinity become mid grey, and do not set the scale.
        limit: The magnitude shown black or white, instead of the largest one of all tiles: a number, or one for each
            tile, ``(N,)``.

    Raises:
        ValueError: If ``values`` has another shape.
    """
    _check_tiles(values)
    values = torch.nan_to_num(values.detach().float().cpu(), 0.0, 0.0, 0.0)
    if limit is None:
        limit = values.abs().amax() if len(values) else 1.0
    limits = torch.as_tensor(limit, dtype=torch.float32).cpu()
    limits = limits.view(-1, 1, 1, 1) if limits.ndim else limits
    shares = (values / limits.clamp_min(torch.finfo(torch.float32).tiny)).clamp(-1, 1)
    return (127.5 + 127.5 * shares).round().to(torch.uint8)


def as_rgb(images: Tensor) -> Tensor:
    """Images or projections ``(N, C, H, W)`` in three channels: as they are, or their mean over ``C`` in all three."""
    return images if images.shape[1] == 3 else images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)


def contrast_limits(values: Tensor, share: float = 0.995) -> Tensor:
    """The magnitude, ``(N,)``, that all but a few of a tile's values stay below; 0 where a tile is all zero.

    A projection has a few strong pixels and many weak ones: scaled by its largest it is nearly all grey. ``share`` is
    of the values ``(N, C, H, W)`` that are not 0; the rest, at most a tenth of all magnitude, is black or white.
    """
    flat = values.detach().float().flatten(1).abs().cpu()
    beyond = ((1 - share) * (flat > 0).sum(1)).long()  # how many values lie above the limit
    largest = flat.topk(int(beyond.max()) + 1 if len(beyond) else 1, dim=1).values
    # Where a few values hold most of the magnitude, as in a ResNet's projections, clipping them would leave a blot.
    negligible = (largest.cumsum(1) <= 0.1 * flat.sum(1, keepdim=True)).sum(1)
    return largest.gather(1, torch.minimum(beyond, negligible)[:, None]).squeeze(1)


def enlarge(tiles: Tensor, at_least: int) -> Tensor:
    """Repeat pixels, the same whole number of times each way, until the shorter side has ``at_least`` pixels."""
    _check_tiles(tiles)
    times = math.ceil(at_least / max(1, min(tiles.shape[2:])))
    return tiles.repeat_interleave(times, 2).repeat_interleave(times, 3)


def cross_out(tiles: Tensor, mask: Tensor) -> Tensor:
    """A copy of uint8 tiles ``(N, C, H, W)`` with a black cross over each tile in ``mask``, ``(N,)`` bool."""
    _check_tiles(tiles)
    height, width = tiles.shape[2:]
    rows = torch.arange(height)
    columns = (rows * (width - 1) / max(1, height - 1)).round().long()
    crossed = tiles.clone()
    for column in (columns, width - 1 - columns):
        crossed[:, :, rows, column] = torch.where(mask.cpu()[:, None, None], 0, crossed[:, :, rows, column])
    return crossed


def grid(tiles: Tensor, columns: int, pad: int | tuple[int, int] = 2, background: int = 255) -> Tensor:
    """Lay out uint8 tiles ``(N, C, H, W)`` row by row.

    ``pad`` is the number of pixels after each tile, ``(below, right)`` or the same for both, and once above and left;
    ``background`` the grey value there, 0-255. ``(C, rows * (H + below) + below, columns * (W + right) + right)``.
    """
    _check_tiles(tiles)
    if columns < 1:
        raise ValueError(f"columns must be at least 1, but is {columns}")
    below, right = (pad, pad) if isinstance(pad, int) else pad
    count, channels, height, width = tiles.shape
    rows = math.ceil(count / columns)
    cells = F.pad(tiles, (0, right, 0, below), value=background)
    cells = torch.cat([cells, cells.new_full((rows * columns - count, *cells.shape[1:]), background)])
    cells = cells.view(rows, columns, channels, height + below, width + right).permute(2, 0, 3, 1, 4)
    picture = cells.reshape(channels, rows * (height + below), columns * (width + right))
    return F.pad(picture, (right, 0, below, 0), value=background)


def to_pil(image: Tensor) -> Image.Image:
    """Turn one uint8 tile or grid, shape ``(1 or 3, H, W)``, into an RGB picture."""
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.dtype != torch.uint8:
        raise ValueError(f"a picture is uint8 (1 or 3, H, W), but came as {image.dtype} {tuple(image.shape)}")
    return Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy())


def _check_tiles(tiles: Tensor) -> None:
    """Refuse what is no batch of tiles."""
    if tiles.ndim != 4 or tiles.shape[1] not in (1, 3):
        raise ValueError(f"tiles have shape (N, 1 or 3, H, W), but came with {tuple(tiles.shape)}")
