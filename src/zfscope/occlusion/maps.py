"""Occlusion maps: what a network says while a grey square slides over an image.

Source: Zeiler & Fergus (2014), Sec. 4.2 and Fig. 7.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zfscope.networks.chain import ConvNet
from zfscope.networks.finite import check_finite, check_result
from zfscope.networks.hooked import as_network
from zfscope.networks.network import Network, Trace, evaluating
from zfscope.networks.spec import ConvLayer
from zfscope.occlusion.passes import FullPasses, _is_whole
from zfscope.occlusion.windows import WindowedPasses
from zfscope.schema import listed

FULL_PASS_SHARE = 0.9  # from this share of a full pass's multiply-adds on, windows do not pay


class _Default(str):
    """A layer that nobody named."""


CONV5 = _Default("conv5")


class Occlusion(NamedTuple):
    """What ``occlude`` measures: row ``r`` and column ``c`` belong to the square at ``(r * stride, c * stride)``."""

    probability: Tensor  # of the target class, (R, C), 0-1
    label: Tensor  # the most probable class, (R, C) int64
    activation: Tensor  # the activations of the feature map, summed over it, (R, C)
    feature_map: int  # which map of the layer that is


@torch.no_grad()
def occlude(
    network: nn.Module,
    image: Tensor,
    target: int,
    *,
    size: int = 48,
    stride: int = 16,
    fill: float | Tensor = 0.0,
    layer: str | None = CONV5,
    feature_map: int | None = None,
) -> Occlusion:
    """Slide a square over an image and note what the network makes of it.

    Along each axis its top left corner is at ``stride`` times 0 … ceil((H - size) / stride); at the border the square
    is clipped.

    Args:
        network: A chain of named layers goes window by window, any other module by batched full passes; all in eval
            mode.
        image: A network input, ``(3, H, W)``; a module that takes other channels has ``(C, H, W)``.
        target: The class whose probability is followed.
        size: Side of the square, pixels.
        stride: Its step, pixels.
        fill: What it is filled with, in units of the image (0 is the mean grey): a number, or one per colour, ``(3,)``.
        layer: Whose feature map is watched; a name from ``network.layers``, or the path of a submodule of any other
            module. None is the last layer with maps, and so is the default in a network without conv5.
        feature_map: Which one; default: the one with the largest sum in the unoccluded image.

    Raises:
        ValueError: For a square larger than the image, a step below 1, an unknown layer, class or map; for weights, an
            image or maps that hold NaN or infinity.

    Source: Zeiler & Fergus (2014), Sec. 4.2 and Fig. 7. The paper says neither size nor step nor grey value.
    """
    named = [] if layer is None or isinstance(layer, _Default) else [layer]
    network = as_network(network, named or None)
    network.check_head()
    _check_square(image, size, stride)
    image = network.as_input(image)
    check_finite(network, image)
    fill = torch.as_tensor(fill, dtype=image.dtype, device=image.device)
    if fill.shape not in ((), (3,)) or not bool(fill.isfinite().all()):
        raise ValueError(f"fill must be a finite number, or three of them, but is {fill.tolist()}")
    starts = [range(0, math.ceil((side - size) / stride) * stride + 1, stride) for side in image.shape[1:]]
    shape = [len(axis) for axis in starts]
    with evaluating(network):
        if layer is None or layer not in network.layers:
            layer = top_layer(network, network.trace(image[None]))
        passes: WindowedPasses | FullPasses | None = None
        if isinstance(network, ConvNet) and isinstance(network.spec[network.layers[0]], ConvLayer):
            passes = WindowedPasses(network, image, fill, size, layer)
            if passes.share(starts) > FULL_PASS_SHARE:
                passes = None
        if passes is None:
            passes = FullPasses(network, image, fill, size, layer)
        feature_map = passes.watch(target, feature_map)
        parts = []
        for where, logits, activation in passes.run(starts):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            probability = F.softmax(logits, dim=1)[:, target]
            parts.append([part.cpu() for part in (where, probability, logits.argmax(1), activation)])
    where, *values = (torch.cat(batches) for batches in zip(*parts, strict=True))
    check_result(torch.stack([values[0], values[2].to(values[0])]), network, "the occlusion maps")
    probability, label, activation = (value[where.argsort()].view(shape) for value in values)
    return Occlusion(probability, label, activation, feature_map)


def top_layer(network: Network, trace: Trace) -> str:
    """The last layer whose output is maps ``(N, C, h, w)``: conv5 of AlexNet and ZFNet."""
    layers = network.layers_with_maps
    spatial = [name for name in layers if isinstance(trace.maps[name], Tensor) and trace.maps[name].ndim == 4]
    if not spatial:
        dense = [name for name in network.layers if getattr(trace.maps.get(name), "ndim", 0) == 2]
        way_out = f"name another layer, such as layer={dense[-1]}" if dense else "name another layer"
        raise ValueError(f"none of {listed(layers or network.layers)} has feature maps (N, C, h, w); {way_out}")
    return spatial[-1]


def _check_square(image: Tensor, size: int, stride: int) -> None:
    """Refuse what cannot slide."""
    if image.ndim != 3:
        raise ValueError(f"image must be one network input (3, H, W), or (C, H, W), but is {tuple(image.shape)}")
    for name, value in (("size", size), ("stride", stride)):
        if not _is_whole(value) or value < 1:
            raise ValueError(f"{name} must be a whole number of pixels, 1 or more, but is {value!r}")
    if size > min(image.shape[1:]):
        height, width = image.shape[1:]
        raise ValueError(f"size={size} is larger than the image of {height}x{width} pixels; take a smaller square")
