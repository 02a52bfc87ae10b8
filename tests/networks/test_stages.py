"""Which submodules of somebody's own module are looked into by default."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from zfscope.networks.hooked import HookedNetwork, as_network, stages


def torchvisions(name, **options):
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **options)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", "layer1 layer2 layer3 layer4"),
        ("resnet50", "layer1 layer2 layer3 layer4"),
        ("densenet121", "features.denseblock1 features.denseblock2 features.denseblock3 features.denseblock4"),
        ("convnext_tiny", "features.1 features.3 features.5 features.7"),
        ("shufflenet_v2_x0_5", "stage2 stage3 stage4"),
        ("mobilenet_v2", "features.1 features.5 features.9 features.13 features.17"),
        ("alexnet", "features.0 features.3 features.6 features.8 features.10"),
        ("vgg11", "features.0 features.6 features.11 features.13 features.18"),
        ("vit_b_16", "conv_proj"),
    ],
)
def test_a_deep_network_is_looked_into_by_its_stages_and_a_plain_one_by_its_convs(name, layers):
    network = HookedNetwork(torchvisions(name))

    assert network.layers == tuple(layers.split())
    assert network.layers_with_maps == network.layers


def test_branches_side_by_side_are_no_stages():
    network = torchvisions("googlenet", init_weights=False)

    assert stages(network) == []


@torch.no_grad()
def test_stages_are_found_inside_another_module_and_explicit_layers_stay():
    module = nn.ModuleDict({"backbone": torchvision.models.resnet18(), "head": nn.Linear(2, 2)})
    module.forward = lambda images: module["backbone"](images)

    network = as_network(module)
    sizes = [maps.shape[1:] for maps in network.eval().trace(torch.randn(1, 3, 64, 64)).maps.values()]

    assert network.layers == tuple(f"backbone.layer{number}" for number in (1, 2, 3, 4))
    assert sizes == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert as_network(module, ["backbone.conv1"]).layers == ("backbone.conv1",)


def test_a_network_without_convs_has_dense_layers_and_no_maps():
    network = HookedNetwork(nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 2)))

    assert network.layers == ("1", "3") and network.layers_with_maps == ()
    with pytest.raises(ValueError, match="Sequential has no conv layers; name the submodules"):
        HookedNetwork(nn.Sequential(nn.Flatten(), nn.ReLU()))


def test_stages_whose_channels_come_last_have_no_maps():
    body = timm.create_model("test_mambaout", num_classes=2)
    stages_named = [f"model.stages.{number}" for number in (0, 1)]

    network = HookedNetwork(nn.ModuleDict({"model": body}), [*stages_named, "model.stem.conv1", "model.head.fc"])

    assert network.channels_last == set(stages_named) and network.layers_with_maps == ("model.stem.conv1",)
    assert all(".conv" in layer for layer in HookedNetwork(body).layers)
