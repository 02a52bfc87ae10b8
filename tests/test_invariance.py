"""Moved images, and how far features move, against loops and other libraries."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from tests.examples.invariance import NOTHING
from zfscope import build_network
from zfscope.invariance import KINDS, Invariance, compare, default_amounts, low_and_high, moved
from zfscope.networks.chain import ConvNet
from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.preprocessing import centre_crop
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig, PoolConfig


def pictures(count=2, height=12, width=12, dtype=torch.float64, seed=0):
    return torch.randn(count, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def chain(dtype=torch.float64):
    torch.manual_seed(0)
    layers = {
        "conv1": ConvLayer(maps=5, kernel_size=3, stride=2, pool=PoolConfig()),
        "conv2": ConvLayer(maps=6, kernel_size=3, padding=1),
        "fc3": DenseLayer(units=7, dropout=0.5),
        "fc4": DenseLayer(),
    }
    return ConvNet(layers, num_classes=3, image_size=21, init=InitConfig(scheme="he")).to(dtype)


class Sums(nn.Module):
    """A network to which only the sum of each map counts, wherever things lie."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.head = nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Linear(4, 3)
        self.sum = nn.Identity()

    def forward(self, images):
        return self.head(self.sum(self.relu(self.conv(images)).sum((2, 3))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width", "size"), [(12, 12, None), (9, 13, None), (13, 13, 8), (12, 12, 9)])
def test_an_unmoved_image_keeps_its_bits_and_is_the_centre_crop(kind, height, width, size):
    images = pictures(height=height, width=width, dtype=torch.float32)

    found = moved(images, kind, NOTHING[kind], size)

    assert torch.equal(found, images if size is None else centre_crop(images, size))
    if kind == "rotation":
        assert torch.equal(moved(images, kind, 720.0, size), found)


@pytest.mark.parametrize("shift", [-15, -12, -3, 3, 7, 20])
def test_a_whole_shift_is_a_slice_with_grey_behind_it(shift):
    images = pictures(height=12, width=10)
    expected = torch.zeros_like(images)
    if 0 < shift < 12:
        expected[:, :, shift:] = images[:, :, :-shift]
    elif -12 < shift < 0:
        expected[:, :, :shift] = images[:, :, -shift:]

    assert torch.equal(moved(images, "translation", shift), expected)


def test_a_canvas_moves_before_it_is_cropped():
    canvases = pictures(height=16, width=16)

    found = moved(canvases, "translation", 5, 10)

    assert torch.equal(found[:, :, 2:], canvases[:, :, :8, 3:13])
    assert (found[:, :, :2] == 0).all() and (moved(canvases, "translation", 3, 10) != 0).all()


@pytest.mark.parametrize("side", [12, 13], ids=["even", "odd"])
def test_quarter_turns_are_exactly_those_of_the_grid(side):
    images = pictures(height=side, width=side)

    for turns in range(-4, 5):
        assert torch.equal(moved(images, "rotation", 90.0 * turns), torch.rot90(images, turns, (2, 3)))
    assert torch.equal(moved(images, "rotation", 180), images.flip(2, 3))


def test_a_row_twice_as_large_is_the_one_worked_by_hand():
    row = torch.tensor([4.0, 8.0, 16.0, 0.0]).expand(1, 1, 4, 4)

    found = moved(row, "scale", 2)

    # Places -1.5, -0.5, 0.5, 1.5 from the centre came from half of that: 0.75, 1.25, 1.75, 2.25 from the left.
    assert found[0, 0, 1].tolist() == [0.25 * 4 + 0.75 * 8, 0.75 * 8 + 0.25 * 16, 0.25 * 8 + 0.75 * 16, 0.75 * 16]


CASES = [
    *[("translation", amount) for amount in (-7.5, 0.25, 3.7)],
    *[("scale", amount) for amount in (0.6, 1.3, 1.8)],
    *[("rotation", amount) for amount in (-20, 33, 135, 350)],
]


@pytest.mark.parametrize(("kind", "amount"), CASES)
@pytest.mark.parametrize(("height", "width"), [(12, 12), (11, 14)])
def test_it_resamples_as_torchvision_and_scipy_do(kind, amount, height, width):
    images = pictures(height=height, width=width)
    turn, scale, shift = (amount if kind == each else NOTHING[each] for each in ("rotation", "scale", "translation"))

    found = moved(images, kind, amount)

    if shift == int(shift):  # torchvision's shifts are whole
        theirs = F.affine(images, -turn, [0, int(shift)], scale, [0.0, 0.0], InterpolationMode.BILINEAR)
        torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5)
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    inverse = np.array([[cos, sin], [-sin, cos]]) / scale
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    offset = centre - inverse @ (centre + [shift, 0])
    for plane, other in zip(found.flatten(0, 1), images.flatten(0, 1), strict=True):
        theirs = ndimage.affine_transform(other.numpy(), inverse, offset, order=1, mode="grid-constant", cval=0.0)
        torch.testing.assert_close(plane, torch.from_numpy(theirs), rtol=0, atol=1e-7)


def by_hand(network, images, labels, kind, amounts, layers):
    """Distances and probabilities, image by image."""
    network.eval()
    with torch.no_grad():
        for image, label in zip(images, labels, strict=True):
            plain = centre_crop(image[None], 21)
            for amount in amounts:
                other = moved(image[None], kind, amount, 21)
                apart = [
                    (network.features(plain, layer) - network.features(other, layer)).pow(2).sum().sqrt()
                    for layer in layers
                ]
                yield *apart, network(other).softmax(1)[0, label]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_distances_and_probabilities_are_those_of_a_plain_loop_whatever_the_batch(kind, batch_size):
    network, images, labels = chain(), pictures(7, 26, 26), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    amounts = {"translation": [-6, 0, 2.5], "scale": [1, 1.4], "rotation": [10, 200, 0, 350]}[kind]
    layers = ["conv1", "fc3"]

    found = compare(network.train(), images, labels, kind, amounts, layers, batch_size=batch_size)

    expected = torch.tensor([*by_hand(network, images, labels, kind, amounts, layers)], dtype=torch.float64)
    expected = expected.view(7, len(amounts), 3)
    torch.testing.assert_close(found.distances["conv1"], expected[..., 0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.distances["fc3"], expected[..., 1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.probability.double(), expected[..., 2], rtol=1e-5, atol=1e-7)
    assert found.amounts.tolist() == amounts and list(found.distances) == layers


def test_an_unmoved_image_is_exactly_where_it_was_with_its_plain_probability():
    network, images, labels = chain(torch.float32), pictures(5, 21, 21, torch.float32), torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        plain = network.eval()(images).softmax(1)[range(5), labels]

    for kind in KINDS:
        found = compare(network, images, labels, kind, [NOTHING[kind], 1.7], network.layers, batch_size=2)

        for layer in network.layers:
            assert (found.distances[layer][:, 0] == 0).all() and (found.distances[layer][:, 1] > 0).all()
        torch.testing.assert_close(found.probability[:, 0], plain)
        assert found.changed.tolist() == [False, True]


def test_the_unit_is_the_mean_distance_between_two_different_images():
    network, images = chain(), pictures(4, 21, 21)
    features = network.eval().features(images, "conv2").detach()
    pairs = [(features[i] - features[j]).norm() for i in range(4) for j in range(i)]

    found = compare(network, images, torch.zeros(4, dtype=torch.int64), "scale", [1, 1.5], ["conv2"])

    assert found.another["conv2"] == pytest.approx(float(sum(pairs)) / 6)
    torch.testing.assert_close(found.relative("conv2"), found.distances["conv2"] * 6 / sum(pairs))
    torch.testing.assert_close(found.norms["conv2"], features.flatten(1).norm(dim=1))


def test_a_network_that_only_sums_does_not_see_what_keeps_all_pixels():
    network = HookedNetwork(Sums().double(), ["conv", "sum", "head"])
    images = nn.functional.pad(pictures(3, 6, 6), (4, 4, 4, 4))
    labels = torch.tensor([0, 1, 2])

    for kind, amounts in (("translation", [-4, 1, 4]), ("rotation", [90, 180, 270])):
        found = compare(network, images, labels, kind, amounts, ["conv", "sum"])

        assert found.distances["sum"].max() < 1e-12 and found.distances["conv"].min() > 1
        assert found.probability.std(1).max() < 1e-7


def test_modes_stay_and_nothing_is_drawn():
    network = chain()
    network.fc3.eval()
    modes = [each.training for each in network.modules()]
    torch.manual_seed(3)
    before = torch.get_rng_state()

    found = compare(network, pictures(3, 21, 21), torch.zeros(3, dtype=torch.int64), "scale", [1.5], ["fc3"])

    assert [each.training for each in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    assert not found.distances["fc3"].requires_grad


def test_half_precision_measures_in_single():
    network = chain(torch.bfloat16)

    found = compare(network, pictures(3, 21, 21), torch.zeros(3, dtype=torch.int64), "scale", [1, 1.5], ["conv1"])

    assert found.distances["conv1"].dtype == found.probability.dtype == torch.float32
    assert (found.distances["conv1"][:, 0] == 0).all()


def test_the_papers_ranges_are_in_whole_pixels():
    assert default_amounts("translation", 224).tolist() == list(range(-60, 61, 5))
    half = default_amounts("translation", 112).tolist()
    assert half[0] == -30 and half[-1] == 30 and 0 in half and len(half) == 25
    assert all(amount == int(amount) and -amount in half for amount in half)
    assert default_amounts("scale", 224).tolist() == pytest.approx([1 + 0.05 * step for step in range(17)])
    assert default_amounts("rotation", 224).tolist() == list(range(0, 360, 10))


def test_turns_go_the_shorter_way_round():
    amounts = torch.tensor([0.0, 20, 180, 350, -10, 360, 725])
    found = Invariance("rotation", amounts, {}, {}, {}, torch.empty(0, 7))

    assert found.turn.tolist() == [0, 20, 180, 10, 10, 0, 5]
    assert found.changed.tolist() == [False, True, True, True, True, False, True]


def test_the_low_and_the_high_layer_are_the_first_and_the_one_below_the_classes():
    network = build_network({"source": "timm", "name": "resnet18"}, num_classes=3, image_size=64)

    assert low_and_high(chain()) == ("conv1", "fc3")
    assert network.layers[-1] == "fc" and low_and_high(network) == ("act1", "layer4")
    assert low_and_high(HookedNetwork(Sums(), ["conv", "sum", "head"])) == ("conv", "sum")
    with pytest.raises(ValueError, match="name a low and a high layer; the layers are sum, head"):
        low_and_high(HookedNetwork(Sums(), ["sum", "head"]))


def test_what_cannot_be_moved_is_refused():
    with pytest.raises(ValueError, match="no transformation 'shear'; those are translation, scale, rotation"):
        moved(pictures(), "shear", 1)
    with pytest.raises(ValueError, match="no transformation 'shear'"):
        default_amounts("shear", 224)
    with pytest.raises(ValueError, match="amount of a translation must be finite, but it is nan"):
        moved(pictures(), "translation", float("nan"))
    with pytest.raises(ValueError, match="amount of a scale must be finite and above 0, but it is 0"):
        moved(pictures(), "scale", 0)
    with pytest.raises(ValueError, match=r"must be floats \(N, C, H, W\), but they are torch.uint8"):
        moved(pictures().to(torch.uint8), "scale", 1.5)
    with pytest.raises(ValueError, match=r"must be floats \(N, C, H, W\), but they are torch.float64 \(3, 12, 12\)"):
        moved(pictures()[0], "scale", 1.5)
    with pytest.raises(ValueError, match="size=13 must lie between 1 and the images' 12x12 px"):
        moved(pictures(), "scale", 1.5, 13)


def test_what_cannot_be_compared_is_refused_before_the_network_runs(monkeypatch):
    network, images, labels = chain(), pictures(2, 21, 21), torch.tensor([0, 1])
    monkeypatch.setattr(network, "trace", None)

    with pytest.raises(ValueError, match="two images or more"):
        compare(network, images[:1], labels[:1], "scale", [1.5], ["fc3"])
    with pytest.raises(ValueError, match="one amount or more"):
        compare(network, images, labels, "scale", [], ["fc3"])
    with pytest.raises(ValueError, match="one layer or more"):
        compare(network, images, labels, "scale", [1.5], [])
    with pytest.raises(ValueError, match=r"labels must be \(2,\) integers, but they are torch.int64 \(3,\)"):
        compare(network, images, torch.zeros(3, dtype=torch.int64), "scale", [1.5], ["fc3"])
    with pytest.raises(ValueError, match="no layer 'fc9'; the layers are conv1, conv2, fc3, fc4"):
        compare(network, images, labels, "scale", [1.5], ["fc9"])
    with pytest.raises(ValueError, match="amount of a scale"):
        compare(network, images, labels, "scale", [1.5, -1], ["fc3"])
    with pytest.raises(ValueError, match="size=21 must lie between 1 and the images' 20x20 px"):
        compare(network, images[..., 1:, 1:], labels, "scale", [1.5], ["fc3"])


def test_labels_and_layers_that_do_not_fit_the_network_are_refused():
    network, images, labels = chain(), pictures(2, 21, 21), torch.tensor([0, 1])

    with pytest.raises(ValueError, match="labels lie between 0 and 3, the network's between 0 and 2"):
        compare(network, images, torch.tensor([0, 3]), "scale", [1.5], ["fc3"])
    nn.init.zeros_(network.fc3.linear.weight)
    with pytest.raises(ValueError, match="layer 'fc3' gives the same features for all images"):
        compare(network, images, labels, "scale", [1.5], ["fc3"])
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(0, 1), nn.Unflatten(0, (-1, 4)), nn.Flatten(), nn.LazyLinear(3))
    hooked = HookedNetwork(body.double(), ["0", "1"])
    with pytest.raises(ValueError, match="layer '1' gives no tensor with a row for each image"):
        compare(hooked, images, labels, "scale", [1.5], ["1"])
