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
from lightning.pytorch import Trainer
from PIL import Image

from tests.conftest import composed, quick_first, tiny_images, write_folders
from tests.data.test_reading import png_header
from zfscope.data import quarantine, reading
from zfscope.data.contents import UNREADABLE, check_unchanged, contents_of
from zfscope.data.datamodule import ImageData, open_data
from zfscope.data.imageset import ArrayImages, FileImages, JoinedImages
from zfscope.data.quarantine import (
    Quarantine,
    TooManyUnreadable,
    check_images,
    collecting,
    counts,
    manifest,
    mark_unreadable,
    recall,
    with_quarantine,
    write_manifest,
)
from zfscope.data.reading import UnreadableImage
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits
from zfscope.data.statistics import statistics_of
from zfscope.evaluation import predict
from zfscope.networks.build import build_network
from zfscope.networks.preprocessing import Preprocessing
from zfscope.protocols.features import feature_tables
from zfscope.protocols.overlap import find_overlap
from zfscope.protocols.transfer import Target, draw_fold
from zfscope.schema import check

SIDE = 24
FRAMES = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue")]
UPRIGHT = Image.Exif()
UPRIGHT[0x0112] = 6


def cut(path):
    path.write_bytes(path.read_bytes()[:700])


def saved(image, **options):
    return lambda path: image.save(path, **options)


def replaced(make):
    """A kind that cannot be written over a file."""

    def change(path):
        path.unlink()
        make(path)

    return change


def forbidden(path):
    if os.geteuid():
        path.chmod(0)
    else:  # root reads what nobody may: a link to itself is as unreadable
        replaced(lambda path: path.symlink_to(path.name))(path)


QUARANTINED = {
    "zero bytes": (lambda path: path.write_bytes(b""), "it is empty (0 bytes)"),
    "truncated": (cut, "truncated"),
    "html": (lambda path: path.write_text("<!DOCTYPE html>404"), "it holds HTML or XML, not an image"),
    "above 50 megapixels": (lambda path: path.write_bytes(png_header(9000, 9000)), "more than 50 megapixels"),
    "1x5000": (saved(Image.new("L", (1, 5000)), format="PNG"), "1x5000 px is longer than 50 : 1"),
    "dangling link": (replaced(lambda path: path.symlink_to("gone.jpg")), "a link to gone.jpg, which does not exist"),
    "unreadable": (forbidden, "no permission to read it" if os.geteuid() else "link"),
    "noise": (lambda path: path.write_bytes(os.urandom(500)), "no image of a known format"),
}
CONVERTED = {
    "cmyk": saved(Image.new("CMYK", (SIDE, SIDE), (9, 200, 30, 40)), format="JPEG"),
    "grey": saved(Image.new("L", (SIDE, SIDE), 77), format="JPEG"),
    "palette": saved(Image.new("P", (SIDE, SIDE), 7), format="PNG"),
    "alpha": saved(Image.new("RGBA", (SIDE, SIDE), (9, 9, 9, 0)), format="PNG"),
    "16 bits": saved(Image.fromarray(np.full((SIDE, SIDE), 40_000, np.uint16)), format="PNG"),
    "turned": saved(Image.new("RGB", (30, SIDE)), format="JPEG", exif=UPRIGHT),
    "animated": saved(FRAMES[0], format="GIF", save_all=True, append_images=FRAMES[1:]),
    "same in train and test": lambda path: shutil.copy(path.parents[2] / "test/cat/0.jpg", path),
    "fifo": replaced(os.mkfifo),  # never becomes an image of the set
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """200 training, 20 validation and 20 test images of two classes, and a cache that knows them."""
    home = tmp_path_factory.mktemp("whole")
    for seed, (part, count) in enumerate({"train": 200, "val": 20, "test": 20}.items()):
        images, labels = tiny_images(count, SIDE, 2, seed)
        for number, image in enumerate(images):
            folder = home / "images" / part / ("cat", "dog")[labels[number]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.jpg")
    checked(home)
    return home


@pytest.fixture
def home(whole, tmp_path):
    """A copy of ``whole`` to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "home"))


def opened(home):
    return open_data(check(DataConfig, {"name": "folder", "root": str(home / "images")}))


def checked(home, num_workers=0):
    splits = opened(home)
    with collecting(splits):
        check_images(splits, home / "cache", SIDE, num_workers)
    return splits


def break_some(home, count, make=QUARANTINED["zero bytes"][0], part="train", first=0):
    names = sorted((home / "images" / part).glob("*/*.jpg"))
    broken = [names[(first + 7 * number) % len(names)] for number in range(count)]
    for path in broken:
        make(path)
    return broken


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
    names, original = [], reading.read_image

    def noting(path, short_side=None):
        names.append(Path(path))
        return original(path, short_side)

    monkeypatch.setattr("zfscope.data.imageset.read_image", noting)
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
    original = reading.read_image

    def stopped(path, short_side=None):
        if len(names) == 70:
            raise KeyboardInterrupt
        names.append(path)
        return original(path, short_side)

    names = []
    monkeypatch.setattr("zfscope.data.imageset.read_image", stopped)
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
        warnings.simplefilter("error")
        checked(home)


@pytest.mark.filterwarnings("ignore:1 of the 200 training images")
def test_the_mean_image_is_that_of_the_others_and_its_pass_is_part_of_the_check(home, monkeypatch):
    (bad,) = break_some(home, 1)
    (home / "cache" / "decoded.npz").unlink()
    splits, names = opened(home), decoded(monkeypatch)

    with collecting(splits):
        statistics = statistics_of(splits.train, SIDE, home / "cache")
        check_images(splits, home / "cache", SIDE, 0)

    paths = set((home / "images/train").rglob("*.jpg")) - {bad}
    others = [np.asarray(Image.open(path), dtype=float) for path in paths]
    torch.testing.assert_close(statistics.mean.permute(1, 2, 0), torch.tensor(np.mean(others, 0)).float())
    assert statistics.std == pytest.approx(np.std(np.stack(others) - np.mean(others, 0)), rel=1e-6)
    assert len(names) == len(set(names)) + 1 == 241  # the bad one for the mean and for the check, all others once


# --- batches ---


def module_of(splits, num_workers=0, position=0, batch_size=8, seed=3):
    sizes = {"resize": SIDE, "crop": 20, "batch_size": batch_size, "num_workers": num_workers}
    config = check(DataConfig, {**composed()["data"], **sizes})
    prepare = Preprocessing(SIDE, 20, torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 0.02))
    data = ImageData(splits, config, prepare, seed)
    data.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=True)
    data.done = position
    return data


@pytest.mark.parametrize("checks", quick_first([True, False], 1))
@pytest.mark.filterwarnings("ignore:.*cannot be read|cannot read")
def test_batches_and_manifest_are_the_same_with_0_and_2_workers_and_in_a_run_that_goes_on(home, checks):
    break_some(home, 1)
    break_some(home, 1, QUARANTINED["truncated"][0], part="val", first=5)

    def run(num_workers, position=0):
        splits = checked(home, num_workers) if checks else opened(home)
        data = module_of(splits, num_workers, position)
        batches = [list(data.train_dataloader()), list(data.val_dataloader())]
        return batches, manifest(splits)

    alone, helped, later = run(0), run(2), run(0, position=5)

    assert alone[1] == helped[1] == later[1] and alone[1].count("\n") == 3
    assert sorted(map(len, (batch[1] for batch in alone[0][0])))[:2] == [7, 8]
    for part in (0, 1):
        for one, other in zip(alone[0][part], helped[0][part], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    for one, other in zip(alone[0][0][5:], later[0][0], strict=False):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:1 of the 20 validation images")
def test_the_others_keep_their_index_label_and_view(home):
    data = module_of(opened(home))
    whole = {int(i): (view, label) for batch in data.val_dataloader() for view, label, i in zip(*batch, strict=True)}
    break_some(home, 1, part="val", first=5)

    left = module_of(checked(home))
    batches = list(left.val_dataloader())

    (gone,) = left.splits.val.quarantine.positions().tolist()
    indices = torch.cat([index for *_, index in batches]).tolist()
    assert [len(batch[0]) for batch in batches] == [7, 8, 4] or gone >= 8
    assert indices == [index for index in range(20) if index != gone]
    for views, labels, numbers in batches:
        for view, label, number in zip(views, labels, numbers, strict=True):
            torch.testing.assert_close((view, label), whole[int(number)], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:1 of the 20 .* images")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_of_which_no_image_can_be_read_comes_empty_in_training_and_validation_and_not_at_all_elsewhere(
    home, num_workers
):
    break_some(home, 1, part="val", first=5)
    splits = checked(home)

    data = module_of(Splits(splits.val, splits.val), num_workers, batch_size=1)
    training, validation = list(data.train_dataloader()), list(data.val_dataloader())
    evaluation = list(data.canvases(splits.val, 1))

    (gone,) = splits.val.quarantine.positions().tolist()
    assert len(training) == len(validation) == 20 and len(evaluation) == 19
    assert [len(labels) for _, labels, _ in validation] == [int(number != gone) for number in range(20)]
    assert sum(len(labels) for _, labels, _ in training) == 19


def test_without_the_check_an_image_is_left_out_with_a_warning_when_it_is_first_read(home):
    (bad,) = break_some(home, 1)
    splits, seen = opened(home), []
    splits.train.quarantine.noted = seen.append

    with pytest.warns(UserWarning, match=rf"^cannot read {bad}: it is empty .*up to 1 of the 200 training") as told:
        indices = torch.cat([index for *_, index in module_of(splits).centre_crops(splits.train, 8)])

    assert len(told) == 1 and seen == splits.train.quarantine.positions().tolist()
    assert indices.tolist() == [index for index in range(200) if index != seen[0]]


@pytest.mark.filterwarnings("ignore:cannot read")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_without_the_check_reading_ends_where_one_too_many_is_met(home, num_workers):
    broken = break_some(home, 20)
    splits = opened(home)

    with pytest.raises(TooManyUnreadable, match="images cannot be read, and at most 1 may be left out") as many:
        list(module_of(splits, num_workers).centre_crops(splits.train, 8))

    assert sum(str(path) in str(many.value) for path in broken) == 2


def test_an_image_that_the_check_left_out_stays_out_though_its_file_is_mended(home):
    (bad,) = break_some(home, 1)
    with pytest.warns(UserWarning, match="left out"):
        splits = checked(home)
    shutil.copy(home / "images/test/cat/0.jpg", bad)

    indices = torch.cat([index for *_, index in module_of(splits).centre_crops(splits.train, 8)])

    assert len(indices) == 199


def test_a_set_without_a_quarantine_refuses_the_image_in_one_line(home):
    (bad,) = break_some(home, 1)
    images = opened(home).train.readable()

    for num_workers in (0, 2):
        with pytest.raises(UnreadableImage, match=rf"^cannot read the image {bad}: it is empty .*replace the file"):
            list(module_of(Splits(images, images), num_workers).centre_crops(images, 8))


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


def test_a_run_does_not_go_on_where_other_images_can_be_read(home):
    (bad,) = break_some(home, 1, QUARANTINED["dangling link"][0])
    with pytest.warns(UserWarning, match="left out"):
        splits = checked(home)
    earlier = contents_of(splits, home / "cache")
    mark_unreadable(splits, earlier)
    recorded = {part: torch.from_numpy(earlier[part].copy()) for part in ("train", "val")}
    check_unchanged(recorded, "last.ckpt", splits, earlier, checked=True)

    bad.unlink()
    shutil.copy(home / "images/test/cat/0.jpg", bad)
    mended = checked(home)
    now = contents_of(mended, home / "cache")
    mark_unreadable(mended, now)

    assert (earlier["train"][splits.train.quarantine.positions()] == UNREADABLE).all()
    check_unchanged(recorded, "last.ckpt", mended, now)  # one of the two legs did not check
    with pytest.raises(ValueError, match=r"training images changed since last\.ckpt was written, 1 of 200: .*0\.jpg"):
        check_unchanged(recorded, "last.ckpt", mended, now, checked=True)


# --- numbers ---

MODEL = {"name": "n", "conv1": {"maps": 4, "kernel_size": 3, "pool": {}}, "fc6": {"units": 8}, "fc8": {}}


def network_of(prepare):
    torch.manual_seed(0)
    network = build_network(MODEL, 2, 20)
    network.preprocessing = prepare
    return network


@pytest.mark.filterwarnings("ignore:1 of the 20 test images")
def test_predictions_are_those_of_the_others(home):
    data = module_of(opened(home))
    network = network_of(data.preprocessing)
    before = predict(network, data.canvases(data.splits.test, 8))
    break_some(home, 1, part="test", first=5)
    splits = checked(home)

    after = predict(network, module_of(splits).canvases(splits.test, 8))

    kept = np.delete(np.arange(20), splits.test.quarantine.positions())
    assert torch.equal(after.labels, before.labels[kept])
    for kind, values in after.probabilities.items():
        torch.testing.assert_close(values, before.probabilities[kind][kept])


@pytest.mark.filterwarnings("ignore:1 of the 20 test images")
def test_folds_are_drawn_from_images_that_can_be_read(home):
    break_some(home, 1, part="test")
    splits = checked(home)

    target = Target.of(splits)
    fold = draw_fold(target, 100, None, fold=0, seed=0)

    names = {target.images.name(int(index)) for index in fold.test}
    (gone,) = splits.test.quarantine.positions().tolist()
    assert len(target.images) == 239 and len(names) == 19 + 20 - 20
    assert splits.test.name(gone) not in names


@pytest.mark.filterwarnings("ignore:cannot read")
def test_features_are_never_kept_where_an_image_cannot_be_read(home):
    break_some(home, 1, part="test")
    data = module_of(opened(home))
    data.config = data.config.model_copy(update={"cache": str(home / "features")})
    network = network_of(data.preprocessing)

    with pytest.raises(ValueError, match="1 of 20 images cannot be read and have no features"):
        feature_tables(network, data, data.splits.test, ["conv1"], 8, torch.device("cpu"))

    assert not list((home / "features").glob("features_*"))


@pytest.mark.filterwarnings("ignore:cannot read")
@pytest.mark.parametrize("joined", [False, True], ids=["one part", "joined parts"])
def test_copies_are_found_at_their_places_where_an_image_cannot_be_read(tmp_path, joined):
    pixels, labels = tiny_images(40, side=40)
    names = [f"{number}.png" for number in range(40)]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / names[11]).write_bytes(b"")
    files = FileImages(names, labels, ("a", "b", "c"), root=tmp_path)
    splits = with_quarantine(Splits(files.subset(np.arange(20)), files.subset(np.arange(20, 40))))
    first = JoinedImages([splits.train, splits.val]) if joined else splits.train

    overlap = find_overlap(first, ArrayImages(pixels[:20], labels[:20], ("a", "b", "c"), "copies"))

    pairs = overlap.pairs[overlap.same]
    assert sorted(pairs.tolist()) == [[number, number] for number in range(20) if number != 11]
    assert counts(splits) == {"train": 1, "val": 0}


def test_arrays_in_memory_are_never_decoded_for_the_check(tmp_path, monkeypatch):
    images = ArrayImages(*tiny_images(20), ("a", "b", "c"), "tiny")
    monkeypatch.setattr(quarantine, "Loader", lambda *_, **__: pytest.fail("decoded"))
    splits = with_quarantine(Splits(images, images.subset(np.arange(5))))

    check_images(splits, tmp_path, SIDE, 0)

    assert not list(tmp_path.iterdir())
