"""Winners projected by other rules, and of grey and oblong images."""

import pytest
import torch
from torch import nn

from tests.deconvnet.winning import LAYERS, NETWORKS, hooked, hooks_of, mined, read
from zfscope.activations import TopTable
from zfscope.deconvnet.winners import TopActivationsHook, as_pictures, project_winners, projectable_layers
from zfscope.networks.fields import probe_field
from zfscope.networks.hooked import HookedNetwork


def gradients(network, layer, images, maps, positions):
    """Each activation's gradient at the pixels, times its value, one by one."""
    projections = []
    for image, number, (row, column) in zip(images, maps, positions.tolist(), strict=True):
        image = image[None].clone().requires_grad_()
        output = network.trace(image).maps[layer] if network.has_switches else run(network, layer, image)
        activation = output[0, number] if output.ndim == 2 else output[0, number, row, column]
        (gradient,) = torch.autograd.grad(activation, image)
        projections.append(gradient[0] * activation.detach())
    return torch.stack(projections)


def run(network, layer, image):
    outputs = []
    hook = network.map_module(layer).register_forward_hook(lambda *arguments: outputs.append(arguments[2].clone()))
    network(image)
    hook.remove()
    return outputs[0]


@NETWORKS
def test_the_gradient_of_winners_is_autograds_times_their_activations(make):
    network, layer = make(), LAYERS[make][-1]  # dense: it sees all of the image
    table = mined(network, [layer], k=2)[layer]
    maps = torch.tensor([0, 2])
    tables = {layer: TopTable(*(part[maps] for part in table))}

    (*found,) = project_winners(network, tables, {layer: maps}, read, rule="gradient")

    count = 0
    for winners in found:
        indices, places = (
            part[winners.rows, winners.ranks] for part in (tables[layer].indices, tables[layer].positions)
        )
        expected = gradients(network, layer, read(indices), maps[winners.rows], places)
        torch.testing.assert_close(winners.projections, expected)
        count += len(indices)
    assert count == int((tables[layer].values > 0).sum()) > 0


def test_of_a_network_with_gelu_the_layers_below_it_can_be_projected_and_all_by_the_gradient():
    network = hooked()
    network.body.act = nn.GELU()
    image = read([0])[0]

    projectable, refused = projectable_layers(network, None, image)

    assert projectable == ("norm",) and list(refused) == ["act", "pool"]
    assert all("'guided' is not defined for gelu; rule='gradient' takes any" in why for why in refused.values())
    assert projectable_layers(network, None, image, rule="gradient") == (("norm", "act", "pool"), {})
    assert not hooks_of(network)


def test_what_a_foreign_module_raises_is_a_cause_too():
    network = HookedNetwork(Odd(), ["conv", "fails"]).double()

    projectable, refused = projectable_layers(network, None, torch.randn(3, 9, 9))

    assert projectable == ("conv",) and refused == {"fails": "no gradient for you"}


class Odd(nn.Module):
    """Fails where a gradient is asked for."""

    def __init__(self):
        super().__init__()
        self.conv, self.fails = nn.Conv2d(3, 4, 3), Failing()

    def forward(self, images):
        return self.fails(self.conv(images)).mean((2, 3))


class Failing(nn.Module):
    def forward(self, maps):
        if maps.requires_grad:
            raise RuntimeError("no gradient for you\nsecond line")
        return maps


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 9, 14), (5, 14, 9)], ids=["grey", "wide", "five channels"])
def test_the_field_of_a_unit_is_measured_in_images_of_any_shape(shape):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(shape[0], 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 5, 2)).eval()

    first, second = (probe_field(HookedNetwork(body, ["1", "2"]), layer, shape) for layer in ("1", "2"))

    assert (first.size, first.stride, first.offset) == (3, 2, -1)
    assert (second.size, second.stride, second.offset) == (5, 2, -1)


def test_a_unit_that_sees_the_shorter_side_is_shown_with_the_whole_image():
    torch.manual_seed(0)
    network = HookedNetwork(nn.Sequential(nn.Conv2d(3, 4, 15, padding=7), nn.ReLU()), ["1"]).eval()
    images = torch.randn(2, 3, 9, 30)
    values = network.features(images, "1").detach()[:, :1].flatten(1).amax(1)
    place = network.features(images, "1").detach()[:, 0].flatten(1).argmax(1)
    positions = torch.stack([place // 30, place % 30], 1)
    table = TopTable(values[None].double(), torch.tensor([[0, 1]]), positions[None])

    (winners,) = project_winners(network, {"1": table}, {"1": torch.tensor([0])}, lambda indices: images[indices])

    assert winners.boxes.tolist() == [[0, 0, 30, 9]] * 2
    assert torch.equal(winners.patches, as_pictures(network, images))
    assert winners.projections.shape == images.shape


def test_pictures_of_other_channels_are_grey():
    network = HookedNetwork(nn.Sequential(nn.Conv2d(2, 2, 1)))
    images = torch.rand(3, 2, 4, 5)

    pictures = as_pictures(network, images)

    mean = images.mean(1)
    low, high = mean.amin((1, 2), keepdim=True), mean.amax((1, 2), keepdim=True)
    expected = (255 * (mean - low) / (high - low)).round().to(torch.uint8)
    assert pictures.shape == (3, 3, 4, 5)
    for channel in range(3):
        assert torch.equal(pictures[:, channel], expected)


def test_a_hook_that_is_not_strict_passes_over_layers_that_run_on_other_images():
    network = hooked()
    hook = TopActivationsHook(network, ["norm", "act"], 1, strict=False)

    for hook.indices in torch.arange(6).split(3):
        with torch.no_grad():
            network.body.act(torch.zeros(6, 6, 3, 3))
            network(read(hook.indices))
    hook.close()

    assert list(hook.mismatches) == ["act"] and "act gave 6 maps for a batch of 3 images" in hook.mismatches["act"]
    assert hook.top.compute()["norm"].values.isfinite().all()
