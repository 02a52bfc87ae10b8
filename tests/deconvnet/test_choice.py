"""Which rule a layer is drawn by with ``rule=auto``."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from tests.conftest import composed
from zfscope.deconvnet import project
from zfscope.deconvnet.choice import rule_for, told
from zfscope.networks.build import build_network
from zfscope.networks.hooked import HookedNetwork, TimmNetwork, as_network


def images(side=64):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def rules(network, layers=None, side=64):
    network = as_network(network, layers)
    return [rule_for(network, layer, images(side)) for layer in layers or network.layers]


@pytest.mark.parametrize("name", ["zfnet_mini", "zfnet", "alexnet"])
def test_the_papers_networks_are_drawn_by_the_deconvnet_throughout(name):
    size = 112 if name == "zfnet_mini" else 224
    with torch.device("meta"):
        network = build_network(composed(f"model={name}")["model"], 10, size)

    assert {rule_for(network, layer, torch.empty(0)) for layer in network.layers} == {"deconvnet"}


def test_so_are_vgg_and_squeezenet_also_below_their_first_pool():
    vgg = HookedNetwork(torchvision.models.vgg11(weights=None), ["features.0", "features.3", "features.18"])
    squeezenet = torchvision.models.squeezenet1_1(weights=None)
    layers = [f"features.{number}" for number in (0, 1, 3, 6, 12)]

    assert rules(vgg, list(vgg.layers)) == ["deconvnet"] * 3
    assert rules(squeezenet, layers) == ["deconvnet"] * 5


def test_a_resnet_is_up_to_its_first_stage():
    resnet = torchvision.models.resnet18(weights=None)

    assert rules(resnet, ["conv1", "layer1", "layer2", "layer3", "layer4"]) == ["deconvnet"] * 2 + ["guided"] * 3


def test_a_layer_has_one_rule_whatever_layers_are_looked_at_beside_it():
    resnet = torchvision.models.resnet18(weights=None).eval()
    inputs = images()

    assert rules(resnet, ["bn1", "layer3"]) == ["deconvnet", "guided"]
    assert rules(resnet, ["bn1"]) == ["deconvnet"]
    assert torch.equal(project(resnet, inputs, "bn1", [1, 2]), project(resnet, inputs, "bn1", [1, 2], rule="deconvnet"))


def test_what_cannot_be_run_for_gradients_above_a_layer_does_not_hinder_it():
    class Failing(nn.Module):
        def forward(self, maps):
            if maps.requires_grad:
                raise RuntimeError("no gradient for you")
            return maps

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Failing())

    assert rules(network, ["1"]) == ["guided"]


def test_overwriting_in_unpooling_is_the_deconvnets():
    torch.manual_seed(0)
    chain = build_network(composed("model=zfnet_mini")["model"], 10, 112).eval()
    inputs = images(112)
    without = composed("model=zfnet_mini")["model"]
    for layer in ("conv1", "conv2", "conv5"):
        without[layer] = without[layer] | {"pool": None}
    bare = build_network(without, 10, 112).eval()

    for network in (chain, bare):
        drawn = project(network, inputs, "conv2", [1, 2], unpooling="overwrite")
        assert torch.equal(drawn, project(network, inputs, "conv2", [1, 2], unpooling="overwrite", rule="deconvnet"))
    assert rule_for(bare, "conv2", inputs) == "guided"
    with pytest.raises(ValueError, match="unpooling='overwrite' needs a chain of named layers and rule='deconvnet'"):
        project(chain, inputs, "conv2", [1, 2], unpooling="overwrite", rule="guided")


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv2_035"])
def test_a_network_without_max_pools_is_not(name):
    network = TimmNetwork(name, 10, 64)

    assert set(rules(network)) == {"guided"}


def test_an_average_pool_above_a_max_pool_cuts_it_off():
    def conv(inputs):
        return nn.Sequential(nn.Conv2d(inputs, 4, 3, padding=1), nn.ReLU())

    network = nn.Sequential(conv(3), nn.MaxPool2d(2), conv(4), nn.AvgPool2d(2), conv(4), nn.MaxPool2d(2), conv(4))

    assert rules(network, ["0", "1", "2", "4", "6"]) == ["deconvnet", "deconvnet", "deconvnet", "guided", "deconvnet"]


def test_a_chain_whose_pools_were_removed_is_guided_above_a_stride():
    def chain(**pools):
        values = composed("model=zfnet_mini")["model"]
        for layer, pool in pools.items():
            values[layer] = values[layer] | {"pool": pool}
        return build_network(values, 10, 112)

    pool = composed("model=zfnet_mini")["model"]["conv1"]["pool"]
    assert set(rules(chain(conv1=None, conv2=None, conv5=None))) == {"guided"}
    found = rules(chain(conv1=pool, conv2=None, conv5=None))
    strides = [composed("model=zfnet_mini")["model"][f"conv{number}"]["stride"] for number in range(1, 6)]
    first = next(number for number, stride in enumerate(strides) if number and stride > 1)
    assert found[:first] == ["deconvnet"] * first and set(found[first:]) == {"guided"}


def test_auto_is_the_layers_own_rule():
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(weights=None).eval()
    inputs = images()

    for layer, own in {"layer1": "deconvnet", "layer3": "guided"}.items():
        drawn = {
            rule: project(resnet, inputs, layer, [1, 2], rule=rule) for rule in ("deconvnet", "guided", "gradient")
        }
        assert torch.equal(project(resnet, inputs, layer, [1, 2], rule="auto"), drawn[own])
        assert not torch.equal(drawn["deconvnet"], drawn["guided"])


def test_titles_name_every_rule_but_the_deconvnet():
    resnet = as_network(torchvision.models.resnet18(weights=None), ["layer1", "layer2"])

    assert [told(resnet, layer, images(), "auto") for layer in resnet.layers] == ["", ", rule guided"]
    assert told(resnet, "layer1", images(), "gradient") == ", rule gradient"


def test_a_rule_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match="no rule 'grad'; the rules are auto, deconvnet, guided, gradient"):
        project(timm.create_model("resnet18"), images(), "layer1", [0, 0], rule="grad")
