"""The strongest activations over the epochs against brute force over all activations and single projections."""

import numpy as np
import pytest
import torch
from torch import nn

from zfscope.analyses.evolution import agreements, evolve
from zfscope.deconvnet.projection import project
from zfscope.evolution import agreement, feature_maps, join, jumps, observe, settled_epoch
from zfscope.images import contrast_limits, to_tiles
from zfscope.networks.chain import ConvNet
from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig, PoolConfig

SUBSET = torch.tensor([2, 3, 5, 7, 11, 13, 17])


def chain(seed=0):
    torch.manual_seed(seed)
    layers = {
        "conv1": ConvLayer(maps=5, kernel_size=3, stride=2, pool=PoolConfig()),
        "conv2": ConvLayer(maps=6, kernel_size=3, padding=1, norm=None),
        "fc3": DenseLayer(units=7, dropout=0.5),
        "fc4": DenseLayer(),
    }
    return ConvNet(layers, num_classes=3, image_size=21, init=InitConfig(scheme="he")).double()


def module(seed=0):
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3), nn.ReLU()
    )
    return HookedNetwork(nn.Sequential(body, nn.Flatten(), nn.Dropout(), nn.LazyLinear(3)), ["0.2", "0.5"]).double()


def built(make, seed=0):
    network = make(seed)
    network.eval()(pictures([0]).double())
    return network.train()


def pictures(indices):
    return torch.stack([torch.randn(3, 21, 21, generator=torch.Generator().manual_seed(i)) for i in indices])


def brute_force(network, layer, number):
    """Value, image and place of the strongest activation, by a plain loop; its projection on the whole canvas."""
    network.eval()
    with torch.no_grad():
        found = network.features(pictures(SUBSET.tolist()).double(), layer)[:, number]
    best = (-torch.inf, -1, (-1, -1))
    for index, feature_map in zip(SUBSET.tolist(), found.reshape(len(SUBSET), -1), strict=True):
        for place, value in enumerate(feature_map.tolist()):
            if value > best[0]:
                best = value, index, divmod(place, found.shape[-1] if found.ndim == 3 else 1)
    canvas = project(network, pictures([best[1]]).double(), layer, [number], torch.tensor([best[2]]))
    return *best, canvas


@pytest.mark.parametrize(
    ("make", "layers"), [(chain, ["conv1", "conv2", "fc3"]), (module, ["0.2", "0.5"])], ids=["chain", "module"]
)
def test_each_map_shows_its_strongest_activation_over_the_images_and_its_projection(make, layers):
    network = built(make)

    observed = observe(network, 5, pictures, SUBSET, layers, maps=4, seed=1, batch_size=3)

    assert list(observed) == layers
    for layer, found in observed.items():
        assert found.epochs == [5] and len(found.maps) == 4
        for row, number in enumerate(found.maps.tolist()):
            value, index, place, canvas = brute_force(network, layer, number)
            assert found.values[row, 0].item() == pytest.approx(value, abs=1e-12)
            assert found.indices[row, 0].item() == index
            assert tuple(found.positions[row, 0].tolist()) == place
            x0, y0, x1, y1 = found.boxes[row, 0].tolist()
            padded = nn.functional.pad(canvas, (21, 21, 21, 21))
            patch = padded[..., 21 + y0 : 21 + y1, 21 + x0 : 21 + x1]
            assert patch.abs().sum().item() == pytest.approx(canvas.abs().sum().item())
            torch.testing.assert_close(found.scales[row], contrast_limits(patch))
            difference = found.tiles[row].int() - to_tiles(patch, limit=found.scales[row]).int()
            assert difference.abs().max() <= 1  # float64 sums in another order may round otherwise


def test_images_are_looked_at_in_eval_mode_and_nothing_is_drawn_or_left_behind():
    network = built(module)
    network.body[2].eval()
    modes = [each.training for each in network.modules()]
    state = {name: each.clone() for name, each in network.state_dict().items()}
    torch.manual_seed(3)
    before = torch.get_rng_state()

    some, others = (observe(network, 1, pictures, SUBSET, ["0.5"], 6, 0, size)["0.5"] for size in (2, 7))

    assert torch.equal(torch.get_rng_state(), before)
    assert [each.training for each in network.modules()] == modes
    assert all(torch.equal(each, state[name]) for name, each in network.state_dict().items())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in network.modules())
    assert all(each.grad is None for each in network.parameters())
    torch.testing.assert_close(some.values, others.values)
    assert torch.equal(some.indices, others.indices) and torch.equal(some.positions, others.positions)


def test_the_network_of_each_epoch_gives_a_column_and_is_loaded_once():
    loaded = []

    class Loading(dict):
        def __getitem__(self, epoch):
            loaded.append(epoch)
            return super().__getitem__(epoch)

    networks = Loading({9: built(chain, 1), 2: built(chain, 0)})

    evolution = evolve(networks, pictures, SUBSET, ["conv1", "conv2"], maps=3, seed=0)

    assert loaded == [2, 9]
    for layer, found in evolution.items():
        assert found.epochs == [2, 9]
        for column, epoch in enumerate([2, 9]):
            alone = observe(dict.__getitem__(networks, epoch), epoch, pictures, SUBSET, [layer], 3, 0)[layer]
            for name in ("tiles", "scales", "values", "indices", "positions", "boxes"):
                assert torch.equal(getattr(found, name)[:, column], getattr(alone, name)[:, 0]), name
        assert found.before(9).epochs == [2] and found.before(2).epochs == []
        assert torch.equal(found.before(9).tiles, found.tiles[:, :1])


def test_a_dead_map_is_grey_and_a_layer_that_wakes_up_keeps_its_size():
    asleep, awake = built(chain), built(chain)
    nn.init.constant_(asleep.conv2.conv.bias, -1e4)
    nn.init.constant_(awake.conv2.conv.bias[:1].detach(), -1e4)

    found = evolve({1: asleep, 2: awake, 3: asleep}, pictures, SUBSET, ["conv2"], maps=6, seed=0)["conv2"]

    assert found.alive.tolist() == [[False, False, False]] + [[False, True, False]] * 5
    assert found.tiles.shape[3:] == (15, 15)  # 3 + 2 * 2 below the pool + 2 * 4
    assert (found.boxes[1, 1, 2:] - found.boxes[1, 1, :2]).tolist() == [15, 15]
    assert (found.tiles[~found.alive] == 127).all() and (found.tiles[found.alive] != 127).flatten(1).any(1).all()
    assert (found.scales[~found.alive] == 0).all() and (found.boxes[~found.alive] == 0).all()


def test_a_rank_that_looks_alone_waits_for_no_other(monkeypatch):
    def meet(*_):
        raise AssertionError("a collective")

    monkeypatch.setattr("torchmetrics.metric.jit_distributed_available", lambda: True)
    monkeypatch.setattr("torchmetrics.metric.gather_all_tensors", meet)

    found = observe(built(chain), 1, pictures, SUBSET, ["conv1"], maps=3, seed=0)

    assert found["conv1"].alive.all()


def test_activations_that_are_not_finite_win_nothing():
    network = built(chain)
    nn.init.constant_(network.conv2.conv.bias[2:3].detach(), torch.nan)

    found = observe(network, 1, pictures, SUBSET, ["conv2"], maps=6, seed=0)["conv2"]

    assert found.indices[2].item() == -1 and found.values[2].item() == -torch.inf
    assert found.alive.sum() == 5


def test_a_jump_is_another_image_than_when_the_map_was_last_alive():
    indices = torch.tensor([[4, 4, 7, 7, 4], [-1, 3, -1, 3, 5], [8, 9, 8, 8, 8]])
    values = torch.tensor([[1.0, 2, 3, 4, 5], [0, 1, 0, 1, 1], [1, 0, 2, 2, 2]])

    found = jumps(indices, values > 0)

    assert found.int().tolist() == [[0, 0, 1, 0, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    assert jumps(indices[2:]).int().tolist() == [[0, 1, 1, 0, 0]]


def test_jumps_are_those_of_a_walk_along_each_row():
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(-1, 3, (50, 8), generator=generator)
    alive = torch.rand(50, 8, generator=generator) > 0.3

    found = jumps(indices, alive)

    for row, images in enumerate(indices.tolist()):
        last = None
        for column, image in enumerate(images):
            living = alive[row, column].item() and image >= 0
            assert found[row, column].item() == (living and last is not None and image != last)
            last = image if living else last


def test_what_does_not_belong_together_is_refused():
    network = built(chain)
    one = observe(network, 1, pictures, SUBSET, ["conv1"], 3, 0)["conv1"]
    other_maps = observe(network, 2, pictures, SUBSET, ["conv1"], 2, 0)["conv1"]
    other_size = observe(network, 2, pictures, SUBSET, ["conv2"], 3, 0)["conv2"]

    with pytest.raises(ValueError, match="follow each other, but their epochs are"):
        join([one, one])
    with pytest.raises(ValueError, match="different maps"):
        join([one, other_maps])
    with pytest.raises(ValueError, match="different sizes"):
        join([one, type(one)(one.maps, [2], *list(vars(other_size).values())[2:])])
    with pytest.raises(ValueError, match="there is no network"):
        evolve({}, pictures, SUBSET, ["conv1"], 3, 0)
    with pytest.raises(ValueError, match="one image or more"):
        evolve({1: network}, pictures, SUBSET[:0], ["conv1"], 3, 0)
    with pytest.raises(ValueError, match="one layer or more"):
        evolve({1: network}, pictures, SUBSET, [], 3, 0)
    with pytest.raises(ValueError, match="no layer 'conv9'; the layers are conv1, conv2, fc3, fc4"):
        evolve({1: network}, pictures, SUBSET, ["conv9"], 3, 0)


def test_a_layer_without_maps_is_refused_by_name():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(2), nn.Flatten(), nn.LazyLinear(3))
    network = HookedNetwork(body, ["1", "2"])
    network(pictures([0]))

    assert list(feature_maps(network, pictures([0, 1]), ["1", "2"])) == ["1"]
    with pytest.raises(ValueError, match="layer '2' has no feature maps"):
        observe(network, 1, pictures, SUBSET, ["2"], 3, 0)


@pytest.mark.parametrize("shape", [(20, 4, 3, 5), (30, 4)])
def test_agreement_is_the_mean_correlation_of_each_map_with_its_last_state(shape):
    generator = torch.Generator().manual_seed(0)
    final = torch.randn(shape, generator=generator)
    maps = final + torch.randn(shape, generator=generator)

    correlations = [np.corrcoef(maps[:, i].flatten(), final[:, i].flatten())[0, 1] for i in range(4)]

    assert agreement(maps, final) == pytest.approx(np.mean(correlations), abs=1e-6)
    assert agreement(3 * final + 2, final) == pytest.approx(1, abs=1e-6)
    assert agreement(-final, final) == pytest.approx(-1, abs=1e-6)


def test_a_map_that_is_dead_in_the_end_does_not_count_and_one_that_is_dead_yet_agrees_by_nothing():
    final = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    maps = final.clone()
    final[:, 0], maps[:, 1] = 0.1, 0.7  # constants that floating point does not hold exactly

    assert agreement(maps, final) == pytest.approx(0.5, abs=1e-6)
    assert np.isnan(agreement(maps, torch.full_like(final, 0.1)))
    with pytest.raises(ValueError, match="must be the same maps of the same images"):
        agreement(maps[:5], final)


@pytest.mark.parametrize(
    ("agreements", "expected"),
    [
        ((0.5, 0.8, 1.0, 1.0), 3.0),  # from 0.8 at epoch 2 to 1 at epoch 4: 0.9 at epoch 3
        ((0.95, 0.97, 0.99, 1.0), 1.0),
        ((0.95, 0.2, 0.95, 1.0), 2 + 2 * 0.7 / 0.75),  # what was near once counts only if it stays
        ((0.1, 0.2, 0.5, 1.0), 4 + 4 * 0.8),
        ((0.9, 0.9, 0.9, 1.0), 1.0),
    ],
)
def test_a_layer_settles_where_its_agreement_rises_above_the_level_for_good(agreements, expected):
    assert settled_epoch((1, 2, 4, 8), agreements) == pytest.approx(expected)


def test_what_is_not_known_settles_nowhere():
    assert np.isnan(settled_epoch((1, 2, 4), (float("nan"), 0.5, 1.0)))
    assert np.isnan(settled_epoch((1, 2, 4), (0.5, float("nan"), 1.0)))


@pytest.mark.parametrize(("make", "layers"), [(chain, ["conv1", "fc3"]), (module, ["0.2", "0.5"])])
def test_epochs_are_compared_with_the_last_one_over_all_images(make, layers):
    networks = {epoch: built(make, seed) for epoch, seed in ((7, 0), (1, 1), (3, 2))}
    inputs = pictures(SUBSET.tolist())

    found = agreements(networks, inputs, layers, batch_size=3)

    last = feature_maps(networks[7], inputs, layers)
    for layer in layers:
        expected = [agreement(feature_maps(networks[epoch], inputs, layers)[layer], last[layer]) for epoch in (1, 3, 7)]
        np.testing.assert_allclose(found[layer], expected, atol=1e-12)
        assert found[layer][-1] == pytest.approx(1) and max(found[layer][:-1]) < 0.9
