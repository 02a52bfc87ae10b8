"""Where activations are, the pixels that they see, and cutting those out of images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zfscope.networks.geometry import ReceptiveField
from zfscope.networks.network import Trace


def strongest(feature_maps: Tensor, maps: Tensor, sources: Tensor | None = None) -> Tensor:
    """Position ``(P, 2)`` of the strongest activation of a feature map in an image; the first one in row-major order.

    ``feature_maps`` are ``(N, C, h, w)``, or ``(N, C)`` of a dense layer, whose only position is (0, 0); ``maps`` and
    ``sources`` (which image; default: each its own) are ``(P,)``.
    """
    sources = torch.arange(len(maps)) if sources is None else sources
    if feature_maps.ndim == 2:
        return torch.zeros(len(maps), 2, dtype=torch.int64)
    chosen = feature_maps[sources.to(feature_maps.device), maps.to(feature_maps.device)]
    return _cells(chosen.flatten(1).argmax(1).cpu(), feature_maps.shape[3])


def conv_cells(trace: Trace, layer: str, maps: Tensor, positions: Tensor, sources: Tensor) -> Tensor:
    """The conv units ``(P, 2)`` behind activations: where their switches point; without a pool the positions.

    ``maps`` and ``sources`` (image of the trace) are ``(P,)``, ``positions`` ``(P, 2)`` (row, column).
    """
    if layer not in trace.switches:
        return positions
    switches = trace.switches[layer]
    address = (part.to(switches.device) for part in (sources, maps, *positions.unbind(1)))
    return _cells(switches[tuple(address)].cpu(), trace.widths[layer])


def boxes_of(field: ReceptiveField, positions: Tensor) -> Tensor:
    """The pixels that units see: ``(P, 4)`` half-open ``(x0, y0, x1, y1)`` for positions ``(P, 2)`` (row, column)."""
    corners = field.offset + positions.flip(1) * field.stride
    return torch.cat([corners, corners + field.size], dim=1)


def cut(images: Tensor, boxes: Tensor, fill: float = 0, sources: Tensor | None = None) -> Tensor:
    """Cut boxes out of images ``(N, C, H, W)``; ``fill`` stands outside of them. Patches ``(P, C, h, w)``.

    ``boxes`` are of one size, ``(P, 4)``, half-open ``(x0, y0, x1, y1)`` in pixels; they may overhang. ``sources
    (P,)`` says which image each is cut from (default: each its own).
    """
    if not len(boxes):
        return images[:0]
    width, height = (boxes[0, 2:] - boxes[0, :2]).tolist()
    patches = images.new_full((len(boxes), images.shape[1], height, width), fill)
    cut_from = images if sources is None else [images[source] for source in sources.tolist()]
    paste(cut_from, torch.zeros(len(boxes), 2, dtype=torch.int64), patches, boxes[:, :2].flip(1).cpu())
    return patches


def paste(windows: Tensor | Sequence[Tensor], corners: Tensor, targets: Tensor, origins: Tensor) -> None:
    """Copy windows, ``(P, C, h, w)`` or P of one size, into targets ``(P, C, H, W)`` where they meet.

    ``corners`` and ``origins``, ``(P, 2)``, say where windows and targets begin, as (row, column) of one plane.
    """
    if isinstance(windows, Tensor) and windows.shape == targets.shape and torch.equal(corners, origins):
        targets.copy_(windows)
        return
    (height, width), (target_height, target_width) = windows[0].shape[1:], targets.shape[2:]
    for window, target, (row, column) in zip(windows, targets, (corners - origins).tolist(), strict=True):
        top, left = max(row, 0), max(column, 0)
        bottom, right = min(row + height, target_height), min(column + width, target_width)
        if top < bottom and left < right:
            target[:, top:bottom, left:right] = window[:, top - row : bottom - row, left - column : right - column]


def _cells(flat: Tensor, width: int) -> Tensor:
    """Flat indices ``(P,)`` as (row, column), ``(P, 2)``."""
    return torch.stack([flat // width, flat % width], dim=1)


def image_of_each(images: Tensor, maps: Tensor, sources: Tensor | None) -> Tensor:
    """Which image each projection starts from, ``(P,)``; default: each its own."""
    wrong = maps.is_floating_point() or maps.is_complex() or maps.dtype == torch.bool or maps.ndim != 1
    if wrong or (sources is None and len(maps) != len(images)):
        raise ValueError(
            f"maps must be whole numbers, one for each of {len(images)} images, but are {maps.dtype} "
            f"{tuple(maps.shape)}"
        )
    return torch.arange(len(maps)) if sources is None else sources.cpu()


def check_maps(feature_maps: Tensor, layer: str, maps: Tensor) -> None:
    """Refuse maps that the layer has not."""
    count = feature_maps.shape[1]
    wrong = maps[(maps < 0) | (maps >= count)]
    if len(wrong):
        raise ValueError(f"layer {layer!r} has the maps 0 … {count - 1}; there is no map {int(wrong[0])}")


def check_positions(feature_maps: Tensor, layer: str, positions: Tensor, count: int) -> None:
    """Refuse positions outside the layer's maps."""
    if positions.shape != (count, 2) or positions.is_floating_point():
        raise ValueError(
            f"positions must be whole numbers (row, column), ({count}, 2), but are {positions.dtype} "
            f"{tuple(positions.shape)}"
        )
    size = torch.tensor([*feature_maps.shape[2:], 1, 1][:2])
    wrong = positions[((positions < 0) | (positions >= size)).any(1)]
    if len(wrong):
        raise ValueError(
            f"position {tuple(wrong[0].tolist())} lies outside the {size[0]}x{size[1]} maps of layer {layer!r}; "
            "rows and columns count from 0"
        )
