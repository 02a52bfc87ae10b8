"""Every way to call a ReLU has the same rule."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from tests.deconvnet.oracles import RULES, plain, project_by_autograd, random_images, seeded
from zfscope.deconvnet.rules import backward_rule
from zfscope.networks.hooked import HookedNetwork


class Ways(nn.Module):
    """The same network as ``plain`` with its ReLUs called in one of the ways there are."""

    def __init__(self, body, relu):
        super().__init__()
        self.conv1, self.pool, self.conv2, self.norm, self.conv3 = (body[index] for index in (0, 2, 3, 4, 6))
        self.relu = relu

    def forward(self, images):
        maps = self.pool(self.relu(self.conv1(images)))
        return self.conv3(self.relu(self.norm(self.conv2(maps))))


class Aliased(Ways):
    """Goes on with the tensor that an in-place ReLU wrote to, not with what the call gave back."""

    def forward(self, images):
        maps = self.conv1(images)
        self.relu(maps)
        maps = self.norm(self.conv2(self.pool(maps)))
        self.relu(maps)
        return self.conv3(maps)


class InParts(Ways):
    """An in-place ReLU on each half of the maps, which are views of them; torch's own gradient cannot do that."""

    def forward(self, images):
        maps = self.conv1(images)
        for part in (maps[:, :3], maps[:, 3:]):
            self.relu(part)
        return self.conv3(self.relu(self.norm(self.conv2(self.pool(maps)))))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "relu",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        F.relu,
        lambda maps: F.relu(maps, True),
        F.relu_,
        torch.relu,
        torch.relu_,
        lambda maps: torch.relu(input=maps),
        torch.Tensor.relu,
        torch.Tensor.relu_,
        lambda maps: maps.clamp(min=0),
        lambda maps: maps.clamp(0),
        lambda maps: maps.clamp_(0.0, None),
        lambda maps: torch.clip(maps, min=0),
        lambda maps: maps.clamp_min_(0),
        nn.Threshold(0, 0),
        lambda maps: F.threshold_(maps, 0.0, 0.0),
        lambda maps: F.hardtanh(maps, 0, 1e9),
    ],
)
def test_each_way_to_call_a_relu_gives_the_same_projection(relu, rule):
    body, images = seeded(plain), random_images()
    maps = torch.tensor([0, 2, 4])
    expected = project_by_autograd(HookedNetwork(body, ["6"]), images, "6", maps, rule=rule)

    projections = project_by_autograd(HookedNetwork(Ways(body, relu), ["conv3"]), images, "conv3", maps, rule=rule)

    torch.testing.assert_close(projections, expected, rtol=0, atol=0)
    with torch.no_grad():
        below, activations = body[:3](images), body(images).flatten(2).amax(2)[range(3), maps]
    assert below.any() and activations.all()


@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
@pytest.mark.parametrize("relu", [nn.ReLU(inplace=True), torch.relu_])
def test_in_place_relu_on_views_of_the_maps(relu, rule):
    body, images, maps = seeded(plain), random_images(), torch.tensor([0, 2, 4])
    expected = project_by_autograd(HookedNetwork(body, ["6"]), images, "6", maps, rule=rule)

    projections = project_by_autograd(HookedNetwork(InParts(body, relu), ["conv3"]), images, "conv3", maps, rule=rule)

    torch.testing.assert_close(projections, expected, rtol=0, atol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("relu", [nn.ReLU(inplace=True), torch.relu_, lambda maps: F.relu6(maps, inplace=True)])
def test_in_place_relu_changes_the_tensor_itself(relu, rule):
    body, images = seeded(plain), random_images()
    maps = torch.tensor([0, 2, 4])
    expected = project_by_autograd(HookedNetwork(Ways(body, relu), ["conv3"]), images, "conv3", maps, rule=rule)

    projections = project_by_autograd(HookedNetwork(Aliased(body, relu), ["conv3"]), images, "conv3", maps, rule=rule)

    torch.testing.assert_close(projections, expected, rtol=0, atol=0)


@pytest.mark.parametrize("relu6", [nn.ReLU6(), nn.ReLU6(inplace=True), F.relu6, lambda maps: maps.clamp(0, 6)])
def test_relu6_by_hand(relu6):
    maps = torch.tensor([-1.0, 0.0, 2.0, 6.0, 7.0])
    above = torch.tensor([3.0, 3.0, 3.0, 3.0, 3.0])
    found = {}

    for rule in RULES:
        for sign in (1, -1):
            pixels = maps.clone().requires_grad_()
            with backward_rule(rule):
                output = relu6(pixels * 1)
                (gradient,) = torch.autograd.grad(output, pixels, sign * above)
            assert output.tolist() == [0, 0, 2, 6, 6]
            found[rule, sign] = gradient.tolist()

    assert found["deconvnet", 1] == [3, 3, 3, 3, 3]
    assert found["guided", 1] == [0, 0, 3, 0, 0]
    assert found["deconvnet", -1] == found["guided", -1] == [0, 0, 0, 0, 0]
    plain = maps.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(relu6(plain * 1), plain, above)
    assert found["gradient", 1] == gradient.tolist()


def test_outputs_are_the_same_under_every_rule():
    body = timm.create_model("resnet18", num_classes=4).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = body(images)

    for rule in RULES:
        with backward_rule(rule):
            assert torch.equal(body(images), expected)
            with torch.no_grad():
                assert torch.equal(body(images), expected)


def test_rule_ends_with_its_block():
    maps = torch.tensor([-1.0, 2.0], requires_grad=True)

    with pytest.raises(RuntimeError, match="stop"), backward_rule("deconvnet"):
        raise RuntimeError("stop")

    (gradient,) = torch.autograd.grad(F.relu(maps), maps, torch.tensor([3.0, -3.0]))
    assert gradient.tolist() == [0, -3]
    assert torch.jit.script(nn.ReLU())(maps).requires_grad  # what is refused inside


def test_scaling_an_input_of_a_network_without_biases_scales_the_projection():
    body = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 3, bias=False))
    network, images = HookedNetwork(body.double(), ["3"]), random_images(1)
    maps, positions = torch.tensor([1]), torch.tensor([[4, 5]])

    once = project_by_autograd(network, images, "3", maps, positions)

    torch.testing.assert_close(project_by_autograd(network, 3 * images, "3", maps, positions), 3 * once)
    assert once.any()


def test_one_layer_gives_its_filter():
    conv = nn.Conv2d(3, 4, 3).double()
    network, images = HookedNetwork(nn.Sequential(conv), ["0"]), random_images(1)
    activation = conv(images)[0, 2, 5, 7].detach()

    projection = project_by_autograd(network, images, "0", torch.tensor([2]), torch.tensor([[5, 7]]))

    expected = torch.zeros_like(images)
    expected[0, :, 5:8, 7:10] = activation * conv.weight[2].detach()
    torch.testing.assert_close(projection, expected, rtol=0, atol=1e-15)
