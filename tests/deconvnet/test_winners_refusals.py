"""Which layers can be watched and projected."""

import pytest
import torch
from torch import nn

from tests.deconvnet.winning import COUNT, LAYERS, NETWORKS, SIDE, chain, hooked, hooks_of, mined, read
from zfscope.activations import TopTable
from zfscope.deconvnet.winners import (
    check_projectable,
    layers_to_watch,
    random_subset,
    reproduces_activations,
)
from zfscope.networks.hooked import HookedNetwork


@NETWORKS
def test_a_network_that_was_compiled_and_has_run_is_heard(make):
    network, expected = make(), mined(make(), LAYERS[make], k=2)
    network.compile(backend="eager")
    with torch.no_grad():
        network(read(torch.arange(5)))

    tables = mined(network, LAYERS[make], k=2)
    torch._dynamo.reset()

    for layer, table in tables.items():
        assert torch.equal(table.indices, expected[layer].indices)
        torch.testing.assert_close(table.values, expected[layer].values)


def test_the_layers_to_watch_are_those_named_or_all_with_maps():
    assert layers_to_watch(chain(), None) == ("conv1", "conv2", "conv3")
    assert layers_to_watch(hooked(), None) == ("norm", "act", "pool")
    assert layers_to_watch(chain(), ["fc4", "conv1", "fc4"]) == ("fc4", "conv1")
    with pytest.raises(ValueError, match="no layer 'conv9'; the layers are conv1, conv2, conv3, fc4, fc5"):
        layers_to_watch(chain(), ["conv1", "conv9"])
    with pytest.raises(ValueError, match="layers names no layer; the layers are norm, act, pool, head"):
        layers_to_watch(hooked(), [])


def test_some_maps_are_a_fixed_subset_in_order():
    torch.manual_seed(3)
    before = torch.get_rng_state()

    some = random_subset(100, 6, seed=0)

    assert torch.equal(torch.get_rng_state(), before)
    assert some.tolist() == sorted(set(some.tolist())) and len(some) == 6
    assert torch.equal(some, random_subset(100, 6, seed=0)) and not torch.equal(some, random_subset(100, 6, seed=1))
    assert random_subset(4, 6, seed=0).tolist() == [0, 1, 2, 3]


def with_gelu():
    network = hooked()
    network.body.act = nn.GELU()
    return network


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (chain, {"layers": ["conv9"]}, "no layer 'conv9'; the layers are conv1"),
        (chain, {"image": torch.zeros(1, SIDE, SIDE)}, r"images must be \(N, 3, 21, 21\), but .* \(1, 1, 21, 21\)"),
        (hooked, {"image": torch.zeros(1, 3, SIDE, SIDE)}, r"an image \(C, H, W\), but it came as \(1, 3, 21, 21\)"),
        (hooked, {"unpooling": "overwrite"}, "unpooling='overwrite' needs a chain of named layers"),
        (with_gelu, {"layers": ["act"]}, "'guided' is not defined for gelu"),
        (with_gelu, {"rule": "guided"}, "'guided' is not defined for gelu; rule='gradient' takes any network"),
        (lambda: HookedNetwork(hooked().body, ["act", "tokens"]), {"layers": ["tokens"]}, "'tokens' has no feature"),
        (lambda: HookedNetwork(hooked().body, ["tokens"]), {}, "none of tokens has feature maps .* name other layers"),
    ],
    ids=["layer", "grey", "batch", "overwrite", "gelu", "guided", "tokens", "only tokens"],
)
def test_what_cannot_be_projected_is_refused_when_it_is_tried_out(make, given, message):
    network = make().double()

    with pytest.raises(ValueError, match=message):
        check_projectable(network, **({"layers": None, "image": read([0])[0]} | given))

    assert not hooks_of(network)


def test_of_layers_that_nobody_named_those_without_maps_are_left_out():
    network = HookedNetwork(hooked().body, ["act", "tokens"])

    assert check_projectable(network, None, read([0])[0].float()) == ("act",)
    assert check_projectable(chain(), None, read([0])[0], "overwrite") == ("conv1", "conv2", "conv3")
    assert check_projectable(chain(), ["fc5"], read([0])[0]) == ("fc5",)


@NETWORKS
@pytest.mark.parametrize("layer", [0, -1])
def test_an_image_that_comes_again_otherwise_is_noticed(make, layer):
    network = make()
    ((name, table),) = mined(network, [LAYERS[make][layer]], k=3).items()
    maps = {name: torch.tensor([2, 0])}
    tables = {name: TopTable(*(part[maps[name]] for part in table))}

    assert reproduces_activations(network, tables, maps, read)
    assert reproduces_activations(network, tables, maps, lambda indices: 1.001 * read(indices))
    assert not reproduces_activations(
        network, tables, maps, lambda indices: read([(index + 1) % COUNT for index in indices])
    )
    assert not reproduces_activations(network, tables, maps, lambda indices: 0.5 * read(indices))


def test_where_nothing_won_nothing_is_asked_to_come_again():
    table = TopTable(*(torch.full(shape, -1) for shape in [(2, 1), (2, 1), (2, 1, 2)]))

    assert reproduces_activations(chain(), {"conv1": table}, {"conv1": torch.arange(2)}, read=None)
