import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import composed
from tests.examples.overlap import COPIES, photographs, recompressed, write
from zfscope.analyses.overlap import analyse, shown_pairs
from zfscope.analyses.question import Question
from zfscope.analyses.run import save
from zfscope.analyses.spec import AnalyzeConfig, OverlapAnalysis
from zfscope.data.datamodule import ImageData, open_data
from zfscope.data.imageset import ArrayImages
from zfscope.data.spec import DataConfig
from zfscope.figures import Pair, overlap_sheet
from zfscope.protocols.overlap import Overlap
from zfscope.schema import check

CPU = torch.device("cpu")


def analysed(folder, data, other, **options):
    options = check(OverlapAnalysis, {"other": other, **options}, "analysis")
    data = check(DataConfig, {**data, "batch_size": 1}, "data")
    folder.mkdir(exist_ok=True)
    result = analyse(Question(options, CPU, folder, data=ImageData(open_data(data), data, None)))
    save(result, folder)
    return result.metrics


def lines(path):
    return path.read_text().splitlines()


@pytest.fixture
def caltech_in_imagenet(tmp_path):
    """Three images of a Caltech-101 stand in an ImageNet's training set, another one in its validation set."""
    pictures = photographs(16)
    write(tmp_path / "imagenet" / "train", pictures[:12], ("n01440764", "n01443537"))
    write(tmp_path / "imagenet" / "val", pictures[12:], ("n01440764", "n01443537"))
    own = photographs(14, seed=1)
    planted = [COPIES["halved"](pictures[1]), recompressed(pictures[4]), recompressed(pictures[4], 50), pictures[13]]
    write(tmp_path / "caltech" / "101_ObjectCategories", [*own, *planted], ("=cat", "dog"))
    data = {"name": "imagenet", "root": str(tmp_path / "imagenet"), "num_workers": 0}
    return data, {"name": "caltech101", "root": str(tmp_path / "caltech"), "cache": None}


def test_the_list_takes_the_common_images_out_of_training(caltech_in_imagenet, tmp_path):
    data, other = caltech_in_imagenet

    found = analysed(tmp_path / "run", data, other)

    assert lines(tmp_path / "run" / "exclude.txt") == [
        "# images of imagenet/train that also stand in caltech101: correlation 0.9 or more, 4 times nearer than other "
        "images",
        "n01440764/4.png",
        "n01443537/1.png",
    ]
    values = {name.removeprefix("overlap/"): metric["value"] for name, metric in found.items()}
    assert values["images"] == 12 and values["other_images"] == 18
    assert values["pairs"] == 3 and values["duplicates"] == 2 and values["other_duplicates"] == 3
    assert values["excluded"] == 2 and values["highest_not_counted"] < 0.6 < 0.9 <= values["lowest_counted"]
    assert found["overlap/other_duplicates"]["paper"] == 44
    splits = open_data(check(DataConfig, {**data, "exclude": str(tmp_path / "run" / "exclude.txt")}))
    assert len(splits.train) == 10 and len(splits.val) == 4
    with Image.open(tmp_path / "run" / "figures" / "overlap.png") as figure:
        assert figure.width > 900
    with np.load(tmp_path / "run" / "arrays.npz") as arrays:
        assert arrays["same"].sum() == 3 and arrays["pairs"].shape == (len(arrays["nearer"]), 2)


def test_pairs_are_written_as_text_that_no_spreadsheet_computes(caltech_in_imagenet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "caltech" / "101_ObjectCategories")
    data, other = caltech_in_imagenet

    analysed(tmp_path / "run", data, other | {"name": "folder", "root": "."}, parts=["train", "train"])

    with open(tmp_path / "run" / "pairs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["second"] for row in rows) == ["'=cat/14.png", "'=cat/16.png", "dog/15.png"]
    assert all(row["first"].startswith(str(tmp_path)) and float(row["correlation"]) > 0.9 for row in rows)


def test_a_key_of_the_validation_folder_takes_no_training_image(caltech_in_imagenet, tmp_path):
    data, other = caltech_in_imagenet
    val, expected = tmp_path / "imagenet" / "val" / "n01443537", ["n01440764/4.png", "n01443537/1.png"]

    analysed(tmp_path / "both", data, other, parts=["train", "val"])  # two files of one key, both with a copy
    (val / "1.png").rename(val / "3.png")  # now with the key of a training image that has none
    found = analysed(tmp_path / "run", data, other, parts=["train", "val"])

    assert found["overlap/duplicates"]["value"] == 3
    assert lines(tmp_path / "both" / "exclude.txt")[1:] == expected
    assert lines(tmp_path / "run" / "exclude.txt")[1:] == expected
    assert "paper" not in found["overlap/other_duplicates"]


def test_images_of_a_carved_set_are_listed_whatever_their_part(tmp_path):
    pictures = photographs(20)
    write(tmp_path / "one", [*pictures, pictures[0]])
    write(tmp_path / "two", [*photographs(4, seed=1), *pictures[:8]])
    data, other = ({"name": "folder", "root": str(tmp_path / name)} for name in ("one", "two"))

    found = analysed(tmp_path / "run", data | {"num_workers": 0}, other, parts=["train", "val", "test"])

    expected = sorted(["cat/20.png", *(f"{('cat', 'dog')[n % 2]}/{n}.png" for n in range(8))])
    assert lines(tmp_path / "run" / "exclude.txt")[1:] == expected
    assert found["overlap/duplicates"]["value"] == 9 and found["overlap/other_duplicates"]["value"] == 8


def test_the_parts_of_one_set_are_compared_with_each_other(tmp_path):
    pictures = photographs(10)
    write(tmp_path / "data" / "train", pictures)
    write(tmp_path / "data" / "val", [*photographs(4, seed=1), recompressed(pictures[6])])
    data = {"name": "folder", "root": str(tmp_path / "data"), "num_workers": 0}

    found = analysed(tmp_path / "run", data, {"name": "folder", "root": str(tmp_path / "data" / "train" / "..")})

    assert found["overlap/pairs"]["value"] == 1
    assert lines(tmp_path / "run" / "exclude.txt")[1:] == ["cat/6.png"]
    with pytest.raises(ValueError, match=r"the data set itself, and analysis.parts=\[train,val\] leaves none"):
        analysed(tmp_path / "run", data, data, parts=["train", "val"])


def test_what_is_missing_is_said_in_one_line(caltech_in_imagenet, tmp_path):
    data, other = caltech_in_imagenet

    with pytest.raises(ValueError, match=r"analysis.other.name is missing; give it as analysis.other.name=…"):
        analysed(tmp_path / "run", data, {"name": None, "root": other["root"]})
    with pytest.raises(ValueError, match="analysis.other.rot='x': there is no such key"):
        analysed(tmp_path / "run", data, {**other, "rot": "x"})
    with pytest.raises(ValueError, match=r"analysis.parts=\[test\]: this data set has the parts train, val"):
        analysed(tmp_path / "run", data, other, parts=["test"])
    with pytest.raises(ValueError, match=r"analysis.parts=\[\]"):
        analysed(tmp_path / "run", data, other, parts=[])
    assert not list((tmp_path / "run").iterdir())


def test_images_of_one_grey_are_told(tmp_path):
    write(tmp_path / "one", [*photographs(6), *[Image.new("L", (30, 30), 9)] * 2])
    write(tmp_path / "two", photographs(6, seed=1))
    data, other = ({"name": "folder", "root": str(tmp_path / name)} for name in ("one", "two"))

    with pytest.warns(UserWarning, match="2 images of one/train\\+val\\+test are of one grey"):
        found = analysed(tmp_path / "run", data | {"num_workers": 0}, other, parts=["train", "val", "test"])

    assert found["overlap/pairs"]["value"] == 0 and found["overlap/lowest_counted"]["value"] is None
    assert len(lines(tmp_path / "run" / "exclude.txt")) == 1


def test_the_config_is_accepted_as_composed():
    overrides = "data=imagenet", "data.root=A", "data@analysis.other=caltech101", "analysis.other.root=B"

    config = check(AnalyzeConfig, composed("analysis=overlap", *overrides, name="analyze"))

    assert config.analysis.other["name"] == "caltech101" and config.analysis.other["root"] == "B"
    assert config.data["name"] == "imagenet" and config.data["root"] == "A"
    assert config.analysis.model_dump(exclude={"other"}) == check(
        AnalyzeConfig, {"analysis": {"name": "overlap", "other": {}}}
    ).analysis.model_dump(exclude={"other"})


def test_the_sheet_shows_both_images_of_a_pair_whole():
    red, blue = Image.new("RGB", (300, 100), "red"), Image.new("RGB", (20, 40), "blue")
    pair = Pair((red, blue), ("a/very/long/path/" * 9 + "end.png", "b.png"), 0.91234, math.inf)

    sheet = np.asarray(overlap_sheet([pair] * 5, [], "title", "legend").convert("RGB")).astype(int)
    empty = overlap_sheet([], [], "title", "legend")

    shown = [(np.abs(sheet - colour).sum(2) == 0).sum() for colour in ([255, 0, 0], [0, 0, 255])]
    assert shown == [5 * 136 * 45, 5 * 68 * 136]
    assert empty.height < sheet.shape[0]


def test_the_sheet_spreads_over_what_counts_and_begins_with_the_closest_of_the_rest():
    images = ArrayImages(np.zeros((20, 4, 4), np.uint8), np.zeros(20, int), "a", "set")
    pairs, falling = np.stack([np.arange(20)] * 2, axis=1), np.linspace(1, 0, 20, dtype=np.float32)
    found = Overlap(pairs, falling, np.ones(20, np.float32), falling > 0.6, (0, 0))

    same, others = shown_pairs(images, images, found, 3)

    assert [pair.names[0] for pair in same] == ["set/0", "set/4", "set/7"]
    assert [pair.names[1] for pair in others] == ["set/8", "set/9", "set/10"]
