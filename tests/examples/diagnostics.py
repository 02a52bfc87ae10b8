"""Networks for diagnostics."""

import torch
from torch import nn

from zfscope.diagnostics import Diagnosis, filter_frequencies
from zfscope.figures import diagnostics_sheet
from zfscope.networks.chain import ConvNet
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig, PoolConfig


def drawn(**given):
    weight = torch.randn(40, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    ranges = {"conv1": torch.stack([torch.arange(40.0).sub(20).clamp_min(0), torch.zeros(40)])}
    parts = {
        **{"ranges": ranges, "first": "conv1", "filters": weight, "stride": 2},
        **{"frequencies": filter_frequencies(weight, 2), "missing": "why not"},
    }
    return diagnostics_sheet([Diagnosis("outputs/RUN", **{**parts, **given})])


def chain(seed=0, stride=2):
    torch.manual_seed(seed)
    layers = {
        "conv1": ConvLayer(maps=8, kernel_size=5, stride=stride, pool=PoolConfig()),
        "conv2": ConvLayer(maps=6, kernel_size=3, padding=1, norm=None),
        "fc3": DenseLayer(units=7, dropout=0.5),
        "fc4": DenseLayer(),
    }
    network = ConvNet(layers, num_classes=2, image_size=33, init=InitConfig(scheme="he"))
    nn.init.constant_(network.conv2.conv.bias[:2].detach(), -1e4)
    with torch.no_grad():
        network.conv1.conv.weight[3] *= 1e-5
    return network


def plain(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 6, 3, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1350, 2)),
    )
