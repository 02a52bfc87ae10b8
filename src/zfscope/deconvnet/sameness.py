"""Whether the projections of a map show their images: how much alike they are from image to image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zfscope.deconvnet.winners import random_subset
from zfscope.networks.network import Network

SAME = 0.9  # above this mean correlation a layer's projections are called the same for every image
PAIRS = 20  # of images, at the least
MAPS = 64  # of a layer, at the most


def sameness(projections: Tensor, boxes: Tensor, indices: Tensor, size: Sequence[int], seed: int = 0) -> float | None:
    """Mean correlation between projections of different images for the same map, each in its unit's own box.

    Args:
        projections: Of each map's winners, ``(M, k, 3, h, w)``, each cut to its box.
        boxes: Where they lie, half-open ``(x0, y0, x1, y1)`` in pixels, ``(M, k, 4)``; empty where there is nothing.
        indices: Of the images, ``(M, k)``; -1 where there is no winner.
        size: Height and width of the images, pixels.
        seed: Of the choice of ``MAPS`` maps, where a layer has more.

    Returns:
        -1 … 1, or None where fewer than ``PAIRS`` pairs lie within their images: boxes that overhang are left out,
        and so are units that see the whole image, whose places are not aligned.
    """
    height, width = size
    whole = (boxes[..., 2] - boxes[..., 0] >= width) & (boxes[..., 3] - boxes[..., 1] >= height)
    inside = (boxes[..., :2] >= 0).all(-1) & (boxes[..., 2] <= width) & (boxes[..., 3] <= height)
    inside &= ~whole & (boxes[..., 2] > boxes[..., 0])
    found = []
    for row in random_subset(len(projections), MAPS, seed).tolist():
        ranks = (inside[row] & (indices[row] >= 0)).nonzero()[:, 0]
        tiles = projections[row][ranks].flatten(1).double()
        tiles = tiles - tiles.mean(1, keepdim=True)
        alike = (tiles @ tiles.T) / (tiles.norm(dim=1)[:, None] * tiles.norm(dim=1)).clamp_min(1e-12)
        first, second = torch.triu_indices(len(ranks), len(ranks), 1)
        other = indices[row][ranks[first]] != indices[row][ranks[second]]
        found.append(alike[first[other], second[other]])
    pairs = torch.cat(found) if found else torch.empty(0)
    return float(pairs.mean()) if len(pairs) >= PAIRS else None


def told_same(network: Network, layer: str, value: float | None, shape: tuple[int, ...]) -> str:
    """What a title says of a layer whose projections of images of this ``shape (C, H, W)`` do not depend on them.

    ``value`` is their ``sameness``. The projection of a unit that sees no more than a first filter is that filter.
    """
    if value is None or value <= SAME:
        return ""
    first = next(iter(network.conv_modules.values()), None)
    is_filter = first is not None and network.field_below_pool(layer, shape).size == max(first.kernel_size)
    return ", the filter itself" if is_filter else ", the same for every image"
