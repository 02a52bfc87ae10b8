"""How much the projections of a run's winners are those of other maps, or of random weights.

Source: Mahendran & Vedaldi (2016) and Adebayo et al. (2018); see ``deconvnet.controls``.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from zfscope.activations import TopTable
from zfscope.analyses.spec import AtlasAnalysis, ProjectionsAnalysis
from zfscope.console import progress
from zfscope.deconvnet.controls import control_correlations
from zfscope.networks.chain import ConvNet
from zfscope.networks.network import evaluating
from zfscope.networks.spec import DenseLayer, InitConfig


def controls(
    network: ConvNet,
    tables: Mapping[str, TopTable],
    maps: Mapping[str, Tensor],
    read: Callable[[Sequence[int]], Tensor],
    options: ProjectionsAnalysis | AtlasAnalysis,
) -> dict[str, float]:
    """Mean correlation of true projections with those of another map and of random weights, by layer.

    Over ``options.controls`` winners of each layer, drawn at random; see ``deconvnet.controls``.
    """
    generator = torch.Generator().manual_seed(options.seed)
    convs = {name: network.spec[name] for name in network.layers_with_maps}
    with torch.random.fork_rng(devices=[]):
        # Filters of its own, but nothing above them: the dense layers are most of a network's memory.
        layers = {**convs, network.layers[-1]: DenseLayer()}
        randomised = ConvNet(layers, num_classes=1, image_size=network.image_size)
        torch.manual_seed(options.seed)
        randomised.initialise(InitConfig(scheme="he"))
    randomised.to(next(network.parameters()))
    means = {}
    for layer, table in tables.items():
        if layer not in convs:
            continue
        rows, ranks = ((table.indices >= 0) & (table.values > 0)).nonzero(as_tuple=True)
        drawn = torch.randperm(len(rows), generator=generator)[: options.controls]
        if not len(drawn):
            continue
        pieces = []
        batches = list(zip(*(index[drawn].split(options.batch_size) for index in (rows, ranks)), strict=True))
        for row, rank in progress(batches, f"Controls of {layer}"):
            images, sources = table.indices[row, rank].unique(return_inverse=True)
            with evaluating(network), torch.no_grad():
                trace = network.trace(read(images.tolist()).to(network.device), top=layer)
            positions = table.positions[row, rank]
            pieces.append(
                control_correlations(network, trace, layer, maps[layer][row], positions, sources, randomised, generator)
            )
        for name in pieces[0]:
            means[f"{layer}/{name}_correlation"] = float(torch.cat([piece[name] for piece in pieces]).nanmean())
    return means
