"""One activation of any network projected down to pixels: the choice between the chain and autograd.

Source: Zeiler & Fergus (2014), Sec. 2.1 and Fig. 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zfscope.deconvnet.autograd import project_backward
from zfscope.deconvnet.boxes import boxes_of, cut, strongest
from zfscope.deconvnet.chain import ChainDeconvnet, Rule, Unpooling
from zfscope.networks.chain import ConvNet
from zfscope.networks.fields import probe_field
from zfscope.networks.network import Network, Trace, evaluating


def project(
    network: Network,
    images: Tensor,
    layer: str,
    maps: Tensor | Sequence[int],
    positions: Tensor | None = None,
    *,
    unpooling: Unpooling = "sum",
    rule: Rule = "deconvnet",
    crop: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Carry one activation of each image down to pixels.

    All other activations of the layer are set to zero; then, layer by layer, the maps are unpooled with the switches
    of that image, rectified and filtered with the transposed filters, without biases. Contrast normalisation is
    skipped. The seed is the activation's own value.

    Args:
        network: A ``ConvNet`` goes down the explicit way; any other network by autograd, as does another ``rule``.
        images: Network inputs, ``(N, 3, H, W)``; an image that is wanted several times comes several times.
        layer: Name from ``network.layers``.
        maps: Feature map of each image, ``(N,)``.
        positions: ``(row, column)`` in the feature map, ``(N, 2)``; default: its strongest activation.
        unpooling: Where windows of a pool share their maximum, ``sum`` adds their values (the adjoint of pooling);
            ``overwrite`` keeps that of the last window in row-major order, be it zero. The seed always arrives.
        rule: ``guided`` (Springenberg et al., 2015) and ``gradient`` (Simonyan et al., 2014) are for comparison; they
            take the norm's own gradient, and the seed is the activation too.
        crop: Return only what an activation can reach, and where that is.

    Returns:
        Projections ``(N, 3, H, W)``; with ``crop`` patches ``(N, 3, h, w)`` and their boxes ``(N, 4)``, half-open
        ``(x0, y0, x1, y1)`` in pixels. A box may overhang the image; the patch is zero there.

    Raises:
        ValueError: For an unknown layer, map, position, rule, or a network that cannot be projected.

    Source: Zeiler & Fergus (2014), Sec. 2.1. The paper leaves open what happens where windows overlap, and whether
    the pooled map of a layer that pools is the one that is seeded; we take that one.
    """
    network.check_layer(layer)
    if unpooling not in ("sum", "overwrite"):
        raise ValueError(f"unpooling must be 'sum' or 'overwrite', but is {unpooling!r}")
    maps = torch.as_tensor(maps, dtype=torch.int64).cpu()
    if maps.shape != images.shape[:1]:
        raise ValueError(f"maps must name one feature map for each of {len(images)} images, but is {tuple(maps.shape)}")
    if isinstance(network, ConvNet) and rule == "deconvnet":
        with evaluating(network), torch.no_grad():
            trace = network.trace(images, top=layer)
            return project_trace(network, trace, layer, maps, positions, unpooling=unpooling, crop=crop)
    if unpooling != "sum":
        raise ValueError(f"unpooling={unpooling!r} needs a chain of named layers and rule='deconvnet'; autograd sums")
    canvases = project_backward(network, images, layer, maps, positions, rule=rule)
    if not crop:
        return canvases
    if positions is None:
        with evaluating(network), torch.no_grad():
            positions = strongest(network.features(images, layer), maps)
    boxes = boxes_of(probe_field(network, layer, images.shape[-1]), positions)
    return cut(canvases, boxes), boxes


@torch.no_grad()
def project_trace(
    network: ConvNet,
    trace: Trace,
    layer: str,
    maps: Tensor,
    positions: Tensor | None = None,
    *,
    sources: Tensor | None = None,
    unpooling: Unpooling = "sum",
    crop: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``project`` from a trace: any number of projections of each image, which went forward once.

    Args:
        network: The chain that left the trace.
        trace: Up to ``layer`` at least.
        layer: Name from ``network.layers``.
        maps: Feature map of each projection, ``(P,)``.
        positions: ``(P, 2)``, or None for the strongest activations.
        sources: Which image of the trace each projection starts from, ``(P,)``; default: each its own.
        unpooling: As for ``project``.
        crop: As for ``project``.

    Returns:
        ``(P, 3, H, W)``, or patches and boxes, as ``project`` gives them.
    """
    return ChainDeconvnet(network, trace, unpooling).project(layer, maps, positions, sources=sources, crop=crop)
