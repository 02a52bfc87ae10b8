"""Networks that several tests of this room use."""

import pytest
import torch

from tests.conftest import composed
from tests.networks.saved import SIZE, fresh
from zfscope.networks.chain import ConvNet
from zfscope.networks.checkpoints import save_network
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.spec import ConvLayer, DenseLayer, PoolConfig


@pytest.fixture
def mini():
    """A small net with all that a chain can have: norms after and before a pool, groups, pools, dense layers."""
    torch.manual_seed(0)
    chain = {
        "conv1": ConvLayer(maps=6, kernel_size=7, stride=2, padding=1, pool=PoolConfig(), norm="after_pool"),
        "conv2": ConvLayer(maps=8, kernel_size=5, stride=2, pool=PoolConfig(), norm="before_pool", groups=2),
        "conv3": ConvLayer(maps=9, kernel_size=3, padding=1),
        "conv4": ConvLayer(maps=7, kernel_size=3, padding=1, norm="after_pool"),
        "conv5": ConvLayer(maps=5, kernel_size=3, padding=1, pool=PoolConfig()),
        "fc6": DenseLayer(units=11, dropout=0.5),
        "fc7": DenseLayer(units=12, dropout=0.5),
        "fc8": DenseLayer(),
    }
    return ConvNet(chain, num_classes=4, image_size=112).double().eval()


@pytest.fixture(scope="module")
def config():
    """zfnet_mini, smaller still."""
    small = [f"model.conv{number}.maps=8" for number in range(1, 6)] + ["model.fc6.units=16", "model.fc7.units=16"]
    return {"model": composed("model=zfnet_mini", *small)["model"]}


@pytest.fixture
def network(config):
    network = fresh(config).eval()
    network.classes = ("cat", "dog", "owl")
    mean = 255 * torch.rand(3, 72, 72)
    network.preprocessing = Preprocessing(72, SIZE, mean, torch.full((3, 1, 1), 0.5))
    return network


@pytest.fixture
def saved(network, config, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    save_network(network, config, path)
    return path
