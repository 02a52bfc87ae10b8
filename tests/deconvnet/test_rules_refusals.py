"""What has no rule is refused by name."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from tests.deconvnet.oracles import Gated, network_with, project_by_autograd, random_images
from tests.deconvnet.oracles_of_rules import assert_projects
from zfscope.deconvnet.rules import backward_rule
from zfscope.networks.hooked import HookedNetwork


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps):
        return 2 * maps

    @staticmethod
    def backward(ctx, above):
        return 2 * above


class Mul(Doubled):
    """Its node has nearly the name of torch's own product."""


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, maps):
        tokens = maps.flatten(2).transpose(1, 2)
        return self.heads(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).unflatten(2, maps.shape[2:])


@torch.jit.script
def scripted_gate(maps: torch.Tensor) -> torch.Tensor:
    return maps * torch.sigmoid(maps)


def in_part(function):
    def applied(maps):
        maps = maps.clone()
        function(maps[:, :2])
        return maps

    return applied


REFUSED = {
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "elu": nn.ELU(inplace=True),
    "leaky_relu": nn.LeakyReLU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": torch.tanh,
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardtanh": nn.Hardtanh(),
    "mish": nn.Mish(),
    "softplus": nn.Softplus(),
    "prelu": nn.PReLU(),
    "softmax": nn.Softmax(1),
    "layer_norm": nn.LayerNorm(22),
    "group_norm": nn.GroupNorm(2, 4),
    "instance_norm": nn.InstanceNorm2d(4),
    "multi_head_attention_forward": Attention(),
    "normalize": F.normalize,
    "threshold": nn.Threshold(0.5, 0),
    "clamp": lambda maps: maps.clamp(min=-1),
    "maximum": lambda maps: torch.maximum(maps, torch.zeros_like(maps)),
    "abs": torch.abs,
    r"a mask made from the maps \(gt\)": lambda maps: maps * (maps > 0),
    "mul of two things that come from the image": lambda maps: maps * maps.mean((2, 3), keepdim=True),
    "rdiv": lambda maps: 1 / maps,
    "div of two things that come from the image": lambda maps: maps / maps.sum(1, keepdim=True),
    "conv2d of two things that come from the image": lambda maps: F.conv2d(maps, maps[:1].repeat(4, 1, 1, 1)),
    "matmul of two things that come from the image": lambda maps: maps @ maps,
    "batch_norm by the batch's own statistics": nn.BatchNorm2d(4, track_running_stats=False),
    "sigmoid_": in_part(torch.sigmoid_),
    "Doubled": Doubled.apply,
    "Mul": Mul.apply,
    "div of two": lambda maps: torch.ones_like(maps) / maps,
    "mul of two": in_part(lambda part: part.__imul__(part.mean())),
    "a scripted function": scripted_gate,
}


@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
@pytest.mark.parametrize("named", REFUSED)
def test_what_has_no_rule_is_refused_by_name(rule, named):
    network, images, maps = network_with(REFUSED[named]), random_images(), torch.tensor([0, 1, 2])
    shown = {"sigmoid_": "sigmoid", "a scripted function": ""}.get(named, named)

    with pytest.raises(ValueError, match=rf"the rule '{rule}' is not defined for {shown}.*; rule='gradient' takes any"):
        project_by_autograd(network, images, "top", maps, rule=rule)

    assert project_by_autograd(network, images, "conv", maps, rule=rule).any()  # it stands above that layer
    assert project_by_autograd(network, images, "top", maps, rule="gradient").any()


@pytest.mark.parametrize(
    "linear",
    [
        nn.Dropout(),
        nn.AvgPool2d(2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.PixelShuffle(2),
        lambda maps: torch.cat([maps, maps.roll(1, 2), F.pad(maps, (1, 1, 1, 1))[..., 1:-1, 1:-1]], 1)[:, 3:7],
        lambda maps: (maps + maps.mean((2, 3), keepdim=True)) / 3 - 2 * maps.flip(3),
        lambda maps: maps.flatten(2).transpose(1, 2).reshape(-1, 22, 22, 4).permute(0, 3, 1, 2).contiguous(),
        timm.layers.StdConv2d(4, 4, 3),
        timm.layers.LayerScale2d(4),
        nn.Conv2d(4, 4, 3, padding_mode="reflect"),
    ],
)
def test_what_is_linear_is_not_refused(linear):
    body = Gated(linear)
    body.top = nn.LazyConv2d(4, 1)
    body.double()(random_images())

    assert_projects(HookedNetwork(body.eval(), ["top"]), random_images(), "top", "deconvnet")


@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
def test_scripted_submodules_are_refused_by_name(rule):
    scripted = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)).double())
    network, maps = network_with(scripted), torch.tensor([0, 1, 2])

    with pytest.raises(ValueError, match="not defined for the scripted module 'body.gate'"):
        project_by_autograd(network, random_images(), "top", maps, rule=rule)
    with pytest.raises(ValueError, match="not defined for the scripted module Sequential"), backward_rule(rule):
        network(random_images().requires_grad_())

    assert project_by_autograd(network, random_images(), "top", maps, rule="gradient").any()
