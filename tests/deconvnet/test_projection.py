"""What project() does by default, with other rules and networks, and what it refuses."""

import pytest
import torch
from torch import nn

from tests.deconvnet.random_networks import oracle, random_network, random_question
from zfscope import build_network
from zfscope.deconvnet.boxes import strongest
from zfscope.deconvnet.projection import project
from zfscope.networks.hooked import HookedNetwork


def test_the_strongest_activation_is_the_default_and_the_first_of_equals():
    network = random_network(5)
    layer = "conv1"
    images, maps, _ = random_question(network, layer, 5)
    feature_maps = network.features(images, layer)

    found = project(network, images, layer, maps)

    torch.testing.assert_close(found, project(network, images, layer, maps, strongest(feature_maps, maps)))
    assert strongest(torch.tensor([[[[0.0, 2], [2, 1]]]]), torch.tensor([0])).tolist() == [[0, 1]]


def test_a_dead_activation_projects_to_nothing():
    network = random_network(5)
    nn.init.zeros_(network.conv1.conv.weight)
    nn.init.constant_(network.conv1.conv.bias, -1.0)
    images, maps, positions = random_question(network, "conv1", 5)

    assert not project(network, images, "conv1", maps, positions).any()


def test_the_network_is_left_as_it_was():
    network = random_network(2).train()
    layer = network.layers[0]
    images, maps, positions = random_question(network, layer, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()

    project(network, images, layer, maps, positions)

    assert network.training and all(module.training for module in network.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["alexnet", "vgg11"])
def test_torchvisions_chains_are_projected_as_autograd_does(name):
    torch.manual_seed(0)
    network = build_network({"source": "torchvision", "name": name}, 10, 96).eval().double()
    layer = "conv5" if name == "alexnet" else "conv4_2"
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    maps = torch.tensor([3, 200])

    found = project(network, images, layer, maps)

    expected = oracle(network, images, layer, maps, None)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("rule", ["deconvnet", "guided", "gradient"])
def test_other_rules_go_by_autograd_and_the_deconvnet_agrees_with_it(rule):
    network = random_network(8, norms=False)
    layer = network.layers[-2]
    images, maps, positions = random_question(network, layer, 8)

    found = project(network, images, layer, maps, positions, rule=rule)

    hooked = HookedNetwork(network, [f"{layer}.linear" if layer == "fc8" else f"{layer}.relu"])
    torch.testing.assert_close(found, project(hooked, images, hooked.layers[0], maps, positions, rule=rule))


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"layer": "conv9"}, "no layer 'conv9'; the layers are conv1"),
        ({"maps": [0, 0, 0, 0, 6]}, r"layer 'conv1' has the maps 0 … 5; there is no map 6"),
        ({"maps": [0, 0, 0, 0, -1]}, "there is no map -1"),
        ({"maps": [0]}, "one feature map for each of 5 images"),
        ({"positions": torch.full((5, 2), 99)}, r"position \(99, 99\) lies outside the \d+x\d+ maps of layer 'conv1'"),
        ({"positions": torch.zeros(5, 2)}, "whole numbers"),
        ({"unpooling": "mean"}, "'sum' or 'overwrite'"),
        ({"rule": "lrp"}, "rule"),
    ],
)
def test_impossible_questions_are_refused_in_one_line(question, message):
    network = random_network(1)
    images, maps, positions = random_question(network, "conv1", 1)
    asked = {"layer": "conv1", "maps": maps, "positions": positions, **question}

    with pytest.raises(ValueError, match=message) as refusal:
        project(network, images, **asked)

    assert "\n" not in str(refusal.value)
