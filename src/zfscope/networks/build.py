"""From ``conf/model`` to a network with fresh weights."""

from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import nn

from zfscope.networks.chain import ConvNet
from zfscope.networks.hooked import TimmNetwork, TorchvisionNetwork
from zfscope.networks.network import Network
from zfscope.networks.spec import ConvLayer, DenseLayer, ModelConfig, PoolConfig
from zfscope.schema import check

CHAINS = ("alexnet", "vgg11", "vgg13", "vgg16", "vgg19")  # torchvision's networks that are layers one after another


def build_network(config: ModelConfig | Mapping[str, Any], num_classes: int, image_size: int) -> Network:
    """Build the network that ``conf/model`` describes, with fresh weights from torch's generator.

    Args:
        config: The ``model`` group: as composed by Hydra, as a dict, or checked.
        num_classes: Number of classes.
        image_size: Height and width of the network's input, in pixels.

    Raises:
        ValueError: For an unknown key, an impossible value or a kernel larger than its map.
    """
    if not isinstance(config, ModelConfig):
        config = check(ModelConfig, config)
    if config.source == "timm":
        return TimmNetwork(config.name, num_classes, image_size, config.layers)
    if config.source == "torchvision" and config.name not in CHAINS:
        return TorchvisionNetwork(config.name, num_classes, image_size, config.layers)
    chain = torchvision_chain(config.name) if config.source == "torchvision" else config.chain
    return ConvNet(chain, num_classes=num_classes, image_size=image_size, contrast=config.contrast, init=config.init)


def torchvision_chain(name: str) -> dict[str, ConvLayer | DenseLayer]:
    """Torchvision's AlexNet or a VGG, read off its modules as a chain of named layers.

    VGG's layers are ``conv1_1``, ``conv1_2``, … by block. torchvision's adaptive average pool is the
    identity at 224 px and is left out; its dropout stands before a layer, ours after the one below.
    """
    if name not in CHAINS:
        chains = ", ".join(CHAINS)
        raise ValueError(f"torchvision's {name!r} is no chain of conv, ReLU and pool; use {chains}")
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    chain: dict[str, ConvLayer | DenseLayer] = {}
    block, number = 1, 0
    for module in model.features:
        if isinstance(module, nn.Conv2d):
            number += 1
            layer = f"conv{number}" if name == "alexnet" else f"conv{block}_{number}"
            chain[layer] = ConvLayer.model_validate(
                {
                    "maps": module.out_channels,
                    "kernel_size": module.kernel_size[0],
                    "stride": module.stride[0],
                    "padding": module.padding[0],
                    "groups": module.groups,
                }
            )
        elif isinstance(module, nn.MaxPool2d):
            layer = list(chain)[-1]
            pool = PoolConfig.model_validate(
                {"kernel_size": module.kernel_size, "stride": module.stride, "ceil_mode": module.ceil_mode}
            )
            chain[layer] = chain[layer].model_copy(update={"pool": pool})
            if name != "alexnet":
                block, number = block + 1, 0
    chain["fc6"] = DenseLayer(units=4096, dropout=0.5)
    chain["fc7"] = DenseLayer(units=4096, dropout=0.5)
    chain["fc8"] = DenseLayer()
    return chain
