"""Sign changes against a case worked by hand and naive loops; boxes against rectangles that were preprocessed."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.conftest import composed
from zfscope.analyses.correspondence import correspondence
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.correspondence import (
    correspond,
    feature_errors,
    in_float64,
    layers_to_compare,
    occluded,
    random_boxes,
    sign_change,
)
from zfscope.data.imageset import ArrayImages
from zfscope.data.parts import FACE_PARTS, aligned_faces, input_box, read_parts
from zfscope.data.sources.phantom import Phantom
from zfscope.data.sources.phantom_objects import CLASSES
from zfscope.data.sources.phantom_scene import draw
from zfscope.data.splits import Splits
from zfscope.figures import correspondence_sheet
from zfscope.networks.build import build_network
from zfscope.networks.chain import ConvNet
from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig, PoolConfig
from zfscope.schema import check

SIDE = 33
HEADER = "image,part,x0,y0,x1,y1"


def chain(seed=0):
    torch.manual_seed(seed)
    layers = {
        "conv1": ConvLayer(maps=5, kernel_size=3, stride=2, pool=PoolConfig()),
        "conv2": ConvLayer(maps=6, kernel_size=3, padding=1, norm=None),
        "fc3": DenseLayer(units=40, dropout=0.5),
        "fc4": DenseLayer(),
    }
    return ConvNet(layers, num_classes=3, image_size=SIDE, init=InitConfig(scheme="he"))


def module(seed=0):
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 5, 3, 2), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout())
    body.append(nn.Linear(5 * 16 * 16, 7))
    return HookedNetwork(body, ["2", "5"], num_classes=7, image_size=SIDE)


def plain(resize=SIDE, crop=SIDE):
    """Inputs are grey levels: mean 0, scale 1."""
    return Preprocessing(resize, crop, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))


def pictures(count, seed=0):
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def squares(count, draws=1, side=9, seed=1):
    corners = torch.randint(0, SIDE - side, (draws, count, 2), generator=torch.Generator().manual_seed(seed))
    return torch.cat([corners, corners + side], dim=-1)


# Delta


def test_three_images_worked_by_hand():
    errors = torch.tensor([[0.5, -2.0, 0.0, 0.0], [3.0, 0.1, 0.0, -1.0], [-1.0, -0.2, 0.0, 4.0]])

    pairs = sign_change(errors)

    # (0, 1) differ in the second (- and +) and the last (0 and -); (0, 2) in the first and the last; (1, 2) in three.
    assert pairs.tolist() == [0.5, 0.5, 0.75]
    assert pairs.mean().item() == pytest.approx(7 / 12)


def test_sign_change_is_the_mean_of_a_double_loop_over_ordered_pairs():
    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(3, 6, 200, generator=generator) * (torch.rand(3, 6, 200, generator=generator) > 0.4)

    found = sign_change(errors)

    for some, pairs in zip(errors.sign().tolist(), found, strict=True):
        shares = {
            (i, j): sum(a != b for a, b in zip(some[i], some[j], strict=True)) / 200
            for i, j in itertools.permutations(range(6), 2)
        }
        assert pairs.mean().item() == pytest.approx(sum(shares.values()) / 30)
        torch.testing.assert_close(pairs.tolist(), [shares[pair] for pair in itertools.combinations(range(6), 2)])


def test_what_has_no_sign_change_is_refused():
    with pytest.raises(ValueError, match="2 images or more, but are"):
        sign_change(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="NaN or infinity"):
        sign_change(torch.tensor([[0.0, torch.nan], [0.0, 1.0]]))


@pytest.mark.parametrize("make", [chain, module])
def test_identical_images_with_identical_masks_change_alike(make):
    network = make()
    images = pictures(1).repeat(4, 1, 1, 1)

    found = correspond(network, images, squares(1, draws=3).repeat(1, 4, 1), network.layers, batch_size=3)

    for layer in network.layers:
        assert (found[layer].pairs == 0).all()
        assert (found[layer].changed > 0).all()


@pytest.mark.parametrize("make", [chain, module])
@pytest.mark.parametrize("fill", [0.0, 1.5])
def test_correspond_is_one_image_after_the_other_in_float64(make, fill):
    network, images, boxes = make(), pictures(4), squares(4, draws=5)
    network.eval().double()

    expected = {layer: [] for layer in network.layers}
    for each in boxes.tolist():
        errors = {layer: [] for layer in network.layers}
        for image, (x0, y0, x1, y1) in zip(images.double(), each, strict=True):
            masked = image.clone()
            masked[:, y0:y1, x0:x1] = fill
            for layer in network.layers:
                with torch.no_grad():
                    error = network.features(image[None], layer) - network.features(masked[None], layer)
                errors[layer].append(torch.where(error.abs() < 1e-11, 0, error).flatten())
        for layer in network.layers:
            signs = torch.stack(errors[layer]).sign()
            shares = [(signs[i] != signs[j]).double().mean() for i, j in itertools.permutations(range(4), 2)]
            expected[layer].append(torch.stack(shares).mean())
    network.float().train()

    for batch_size in (1, 6, 64):
        found = correspond(network, images, boxes, network.layers, fill=fill, batch_size=batch_size)
        for layer in network.layers:
            torch.testing.assert_close(found[layer].delta, torch.stack(expected[layer]))


def test_only_units_that_the_mask_reaches_change():
    network, images, boxes = chain().eval(), pictures(3), squares(3, draws=4, side=5)

    found = correspond(network, images, boxes, ["conv1", "conv2"])

    for number, each in enumerate(boxes):
        poisoned = network.trace(occluded(images, each, fill=torch.nan)).maps  # NaN spreads to all that a mask reaches
        for layer in ("conv1", "conv2"):
            reached = poisoned[layer].isnan().flatten(1).double().mean(1)
            assert (reached < 1).all()
            assert (found[layer].changed[number] <= reached).all()
            assert (found[layer].changed[number] > 0.3 * reached).all()


def test_a_mask_in_the_colour_of_what_it_hides_changes_nothing_whatever_the_batch():
    network, images = chain(), pictures(5)
    images[:, :, 5:20, 5:20] = 0

    found = correspond(network, images, torch.tensor([[[5, 5, 20, 20]] * 5]), network.layers, batch_size=2)

    assert all((each.changed == 0).all() and (each.delta == 0).all() for each in found.values())


def test_rounding_has_no_sign_and_a_small_change_has():
    original = torch.linspace(0, 50, 11, dtype=torch.float64).repeat(2, 1)
    noise = torch.randn(2, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).sign()

    assert (feature_errors(original, original + 1e-11 * noise) == 0).all()
    torch.testing.assert_close(feature_errors(original, original - 1e-6 * noise).sign(), noise)


@pytest.mark.parametrize("make", [chain, module])
def test_the_network_is_left_as_it_was(make):
    network = make().train()
    network.requires_grad_()
    before = {name: each.clone() for name, each in network.state_dict().items()}
    kept = list(network.parameters())
    modes = [each.training for each in network.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()

    correspond(network, pictures(2), squares(2), network.layers)
    with pytest.raises(RuntimeError), in_float64(network):
        network(pictures(1))  # float32 images

    assert torch.equal(torch.get_rng_state(), state)
    assert [each.training for each in network.modules()] == modes
    assert all(one is other for one, other in zip(network.parameters(), kept, strict=True))
    for name, each in network.state_dict().items():
        assert each.dtype == before[name].dtype
        assert torch.equal(each, before[name])
    network(pictures(2)).sum().backward()  # no tensor of it may have become one that cannot be trained
    assert all(each.grad is not None for each in network.parameters())


def test_unknown_layers_are_refused():
    with pytest.raises(ValueError, match="no layer 'conv9'; the layers are conv1, conv2, fc3, fc4"):
        correspond(chain(), pictures(2), squares(2), ["conv9"])


@pytest.mark.parametrize("box", [(3, 3, 3, 9), (9, 3, 5, 9), (-9, 0, 0, 9), (0, 40, 9, 60)])
def test_a_box_that_hides_nothing_is_refused(box):
    boxes = torch.tensor([[0, 0, 5, 5], box])[None]

    with pytest.raises(ValueError, match="a box is empty or outside its image"):
        correspond(chain(), pictures(2), boxes, ["conv1"])


def test_a_random_box_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="a box is larger than the images of 20x30 pixels"):
        random_boxes(torch.tensor([[0, 0, 31, 5]]), 3, (20, 30), torch.Generator())


def test_compared_are_the_last_maps_and_the_layer_below_the_classes():
    resnet = build_network(composed("model=timm", "model.name=resnet18")["model"], 3, 64)
    zfnet_mini = build_network(composed()["model"], 3, 112)

    assert layers_to_compare(chain()) == ("conv2", "fc3")
    assert layers_to_compare(zfnet_mini) == ("conv5", "fc7")
    assert layers_to_compare(resnet) == ("layer4",)


# Masks


def test_a_mask_is_a_half_open_box_and_overhangs_are_cut():
    images = pictures(2)
    boxes = torch.tensor([[[3, 4, 10, 6], [-5, 30, 2, 90]], [[0, 0, SIDE, SIDE], [7, 7, 7, 9]]])

    found = occluded(images, boxes, fill=2.0)

    expected = images.repeat(2, 1, 1, 1, 1)
    expected[0, 0, :, 4:6, 3:10] = 2
    expected[0, 1, :, 30:, :2] = 2
    expected[1, 0] = 2
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"boxes must be \(…, N, 4\)"):
        occluded(images, boxes[:, :1])


def test_random_boxes_have_the_parts_sizes_and_come_everywhere_equally_often():
    boxes = torch.tensor([[2, 1, 6, 4], [0, 0, 8, 5]])

    found = random_boxes(boxes, 20_000, (5, 8), torch.Generator().manual_seed(0))

    assert torch.equal(found[..., 2:] - found[..., :2], torch.tensor([[4, 3], [8, 5]]).expand(20_000, 2, 2))
    assert (found[:, 1] == torch.tensor([0, 0, 8, 5])).all()  # as large as the image: one place
    places = (found[:, 0, 1] * 5 + found[:, 0, 0]).bincount(minlength=15)  # 5 columns, 3 rows
    assert len(places) == 15
    chi_square = ((places - 20_000 / 15) ** 2 / (20_000 / 15)).sum()
    assert chi_square < 29.1  # 99 % of 14 degrees of freedom
    assert torch.equal(found, random_boxes(boxes, 20_000, (5, 8), torch.Generator().manual_seed(0)))


def test_random_boxes_on_the_object_have_their_middles_in_it():
    boxes, around = torch.tensor([[2, 1, 6, 5], [0, 0, 6, 6]]), torch.tensor([[20, 12, 24, 13], [0, 0, 4, 4]])

    found = random_boxes(boxes, 2000, (SIDE, SIDE), torch.Generator().manual_seed(0), around=around)

    middles = (found[:, 0, :2] + found[:, 0, 2:]) / 2
    assert middles[:, 0].unique().tolist() == [20, 21, 22, 23, 24]
    assert middles[:, 1].unique().tolist() == [12, 13]
    assert (found >= 0).all() and (found <= SIDE).all()
    assert torch.equal(found[..., 2:] - found[..., :2], (boxes[:, 2:] - boxes[:, :2]).expand(2000, 2, 2))


def test_random_boxes_drawn_together_are_at_one_place_in_all_images():
    boxes = torch.tensor([[2, 1, 6, 5], [9, 9, 13, 13], [0, 0, SIDE, 4]])

    found = random_boxes(boxes, 500, (SIDE, SIDE), torch.Generator().manual_seed(0), together=True)

    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0, 1::2], found[:, 2, 1::2]) and (found[:, 2, 0] == 0).all()
    assert len(found[:, 0].unique(dim=0)) > 250


# Boxes of parts


@pytest.mark.parametrize(
    ("size", "resize", "crop"),
    [((128, 128), 128, 112), ((100, 60), 60, 60), ((300, 401), 128, 112), ((53, 37), 64, 57), ((640, 481), 256, 224)],
    ids=["phantom", "wide", "tall", "enlarged", "photograph"],
)
def test_a_mapped_box_holds_the_rectangle_that_went_through_the_preprocessing(size, resize, crop):
    width, height = size
    box = (width // 2 - width // 8, height // 2 - height // 5, width // 2 + width // 6, height // 2 + height // 7)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255

    x0, y0, x1, y1 = input_box(box, size, plain(resize, crop))

    seen = plain(resize, crop)(pixels)[0] / 255
    inside = torch.zeros(crop, crop, dtype=torch.bool)
    inside[y0:y1, x0:x1] = True
    assert (seen[~inside] < 0.5).all()  # the resampling blurs an edge over its neighbours, by less than half
    assert (seen[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] > 0.97).all()
    assert inside.sum() <= (seen > 0.01).sum()
    if min(size) == resize:
        assert torch.equal(seen == 1, inside)


def write_csv(folder, text, sizes=None, encoding="utf-8"):
    for name, (width, height) in (sizes or {"a.png": (60, 40), "b.png": (60, 40)}).items():
        random = np.random.default_rng(len(name))
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    path = folder / "parts.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_csv_gives_images_as_the_network_sees_them_and_boxes_where_they_lie_there(tmp_path):
    text = (
        "y1, part ,x0,y0,x1,note,image\r\n"
        '20,nose,20,10,30,"a, b",a.png\r\n'
        "\r\n"
        "40,=1+1,10,30,50,,./b.png\r\n"
        "21.5,nose,20.5,10,30,x,b.png\r\n"
        "12,=1+1,0,2,14,,a.png\r\n"
    )
    path = write_csv(tmp_path, text, encoding="utf-8-sig")

    found = read_parts(path, plain(40, 36))

    assert [name.split("/")[-1] for name in found.names] == ["a.png", "b.png"]
    for name, image in zip(("a.png", "b.png"), found.inputs, strict=True):
        assert torch.equal(image, plain(40, 36)(Image.open(tmp_path / name)))
    # 60x40 px loses 10 px left and right, then 2 px on each side
    assert {part: boxes.tolist() for part, boxes in found.boxes.items()} == {
        "nose": [[8, 8, 18, 18], [8, 8, 18, 20]],
        "=1+1": [[0, 0, 2, 10], [0, 28, 36, 36]],
    }
    assert found.objects().tolist() == [[0, 0, 18, 18], [0, 8, 36, 36]]
    assert found.misalignment() == pytest.approx(np.sqrt((2 * 0.5**2 + 2 * (8.5**2 + 13.5**2)) / 4))


GOOD = f"{HEADER}\na.png,eye,20,10,30,20\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "parts.csv, line 1: no column image, part, x0, y0, x1, y1; .* names nothing"),
        ("image;part;x0\n", "line 1: no column image, .*names image;part;x0"),
        ("image,part,x0,y0,x1\n", "line 1: no column y1"),
        ("image,part,x0,y0,x1,y1,x0\n", "line 1: column x0 stands there twice; keep one"),
        (GOOD + "b.png,eye,1,2,3\n", "line 3: no y1; a row holds"),
        (GOOD + "b.png,,1,2,3,4\n", "line 3: no part"),
        (GOOD + "\nb.png,eye,left,10,30,20\n", "line 4: x0=left is no number"),
        (GOOD + "b.png,eye,20,nan,30,20\n", "line 3: y0=nan is no number"),
        (GOOD + "b.png,eye,20,10,inf,20\n", "line 3: x1=inf is no number"),
        (GOOD + "b.png,eye,20,10,61,20\n", r"line 3: the box \(20, 10, 61, 20\) .* image of 60x40 px; .* x1 <= 60"),
        (GOOD + "b.png,eye,-1,10,30,20\n", "line 3: the box .* outside the image of 60x40 px"),
        (GOOD + "b.png,eye,20,10,20,20\n", "line 3: the box .* is empty"),
        (GOOD + "b.png,eye,30,10,20,20\n", "line 3: the box .* is empty"),
        (GOOD + "b.png,eye,2,10,12,20\n", "line 3: the network sees the middle .* lies outside"),
        (GOOD + "b.png,eye,20,10,30,20\n./a.png,eye,1,1,9,9\n", "line 4: eye of ./a.png stands in line 2 already"),
        (GOOD + "c.png,eye,20,10,30,20\n", "line 3: cannot read the image .*c.png: there is no such file"),
        (GOOD + "parts.csv,eye,20,10,30,20\n", "line 3: cannot read the image .*: it is no image of a known format"),
        (GOOD + "b.png,eye,20,10,30,20\nb.png,nose,20,10,30,20\n", "parts.csv: nose has no box in a.png"),
        (GOOD, "parts.csv names 1 images; .* 2 or more"),
        (f"{HEADER}\n", "parts.csv names 0 images"),
        (GOOD + "b.png,random,20,10,30,20\n", "line 3: a part cannot be called 'random'"),
        (GOOD + "b.png,../eye,20,10,30,20\n", "line 3: a part cannot be called '../eye'"),
        (GOOD + '"b.png,eye,20,10,30,20\n', "line 3: unexpected end of data; mend the row"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused_with_its_line(tmp_path, text, message):
    path = write_csv(tmp_path, text)

    with pytest.raises(ValueError, match=message) as refusal:
        read_parts(path, plain(40, 36))

    assert "\n" not in str(refusal.value)


def test_a_csv_in_another_encoding_is_refused(tmp_path):
    path = write_csv(tmp_path, GOOD.replace("eye", "öga"), encoding="latin-1")

    with pytest.raises(ValueError, match=r"parts.csv is not UTF-8 \(byte 29\)"):
        read_parts(path, plain(40, 36))


# The phantom's faces


@pytest.fixture(scope="module")
def phantom():
    """300 images of which only the faces are drawn."""
    images = np.zeros((300, 128, 128, 3), np.uint8)
    for index in range(0, 300, 10):
        images[index] = draw(0, "val", index).image
    return Phantom(images, 0, "val")


def test_the_faces_that_lie_most_alike_are_found_by_brute_force(phantom):
    preprocessing = plain(128, 96)

    found = aligned_faces(phantom, preprocessing, 4)

    middles = {}
    for index in range(0, 300, 10):
        sample = draw(0, "val", index)
        boxes = np.array([sample.parts[part] for part in FACE_PARTS])
        hidden = any(sample.mask[y0:y1, x0:x1].mean() < 0.95 for x0, y0, x1, y1 in boxes)
        if boxes.min() >= 16 and boxes.max() <= 112 and not hidden:
            middles[index] = (boxes[:, :2] + boxes[:, 2:]) / 2
    far = {}
    for index, own in middles.items():
        distances = sorted((np.sqrt(((own - other) ** 2).sum()), number) for number, other in middles.items())[:4]
        far[index] = sum(distance for distance, _ in distances), [number for _, number in distances]
    chosen = min(far.values())[1]
    assert 4 < len(middles) < 30
    assert found.names == tuple(f"phantom/val/{index}" for index in chosen)
    for number, index in enumerate(chosen):
        sample = draw(0, "val", index)
        pixels = torch.from_numpy(sample.image[16:112, 16:112]).permute(2, 0, 1).float()
        assert torch.equal(found.inputs[number], pixels)
        for part, boxes in found.boxes.items():
            assert boxes[number].tolist() == [edge - 16 for edge in sample.parts[part]]


def test_more_faces_than_there_are_is_refused_with_their_number(phantom):
    with pytest.raises(ValueError, match=r"31 faces were asked for, but \d+ of these 300 images"):
        aligned_faces(phantom, plain(128, 112), 31)


# The analysis


class Patches(HookedNetwork):
    """One filtering that sums nothing but its own 3x3 pixels: a part changes it where the part is, in its own way."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Conv2d(3, 8, 3, 3), nn.Flatten(), nn.Linear(8 * 11 * 11, 3)), ["0", "2"])
        self.preprocessing = plain()


@pytest.fixture
def same_object(tmp_path):
    """Six images of the same object before noise, and the CSV of its parts."""
    random = np.random.default_rng(0)
    thing, rows = random.integers(0, 256, (15, 15, 3), dtype=np.uint8), [HEADER]
    for number in range(6):
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels[9:24, 9:24] = thing
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows += [f"{number}.png,nose,9,12,15,21", f"{number}.png,ear,18,9,24,15"]
    path = tmp_path / "parts.csv"
    path.write_text("\n".join(rows))
    return path


def asked(*overrides):
    return check(AnalyzeConfig, composed("analysis=correspondence", "checkpoint=RUN", *overrides, name="analyze"))


def test_the_same_parts_change_features_alike_and_random_places_do_not(same_object, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    config = asked(f"analysis.boxes={same_object}", "analysis.masks=30")

    metrics = correspondence(Patches(), None, config, torch.device("cpu"), folder)

    for part in ("nose", "ear"):
        assert metrics[f"{part}/0"] == {"value": 0, "unit": "%", "spread": 0, "paper": None}
        assert metrics[f"{part}/0/random_above"]["value"] == metrics[f"{part}/0/on_object_above"]["value"] == 100
    assert metrics["nose/0/changed"]["value"] == pytest.approx(100 * 6 / 121)
    assert metrics["ear/0/changed"]["value"] == pytest.approx(100 * 4 / 121)
    assert metrics["misalignment"] == {"value": 0, "unit": "px"}
    assert Image.open(folder / "figures" / "correspondence.png").width > 500
    with np.load(folder / "arrays.npz") as arrays:
        assert arrays["parts"].tolist() == ["nose", "ear"]
        assert arrays["random_boxes"].shape == arrays["on_object_boxes"].shape == (2, 30, 6, 4)
        middles = (arrays["on_object_boxes"][..., :2] + arrays["on_object_boxes"][..., 2:]) / 2
        assert middles.min() >= 9 and middles.max() <= 24 and np.ptp(middles) > 10
        assert np.ptp(arrays["same_place_boxes"], axis=2).max() == 0
        for kind in ("random", "on_object", "same_place"):
            draws = 100 * arrays[f"0/{kind}"]
            found = metrics[f"{kind}/0"]
            assert found["value"] == pytest.approx(draws.mean())
            assert found["spread"] == pytest.approx(draws.std())
            assert found["interval"] == pytest.approx([np.quantile(draws, 0.025), np.quantile(draws, 0.975)])
            # Each draw again by itself, from the boxes that were kept.
            inputs = read_parts(same_object, plain()).inputs
            again = correspond(Patches(), inputs, torch.from_numpy(arrays[f"{kind}_boxes"][1]), ["0"])
            np.testing.assert_allclose(arrays[f"0/{kind}"][1], again["0"].delta)
    json.dumps(metrics)


def test_random_masks_follow_the_seed(same_object, tmp_path):
    found = []
    for number, seed in enumerate((4, 4, 5)):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = asked(f"analysis.boxes={same_object}", "analysis.masks=5", f"analysis.seed={seed}")
        metrics = correspondence(Patches(), None, config, torch.device("cpu"), folder)
        found.append(metrics["random/0"]["value"])

    assert found[0] == found[1] != found[2]


def data_of(images):
    return SimpleNamespace(splits=Splits(images, images, images))


def test_what_cannot_be_asked_is_refused_before_any_work(phantom, tmp_path):
    other = data_of(ArrayImages(np.zeros((4, 9, 9, 3), np.uint8), np.zeros(4, int), ["a"], "other"))
    network, device = Patches(), torch.device("cpu")

    with pytest.raises(ValueError, match="no layer 'conv5'; the layers are 0, 2"):
        correspondence(network, other, asked("analysis.layers=[conv5]"), device, tmp_path)
    with pytest.raises(ValueError, match="analysis.layers names no layer"):
        correspondence(network, other, asked("analysis.layers=[]"), device, tmp_path)
    with pytest.raises(ValueError, match="is not known; analysis.boxes=FILE.csv gives image,part,x0,y0,x1,y1"):
        correspondence(network, other, asked(), device, tmp_path)
    with pytest.raises(FileNotFoundError, match="analysis.boxes=nowhere.csv: there is no such file"):
        correspondence(network, other, asked("analysis.boxes=nowhere.csv"), device, tmp_path)
    with pytest.raises(ValueError, match=r"analysis.images=1.*greater than or equal to 2"):
        asked("analysis.images=1")
    assert not list(tmp_path.iterdir())


# The picture


def test_any_part_name_can_be_drawn():
    pictures = torch.zeros(2, 3, 3, 9, 9, dtype=torch.uint8)
    deltas = {"part": torch.rand(1), **dict.fromkeys(("random", "on_object", "same_place"), torch.rand(1, 5))}

    plain, odd = (correspondence_sheet(pictures, [name], {"$conv_{5$": deltas}) for name in ("nose", "$\\frac$" * 40))

    assert plain.size == odd.size


def test_the_sheet_shows_every_picture_and_one_panel_for_each_layer():
    count = len(CLASSES)  # any number of colours that are told apart
    pictures = torch.zeros(2, count // 2, 3, 70, 70, dtype=torch.uint8)
    colours = [(20 * number, 255 - 20 * number, 77) for number in range(count)]
    for tile, colour in zip(pictures.flatten(0, 1), colours, strict=True):
        tile[:] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    generator = torch.Generator().manual_seed(0)
    shapes = {"part": (3,), "random": (3, 40), "on_object": (3, 40), "same_place": (3, 40)}
    deltas = {kind: torch.rand(shape, generator=generator) for kind, shape in shapes.items()}

    one = correspondence_sheet(pictures, ["a", "b", "c"], {"conv5": deltas})
    two = correspondence_sheet(pictures, ["a", "b", "c"], {"conv5": deltas, "fc7": deltas})

    found = dict((colour, number) for number, colour in two.getcolors(2**24))
    assert [found[colour] for colour in colours] == [140 * 140] * count
    assert two.size == one.size and two.tobytes() != one.tobytes()
    with pytest.raises(ValueError, match=r"pictures \(R, 4, 3, h, w\) for 2 parts"):
        correspondence_sheet(pictures, ["a", "b"], {"conv5": deltas})
