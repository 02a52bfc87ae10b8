"""analysis=correspondence: parts change features alike, random places do not."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.conftest import composed
from tests.examples.correspondence import SIDE, plain
from zfscope.analyses.correspondence import analyse
from zfscope.analyses.question import Question
from zfscope.analyses.run import save
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.correspondence import correspond
from zfscope.data.imageset import ArrayImages
from zfscope.data.parts import read_parts
from zfscope.data.sources.phantom import Phantom
from zfscope.data.sources.phantom_scene import draw
from zfscope.data.splits import Splits
from zfscope.networks.hooked import HookedNetwork
from zfscope.schema import check

HEADER = "image,part,x0,y0,x1,y1"


@pytest.fixture(scope="module")
def phantom():
    """300 images of which only the faces are drawn."""
    images = np.zeros((300, 128, 128, 3), np.uint8)
    for index in range(0, 300, 10):
        images[index] = draw(0, "val", index).image
    return Phantom(images, 0, "val")


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


def ask(folder, *overrides, data=None):
    """What the analysis answers with these overrides, saved in a folder."""
    overrides = ["analysis=correspondence", "checkpoint=RUN", *overrides]
    config = check(AnalyzeConfig, composed(*overrides, name="analyze"))
    result = analyse(Question(config.analysis, torch.device("cpu"), folder, "RUN", Patches(), data=data))
    save(result, folder)
    return result.metrics


def test_the_same_parts_change_features_alike_and_random_places_do_not(same_object, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()

    metrics = ask(folder, f"analysis.boxes={same_object}", "analysis.masks=30")

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


def test_the_sheet_shows_what_each_part_and_the_first_random_mask_hide(same_object, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "zfscope.analyses.correspondence.correspondence_sheet",
        lambda pictures, *_, **__: shown.append(pictures.int()) or Image.new("RGB", (9, 9)),
    )

    ask(tmp_path, f"analysis.boxes={same_object}", "analysis.masks=5")

    with np.load(tmp_path / "arrays.npz") as arrays:
        boxes = [*arrays["boxes"], arrays["random_boxes"][0, 0]]
    ((whole, *hidden),) = (pictures.unbind(1) for pictures in shown)
    for column, places in zip(hidden, boxes, strict=True):
        for image, (x0, y0, x1, y1) in enumerate(places[: len(whole)].astype(int)):
            changed = (column[image] != whole[image]).any(0)
            assert changed[y0:y1, x0:x1].double().mean() > 0.9
            changed[y0:y1, x0:x1] = False
            assert not changed.any()


def test_random_masks_follow_the_seed(same_object, tmp_path):
    found = []
    for number, seed in enumerate((4, 4, 5)):
        folder = tmp_path / str(number)
        folder.mkdir()
        metrics = ask(folder, f"analysis.boxes={same_object}", "analysis.masks=5", f"analysis.seed={seed}")
        found.append(metrics["random/0"]["value"])

    assert found[0] == found[1] != found[2]


def data_of(images, test=True):
    return SimpleNamespace(splits=Splits(images, images, images if test else None))


def test_what_cannot_be_asked_is_refused_before_any_work(phantom, tmp_path):
    other = data_of(ArrayImages(np.zeros((4, 9, 9, 3), np.uint8), np.zeros(4, int), ["a"], "other"), test=False)

    with pytest.raises(ValueError, match="no layer 'conv5'; the layers are 0, 2"):
        ask(tmp_path, "analysis.layers=[conv5]", data=other)
    with pytest.raises(ValueError, match="layers names no layer"):
        ask(tmp_path, "analysis.layers=[]", data=other)
    with pytest.raises(ValueError, match=r"is not known; .*boxes=FILE.csv \(image,part,x0,y0,x1,y1\), or .*data=phan"):
        ask(tmp_path, data=other)
    with pytest.raises(ValueError, match="of other classes than faces; data=phantom has all classes"):
        ask(tmp_path, data=data_of(phantom.only(["car", "cat"])))
    with pytest.raises(FileNotFoundError, match="analysis.boxes=nowhere.csv: there is no such file"):
        ask(tmp_path, "analysis.boxes=nowhere.csv", data=other)
    with pytest.raises(ValueError, match=r"analysis.images=1.*greater than or equal to 2"):
        ask(tmp_path, "analysis.images=1")
    assert not list(tmp_path.iterdir())
