"""What a network makes of one image."""

import pytest
import torch

from zfscope.analyses.strongest import CLASSES, MAPS, most_probable, strongest_maps
from zfscope.networks.build import build_network
from zfscope.networks.hooked import TimmNetwork


def network_of_two_layers():
    torch.manual_seed(0)
    layers = {"conv1": {"maps": 20, "kernel_size": 3, "pool": {}}, "conv2": {"maps": 6, "kernel_size": 3}, "fc8": {}}
    return build_network({"name": "n", **layers}, 7, 24).eval()


def test_the_most_probable_classes_are_told_by_name_with_their_shares():
    network, inputs = network_of_two_layers(), torch.randn(3, 24, 24)
    with torch.no_grad():
        shares = network(inputs[None]).softmax(1)[0]

    numbers = shares.argsort(descending=True)[:CLASSES].tolist()
    assert most_probable(network, inputs) == ", ".join(f"class {n} {100 * shares[n]:.1f} %" for n in numbers)
    network.classes = tuple("abcdefg")
    assert most_probable(network, inputs).startswith(f"{'abcdefg'[numbers[0]]} {100 * shares[numbers[0]]:.1f} %, ")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mixer_s32_224"])
def test_a_network_without_feature_maps_has_no_sheets_but_its_classes_are_told(name):
    network, inputs = TimmNetwork(name, 7, 224).eval(), torch.randn(3, 224, 224)

    assert strongest_maps(network, inputs, "dog.png", "auto") == {}
    assert most_probable(network, inputs).startswith("class ")


def test_a_sheet_for_each_layer_shows_its_strongest_maps(monkeypatch):
    network, inputs, drawn = network_of_two_layers(), torch.randn(3, 24, 24), {}

    def sheet(maps, patches, projections, values, *, title, tile):
        drawn[title] = maps.tolist(), values[:, 0]
        assert patches.shape == projections.shape

    monkeypatch.setattr("zfscope.analyses.strongest.projection_sheet", sheet)

    assert list(strongest_maps(network, inputs, "dog.png")) == ["conv1", "conv2"]

    with torch.no_grad():
        trace = network.trace(inputs[None])
    for layer, count in {"conv1": MAPS, "conv2": 6}.items():
        maps, values = drawn[f"{layer}, strongest maps of dog.png"]
        own = trace.maps[layer][0].amax((1, 2))
        assert len(maps) == count and maps == own.argsort(descending=True, stable=True)[:count].tolist()
        torch.testing.assert_close(values.float(), own[maps])
