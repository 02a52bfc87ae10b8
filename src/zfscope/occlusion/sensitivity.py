"""What covering places of one image does to a network's answer, beside its answer to the image as it is.

Source: Zeiler & Fergus (2014), Sec. 4.2 and Fig. 7.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zfscope.deconvnet.choice import Choice
from zfscope.deconvnet.projection import project
from zfscope.images import as_rgb, contrast_limits, to_tiles
from zfscope.networks.hooked import as_network
from zfscope.networks.network import evaluating
from zfscope.occlusion.maps import Occlusion, occlude, top_layer
from zfscope.occlusion.passes import logits_of


@dataclass(frozen=True)
class Sensitivity:
    """An image's occlusion maps, and what the network says of the image as it is."""

    occlusion: Occlusion  # by position of the square
    target: int  # the class whose probability it holds
    probability: float  # of that class for the whole image, 0-1
    label: int  # the most probable class of the whole image
    activation: float  # the feature map's sum for the whole image
    layer: str  # whose map it is
    size: int  # side of the square, pixels
    stride: int  # between two positions, pixels

    @property
    def drop(self) -> Tensor:
        """How much of the target's probability each position takes, ``(R, C)``; below 0 where it adds some."""
        return self.probability - self.occlusion.probability


@torch.no_grad()
def look(
    network: nn.Module,
    image: Tensor,
    target: int | None = None,
    *,
    size: int | None = None,
    stride: int | None = None,
    fill: float = 0.0,
    layer: str | None = None,
) -> Sensitivity:
    """Slide a square over an image, and compare with the image as it is.

    Args:
        network: Any network or module, on the device to compute on; it runs in eval mode.
        image: A network input, ``(3, H, W)``.
        target: The class whose probability is followed; default: the most probable one of the whole image.
        size: Side of the square in pixels; default: 48 of 224 pixels, in proportion.
        stride: Between two positions in pixels; default: 16 of 224 pixels, in proportion.
        fill: Value inside the square, in network inputs: 0 is the mean grey.
        layer: Whose strongest map is followed; default: the last layer with maps (conv5).

    Raises:
        ValueError: As ``occlude`` does.
    """
    network = as_network(network, None if layer is None else [layer])
    image = network.as_input(image)
    with evaluating(network):
        trace = network.trace(image[None])
    if layer is None:
        layer = top_layer(network, trace)
    probabilities = F.softmax(logits_of(trace)[0].float(), dim=0).cpu()
    label = int(probabilities.argmax())
    side = min(image.shape[1:])
    size = max(1, round(side * 48 / 224)) if size is None else size
    stride = max(1, round(side * 16 / 224)) if stride is None else stride
    target = label if target is None else target
    occlusion = occlude(network, image, target, size=size, stride=stride, fill=fill, layer=layer)
    activation = float(trace.maps[layer][0, occlusion.feature_map].float().sum())
    return Sensitivity(occlusion, target, float(probabilities[target]), label, activation, layer, size, stride)


def projected(network: nn.Module, image: Tensor, layer: str, number: int, rule: Choice = "auto") -> Tensor:
    """The strongest activation of a layer's map ``number``, projected: a uint8 tile ``(3, H, W)``, 0 mid grey."""
    network = as_network(network, [layer])
    canvas = as_rgb(project(network, network.as_input(image[None]), layer, [number], rule=rule))
    return to_tiles(canvas, limit=contrast_limits(canvas))[0]
