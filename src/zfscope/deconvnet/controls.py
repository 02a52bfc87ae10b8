"""How much of a projection is the feature's own: the same switches with another map, or with random weights."""

import torch
from torch import Tensor

from zfscope.deconvnet.boxes import boxes_of, conv_cells
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
    random, and the same map with random weights all the way down, those of ``randomised``. The trace reaches up to the
    conv layer at least; maps, positions and sources as for ``ChainDeconvnet.project``.

    Returns:
        ``other_map`` and ``random_weights``: Pearson's correlation of each control with the true projection over the
        pixels of its box, ``(P,)``; ``other_map_place`` and ``random_weights_place``: the same of their magnitudes,
        summed over colours. NaN where one of the two is constant, or a layer has no other map.

    Source: Mahendran & Vedaldi (2016), "Salient deconvolutional networks", who found the switches and the architecture
    to matter more than the neuron; Adebayo et al. (2018) for random weights. The form of the controls is ours.
    """
    deconvnet = ChainDeconvnet(network, trace)
    cells = conv_cells(trace, layer, maps, positions, sources)
    boxes = boxes_of(network.field_below_pool(layer), cells)
    count = network.spec[layer].maps
    shifts = torch.randint(1, max(2, count), (len(maps),), generator=generator)
    ones = torch.ones(len(maps), dtype=trace.images.dtype, device=trace.images.device)
    true = deconvnet.carry(layer, ones, maps, cells, sources, boxes)
    no_other = torch.nan if count == 1 else 1
    other = deconvnet.carry(layer, ones * no_other, (maps + shifts) % count, cells, sources, boxes)
    random = ChainDeconvnet(randomised, trace).carry(layer, ones, maps, cells, sources, boxes)
    correlations = {}
    for name, control in {"other_map": other, "random_weights": random}.items():
        correlations[name] = _correlation(true, control)
        correlations[f"{name}_place"] = _correlation(true.abs().sum(1), control.abs().sum(1))
    return correlations


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of each pair of patches, ``(P,)``, in float64."""
    first, second = (patches.flatten(1).double() for patches in (first, second))
    first, second = (values - values.mean(1, keepdim=True) for values in (first, second))
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))
