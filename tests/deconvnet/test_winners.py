"""Winners of feature maps, read and projected, against brute force."""

import pytest
import torch

from tests.deconvnet.winning import COUNT, LAYERS, NETWORKS, PICTURES, SIDE, chain, hooked, hooks_of, mined, read
from zfscope.activations import TopTable
from zfscope.deconvnet.projection import project
from zfscope.deconvnet.winners import (
    TopActivationsHook,
    as_pictures,
    check_projectable,
    project_winners,
    reproduces_activations,
)
from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.network import evaluating


def brute_force(network, layer, k):
    """For each map ``(value, index, (row, column))`` of its k strongest images, by sorting all activations."""
    with torch.no_grad():
        found = network.features(read(torch.arange(COUNT)), layer)
    found = found if found.ndim == 4 else found[:, :, None, None]
    tables = []
    for number in range(found.shape[1]):
        best = []
        for index, feature_map in enumerate(found[:, number]):
            cells = sorted((-value, place) for place, value in enumerate(feature_map.flatten().tolist()))
            best.append((cells[0][0], index, divmod(cells[0][1], found.shape[3])))
        tables.append([(-value, index, place) for value, index, place in sorted(best)[:k]])
    return tables


def all_maps(tables):
    return {layer: torch.arange(len(table.values)) for layer, table in tables.items()}


def naive_cut(image, box, outside):
    x0, y0, x1, y1 = box
    patch = image.new_full((3, y1 - y0, x1 - x0), outside)
    for row in range(max(0, y0), min(SIDE, y1)):
        for column in range(max(0, x0), min(SIDE, x1)):
            patch[:, row - y0, column - x0] = image[:, row, column]
    return patch


@NETWORKS
def test_the_miner_finds_what_sorting_all_activations_finds(make):
    network = make()

    tables = mined(network, LAYERS[make], k=4)

    assert list(tables) == LAYERS[make]
    for layer, table in tables.items():
        for number, expected in enumerate(brute_force(network, layer, 4)):
            assert table.values[number].tolist() == pytest.approx([value for value, _, _ in expected], abs=1e-12)
            assert table.indices[number].tolist() == [index for _, index, _ in expected]
            assert [tuple(place) for place in table.positions[number].tolist()] == [place for *_, place in expected]
    assert not hooks_of(network)


@NETWORKS
@pytest.mark.parametrize("unpooling", ["sum", "overwrite"])
def test_each_winner_is_projected_as_if_it_were_alone_beside_the_pixels_that_it_saw(make, unpooling):
    network = make()
    tables = mined(network, LAYERS[make], k=4)
    maps = all_maps(tables)
    asked = unpooling if make is chain else "sum"
    sizes = set()

    for winners in project_winners(network, tables, maps, read, batch_size=5, unpooling=asked):
        table = tables[winners.layer]
        indices, positions = (part[winners.rows, winners.ranks] for part in (table.indices, table.positions))
        whole = (winners.boxes == torch.tensor([0, 0, SIDE, SIDE])).all()
        question = network, read(indices.tolist()), winners.layer, maps[winners.layer][winners.rows], positions
        expected = project(*question, unpooling=asked, crop=not whole)
        if not whole:
            expected, boxes = expected
            assert torch.equal(winners.boxes, boxes)
        torch.testing.assert_close(winners.projections, expected, rtol=1e-12, atol=1e-12)
        for patch, index, box in zip(winners.patches, indices, winners.boxes.tolist(), strict=True):
            assert torch.equal(patch, naive_cut(PICTURES[index], box, outside=127))
        assert winners.patches.dtype == torch.uint8 and winners.patches.shape == winners.projections.shape
        sizes.add((winners.layer, winners.patches.shape[-1]))

    expected = {"conv1": 3, "conv2": 15, "conv3": 21, "fc4": 21} if make is chain else {"norm": 3, "act": 7}
    assert sizes == set((expected if make is chain else expected | {"pool": 21, "head": 21}).items())


@NETWORKS
def test_all_winners_above_zero_come_once_and_no_others(make):
    network = make()
    tables = mined(network, LAYERS[make], k=COUNT + 3)  # more places than images: some stay empty

    places = {layer: torch.zeros(table.values.shape, dtype=torch.int64) for layer, table in tables.items()}
    for winners in project_winners(network, tables, all_maps(tables), read, batch_size=5):
        places[winners.layer].index_put_((winners.rows, winners.ranks), torch.tensor(1), accumulate=True)

    for layer, table in tables.items():
        assert torch.equal(places[layer], (table.values > 0).long())
        assert (table.indices == -1).any()
    assert any(((table.values <= 0) & (table.indices >= 0)).any() for table in tables.values())


@NETWORKS
def test_each_image_is_read_once_and_a_chain_sees_it_once_whatever_it_won(make):
    network = make()
    tables = mined(network, LAYERS[make], k=2)
    won = {int(index) for table in tables.values() for index in table.indices[table.values > 0]}
    below = network.conv1.conv if make is chain else network.body.conv1
    reads, forwards, above = [], [], []

    def counted(indices):
        reads.extend(indices)
        return read(indices)

    hook = below.register_forward_hook(lambda _module, inputs, _output: forwards.extend(inputs[0]))
    if make is chain:
        network.fc5.linear.register_forward_hook(lambda *_: above.append(1))
    consumed = list(project_winners(network, tables, all_maps(tables), counted, batch_size=3))
    hook.remove()

    assert sum(len(winners.rows) for winners in consumed) > 2 * len(won)
    assert reads == sorted(won)
    if make is chain:
        assert torch.equal(torch.stack(forwards), read(reads)) and not above


def test_images_that_won_nothing_above_zero_are_not_read():
    values = torch.tensor([[2.0, 0.0], [-1.0, -torch.inf], [torch.nan, 3.0]], dtype=torch.float64)
    indices = torch.tensor([[4, 7], [8, -1], [9, -1]])
    tables = {"conv2": TopTable(values, indices, torch.zeros(3, 2, 2, dtype=torch.int64))}
    reads = []

    (winners,) = project_winners(
        chain(), tables, {"conv2": torch.tensor([0, 3, 5])}, lambda asked: read(reads.extend(asked) or asked)
    )

    assert reads == [4]
    assert (winners.rows.tolist(), winners.ranks.tolist()) == ([0], [0])


def test_a_row_of_a_table_is_the_map_that_is_said():
    network = chain()
    table = mined(network, ["conv2"], k=2)["conv2"]
    some = torch.tensor([5, 1])
    tables = {"conv2": TopTable(*(part[some] for part in table))}

    for winners in project_winners(network, tables, {"conv2": some}, read):
        for row, rank, projection in zip(winners.rows, winners.ranks, winners.projections, strict=True):
            index, position = table.indices[some[row], rank], table.positions[some[row], rank]
            expected, _ = project(network, read([index]), "conv2", some[row : row + 1], position[None], crop=True)
            torch.testing.assert_close(projection, expected[0], rtol=1e-12, atol=1e-12)


@NETWORKS
@pytest.mark.parametrize("inference", [False, True], ids=["plain", "inference mode"])
def test_looking_leaves_the_network_as_it_was(make, inference):
    network = make().train()
    list(network.modules())[-1].eval()
    weight = next(network.parameters())
    weight.grad = torch.ones_like(weight)
    weight.requires_grad_(False)
    modes = [each.training for each in network.modules()]
    needed = [each.requires_grad for each in network.parameters()]
    state = {name: each.clone() for name, each in network.state_dict().items()}
    torch.manual_seed(3)
    random = torch.get_rng_state()

    with torch.inference_mode(inference):
        with evaluating(network):
            tables = mined(network, LAYERS[make], k=2)
        assert list(project_winners(network, tables, all_maps(tables), read))
        assert reproduces_activations(network, tables, all_maps(tables), read)
        assert check_projectable(network, None, read([0])[0])

    assert torch.equal(torch.get_rng_state(), random)
    assert [each.training for each in network.modules()] == modes
    assert [each.requires_grad for each in network.parameters()] == needed
    assert all(torch.equal(each, state[name]) for name, each in network.state_dict().items())
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert all(each.grad is None for each in network.parameters() if each is not weight)
    assert not hooks_of(network)


def test_a_network_in_half_precision_shows_the_pixels_as_they_are():
    network = chain()
    tables = mined(network, ["conv1", "conv2"], k=2)
    network.bfloat16()

    found = list(project_winners(network, tables, all_maps(tables), lambda indices: read(indices).float()))

    for winners in found:
        indices = tables[winners.layer].indices[winners.rows, winners.ranks]
        for patch, index, box in zip(winners.patches, indices, winners.boxes.tolist(), strict=True):
            assert torch.equal(patch, naive_cut(PICTURES[index], box, outside=127))
        assert winners.tiles()[0].dtype == torch.uint8


def test_without_preprocessing_each_picture_is_on_its_own_scale():
    network = chain()
    network.preprocessing = None
    inputs = torch.stack([torch.linspace(-3, 1, 48).view(3, 4, 4), torch.full((3, 4, 4), 7.0)])

    pictures = as_pictures(network, inputs)

    expected = [round(255 * step / 47) for step in range(48)]
    assert pictures[0].flatten().tolist() == pytest.approx(expected, abs=1)
    assert (pictures[0].min(), pictures[0].max()) == (0, 255)
    assert not pictures[1].any()
    assert torch.equal(as_pictures(network, PICTURES), as_pictures(network, PICTURES.float()))


def test_batches_without_indices_do_not_compete():
    network = chain()
    miner = TopActivationsHook(network, ["conv2"], k=2)

    for miner.indices, images in [(torch.arange(3), read([0, 1, 2])), (None, 100 * read([3, 4])), (None, read([1]))]:
        network(images)
    miner.close()

    assert set(miner.top.compute()["conv2"].indices.flatten().tolist()) <= {0, 1, 2}


def test_a_miner_that_heard_nothing_has_no_winners_and_closes_twice():
    network = chain()
    miner = TopActivationsHook(network, ["conv1"], k=1)

    miner.close()
    miner.close()

    assert miner.top is None and not hooks_of(network)


def test_layers_without_maps_are_passed_over_and_those_that_run_oddly_are_refused():
    network = HookedNetwork(hooked().body, ["act", "tokens"])
    assert list(mined(network, ["act", "tokens"], k=1)) == ["act"]

    miner = TopActivationsHook(network, ["act"], k=1)
    miner.indices = torch.arange(3)
    with pytest.raises(ValueError, match="act gave 2 maps for a batch of 3 images; look into a layer that runs once"):
        network(read([0, 1]))
    miner.close()

    assert not hooks_of(network)


def test_no_hook_stays_where_a_layer_is_unknown():
    network = chain()

    with pytest.raises(ValueError, match="no layer 'conv9'; the layers are conv1"):
        TopActivationsHook(network, ["conv1", "conv9"], k=1)

    assert not hooks_of(network)
