"""Where the occluder stands: its positions along a side, and what it hides there."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def spans(length: int, size: int, stride: int) -> tuple[Tensor, Tensor]:
    """First pixel of the square at each position along a side, and the pixel after its last, clipped to the image.

    ``length`` of the side, ``size`` of the square and ``stride`` between positions are pixels.
    """
    first = torch.arange(math.ceil((length - size) / stride) + 1) * stride
    return first.clamp_max(length), (first + size).clamp_max(length)


def hidden(mask: Tensor, size: int, stride: int) -> tuple[Tensor, Tensor]:
    """How much of an object the square hides at each position, and how much of the image: pixels, ``(R, C)`` each.

    ``mask`` says where the object is, ``(H, W)`` bool.
    """
    (top, bottom), (left, right) = (spans(length, size, stride) for length in mask.shape)
    sums = F.pad(mask.long().cumsum(0).cumsum(1), (1, 0, 1, 0))  # sums[y, x]: what lies above y and left of x
    upper, lower = sums[top], sums[bottom]
    objects = lower[:, right] - lower[:, left] - upper[:, right] + upper[:, left]
    return objects, (bottom - top)[:, None] * (right - left)
