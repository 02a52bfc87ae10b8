"""Images that cannot be read: left out, counted, listed and, beyond a limit, refused."""

import csv
import io
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import quick_first, write_folders
from tests.data.bad_images import (
    CONVERTED,
    QUARANTINED,
    SIDE,
    break_some,
    checked,
    module_of,
    opened,
)
from zfscope.data import reading
from zfscope.data.datamodule import open_data
from zfscope.data.imageset import FileImages
from zfscope.data.quarantine import (
    Quarantine,
    TooManyUnreadable,
    check_images,
    collecting,
    counts,
    manifest,
    recall,
    with_quarantine,
    write_manifest,
)
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits
from zfscope.data.statistics import statistics_of
from zfscope.networks.preprocessing import CanvasKind
from zfscope.schema import check

# --- the limit ---


@pytest.mark.parametrize("kind", quick_first(QUARANTINED, 4))
def test_one_bad_image_of_200_is_left_out_and_listed_and_20_are_refused_with_their_names(home, kind, record_property):
    make, cause = QUARANTINED[kind]
    (bad,) = break_some(home, 1, make)

    with pytest.warns(UserWarning, match=r"^1 of the 200 training images is left out, as it cannot be read: ") as told:
        splits = checked(home)
    others = break_some(home, 19, make, first=7)
    with pytest.raises(
        TooManyUnreadable, match=r"^20 of the 200 training images cannot be read, and at most 1"
    ) as many:
        checked(home)

    (row,) = csv.DictReader(io.StringIO(manifest(splits)))
    index = next(index for index in range(200) if splits.train.name(index) == str(bad))
    assert len(told) == 1 and counts(splits) == {"train": 1, "val": 0, "test": 0}
    assert (row["part"], row["index"], row["path"]) == ("train", str(index), str(bad)) and cause in row["reason"]
    assert "\n" not in str(many.value) and all(str(path) in str(many.value) for path in [bad, *others])
    record_property("cases", 2)


@pytest.mark.filterwarnings("ignore:animated images", "ignore:left out .* files")
@pytest.mark.parametrize("kind", quick_first(CONVERTED, 2))
def test_20_odd_images_of_200_are_read_and_none_is_left_out(home, kind, record_property):
    break_some(home, 1, CONVERTED[kind])

    one = checked(home)
    break_some(home, 19, CONVERTED[kind], first=7)
    many = checked(home)

    assert not any(counts(one).values()) and not any(counts(many).values())
    record_property("cases", 2)


LIMITS = {2: 1, 999: 1, 1000: 1, 1999: 1, 2000: 2, 50_000: 50, 1_281_167: 1281}


@pytest.mark.parametrize("size", quick_first(LIMITS, 6))
def test_a_tenth_of_a_per_cent_of_a_part_may_be_left_out_and_one_of_any_part(size):
    limit = LIMITS[size]
    images = FileImages([f"{number}.jpg" for number in range(size)], np.zeros(size, int), ("a",), root="images")
    part = Quarantine("val", images)
    part.collecting = True

    for row in images._rows[:limit]:
        part.add(row, "it is empty")

    assert part.limit == limit and not part.is_exceeded
    part.add(images._rows[-1], "it is empty")
    assert part.is_exceeded


def test_a_part_of_one_image_that_cannot_be_read_is_refused(tmp_path):
    root = write_folders(tmp_path / "images", {"train": 2, "val": 1}, ("cat", "dog"))
    (root / "val/cat/0.jpg").write_bytes(b"")
    classes = {"name": "folder", "root": str(root)}
    splits = open_data(check(DataConfig, classes))
    splits = with_quarantine(Splits(splits.train, splits.val.subset([0])))

    with pytest.raises(TooManyUnreadable, match="1 of the 1 validation images cannot be read"), collecting(splits):
        check_images(splits, tmp_path, SIDE, 0)


def test_a_long_list_is_shortened_and_all_parts_are_told_at_once(home):
    break_some(home, 40)
    break_some(home, 2, part="test")

    with pytest.raises(TooManyUnreadable) as many:
        checked(home)

    text = str(many.value)
    assert "40 of the 200 training images cannot be read" in text and " and 10 more; 2 of the 20 test images" in text
    assert text.endswith("; replace or remove them") and text.count(".jpg (") == 32


# --- the check and its cache ---


def decoded(monkeypatch):
    """The files that are decoded from here on."""
    names, original = [], reading.read_pixels

    def noting(path, short_side=None, content=None):
        names.append(Path(path))
        return original(path, short_side)

    monkeypatch.setattr("zfscope.data.imageset.read_pixels", noting)
    return names


@pytest.mark.filterwarnings("ignore:1 of the 20 test images")
def test_what_was_decoded_is_not_decoded_again_also_in_a_copy_and_what_is_bad_or_new_is(home, monkeypatch):
    (bad,) = break_some(home, 1, part="test")
    new = home / "images/val/cat/0.jpg"
    Image.new("RGB", (SIDE, SIDE), "red").save(new)
    names = decoded(monkeypatch)

    checked(home)
    first, names[:] = list(names), []
    checked(home)

    assert sorted(first) == sorted([bad, new])
    assert names == [bad]


def test_a_check_that_is_stopped_goes_on_from_where_it_was(tmp_path, monkeypatch):
    write_folders(tmp_path / "images", {"train": 40, "val": 4}, ("cat", "dog"))  # val holds copies of some of train
    original = reading.read_pixels

    def stopped(path, short_side=None, content=None):
        if len(names) == 70:
            raise KeyboardInterrupt
        names.append(path)
        return original(path, short_side)

    names = []
    monkeypatch.setattr("zfscope.data.imageset.read_pixels", stopped)
    with pytest.raises(KeyboardInterrupt):
        checked(tmp_path)
    again = decoded(monkeypatch)

    checked(tmp_path)

    assert len(again) == 80 - 64  # two whole batches were noted


def test_a_damaged_note_of_what_was_decoded_costs_one_line_and_a_decoding(home, monkeypatch):
    (home / "cache" / "decoded.npz").write_bytes(b"PK")
    names = decoded(monkeypatch)

    with pytest.warns(UserWarning, match=r"decoded\.npz is damaged; the images are decoded again"):
        checked(home)

    assert len(names) == 240
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        checked(home)


@pytest.mark.filterwarnings("ignore:1 of the 200 training images")
def test_the_mean_image_is_that_of_the_others_and_its_pass_is_part_of_the_check(home, monkeypatch):
    (bad,) = break_some(home, 1)
    (home / "cache" / "decoded.npz").unlink()
    splits, names = opened(home), decoded(monkeypatch)

    with collecting(splits):
        statistics = statistics_of(splits.train, CanvasKind(SIDE), home / "cache")
        check_images(splits, home / "cache", SIDE, 0)

    paths = set((home / "images/train").rglob("*.jpg")) - {bad}
    others = [np.asarray(Image.open(path), dtype=float) for path in paths]
    torch.testing.assert_close(statistics.mean.permute(1, 2, 0), torch.tensor(np.mean(others, 0)).float())
    assert statistics.std == pytest.approx(np.std(np.stack(others) - np.mean(others, 0)), rel=1e-6)
    assert len(names) == len(set(names)) + 1 == 241  # the bad one for the mean and for the check, all others once


# --- the manifest ---


def test_names_in_the_manifest_are_one_line_each_and_no_formula(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [os.fsdecode(name) for name in (b"=1+1/a\nb.jpg", b"=1+1/c\xff.jpg", b"=1+1/d.jpg")]
    Path("=1+1").mkdir()
    for name in names[:2]:
        Path(name).touch()
    Image.new("RGB", (9, 9)).save(names[2])
    images = FileImages(names, np.zeros(3, int), ("a",), root="")
    splits = with_quarantine(Splits(images, images.subset([2])))
    splits.train.quarantine.collecting = True

    for index in (1, 0):
        splits.train.quarantine.add(splits.train._rows[index], "=it is\tempty")
    write_manifest(splits, tmp_path)

    text = (tmp_path / "quarantine.csv").read_bytes().decode("utf-8")
    assert text.splitlines()[0] == "part,index,path,reason"
    assert text.splitlines()[1].startswith("train,0,'=1+1/a\\nb.jpg,'=it is") and len(text.splitlines()) == 3
    assert [row["index"] for row in csv.DictReader(io.StringIO(text))] == ["0", "1"]


@pytest.mark.filterwarnings("ignore:cannot read")
def test_a_run_that_goes_on_knows_what_it_left_out_as_far_as_that_cannot_be_read_still(home, tmp_path):
    broken = break_some(home, 1) + break_some(home, 1, part="test")
    splits = opened(home)
    for images in splits.parts.values():
        list(module_of(splits).centre_crops(images, 8))
    write_manifest(splits, tmp_path)
    shutil.copy(home / "images/val/cat/0.jpg", broken[0])

    again = opened(home)
    recall(again, tmp_path)

    assert counts(again) == {"train": 0, "val": 0, "test": 1}


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"part,index\ntrain,x\n", b"index\n1\n", b"part,index\ntrain,999\nnowhere,1\ntrain,-1\n", b""],
)
def test_a_manifest_that_was_changed_by_hand_does_no_harm(home, tmp_path, content):
    (tmp_path / "quarantine.csv").write_bytes(content)
    splits = opened(home)

    with warnings.catch_warnings(record=True):
        recall(splits, tmp_path)

    assert not any(counts(splits).values())


# --- going on ---
