"""Where activations are, the pixels that they see, and cutting those out of images."""

from __future__ import annotations

import torch
from torch import Tensor

from zfscope.networks.chain import ConvNet
from zfscope.networks.geometry import ReceptiveField, field_of
from zfscope.networks.spec import DenseLayer


def strongest(feature_maps: Tensor, maps: Tensor, sources: Tensor | None = None) -> Tensor:
    """Position ``(P, 2)`` of the strongest activation of a feature map in an image; the first one in row-major order.

    Args:
        feature_maps: ``(N, C, h, w)``, or ``(N, C)`` of a dense layer, whose only position is (0, 0).
        maps: ``(P,)``.
        sources: Image of each, ``(P,)``; default: each its own.
    """
    sources = torch.arange(len(maps)) if sources is None else sources
    if feature_maps.ndim == 2:
        return torch.zeros(len(maps), 2, dtype=torch.int64)
    chosen = feature_maps[sources.to(feature_maps.device), maps.to(feature_maps.device)]
    return _cells(chosen.flatten(1).argmax(1).cpu(), feature_maps.shape[3])


def field_below_pool(network: ConvNet, layer: str) -> ReceptiveField:
    """Receptive field of the conv unit that a pooled activation's switch points to; of a dense layer the image."""
    steps = network.steps(layer)
    if isinstance(network.spec[layer], DenseLayer):
        return ReceptiveField(network.image_size, 0, 0)
    return field_of(steps[:-1] if steps[-1].kind == "pool" else steps)


def boxes_of(field: ReceptiveField, positions: Tensor) -> Tensor:
    """The pixels that units see: ``(P, 4)`` half-open ``(x0, y0, x1, y1)`` for positions ``(P, 2)`` (row, column)."""
    corners = field.offset + positions.flip(1) * field.stride
    return torch.cat([corners, corners + field.size], dim=1)


def cut(images: Tensor, boxes: Tensor, fill: float = 0) -> Tensor:
    """Cut a box out of each image.

    Args:
        images: ``(P, C, H, W)``.
        boxes: Of one size, ``(P, 4)``, half-open ``(x0, y0, x1, y1)`` in pixels; may overhang.
        fill: What stands outside the image.

    Returns:
        ``(P, C, h, w)``.
    """
    if not len(boxes):
        return images[:0]
    width, height = (boxes[0, 2:] - boxes[0, :2]).tolist()
    patches = images.new_full((*images.shape[:2], height, width), fill)
    _paste(images, torch.zeros(len(boxes), 2, dtype=torch.int64), patches, boxes[:, :2].flip(1).cpu())
    return patches


def _paste(windows: Tensor, corners: Tensor, targets: Tensor, origins: Tensor) -> None:
    """Copy windows ``(P, C, h, w)`` into targets ``(P, C, H, W)`` where they meet; the rest of the targets stays.

    ``corners`` and ``origins``, ``(P, 2)``, say where windows and targets begin, as (row, column) of one plane.
    """
    if windows.shape == targets.shape and torch.equal(corners, origins):
        targets.copy_(windows)
        return
    (height, width), (target_height, target_width) = windows.shape[2:], targets.shape[2:]
    for window, target, (row, column) in zip(windows, targets, (corners - origins).tolist(), strict=True):
        top, left = max(row, 0), max(column, 0)
        bottom, right = min(row + height, target_height), min(column + width, target_width)
        if top < bottom and left < right:
            target[:, top:bottom, left:right] = window[:, top - row : bottom - row, left - column : right - column]


def _cells(flat: Tensor, width: int) -> Tensor:
    """Flat indices ``(P,)`` as (row, column), ``(P, 2)``."""
    return torch.stack([flat // width, flat % width], dim=1)
