"""How much of a projection is the feature's own: the same switches with another map, or with random weights."""

from __future__ import annotations

import torch
from torch import Tensor

from zfscope.deconvnet.boxes import boxes_of, field_below_pool
from zfscope.deconvnet.chain import ChainDeconvnet
from zfscope.networks.chain import ConvNet
from zfscope.networks.network import Trace


@torch.no_grad()
def control_correlations(
    network: ConvNet,
    trace: Trace,
    layer: str,
    maps: Tensor,
    positions: Tensor,
    sources: Tensor,
    randomised: ConvNet,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """How much of a projection is the feature's own, and how much the switches of its image make anyway.

    Two controls go down from the same cell of the same image with the same switches: another map of the layer, drawn at
    random, and the same map with random weights all the way down.

    Args:
        network: The chain that left the trace.
        trace: Up to ``layer`` at least.
        layer: A conv layer.
        maps: As for ``project_trace``, as are ``positions`` and ``sources``.
        positions: ``(P, 2)``.
        sources: ``(P,)``.
        randomised: A chain of the same layers with other weights.
        generator: Draws the other maps; on the CPU.

    Returns:
        ``other_map`` and ``random_weights``: Pearson's correlation of each control with the true projection over the
        pixels of its box, ``(P,)``; ``other_map_place`` and ``random_weights_place``: the same of their magnitudes,
        summed over colours, which asks only where there is something. NaN where one of the two is constant, or a
        layer has no other map.

    Source: Mahendran & Vedaldi (2016), "Salient deconvolutional networks", who found the switches and the architecture
    to matter more than the neuron; Adebayo et al. (2018) for random weights. The form of the controls is ours.
    """
    way = ChainDeconvnet(network, trace)
    cells = way.cells(layer, maps, positions, sources)
    boxes = boxes_of(field_below_pool(network, layer), cells)
    count = network.spec[layer].maps
    shifts = torch.randint(1, max(2, count), (len(maps),), generator=generator)
    ones = torch.ones(len(maps), dtype=trace.images.dtype, device=trace.images.device)
    true = way.carry(layer, ones, maps, cells, sources, boxes)
    other = way.carry(layer, ones if count > 1 else ones * torch.nan, (maps + shifts) % count, cells, sources, boxes)
    random = ChainDeconvnet(randomised, trace).carry(layer, ones, maps, cells, sources, boxes)
    found = {}
    for name, control in {"other_map": other, "random_weights": random}.items():
        found[name] = _correlation(true, control)
        found[f"{name}_place"] = _correlation(true.abs().sum(1), control.abs().sum(1))
    return found


def _correlation(these: Tensor, those: Tensor) -> Tensor:
    """Pearson's correlation of each pair of patches, ``(P,)``, in float64."""
    these, those = ((each - each.mean(1, keepdim=True)) for each in (x.flatten(1).double() for x in (these, those)))
    return (these * those).sum(1) / (these.norm(dim=1) * those.norm(dim=1))
