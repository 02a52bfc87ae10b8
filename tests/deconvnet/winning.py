"""Small networks with preprocessing, and what wins in them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zfscope.deconvnet.winners import (
    TopActivationsHook,
)
from zfscope.networks.chain import ConvNet
from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig, PoolConfig

SIDE, COUNT = 21, 12

PICTURES = torch.randint(0, 256, (COUNT, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

MEAN = 255 * torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))

SCALE = torch.tensor([0.01, 0.02, 0.015])[:, None, None]


def read(indices):
    return ((PICTURES[torch.as_tensor(indices)].float() - MEAN) * SCALE).double()


def chain():
    """conv1 and conv2 see 3 and 15 pixels, conv3 more than the image; dropout makes training mode show."""
    torch.manual_seed(0)
    layers = {
        "conv1": ConvLayer(maps=5, kernel_size=3, stride=2, pool=PoolConfig()),
        "conv2": ConvLayer(maps=6, kernel_size=3, padding=1, norm=None),
        "conv3": ConvLayer(maps=4, kernel_size=3, padding=1, norm=None),
        "fc4": DenseLayer(units=7, dropout=0.5),
        "fc5": DenseLayer(),
    }
    return ready(ConvNet(layers, num_classes=3, image_size=SIDE, init=InitConfig(scheme="he")))


class Body(nn.Module):
    """Functional and in-place ReLUs, batch norm, a global pool; tokens ``(N, cells, C)`` on the way."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5)
        self.conv2, self.act = nn.Conv2d(5, 6, 3), nn.ReLU(inplace=True)
        self.pool, self.tokens, self.drop, self.head = nn.AdaptiveAvgPool2d(1), Tokens(), nn.Dropout(), nn.Linear(6, 3)

    def forward(self, images):
        maps = self.act(self.conv2(F.relu(self.norm(self.conv1(images)))))
        return self.head(self.drop(self.tokens(self.pool(maps)).mean(1)))


class Tokens(nn.Module):
    def forward(self, maps):
        return maps.flatten(2).transpose(1, 2)


def hooked():
    torch.manual_seed(0)
    body = Body()
    nn.init.uniform_(body.norm.running_var, 0.5, 2)
    return ready(HookedNetwork(body, ["norm", "act", "pool", "head"], image_size=SIDE))


def ready(network):
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, 0, 0.1)
    network.preprocessing = Preprocessing(SIDE, SIDE, MEAN, SCALE)
    return network.double().eval()


LAYERS = {chain: ["conv1", "conv2", "conv3", "fc4"], hooked: ["norm", "act", "pool", "head"]}

NETWORKS = pytest.mark.parametrize("make", [chain, hooked])


def mined(network, layers, k, batch_size=5):
    miner = TopActivationsHook(network, layers, k)
    with torch.no_grad():
        for miner.indices in torch.arange(COUNT).split(batch_size):
            network(read(miner.indices))
    miner.close()
    return miner.top.compute()


def hooks_of(module):
    return [each for each in module.modules() if each._forward_hooks or each._forward_pre_hooks]
