"""Shifted, scaled and turned images against slices, turns and two other libraries; distances against a plain loop."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from tests.conftest import ROOT, composed, write_folders

sys.path.insert(0, str(ROOT))
import analyze
from zfscope import build_network, load_network
from zfscope.analyses.invariance import _of_different_classes
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.figures import invariance_figure
from zfscope.invariance import KINDS, Invariance, compare, default_amounts, low_and_high, moved
from zfscope.networks.chain import ConvNet
from zfscope.networks.checkpoints import save_network
from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.preprocessing import Preprocessing, centre_crop
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig, PoolConfig
from zfscope.runs import read_results
from zfscope.schema import check

NOTHING = {"translation": 0.0, "scale": 1.0, "rotation": 0.0}


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


def planted():
    """Two images with flat curves, the second higher at conv1 and in probability, lower at fc7; tiles of one colour."""
    amounts = default_amounts("scale", 112)
    flat = torch.tensor([[0.25], [0.75]]).expand(2, len(amounts))
    distances = {"conv1": 3 * flat, "fc7": 5 * flat.flip(0)}
    found = Invariance("scale", amounts, distances, {"conv1": 3.0, "fc7": 5.0}, {}, flat)
    tiles = torch.tensor((255, 0, 255), dtype=torch.uint8).view(1, 1, 3, 1, 1).expand(2, 5, 3, 30, 30)
    return [found], {"scale": (amounts[:5], tiles)}, torch.tensor([0, 1])


def test_the_figure_holds_the_tiles_and_the_curves_at_their_heights():
    figure = np.asarray(invariance_figure(*planted(), ["dog", "a $very_ long$ name"])).astype(int)

    def height(column, colour):
        """Rows from the bottom at which a column of pixels has a colour, between the frames of the axes."""
        rows = np.flatnonzero((abs(figure[50:-150, column] - colour) <= 8).all(1))
        return len(figure) - 150 - rows.mean()

    assert (figure == (255, 0, 255)).all(2).mean() > 0.05
    blue, orange = (31, 119, 180), (255, 127, 14)  # the first two of the palette
    middles = []
    for share, lower, upper in ((0.42, blue, orange), (0.65, orange, blue), (0.89, blue, orange)):
        column = round(share * figure.shape[1])
        assert height(column, lower) < height(column, upper) - 50
        middles.append(height(column, (0, 0, 0)))
        assert middles[-1] == pytest.approx((height(column, lower) + height(column, upper)) / 2, abs=2)
    assert middles[0] == pytest.approx(middles[1], abs=2)  # each in its layer's unit


def test_a_figure_of_what_does_not_belong_together_is_refused():
    found, examples, shown = planted()

    with pytest.raises(ValueError, match=r"but they number \[1, 2\]"):
        invariance_figure(found, examples, shown, ["dog"])
    with pytest.raises(ValueError, match="give 1 to 10 images to show"):
        invariance_figure([], examples, shown, ["dog", "cat"])


def test_images_shown_are_the_first_of_each_class_then_others():
    labels = torch.tensor([2, 2, 0, 2, 1, 0])

    assert _of_different_classes(labels, 2).tolist() == [0, 2]
    assert _of_different_classes(labels, 3).tolist() == [0, 2, 4]
    assert _of_different_classes(labels, 4).tolist() == [0, 1, 2, 4]
    assert _of_different_classes(labels, 10).tolist() == list(range(6))


SMALL = [
    *("model.conv1.maps=8", "model.conv2.maps=8", "model.conv2.stride=1", "model.conv2.padding=2"),
    *("model.conv3.maps=8", "model.conv4.maps=8", "model.conv5.maps=8", "model.fc6.units=16", "model.fc7.units=16"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with an untrained zfnet_mini on small class folders."""
    folder = tmp_path_factory.mktemp("run")
    root = write_folders(folder / "images", {"train": 8, "val": 4})
    data = ["data=folder", f"data.root={root}", "data.resize=32", "data.crop=28"]
    config = composed("model=zfnet_mini", *SMALL, *data)
    torch.manual_seed(0)
    network = build_network(config["model"], num_classes=3, image_size=28)
    network.classes = ("cat", "dog", "owl")
    network.preprocessing = Preprocessing(32, 28, torch.full((3, 32, 32), 90.0), torch.full((3, 1, 1), 1 / 60))
    (folder / "checkpoints").mkdir()
    save_network(network, config, folder / "checkpoints" / "best.ckpt")
    return folder


def ask(run, folder, *overrides):
    overrides = ["analysis=invariance", f"checkpoint={run}", "device=cpu", *overrides]
    analyze.analyze(check(AnalyzeConfig, composed(*overrides, name="analyze")), folder)


def test_the_analysis_writes_figure_arrays_and_metrics_that_follow_from_them(run, tmp_path):
    ask(run, tmp_path, "analysis.images=9", "analysis.shown=3")

    network = load_network(run)
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    metrics = {name: each["value"] for name, each in read_results(tmp_path)["metrics"].items()}
    assert torch.equal(arrays["labels"], arrays["indices"] // 4)
    assert len(arrays["indices"]) == 9 and arrays["labels"][arrays["shown"]].tolist() == [0, 1, 2]
    for kind in KINDS:
        amounts = default_amounts(kind, 28)
        assert torch.equal(arrays[f"{kind}/amounts"], amounts)
        chosen = amounts != NOTHING[kind]
        low, high = (arrays[f"{kind}/{layer}"][:, chosen] / arrays[f"another/{layer}"] for layer in ("conv1", "fc7"))
        assert low.shape == (9, int(chosen.sum()))
        assert metrics[f"{kind}/conv1"] == pytest.approx(float(low.mean()))
        assert metrics[f"{kind}/fc7"] == pytest.approx(float(high.mean()))
        below = (high.mean(0) < low.mean(0)).double()
        assert metrics[f"{kind}/curve_below"] == pytest.approx(100 * float(below.mean()))
        assert metrics[f"{kind}/images_below"] == pytest.approx(100 * float((high < low).double().mean()))
        assert metrics[f"{kind}/probability"] == pytest.approx(float(arrays[f"{kind}/probability"][:, chosen].mean()))
    near = [1, 2, 34, 35]  # 10, 20, 340 and 350 degrees
    expected = (arrays["rotation/fc7"][:, near] / arrays["another/fc7"]).mean()
    assert metrics["rotation_within_20/fc7"] == pytest.approx(float(expected))
    assert (tmp_path / "figures" / "invariance.png").is_file()

    # The second image of the arrays, read and moved without the analysis.
    index = int(arrays["indices"][1])
    path = sorted((run / "images" / "val").rglob("*.jpg"))[index]
    canvas = network.preprocessing.normalise(network.preprocessing.canvas(Image.open(path)))[None]
    turned, label = moved(canvas, "rotation", 40, 28), arrays["labels"][1]
    with torch.no_grad():
        apart = network.features(turned, "fc7") - network.features(centre_crop(canvas, 28), "fc7")
        probability = network(turned).softmax(1)[0, label]
    assert arrays["rotation/fc7"][1, 4].item() == pytest.approx(float(apart.norm()), rel=1e-4)
    assert arrays["rotation/probability"][1, 4].item() == pytest.approx(float(probability), rel=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("analysis.layers=[conv1,conv9]", "no layer 'conv9'; the layers are conv1"),
        ("analysis.layers=[fc7,fc7]", "analysis.layers: layers names a low and a high layer"),
        ("analysis.layers=[conv5]", "analysis.layers: layers names a low and a high layer"),
        ("analysis.part=test", "analysis.part=test: this data set has no labelled test images"),
    ],
)
def test_what_is_not_there_is_refused_before_images_are_read(run, tmp_path, monkeypatch, override, message):
    monkeypatch.setattr("zfscope.analyses.invariance.Examples", None)

    with pytest.raises(ValueError, match=message):
        ask(run, tmp_path, override)

    assert not list(tmp_path.iterdir())
