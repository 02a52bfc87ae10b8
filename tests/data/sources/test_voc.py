"""PASCAL VOC: labels from its lists, and what is missing or damaged."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from zfscope.data.sources.voc import CLASSES, open_voc

# image -> classes that are there, and those of which only difficult objects are
TRAIN = {
    "2008_000008": ({"horse", "person"}, set()),
    "2008_000015": ({"bottle"}, {"chair"}),
    "2008_000019": (set(), set()),
}
VAL = {"2008_000002": ({"tvmonitor"}, set()), "2008_000003": ({"train", "person"}, set())}


def lay_out(folder):
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    for part, images in (("train", TRAIN), ("val", VAL)):
        (lists / f"{part}.txt").write_text("".join(f"{image}\n" for image in images))
        for name in CLASSES:
            flags = {
                image: 1 if name in easy else 0 if name in difficult else -1
                for image, (easy, difficult) in images.items()
            }
            (lists / f"{name}_{part}.txt").write_text("".join(f"{image} {flag:2d}\n" for image, flag in flags.items()))
        for i, image in enumerate(images):
            Image.new("RGB", (12, 10), (50 * i, 0, 0)).save(folder / "JPEGImages" / f"{image}.jpg", quality=100)
    return folder


@pytest.mark.parametrize("layout", ["VOCdevkit/VOC2012", "VOC2012", "TrainVal/VOCdevkit/VOC2012"])
def test_labels_are_one_where_the_class_is_and_zero_where_not_or_difficult(tmp_path, layout):
    lay_out(tmp_path / layout)

    splits = open_voc(tmp_path)

    for images, expected in ((splits.train, TRAIN), (splits.val, VAL)):
        assert images.labels.dtype == np.float32 and images.labels.shape == (len(expected), 20)
        read = {images.path(i).stem: {CLASSES[k] for k in np.flatnonzero(row)} for i, row in enumerate(images.labels)}
        assert read == {image: classes for image, (classes, _) in expected.items()}
    assert splits.test is None
    assert splits.train.read(1).getpixel((0, 0)) == pytest.approx((50, 0, 0), abs=3)


def test_the_folder_itself_may_be_named(tmp_path):
    assert len(open_voc(lay_out(tmp_path / "VOC2012")).val) == 2


def test_the_twenty_classes_are_in_alphabetical_order():
    assert len(CLASSES) == 20 and list(CLASSES) == sorted(CLASSES)


def test_a_missing_folder_or_list_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no PASCAL VOC 2012 found; looked in {tmp_path}/VOCdevkit/VOC2012, "):
        open_voc(tmp_path)
    (lay_out(tmp_path / "VOC2012") / "ImageSets/Main/cow_val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no list .*/cow_val\.txt; unpack"):
        open_voc(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2008_000002 -1\n2008_000009 -1\n", r"cow_val\.txt names other images than aeroplane_val\.txt"),
        ("2008_000002 -1\n2008_000003 2\n", r"cow_val\.txt must list images with -1, 0 or 1, but has '2008_000003 2'"),
        ("", r"cow_val\.txt must list .* but has 'nothing'"),
    ],
    ids=["other images", "another flag", "empty"],
)
def test_a_damaged_list_is_refused_by_name(tmp_path, text, message):
    (lay_out(tmp_path / "VOC2012") / "ImageSets/Main/cow_val.txt").write_text(text)

    with pytest.raises(ValueError, match=message):
        open_voc(tmp_path)


def test_it_is_downloaded_by_torchvision_only_when_asked_and_not_there(tmp_path, monkeypatch):
    calls = []

    def fetch(*arguments, **options):
        calls.append((*arguments, options))
        lay_out(tmp_path / "VOCdevkit" / "VOC2012")

    monkeypatch.setattr(datasets, "VOCDetection", fetch)

    assert len(open_voc(tmp_path, download=True).train) == 3
    open_voc(tmp_path, download=True)
    assert [options for _, options in calls] == [{"year": "2012", "image_set": "trainval", "download": True}]
    assert Path(calls[0][0]).parent == tmp_path  # a folder of its own, which is gone
    assert list(tmp_path.iterdir()) == [tmp_path / "VOCdevkit"]
