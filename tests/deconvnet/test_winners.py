"""Winners of small networks, found by hooks, against brute force; their patches and projections one by one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zfscope.activations import TopTable
from zfscope.deconvnet.controls import control_correlations
from zfscope.deconvnet.projection import project
from zfscope.deconvnet.winners import (
    TopActivationsHook,
    as_pictures,
    check_projectable,
    layers_to_watch,
    project_winners,
    random_subset,
    reproduces_activations,
)
from zfscope.networks.chain import ConvNet
from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.network import evaluating
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig, PoolConfig

SIDE, COUNT = 21, 12
PICTURES = torch.randint(0, 256, (COUNT, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
MEAN = 255 * torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
SCALE = torch.tensor([0.01, 0.02, 0.015])[:, None, None]


def read(indices):
    return ((PICTURES[torch.as_tensor(indices)].float() - MEAN) * SCALE).double()


def chain():
    """conv1 and conv2 see 3 and 15 pixels, conv3 more than the image; dropout makes training mode show."""
    torch.manual_seed(0)
    layers = {
        "conv1": ConvLayer(maps=5, kernel_size=3, stride=2, pool=PoolConfig()),
        "conv2": ConvLayer(maps=6, kernel_size=3, padding=1, norm=None),
        "conv3": ConvLayer(maps=4, kernel_size=3, padding=1, norm=None),
        "fc4": DenseLayer(units=7, dropout=0.5),
        "fc5": DenseLayer(),
    }
    return ready(ConvNet(layers, num_classes=3, image_size=SIDE, init=InitConfig(scheme="he")))


class Body(nn.Module):
    """Functional and in-place ReLUs, batch norm, a global pool; tokens ``(N, cells, C)`` on the way."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5)
        self.conv2, self.act = nn.Conv2d(5, 6, 3), nn.ReLU(inplace=True)
        self.pool, self.tokens, self.drop, self.head = nn.AdaptiveAvgPool2d(1), Tokens(), nn.Dropout(), nn.Linear(6, 3)

    def forward(self, images):
        maps = self.act(self.conv2(F.relu(self.norm(self.conv1(images)))))
        return self.head(self.drop(self.tokens(self.pool(maps)).mean(1)))


class Tokens(nn.Module):
    def forward(self, maps):
        return maps.flatten(2).transpose(1, 2)


def hooked():
    torch.manual_seed(0)
    body = Body()
    nn.init.uniform_(body.norm.running_var, 0.5, 2)
    return ready(HookedNetwork(body, ["norm", "act", "pool", "head"], image_size=SIDE))


def ready(network):
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, 0, 0.1)
    network.preprocessing = Preprocessing(SIDE, SIDE, MEAN, SCALE)
    return network.double().eval()


LAYERS = {chain: ["conv1", "conv2", "conv3", "fc4"], hooked: ["norm", "act", "pool", "head"]}
NETWORKS = pytest.mark.parametrize("make", [chain, hooked])


def mined(network, layers, k, batch_size=5):
    miner = TopActivationsHook(network, layers, k)
    with torch.no_grad():
        for miner.indices in torch.arange(COUNT).split(batch_size):
            network(read(miner.indices))
    miner.close()
    return miner.top.compute()


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


def hooks_of(module):
    return [each for each in module.modules() if each._forward_hooks or each._forward_pre_hooks]


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
        (chain, {"image": torch.zeros(1, SIDE, SIDE)}, r"square images in colour, \(3, S, S\), but .* \(1, 21, 21\)"),
        (hooked, {"image": torch.zeros(3, SIDE, 30)}, r"square images in colour, \(3, S, S\), but .* \(3, 21, 30\)"),
        (hooked, {"unpooling": "overwrite"}, "unpooling='overwrite' needs a chain of named layers"),
        (with_gelu, {"layers": ["act"]}, "'deconvnet' is not defined for gelu"),
        (lambda: HookedNetwork(hooked().body, ["act", "tokens"]), {"layers": ["tokens"]}, "'tokens' has no feature"),
        (lambda: HookedNetwork(hooked().body, ["tokens"]), {}, "none of tokens has feature maps .* name other layers"),
    ],
    ids=["layer", "grey", "not square", "overwrite", "gelu", "tokens", "only tokens"],
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
