"""Projection by autograd leaves the network as it was, and refuses what cannot be."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.deconvnet.oracles import RULES, network_with, plain, project_by_autograd, random_images, seeded
from zfscope.networks.hooked import HookedNetwork


def test_compiled_network_follows_the_rule_too():
    body, images, maps = seeded(plain), random_images(), torch.tensor([0, 2, 4])
    expected = project_by_autograd(HookedNetwork(body, ["6"]), images, "6", maps)
    compiled = torch.compile(copy.deepcopy(body), backend="eager")
    compiled(images.requires_grad_())

    projections = project_by_autograd(HookedNetwork(nn.Sequential(compiled), ["0.6"]), images, "0.6", maps)

    torch.testing.assert_close(projections, expected)


def state_of(network):
    return {
        "modes": [module.training for module in network.modules()],
        "needed": [parameter.requires_grad for parameter in network.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone().tolist() for p in network.parameters()],
        "buffers": {name: tensor.tolist() for name, tensor in network.state_dict().items()},
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()],
        "global hooks": len(nn.modules.module._global_forward_pre_hooks),
        "random": torch.get_rng_state().tolist(),
    }


class Noisy(nn.Module):
    """Draws random numbers in eval mode too."""

    def forward(self, maps):
        return maps + torch.randn_like(maps)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fails", [False, True])
def test_network_is_left_as_it_was(rule, fails):
    class Failing(nn.Module):
        def forward(self, maps):
            if fails:
                raise RuntimeError("as planned")
            return F.relu(maps)

    network = network_with(nn.Sequential(nn.BatchNorm2d(4), Noisy(), Failing(), nn.Dropout()))
    network.train()
    network.body.gate[0].eval()
    network.body.top.weight.requires_grad_(False)
    network.body.conv(random_images()).sum().backward()
    before, images = state_of(network), random_images()

    if fails:
        with pytest.raises(RuntimeError, match="as planned"):
            project_by_autograd(network, images, "top", torch.tensor([0, 1, 2]), rule=rule)
    else:
        project_by_autograd(network, images, "top", torch.tensor([0, 1, 2]), rule=rule)

    assert state_of(network) == before
    assert not images.requires_grad
    assert images.grad is None


def test_network_in_training_mode_projects_as_in_eval_mode():
    body, images, maps = seeded(plain), random_images(), torch.tensor([0, 2, 4])
    body.insert(3, nn.Dropout())
    expected = project_by_autograd(HookedNetwork(body, ["7"]), images, "7", maps)

    projections = project_by_autograd(HookedNetwork(body.train(), ["7"]), images, "7", maps)

    torch.testing.assert_close(projections, expected, rtol=0, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("rule", RULES)
def test_projection_under_modes_without_gradients(mode, rule):
    network, maps = HookedNetwork(seeded(plain), ["6"]), torch.tensor([0, 2, 4])
    expected = project_by_autograd(network, random_images(), "6", maps, rule=rule)

    with mode():
        projections = project_by_autograd(network, random_images(), "6", maps, rule=rule)
        assert not torch.is_grad_enabled()

    torch.testing.assert_close(projections, expected, rtol=0, atol=0)
    assert not projections.requires_grad


def test_network_that_writes_into_its_input_leaves_the_images_alone():
    body = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3)).double()
    images = random_images()
    before = images.clone()

    project_by_autograd(HookedNetwork(body, ["1"]), images, "1", torch.tensor([0, 1, 0]))

    assert torch.equal(images, before)


def test_nothing_above_the_layer_is_computed():
    body = seeded(plain)
    network = HookedNetwork(body, ["3", "6"])
    maps = torch.tensor([0, 2, 4])
    expected = project_by_autograd(network, random_images(), "3", maps)  # also sees that layer 3 runs once
    body[6] = nn.Linear(1, 1)

    torch.testing.assert_close(project_by_autograd(network, random_images(), "3", maps), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "7"}, "no layer '7'; the layers are 2, 6, 7"),
        ({"rule": "grad-cam"}, "no rule 'grad-cam'; the rules are deconvnet, guided, gradient"),
        ({"maps": torch.tensor([0, 1, 5])}, "layer '6' has the maps 0 … 4; there is no map 5"),
        ({"maps": torch.tensor([0, -1, 4])}, "layer '6' has the maps 0 … 4; there is no map -1"),
        ({"maps": torch.tensor([0, 1])}, r"whole numbers, one for each of 3 images, but are torch.int64 \(2,\)"),
        ({"maps": torch.tensor([0.0, 1.0, 2.0])}, "one for each of 3 images, but are torch.float32"),
        ({"positions": torch.tensor([[0, 0], [5, 0], [0, 0]])}, r"position \(5, 0\) lies outside the 5x5 maps"),
        ({"positions": torch.tensor([[0, 0], [0, 0], [0, -1]])}, r"\(0, -1\) lies outside the 5x5 maps of layer '6'"),
        ({"positions": torch.tensor([0, 0, 0])}, r"positions must be whole numbers \(row, column\), \(3, 2\)"),
        ({"images": torch.zeros(3, 24, 24)}, r"images must be floating point \(N, 3, H, W\)"),
        ({"images": torch.zeros(3, 3, 24, 24, dtype=torch.uint8)}, "but are torch.uint8"),
        ({"layer": "tokens"}, r"layer 'tokens' has no feature maps .*: its output is \(3, 5, 25\)"),
        ({"layer": "unused"}, "layer 'unused' does not run when the network does"),
        ({"layer": "twice"}, "layer 'twice' runs more than once in one pass"),
        ({"layer": "cut"}, "layer 'cut' is cut off from the image"),
        ({"layer": "dense", "maps": torch.tensor([0, 1, 2]), "positions": torch.ones(3, 2).long()}, "the 1x1 maps"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused(change, message):
    class Cut(nn.Module):
        def forward(self, maps):
            return maps.detach()

    body = seeded(plain)
    twice = nn.Identity()
    body.add_module("twice", twice)
    body.add_module("again", twice)
    body.add_module("tokens", nn.Flatten(2))
    body.add_module("dense", nn.LazyLinear(1).double())
    body.add_module("flat", nn.Flatten())
    body.add_module("cut", Cut())
    body.dense.register_module("unused", nn.Identity())
    body(random_images())
    layers = ["2", "6", "twice", "tokens", "dense", "flat", "cut", "dense.unused"]
    given = {"images": random_images(), "layer": "6", "maps": torch.tensor([0, 1, 2]), "positions": None, **change}
    names = {"unused": "dense.unused", "dense": "flat"}
    given["layer"] = names.get(given["layer"], given["layer"])
    message = message.replace("'unused'", "'dense.unused'").replace("2, 6, 7", "2, 6, twice")

    with pytest.raises(ValueError, match=message):
        project_by_autograd(HookedNetwork(body, layers), **given)


def test_places_of_dense_layers_are_zeros_or_none():
    body = nn.Sequential(seeded(plain), nn.Flatten(), nn.ReLU(), nn.Linear(125, 4).double())
    network, maps = HookedNetwork(body, ["3"]), torch.tensor([0, 1, 2])

    projections = project_by_autograd(network, random_images(), "3", maps)

    assert torch.equal(project_by_autograd(network, random_images(), "3", maps, torch.zeros(3, 2).long()), projections)
    assert projections.any()
