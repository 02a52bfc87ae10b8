"""Fig. 7 by analyze.py: every number and panel against images covered one by one."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.callbacks.conftest import panels
from tests.conftest import ROOT, type_command, write_folders
from tests.oracles import occluded_by_hand
from zfscope import build_network, load_network
from zfscope.activations import TopTable
from zfscope.analyses.occlusion import (
    _label,
    analyse,
    class_number,
    drop_places,
    object_mask,
    projections_from_others,
)
from zfscope.analyses.question import Question
from zfscope.analyses.spec import OcclusionAnalysis
from zfscope.data.datamodule import ImageData
from zfscope.data.sources.phantom import Phantom
from zfscope.data.sources.phantom_scene import draw
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits
from zfscope.deconvnet.projection import project
from zfscope.deconvnet.winners import as_pictures, random_subset
from zfscope.figures import occlusion_panel
from zfscope.images import contrast_limits, to_tiles
from zfscope.networks.chain import ConvNet
from zfscope.networks.checkpoints import run_config, save_network
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig, PoolConfig
from zfscope.occlusion.maps import Occlusion
from zfscope.occlusion.sensitivity import Sensitivity, look
from zfscope.schema import check

SIDE = 21


def chain(side=SIDE, classes=3):
    torch.manual_seed(0)
    layers = {
        "conv1": ConvLayer(maps=5, kernel_size=3, stride=2, pool=PoolConfig()),
        "conv2": ConvLayer(maps=6, kernel_size=3, padding=1, norm=None),
        "fc3": DenseLayer(units=7, dropout=0.5),
        "fc4": DenseLayer(),
    }
    return ConvNet(layers, num_classes=classes, image_size=side, init=InitConfig(scheme="he"))


def sensitivity(probability, size=2, stride=2, **changed):
    """A Sensitivity whose maps are these probabilities of class 0, of 0.9 for the whole image."""
    probability = torch.tensor(probability)
    maps = Occlusion(probability, (probability < 0.5).long(), 10 * probability, 3)
    values = {"target": 0, "probability": 0.9, "label": 0, "activation": 9.0, "layer": "conv5"}
    return Sensitivity(maps, **(values | changed), size=size, stride=stride)


def test_the_places_of_a_drop_are_those_worked_out_by_hand():
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[:2, :3] = True  # all of the first square, half of the second

    on, off, inside, chance = drop_places(sensitivity([[0.1, 0.5, 0.9], [0.9, 0.9, 0.9], [0.9, 0.7, 0.9]]), mask)

    assert on == pytest.approx((0.8 * 1 + 0.4 * 0.5) / 1.5)
    assert off == pytest.approx((0.4 * 0.5 + 0.2) / 7.5)
    assert inside is True and chance == pytest.approx(1 / 9)  # the second square's centre, (1, 3), is outside
    assert drop_places(sensitivity([[0.5, 0.1, 0.9], [0.9, 0.9, 0.9], [0.9, 0.9, 0.9]]), mask)[2] is False


def test_a_mask_goes_the_way_of_its_image():
    class Masked:
        def mask(self, index):
            mask = np.zeros((128, 128), dtype=bool)
            mask[20:100, 31:47] = True
            return mask

    for resize, crop in ((128, 112), (64, 40), (256, 224)):
        preprocessing = Preprocessing(resize, crop, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
        image = Image.fromarray(np.repeat(255 * Masked().mask(0)[..., None], 3, 2).astype(np.uint8))

        mask = object_mask(Masked(), 0, preprocessing)

        assert torch.equal(mask, preprocessing(image)[0] >= 128)
    assert object_mask(Masked(), 0, Preprocessing(128, 112, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))).sum() == 80 * 16


def test_a_class_is_found_by_name_or_number():
    network = chain(classes=3)
    assert class_number(network, "2") == 2
    network.classes = ("dog", "cat", "7")

    assert class_number(network, "cat") == 1 and class_number(network, "0") == 0
    assert class_number(network, "7") == 2  # a name goes before a number
    for target, message in (
        ("dgo", "did you mean dog?"),
        ("zebra", "a number from 0 to 2; the classes are dog, cat, 7"),
        ("3", "0 to 2"),
        ("-1", "0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            class_number(network, target)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with an untrained network of three classes, and the class folders that it knows: ``(run, data)``."""
    folder = tmp_path_factory.mktemp("occlusion")
    data = write_folders(folder / "images", {"train": 8, "val": 4})
    layers = {
        "conv1": {"maps": 5, "kernel_size": 3, "stride": 2, "pool": {}},
        "conv2": {"maps": 6, "kernel_size": 3, "padding": 1},
        "fc6": {"units": 7, "dropout": 0.5},
        "fc8": {},
    }
    torch.manual_seed(0)
    network = build_network({"name": "chain", **layers}, 3, SIDE)
    network.classes = ("cat", "dog", "owl")
    network.preprocessing = Preprocessing(24, SIDE, torch.full((3, 1, 1), 90.0), torch.full((3, 1, 1), 1 / 50))
    values = {"name": "folder", "root": str(data), "resize": 24, "crop": SIDE, "batch_size": 4, "num_workers": 0}
    save_network(network, {"model": {"name": "chain", **layers}, "data": values}, folder / "run/checkpoints/best.ckpt")
    return folder / "run", data


def typed(folder, *overrides):
    """Type analyze.py in a folder: ``(exit code, what it says to stderr)``."""
    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.chdir(folder)
        common = ["device=cpu", "logger=none", "hydra.run.dir=outputs/found"]
        code = type_command(patch, "analyze", *common, *overrides)
    return code, errors.getvalue()


def analysed(folder, *overrides):
    """What the command wrote: results, arrays without pickle, names of the panels."""
    code, err = typed(folder, "analysis=occlusion", *overrides)
    assert code == 0, err
    found = folder / "outputs/found"
    with np.load(found / "arrays.npz", allow_pickle=False) as arrays:
        content = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return json.loads((found / "results.json").read_text()), content, panels(found)


def in_order(data):
    return sorted((data / "val").rglob("*.jpg"))


def test_the_analysis_finds_what_covering_by_hand_finds_in_the_images_asked_for(tmp_path, run):
    folder, data = run

    results, arrays, drawn = analysed(
        tmp_path, f"checkpoint={folder}", "analysis.indices=[7,2,9]", "analysis.size=8", "analysis.stride=5"
    )

    network, paths = load_network(folder), in_order(data)
    assert arrays["indices"].tolist() == [7, 2, 9]
    assert drawn == ["occlusion/2.png", "occlusion/7.png", "occlusion/9.png"]
    drops, changed = [], []
    for row, index in enumerate([7, 2, 9]):
        inputs = network.preprocess(Image.open(paths[index]))
        expected = occluded_by_hand(network, inputs, index // 4, 8, 5, 0.0, "conv2")
        for name in ("probability", "label", "activation"):
            torch.testing.assert_close(arrays[name][row], getattr(expected.occlusion, name), rtol=1e-4, atol=1e-5)
            assert float(arrays[f"unoccluded_{name}"][row]) == pytest.approx(getattr(expected, name), rel=1e-4)
        assert arrays["target"][row] == index // 4 and arrays["feature_map"][row] == expected.occlusion.feature_map
        drops.append(expected.drop)
        changed.append(expected.occlusion.label != expected.label)
    metrics = {name: metric["value"] for name, metric in results["metrics"].items()}
    assert metrics["mean_drop"] == pytest.approx(100 * float(torch.stack(drops).mean()), abs=1e-3)
    assert metrics["largest_drop"] == pytest.approx(100 * float(torch.stack(drops).amax((1, 2)).mean()), abs=1e-3)
    assert metrics["other_class"] == pytest.approx(100 * float(torch.stack(changed).double().mean()))
    assert set(metrics) == {"mean_drop", "largest_drop", "other_class"}
    assert results["conditions"]["data"] == "folder" and "image" not in results["conditions"]


def test_without_indices_a_fixed_random_subset_is_covered_and_no_more_panels_are_drawn_than_asked_for(tmp_path, run):
    _, arrays, drawn = analysed(
        tmp_path, f"checkpoint={run[0]}", "analysis.images=5", "analysis.shown=2", "analysis.seed=3", "analysis.size=9"
    )

    indices = random_subset(12, 5, 3).tolist()
    assert arrays["indices"].tolist() == indices
    assert drawn == sorted(f"occlusion/{index}.png" for index in indices[:2])


def test_an_image_of_ones_own_is_followed_by_its_most_probable_class_or_the_one_asked_for(tmp_path, run):
    folder, data = run
    path = in_order(data)[5]
    network = load_network(folder)
    inputs = network.preprocess(Image.open(path))
    own = tmp_path / "my dog.jpg"
    own.write_bytes(path.read_bytes())

    results, arrays, drawn = analysed(tmp_path, f"checkpoint={folder}", f"image='{own}'", "analysis.size=9")
    asked = analysed(tmp_path, f"checkpoint={folder}", f"image='{own}'", "analysis.target=owl")[1]

    assert drawn == ["occlusion/my dog.png", "strongest/conv1.png", "strongest/conv2.png"] and "indices" not in arrays
    alone = occluded_by_hand(network, inputs, None, 9, 2, 0.0, "conv2")
    torch.testing.assert_close(arrays["probability"][0], alone.occlusion.probability, rtol=1e-4, atol=1e-5)
    assert arrays["target"].tolist() == [alone.label] and asked["target"].tolist() == [2]
    assert results["conditions"]["image"] == str(own)


@pytest.mark.parametrize("gone", ["config", "files"])
def test_an_image_of_ones_own_needs_no_data_set(tmp_path, run, monkeypatch, gone):
    folder, data = run
    others = []
    monkeypatch.setattr(
        "zfscope.analyses.occlusion.occlusion_panel",
        lambda *given, **more: others.append(more) or occlusion_panel(*given, **more),
    )
    known = {} if gone == "config" else {**run_config(folder)["data"], "root": str(tmp_path / "moved")}
    monkeypatch.setattr("zfscope.analyses.run.run_config", lambda _: {"data": known} if known else {})

    results, _, drawn = analysed(tmp_path, f"checkpoint={folder}", f"image={in_order(data)[0]}")

    assert drawn[0] == "occlusion/0.png" and results["conditions"]["data"] is None
    assert others[0]["others"] is None and others[0]["projection"] is not None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["analysis.size=22"], "size=22 is larger than the image"),
        (["analysis.stride=0"], "analysis.*stride=0"),
        (["analysis.layer=conv9"], "no layer 'conv9'; the layers are conv1, conv2, fc6, fc8"),
        (["analysis.target=oowl"], r"analysis.target=oowl: the network has no such class; did you mean owl\?"),
        (["analysis.target=3"], "analysis.target=3: .* a number from 0 to 2"),
        (["analysis.indices=[12]"], "there is no image 12; they are numbered 0 to 11"),
        (["analysis.indices=[]"], "analysis.indices names no image"),
        (["analysis.part=test"], "this data set has no labelled test images"),
        (["image=nowhere.jpg"], "image=nowhere.jpg: there is no such file; give an image file"),
        ([f"image={ROOT}/README.md"], "image=.*README.md: it is no image of a known format.*; give an image file"),
        (["image=dog.jpg", "analysis.indices=[1]"], "image=FILE and analysis.indices name different images"),
        ([f"image={ROOT}/docs/dog.png", "data.root=elsewhere"], "folder elsewhere"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_in_one_line_and_leaves_nothing(tmp_path, run, overrides, message):
    code, err = typed(tmp_path, "analysis=occlusion", f"checkpoint={run[0]}", *overrides)

    assert code == 2 and len(err.strip().splitlines()) == 1, err
    with pytest.raises(ValueError, match=message):
        raise ValueError(err)
    assert not (tmp_path / "outputs").exists()


def test_other_analyses_refuse_an_image_of_ones_own(tmp_path, run):
    code, err = typed(tmp_path, "analysis=evaluate", f"checkpoint={run[0]}", "image=dog.jpg")

    assert code == 2 and err.strip().endswith("image=dog.jpg belongs to analysis=occlusion, not to analysis=evaluate")
    assert not (tmp_path / "outputs").exists()


def test_other_images_are_those_where_the_map_is_strongest_without_the_one_looked_at():
    network = chain()
    images = torch.stack([torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(n)) for n in range(9)])
    with torch.no_grad():
        maps = network.eval().features(images, "conv2")
    values, indices = maps.flatten(2).amax(2).t().sort(dim=1, descending=True)
    places = maps.flatten(2).argmax(2).t().gather(1, indices)
    table = TopTable(values[:, :4].double(), indices[:, :4], torch.stack([places // 5, places % 5], 2)[:, :4])
    chosen = torch.tensor([4, 1, 4])
    itself = [int(indices[4, 0]), int(indices[1, 2]), -1]

    found = projections_from_others(network, "conv2", table, chosen, itself, lambda rows: images[rows], 3)

    for row, (projections, patches) in enumerate(found):
        number = int(chosen[row])
        ranks = [rank for rank in range(4) if int(indices[number, rank]) != itself[row]][:3]
        for place, rank in enumerate(ranks):
            index, position = int(indices[number, rank]), table.positions[number, rank][None]
            tile, box = project(network, images[index][None], "conv2", [number], position, crop=True)
            x0, y0, x1, y1 = box[0].tolist()
            shown = F.pad(as_pictures(network, images[index][None]), (SIDE,) * 4, value=127)
            assert torch.equal(patches[place], shown[0, :, SIDE + y0 : SIDE + y1, SIDE + x0 : SIDE + x1])
            assert (projections[place].int() - to_tiles(tile, limit=contrast_limits(tile))[0].int()).abs().max() <= 1


def test_on_the_phantom_the_places_of_the_drops_are_told_of_the_images_classified_correctly(tmp_path):
    samples = [draw(0, "val", index) for index in range(30)]
    images = Phantom(np.stack([sample.image for sample in samples]), 0, "val")
    network = chain(side=28, classes=10)
    network.classes = images.classes
    network.preprocessing = Preprocessing(32, 28, torch.full((3, 1, 1), 120.0), torch.full((3, 1, 1), 1 / 60))
    with torch.no_grad():
        told = network.eval()(torch.stack([network.preprocess(images.read(i)) for i in range(30)])).argmax(1).numpy()
    images.labels = np.where(np.arange(30) % 4 == 0, (told + 1) % 10, told)  # untrained, it would be right too rarely
    data = ImageData(
        Splits(images, images), check(DataConfig, {"name": "phantom", "resize": 32, "crop": 28, "batch_size": 1}), None
    )
    data.preprocessing = network.preprocessing
    options = OcclusionAnalysis(images=30, shown=0, size=7, stride=3)

    result = analyse(Question(options, torch.device("cpu"), tmp_path, "RUN", network, data=data))

    right, larger, inside = 0, 0, 0
    for index, sample in enumerate(samples):
        inputs = network.preprocess(images.read(index))
        looked = look(network, inputs, int(images.labels[index]), size=7, stride=3)
        if index % 4 == 0:
            continue
        right += 1
        mask = np.asarray(Image.fromarray(255 * sample.mask.astype(np.uint8)).resize((32, 32), 2))[2:-2, 2:-2] >= 128
        on = off = weight = 0.0
        best = (-np.inf, False)
        for row in range(8):
            for column in range(8):
                square = mask[3 * row : 3 * row + 7, 3 * column : 3 * column + 7]
                drop, share = float(looked.drop[row, column]), square.mean()
                on, off, weight = on + share * drop, off + (1 - share) * drop, weight + share
                centre = mask[3 * row + 3, 3 * column + 3]
                best = max(best, (drop, bool(centre)), key=lambda pair: pair[0])
        larger += on / weight > off / (64 - weight)
        inside += best[1]
    assert 2 * larger != right and 2 * inside != right  # else their opposites would pass too
    assert result.metrics["correct"] == {"value": right, "unit": "of 30 images"}
    assert result.metrics["drop_larger_on_object"]["value"] == pytest.approx(100 * larger / right)
    assert result.metrics["largest_drop_in_mask"]["value"] == pytest.approx(100 * inside / right)
    assert result.metrics["drop_larger_on_object"]["unit"] == f"% of {right} images"
    assert not result.figures


def test_of_several_labels_the_one_that_the_network_thinks_most_probable_is_taken():
    def network(inputs):
        return torch.tensor([[1.0, 9.0, 3.0]])

    assert _label(network, torch.zeros(3, 2, 2), torch.tensor([1, 0, 1])) == 2
    assert _label(network, torch.zeros(3, 2, 2), torch.tensor(0)) == 0
