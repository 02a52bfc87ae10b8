"""Switches that are kept while the strongest are sought, against those of a pass of their own."""

import pytest
import torch
from torch.nn import functional as F

from tests.deconvnet.test_winners import all_maps
from tests.deconvnet.winning import COUNT, LAYERS, chain, read
from zfscope.deconvnet.switches import KeptSwitches, packed_switches, unpacked_switches
from zfscope.deconvnet.winners import project_winners, top_images
from zfscope.networks.spec import PoolConfig


def batches(size=5):
    return [(read(indices), None, indices) for indices in torch.arange(COUNT).split(size)]


@pytest.mark.parametrize("kernel, stride, ceil_mode", [(2, 2, False), (3, 2, True), (3, 1, False), (4, 3, True)])
@pytest.mark.parametrize("side", [6, 9, 11])
def test_packed_switches_are_places_in_a_byte_and_come_back_as_they_were(kernel, stride, ceil_mode, side):
    pool = PoolConfig(kernel_size=kernel, stride=stride, ceil_mode=ceil_mode)
    maps = torch.rand(3, 4, side, side)
    _, switches = F.max_pool2d(maps, kernel, stride, ceil_mode=ceil_mode, return_indices=True)

    packed = packed_switches(switches, pool, side)

    assert packed.dtype == torch.uint8 and int(packed.max()) < kernel**2
    assert torch.equal(unpacked_switches(packed, pool, side), switches)


def test_a_window_of_more_places_than_a_byte_holds_keeps_its_switches_too():
    pool = PoolConfig(kernel_size=17, stride=5, ceil_mode=False)
    _, switches = F.max_pool2d(torch.rand(2, 3, 40, 40), 17, 5, return_indices=True)

    assert torch.equal(unpacked_switches(packed_switches(switches, pool, 40), pool, 40), switches)


@pytest.mark.parametrize("unpooling", ["sum", "overwrite"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0], ids=["all kept", "some kept", "none kept"])
def test_winners_are_those_of_a_pass_of_their_own_and_images_that_are_kept_do_not_run_again(unpooling, share):
    network = chain()
    alone = top_images(network, batches(), LAYERS[chain], 2)
    one = KeptSwitches(network, 1e9)
    top_images(network, batches(), LAYERS[chain], 2, one)
    winning = {int(index) for table in alone.values() for index in table.indices.flatten()} - {-1}
    size = sum(switches[0].numel() for switches in network.trace(read([0])).switches.values())  # a byte each
    kept = KeptSwitches(network, share * size * len(winning))
    runs, first = [], network.conv1.conv

    tables = top_images(network, batches(), LAYERS[chain], 2, kept)
    hook = first.register_forward_hook(lambda _module, inputs, _output: runs.extend(inputs[0]))
    ways = {"batch_size": 3, "unpooling": unpooling}
    found = list(project_winners(network, tables, all_maps(tables), read, kept=kept, **ways))
    hook.remove()

    assert {image for image in range(COUNT) if image in one} == winning, (
        "an image that lost its places goes, one that has them stays"
    )
    held = [image for image in winning if image in kept]
    assert share == 1 or len(held) <= share * len(winning)
    assert (share == 0) == (not held) and len(runs) == len(winning) - len(held)
    for layer, table in alone.items():
        assert all(torch.equal(*parts) for parts in zip(table, tables[layer], strict=True))
    expected = picture_by_place(project_winners(network, alone, all_maps(alone), read, **ways))
    assert picture_by_place(found).keys() == expected.keys()
    for place, parts in picture_by_place(found).items():
        for part, other in zip(parts, expected[place], strict=True):
            torch.testing.assert_close(part, other, rtol=1e-12, atol=1e-12)


def test_where_there_is_no_room_nothing_is_packed(monkeypatch):
    packed = []
    monkeypatch.setattr(
        "zfscope.deconvnet.switches.packed_switches", lambda *given: packed.append(1) or packed_switches(*given)
    )

    top_images(chain(), batches(), LAYERS[chain], 2, KeptSwitches(chain(), 0))
    assert not packed
    top_images(chain(), batches(), LAYERS[chain], 2, KeptSwitches(chain(), 1e9))
    assert packed


def picture_by_place(several):
    """Patch, projection and box of each winner, by layer, map and rank."""
    return {
        (winners.layer, int(row), int(rank)): parts
        for winners in several
        for row, rank, *parts in zip(
            winners.rows, winners.ranks, winners.patches, winners.projections, winners.boxes, strict=True
        )
    }
