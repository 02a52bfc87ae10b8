"""Controls of projections: another map, random weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.deconvnet.winning import SIDE, chain
from zfscope.deconvnet.controls import control_correlations
from zfscope.networks.chain import ConvNet
from zfscope.networks.spec import ConvLayer, DenseLayer


def pearson(these, those):
    these, those = these.flatten().double(), those.flatten().double()
    return float(torch.corrcoef(torch.stack([these, those]))[0, 1])


def one_layer(filters):
    network = ConvNet(
        {"conv1": ConvLayer(maps=len(filters), kernel_size=3, norm=None), "fc2": DenseLayer()},
        num_classes=2,
        image_size=9,
    ).double()
    network.conv1.conv.weight.data.copy_(filters)
    return network.eval().requires_grad_(False)


def asked_controls(network, randomised, maps, layer="conv1"):
    generator = torch.Generator().manual_seed(0)
    size = network.image_size
    with torch.no_grad():
        trace = network.trace(torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64), top=layer)
    cells = trace.maps[layer].shape[-1]
    positions = torch.randint(cells, (len(maps), 2), generator=generator)
    sources = torch.arange(len(maps)) % 2
    found = control_correlations(network, trace, layer, maps, positions, sources, randomised, generator)
    return found, (trace, positions, sources)


def test_the_controls_of_one_layer_are_correlations_of_its_filters():
    torch.manual_seed(0)
    filters, others = torch.randn(2, 2, 3, 3, 3, dtype=torch.float64)

    found, _ = asked_controls(one_layer(filters), one_layer(others), torch.tensor([0, 1, 1]))

    # Of two maps the other one of 0 is 1; positions and images change nothing below one filter.
    assert found["other_map"].tolist() == pytest.approx([pearson(*filters)] * 3)
    expected = [pearson(filters[number], others[number]) for number in (0, 1, 1)]
    assert found["random_weights"].tolist() == pytest.approx(expected)
    magnitudes = [pearson(filters[number].abs().sum(0), others[number].abs().sum(0)) for number in (0, 1, 1)]
    assert found["random_weights_place"].tolist() == pytest.approx(magnitudes)


def test_a_layer_of_one_map_has_no_other_map_to_compare_with():
    torch.manual_seed(0)
    filters, others = torch.randn(2, 1, 3, 3, 3, dtype=torch.float64)

    found, _ = asked_controls(one_layer(filters), one_layer(others), torch.tensor([0, 0]))

    assert found["other_map"].isnan().all() and found["random_weights"].isfinite().all()


def test_a_control_that_is_the_same_map_correlates_fully_and_its_negative_in_place_only():
    torch.manual_seed(0)
    same = torch.randn(1, 3, 3, 3).repeat(2, 1, 1, 1)
    opposite = torch.cat([same[:1], -same[:1]])

    alike, _ = asked_controls(one_layer(same), one_layer(same), torch.tensor([0, 1]))
    against, _ = asked_controls(one_layer(opposite), one_layer(-opposite), torch.tensor([0, 1]))

    assert all(part.tolist() == pytest.approx([1, 1]) for part in alike.values())
    assert against["other_map"].tolist() == against["random_weights"].tolist() == pytest.approx([-1, -1])
    assert against["other_map_place"].tolist() == against["random_weights_place"].tolist() == pytest.approx([1, 1])


def test_controls_of_deep_layers_go_down_with_the_switches_of_the_image():
    network, randomised = chain(), chain()
    for parameter in randomised.parameters():
        nn.init.normal_(parameter)
    network.requires_grad_(False), randomised.requires_grad_(False)
    maps = torch.tensor([0, 3, 5, 2])

    found, (trace, positions, sources) = asked_controls(network, randomised, maps, layer="conv2")

    # The way down is linear in the seed: the scale of a projection changes no correlation.
    true = downward(network, trace, maps, positions, sources)
    random = downward(randomised, trace, maps, positions, sources)
    expected = [pearson(one, other) for one, other in zip(true, random, strict=True)]
    assert found["random_weights"].tolist() == pytest.approx(expected, abs=1e-9)
    assert all((part.abs() < 0.999).all() for part in found.values())


def downward(network, trace, maps, positions, sources):
    """conv2 seeded with 1, step by step over whole maps, cut to what conv2 sees."""
    found = []
    for number, (row, column), source in zip(maps, positions.tolist(), sources, strict=True):
        seed = torch.zeros_like(trace.maps["conv2"][:1])
        seed[0, number, row, column] = 1
        down = F.conv_transpose2d(seed, network.conv2.conv.weight, padding=1)
        switches, size = trace.switches["conv1"][source], network.sizes["conv1", "conv"]
        flat = torch.zeros(5, size * size, dtype=down.dtype).scatter_add_(1, switches.flatten(1), down[0].flatten(1))
        down = F.conv_transpose2d(flat.view(1, 5, size, size).relu(), network.conv1.conv.weight, stride=2)
        canvas = torch.zeros(3, SIDE + 60, SIDE + 60, dtype=down.dtype)
        canvas[:, 30 : 30 + down.shape[-2], 30 : 30 + down.shape[-1]] = down[0]
        y, x = 30 + 4 * row - 4, 30 + 4 * column - 4  # stride 4; padding 1 of conv2 is 4 pixels
        found.append(canvas[:, y : y + 15, x : x + 15])
    return found
