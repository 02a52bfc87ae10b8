"""One activation of any network projected down to pixels; the only choice between the chain and autograd.

Source: Zeiler & Fergus (2014), Sec. 2.1 and Fig. 1.
"""

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor, nn

from zfscope.deconvnet.autograd import AutogradDeconvnet
from zfscope.deconvnet.chain import ChainDeconvnet, Unpooling
from zfscope.deconvnet.choice import Choice, rule_for
from zfscope.networks.chain import ConvNet
from zfscope.networks.finite import check_finite, check_result
from zfscope.networks.hooked import as_network
from zfscope.networks.network import Network, evaluating


@overload
def project(
    network: nn.Module,
    images: Tensor,
    layer: str,
    maps: Tensor | Sequence[int],
    positions: Tensor | None = None,
    *,
    unpooling: Unpooling = "sum",
    rule: Choice = "auto",
    crop: Literal[False] = False,
) -> Tensor: ...
@overload
def project(
    network: nn.Module,
    images: Tensor,
    layer: str,
    maps: Tensor | Sequence[int],
    positions: Tensor | None = None,
    *,
    unpooling: Unpooling = "sum",
    rule: Choice = "auto",
    crop: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def project(
    network: nn.Module,
    images: Tensor,
    layer: str,
    maps: Tensor | Sequence[int],
    positions: Tensor | None = None,
    *,
    unpooling: Unpooling = "sum",
    rule: Choice = "auto",
    crop: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...
def project(
    network: nn.Module,
    images: Tensor,
    layer: str,
    maps: Tensor | Sequence[int],
    positions: Tensor | None = None,
    *,
    unpooling: Unpooling = "sum",
    rule: Choice = "auto",
    crop: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Project one activation of each image down to pixels.

    All other activations of the layer are set to zero; then, layer by layer, the maps are unpooled with the switches
    of that image, rectified and filtered with the transposed filters, without biases. Contrast normalisation is
    skipped. The seed is the activation's own value.

    Args:
        network: A ``ConvNet`` is projected layer by layer; any other module by autograd, as is any other ``rule``; all
            in eval mode.
        images: Network inputs, ``(N, 3, H, W)``; an image that is wanted several times comes several times.
        layer: Name from ``network.layers``; of any other module the path of a submodule.
        maps: Feature map of each image, ``(N,)``.
        positions: ``(row, column)`` in the feature map, ``(N, 2)``; default: its strongest activation.
        unpooling: Where windows of a pool share their maximum, ``sum`` adds their values (the adjoint of pooling);
            ``overwrite`` keeps that of the last window in row-major order, be it zero. The seed always arrives.
        rule: ``deconvnet``, ``guided`` (Springenberg et al., 2015) or ``gradient`` (Simonyan et al., 2014), which takes
            any network. ``auto`` is ``deconvnet`` where the layer's switches tell images apart, else ``guided`` (see
            ``choice.rule_for``); with ``unpooling='overwrite'`` it is ``deconvnet``. The last two of the three take the
            norm's own gradient, and the seed is the activation too.
        crop: Return only what an activation can reach, and where that is.

    Returns:
        Projections ``(N, 3, H, W)``; with ``crop`` patches ``(N, 3, h, w)`` and their boxes ``(N, 4)``, half-open
        ``(x0, y0, x1, y1)`` in pixels. A box may overhang the image; the patch is zero there. The box of a unit is the
        same whatever the rule.

    Raises:
        ValueError: For an unknown layer, map, position, rule, or a network that cannot be projected; for weights,
            images or projections that hold NaN or infinity.

    Source: Zeiler & Fergus (2014), Sec. 2.1. The paper leaves open what happens where windows overlap, and whether
    the pooled map of a layer that pools is the one that is seeded; we take that one.
    """
    network = as_network(network, [layer])
    maps = torch.as_tensor(maps, dtype=torch.int64).cpu()
    if maps.shape != images.shape[:1]:  # before a forward pass
        raise ValueError(f"maps must name one feature map for each of {len(images)} images, but is {tuple(maps.shape)}")
    check_finite(network, images)
    deconvnet = deconvnet_of(network, images, layer, unpooling=unpooling, rule=rule)
    projections = deconvnet.project(layer, maps, positions, crop=crop)
    check_result(projections[0] if isinstance(projections, tuple) else projections, network, "the projections")
    return projections


def deconvnet_of(
    network: Network,
    images: Tensor,
    top: str,
    *,
    unpooling: Unpooling = "sum",
    rule: Choice = "auto",
    batch_size: int | None = None,
) -> ChainDeconvnet | AutogradDeconvnet:
    """What projects activations of some images; both kinds are called alike, ``.project(layer, maps, …)``.

    ``top`` is the highest layer that will be projected, and ``auto`` is its rule; ``batch_size`` is the number of
    projections that go down together by autograd (default: all); the rest as for ``project``.
    """
    if unpooling not in ("sum", "overwrite"):
        raise ValueError(f"unpooling must be 'sum' or 'overwrite', but is {unpooling!r}")
    rule = rule_for(network, top, images, rule, unpooling)
    if isinstance(network, ConvNet) and rule == "deconvnet":
        with evaluating(network), torch.no_grad():
            return ChainDeconvnet(network, network.trace(images, top=top), unpooling)
    if unpooling != "sum":
        raise ValueError(f"unpooling={unpooling!r} needs a chain of named layers and rule='deconvnet'; autograd sums")
    return AutogradDeconvnet(network, images, rule, batch_size)
