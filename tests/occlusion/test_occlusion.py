"""Occlusion against brute force, captum and hand-worked cases."""

import math
import random

import pytest
import torch
from captum.attr import Occlusion as CaptumOcclusion
from torch import nn

from tests.conftest import seeds
from zfscope.networks.chain import ConvNet
from zfscope.networks.hooked import HookedNetwork, TimmNetwork
from zfscope.networks.spec import ContrastConfig, ConvLayer, DenseLayer, PoolConfig
from zfscope.occlusion import maps, passes, windows
from zfscope.occlusion.maps import occlude


def chain(seed):
    """A random chain in float64: any kernel, stride, padding, pool and norm that fits."""
    dice = random.Random(seed)
    torch.manual_seed(seed)
    while True:
        side, layers = dice.randint(15, 38), {}
        for number in range(1, dice.randint(2, 5)):
            kernel = dice.choice([1, 2, 3, 4, 5, 7])
            pool = PoolConfig(
                kernel_size=dice.choice([2, 3]), stride=dice.choice([1, 2, 3]), ceil_mode=dice.random() < 0.5
            )
            layers[f"conv{number}"] = ConvLayer(
                maps=dice.choice([4, 6, 8]),
                kernel_size=kernel,
                stride=dice.choice([1, 1, 2, 3]),
                padding=dice.randint(0, kernel // 2),
                groups=1 if number == 1 else dice.choice([1, 2]),
                pool=pool if dice.random() < 0.6 else None,
                norm=dice.choice([None, "after_pool", "before_pool"]),
            )
        if dice.random() < 0.5:
            layers["fc6"] = DenseLayer(units=7, dropout=0.5)
        layers["fc8"] = DenseLayer()
        try:
            network = ConvNet(layers, num_classes=5, image_size=side, contrast=ContrastConfig(alpha=0.5, k=1.0))
        except ValueError:  # a kernel larger than its map
            continue
        for parameter in network.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, 0, 0.3)
        return network.double().eval(), dice


def small(layers=None, side=16):
    torch.manual_seed(0)
    layers = layers or {
        "conv1": ConvLayer(maps=6, kernel_size=3, stride=2, padding=1, pool=PoolConfig(), norm="after_pool"),
        "conv2": ConvLayer(maps=8, kernel_size=3, padding=1),
        "fc6": DenseLayer(units=9, dropout=0.5),
        "fc8": DenseLayer(),
    }
    return ConvNet(layers, num_classes=4, image_size=side).double().eval()


def by_brute_force(network, image, target, size, stride, fill, layer, feature_map):
    rows, columns = (range(math.ceil((side - size) / stride) + 1) for side in image.shape[1:])
    shape = len(rows), len(columns)
    probability, activation = torch.zeros(2, *shape, dtype=image.dtype)
    label = torch.zeros(shape, dtype=torch.int64)
    for row in rows:
        for column in columns:
            covered = image.clone()
            top, left = row * stride, column * stride
            covered[:, top : top + size, left : left + size] = torch.as_tensor(fill, dtype=image.dtype).view(-1, 1, 1)
            with torch.no_grad():
                trace = network.trace(covered[None])
            probability[row, column] = trace.logits.softmax(1)[0, target]
            label[row, column] = trace.logits.argmax()
            activation[row, column] = trace.maps[layer][0, feature_map].sum()
    return probability, label, activation


def assert_same(found, probability, label, activation, tolerance):
    torch.testing.assert_close(found.probability, probability, rtol=0, atol=tolerance)
    scale = max(1.0, float(activation.abs().max()))
    torch.testing.assert_close(found.activation, activation, rtol=0, atol=tolerance * scale)
    assert torch.equal(found.label, label)


@pytest.mark.parametrize("seed", seeds(150))
def test_windows_give_what_brute_force_gives(seed, monkeypatch):
    monkeypatch.setattr(maps, "FULL_PASS_SHARE", math.inf)  # also where full passes would be cheaper
    monkeypatch.setattr(windows, "DENSE_BATCH", 20)
    network, dice = chain(seed)
    side = network.image_size
    image = torch.randn(3, side, side, dtype=torch.float64)
    size, stride = min(side, dice.choice([1, 2, 5, 8, dice.randint(1, side)])), dice.choice([2, 3, 4, 5, 7, 11])
    fill = dice.choice([0.0, 1.5, torch.randn(3, dtype=torch.float64)])
    layer, target = dice.choice(network.layers), dice.randrange(5)

    found = occlude(network, image, target, size=size, stride=stride, fill=fill, layer=layer)

    expected = by_brute_force(network, image, target, size, stride, fill, layer, found.feature_map)
    assert_same(found, *expected, 1e-12)


@pytest.mark.parametrize("tile", [1, 2**13, 2**30])
def test_tiles_of_any_size_give_the_same(tile, monkeypatch):
    monkeypatch.setattr(maps, "FULL_PASS_SHARE", math.inf)
    monkeypatch.setattr(windows, "TILE_BYTES", tile)
    network = small()
    image = torch.randn(3, 16, 16, dtype=torch.float64)

    found = occlude(network, image, 1, size=5, stride=1, layer="conv1")

    assert_same(found, *by_brute_force(network, image, 1, 5, 1, 0.0, "conv1", found.feature_map), 1e-12)


def test_single_precision_agrees_to_five_digits(monkeypatch):
    monkeypatch.setattr(maps, "FULL_PASS_SHARE", math.inf)
    layers = {
        "conv1": ConvLayer(maps=32, kernel_size=7, stride=2, padding=1, pool=PoolConfig(), norm="after_pool"),
        "conv2": ConvLayer(maps=48, kernel_size=5, stride=2, pool=PoolConfig(), norm="after_pool"),
        "conv3": ConvLayer(maps=64, kernel_size=3, padding=1),
        "conv5": ConvLayer(maps=32, kernel_size=3, padding=1, pool=PoolConfig()),
        "fc6": DenseLayer(units=64),
        "fc8": DenseLayer(),
    }
    network = small(layers, side=112).float()
    image = torch.randn(3, 112, 112)

    found = occlude(network, image, 2, size=24, stride=16)

    assert_same(found, *by_brute_force(network, image, 2, 24, 16, 0.0, "conv5", found.feature_map), 1e-5)


def test_a_square_that_changes_nearly_all_goes_by_full_passes(monkeypatch):
    monkeypatch.setattr(windows.WindowedPasses, "run", None)
    network = small()
    image = torch.randn(3, 16, 16, dtype=torch.float64)

    found = occlude(network, image, 0, size=15, stride=1, layer="conv2")

    assert_same(found, *by_brute_force(network, image, 0, 15, 1, 0.0, "conv2", found.feature_map), 1e-12)


def test_the_share_of_full_passes_is_that_of_a_count_by_hand():
    network = small({"conv1": ConvLayer(maps=2, kernel_size=3, stride=2), "fc8": DenseLayer()}, side=11)
    passes = windows.WindowedPasses(network, torch.randn(3, 11, 11, dtype=torch.float64), torch.zeros(3), 2, "conv1")

    share = passes.share([range(10), range(10)])

    assert share == pytest.approx((10 * 2 / 2) ** 2 / (10 * 5) ** 2)  # 2 pixels a side at stride 2, against the map's 5


def test_a_small_square_does_not_go_by_full_passes(monkeypatch):
    monkeypatch.setattr(maps, "FullPasses", None)

    found = occlude(small(side=64), torch.randn(3, 64, 64, dtype=torch.float64), 0, size=8, stride=8, layer="conv2")

    assert found.probability.shape == (8, 8)


@pytest.mark.parametrize("budget", [1, 2**26], ids=["one at a time", "many"])
def test_a_network_that_is_no_chain_gives_the_same(budget, monkeypatch):
    monkeypatch.setattr(passes, "PASS_BYTES", budget)
    network = small()
    body = nn.Sequential(*(part for layer in network.layers[:2] for part in getattr(network, layer)), nn.Flatten())
    body.extend([*network.fc6, *network.fc8])
    hooked = HookedNetwork(body, ["5"]).eval()  # the ReLU of conv2
    image = torch.randn(3, 16, 16, dtype=torch.float64)

    found = occlude(hooked, image, 3, size=6, stride=3, fill=0.5, layer="5", feature_map=2)

    assert_same(found, *by_brute_force(network, image, 3, 6, 3, 0.5, "conv2", 2), 1e-12)


def test_a_timm_network_and_an_image_that_is_not_square():
    network = TimmNetwork("resnet10t", num_classes=3, image_size=32, layers=("layer2",)).double().eval()
    image = torch.randn(3, 48, 32, dtype=torch.float64)

    found = occlude(network, image, 2, size=20, stride=12, layer="layer2")

    assert found.probability.shape == (4, 2)
    assert_same(found, *by_brute_force(network, image, 2, 20, 12, 0.0, "layer2", found.feature_map), 1e-12)


@pytest.mark.parametrize(("size", "stride"), [(6, 3), (5, 4)])
def test_averaged_over_covering_squares_it_is_captums_occlusion(size, stride):
    network = small()
    image = torch.randn(3, 16, 16, dtype=torch.float64)
    captum = CaptumOcclusion(lambda images: network(images).softmax(1))

    found = occlude(network, image, 1, size=size, stride=stride, layer="conv2")

    theirs = captum.attribute(
        image[None], sliding_window_shapes=(3, size, size), strides=(3, stride, stride), target=1, baselines=0
    )[0, 0]
    drop, covering = torch.zeros(2, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        whole = network(image[None]).softmax(1)[0, 1]
    for row in range(found.probability.shape[0]):
        for column in range(found.probability.shape[1]):
            place = (slice(row * stride, row * stride + size), slice(column * stride, column * stride + size))
            drop[place] += whole - found.probability[row, column]
            covering[place] += 1
    torch.testing.assert_close((drop / covering).float(), theirs, rtol=0, atol=1e-7)  # captum averages in float32


def test_a_hand_worked_case():
    network = ConvNet(
        {"conv1": ConvLayer(maps=1, kernel_size=1), "fc8": DenseLayer()}, num_classes=2, image_size=4
    ).double()
    with torch.no_grad():
        network.conv1.conv.weight.fill_(1.0)  # red + green + blue
        network.fc8.linear.weight.copy_(torch.tensor([[0.0], [1.0]]).expand(2, 16) / 8)
    image = torch.zeros(3, 4, 4, dtype=torch.float64)
    image[0] = 1.0  # so every activation is 1, and covered ones are 0

    found = occlude(network, image, 1, size=3, stride=2, layer="conv1")

    # Corners at 0 and 2: covered are 3x3, 3x2, 2x3 and 2x2 pixels.
    activation = torch.tensor([[7.0, 10.0], [10.0, 12.0]], dtype=torch.float64)
    assert torch.equal(found.activation, activation)
    torch.testing.assert_close(found.probability, torch.sigmoid(activation / 8))
    assert torch.equal(found.label, torch.ones(2, 2, dtype=torch.int64))


def test_the_map_watched_is_the_one_with_the_largest_sum_unoccluded():
    network = small()
    image = torch.randn(3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        network.conv1.conv.bias[4] += 5.0
        sums = network.trace(image[None]).maps["conv1"][0].sum((1, 2))

    assert int(sums.argmax()) == 4
    assert occlude(network, image, 0, size=4, stride=8, layer="conv1").feature_map == int(sums.argmax())
    assert occlude(network, image, 0, size=4, stride=8, layer="conv1", feature_map=3).feature_map == 3


def test_a_square_of_the_images_own_colour_changes_nothing():
    network = small()
    image = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64).view(3, 1, 1).expand(3, 16, 16)

    found = occlude(network, image, 1, size=4, stride=4, fill=image[:, 0, 0], layer="conv2")

    with torch.no_grad():
        expected = network(image[None]).softmax(1)[0, 1]
    torch.testing.assert_close(found.probability, expected.expand(4, 4), rtol=0, atol=1e-15)


def test_the_network_stays_as_it_was():
    network = small().train()
    network.conv1.eval()
    image = torch.randn(3, 16, 16, dtype=torch.float64)
    before = [module.training for module in network.modules()]

    found = occlude(network, image, 1, size=4, stride=4, layer="conv2")
    with pytest.raises(ValueError, match="target"):
        occlude(network, image, 9, size=4, stride=4, layer="conv2")
    occlude(HookedNetwork(network, ["conv2"]), image, 1, size=4, stride=4, layer="conv2")

    assert [module.training for module in network.modules()] == before
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    # Dropout was off all the same.
    network.eval()
    assert_same(found, *by_brute_force(network, image, 1, 4, 4, 0.0, "conv2", found.feature_map), 1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 17}, "size=17 is larger than the image of 16x16 pixels; take a smaller square"),
        ({"size": 0}, "size must be a whole number of pixels, 1 or more, but is 0"),
        ({"stride": 0}, "stride must be a whole number of pixels, 1 or more, but is 0"),
        ({"stride": 1.5}, "stride must be a whole number of pixels, 1 or more, but is 1.5"),
        ({"layer": "conv9"}, "no layer 'conv9'; the layers are conv1, conv2, fc6, fc8"),
        ({"feature_map": 8}, "feature_map must be one of the maps of conv2, 0 … 7, but is 8"),
        ({"target": 4}, "target must be one of the classes, 0 … 3, but is 4"),
        ({"target": True}, "target must be one of the classes, 0 … 3, but is True"),
        ({"target": 1.0}, "target must be one of the classes, 0 … 3, but is 1.0"),
        ({"target": -1}, "target must be one of the classes, 0 … 3, but is -1"),
        ({"fill": float("nan")}, "fill must be a finite number, or three of them, but is nan"),
        ({"fill": torch.zeros(2)}, "fill must be a finite number, or three of them"),
        ({"image": torch.zeros(1, 3, 16, 16)}, r"image must be one network input \(3, H, W\)"),
        ({"image": torch.zeros(3, 20, 20)}, r"images must be \(N, 3, 16, 16\)"),
    ],
)
@pytest.mark.parametrize("form", ["chain", "hooked"])
def test_what_cannot_be_asked_is_refused_in_one_line(wrong, message, form):
    network = small()
    if form == "hooked":
        network, message = HookedNetwork(network, ["conv2"]).eval(), message.replace("conv1, conv2, fc6, fc8", "conv2")
    asked = {"image": torch.zeros(3, 16, 16), "target": 0, "size": 4, "stride": 4, "layer": "conv2", **wrong}

    with pytest.raises(ValueError, match=message) as refused:
        occlude(network, asked.pop("image"), asked.pop("target"), **asked)

    assert "\n" not in str(refused.value)
