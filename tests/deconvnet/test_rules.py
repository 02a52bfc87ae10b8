"""Rules for the way down by autograd, against captum and networks whose activations are replaced."""

import copy
from functools import cache

import captum.attr
import pytest
import timm
import torch
from torch import nn

from tests.conftest import quick_first
from tests.deconvnet.oracles import RULES, network_with, plain, project_by_autograd, random_images, seeded
from tests.deconvnet.oracles_of_rules import assert_projects
from zfscope.networks.chain import ConvNet
from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.spec import ConvLayer, DenseLayer, PoolConfig


@pytest.mark.parametrize(
    ("rule", "captum_s"),
    [("deconvnet", captum.attr.NeuronDeconvolution), ("guided", captum.attr.NeuronGuidedBackprop)],
    ids=["deconvnet", "guided"],
)
@pytest.mark.parametrize("layer", ["2", "3", "6"])
def test_projection_is_captum_s_times_the_activation(rule, captum_s, layer):
    body, images = seeded(plain), random_images()
    network = HookedNetwork(body, [layer])
    maps = torch.tensor([0, 3, 4])

    projections = project_by_autograd(network, images, layer, maps, rule=rule)

    for number in range(3):
        model, image = copy.deepcopy(body), images[number : number + 1].clone().requires_grad_()
        activations = model[: int(layer) + 1](image)[0, maps[number]].detach()
        unit = (int(maps[number]), *divmod(int(activations.argmax()), activations.shape[1]))
        # Captum starts from 1. Rectification commutes with a factor only above zero.
        assert activations.max() > 0
        expected = activations.max() * captum_s(model, model[int(layer)]).attribute(image, unit)[0]
        assert expected.any()
        torch.testing.assert_close(projections[number], expected.detach(), rtol=0, atol=1e-12)


@cache
def timm_body(name):
    return seeded(lambda: timm.create_model(name, num_classes=4))


@pytest.mark.parametrize("rule", quick_first(RULES, 2))
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ["layer2.0.conv1", "fc"]),
        ("densenet121", ["features.denseblock2"]),
        ("mobilenetv2_050", ["blocks.1", "blocks.4"]),
    ],
)
def test_timm_models_project_as_with_their_activations_replaced(name, layers, rule):
    network = HookedNetwork(timm_body(name), layers)

    for layer in layers:
        assert_projects(network, random_images(2, 32), layer, rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("norm", ["before_pool", "after_pool"])
@pytest.mark.parametrize("seed", quick_first(range(1, 4), 1))
def test_chains_project_as_with_their_activations_replaced(rule, norm, seed):
    torch.manual_seed(seed)
    chain = {
        "conv1": ConvLayer(maps=6, kernel_size=5, stride=2, padding=1, pool=PoolConfig(), norm=norm),
        "conv2": ConvLayer(maps=8, kernel_size=3, stride=1, padding=seed, pool=PoolConfig(), norm=norm, groups=2),
        "conv3": ConvLayer(maps=5, kernel_size=3, padding=1, norm="after_pool"),
        "fc6": DenseLayer(units=7, dropout=0.5),
        "fc8": DenseLayer(),
    }
    network = ConvNet(chain, num_classes=4, image_size=35 + 2 * seed).double().eval()
    for layer in ("conv1", "conv2", "conv3"):
        getattr(network, layer).conv.weight.data.mul_(30)
        if norm_module := getattr(getattr(network, layer), "norm", None):
            norm_module.alpha = 0.5  # strong enough to be seen

    for layer in network.layers:
        assert_projects(network, random_images(3, 35 + 2 * seed), layer, rule, seed)


@pytest.mark.parametrize("rule", RULES)
def test_torch_s_own_normalisation_is_passed_or_kept(rule):
    norm = nn.LocalResponseNorm(3, alpha=0.7, beta=0.6, k=0.9)

    assert_projects(network_with(nn.Sequential(nn.ReLU(), norm)), random_images(), "top", rule)
