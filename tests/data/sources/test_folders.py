"""Class folders as they lie on disk, Caltech's layouts, and what makes no data set."""

import os
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from zfscope.data.sources import folders
from zfscope.data.sources.folders import find_folder
from zfscope.data.spec import DataConfig


def open_folder(root, **values):
    return folders.open_folder(DataConfig(name="folder", root=str(root)).model_copy(update=values))


def open_caltech(root, name="caltech101", **values):
    return folders.open_caltech(DataConfig(name=name, root=str(root)).model_copy(update=values))


def put(root, **classes):
    """Class folders below ``root``, each with so many images; every image of a class in its own grey."""
    for value, (name, count) in enumerate(classes.items()):
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8), 10 * value).save(folder / f"{name}_{i:02d}.png")
    return root


def names(images):
    return [images.name(i) for i in range(len(images))]


@pytest.fixture(autouse=True)
def no_warning_unless_expected():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def test_train_val_and_test_folders_are_the_splits_with_classes_in_the_order_of_their_names(tmp_path):
    put(tmp_path / "train", cat=3, ant=2)
    put(tmp_path / "val", ant=1, cat=2)
    put(tmp_path / "test", ant=1, cat=1)

    splits = open_folder(tmp_path)

    assert splits.train.classes == splits.val.classes == splits.test.classes == ("ant", "cat")
    assert splits.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert splits.val.labels.tolist() == [0, 1, 1]
    assert names(splits.test) == [str(tmp_path / "test/ant/ant_00.png"), str(tmp_path / "test/cat/cat_00.png")]
    assert splits.train.read(4).getpixel((0, 0)) == (0, 0, 0)  # cat was put first


def test_the_same_classes_and_labels_as_torchvision_reads(tmp_path):
    put(tmp_path / "train", b=2, a=3, B=1, n10=2, n9=2)
    put(tmp_path / "train" / "b", nested=2)
    put(tmp_path / "val", b=1, a=1, B=1, n10=1, n9=1)
    theirs = datasets.ImageFolder(tmp_path / "train")

    ours = open_folder(tmp_path).train

    assert ours.classes == tuple(theirs.classes)
    assert dict(zip(names(ours), ours.labels.tolist(), strict=True)) == dict(theirs.samples)


def test_a_folder_like_imagenette_opens_as_it_is(tmp_path):
    for part in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            (tmp_path / part / wnid).mkdir(parents=True)
            Image.new("RGB", (20, 10)).save(tmp_path / part / wnid / f"{wnid}_1.JPEG")
    (tmp_path / "noisy_imagenette.csv").write_text("path,noisy_labels_0\n")

    splits = open_folder(tmp_path)

    assert splits.test is None
    assert splits.val.classes == ("n01440764", "n02102040") and len(splits.train) == 2


def test_a_missing_val_folder_is_carved_out_of_train(tmp_path):
    put(tmp_path / "train", a=10, b=20)

    splits = open_folder(tmp_path, val_fraction=0.2)

    assert np.bincount(splits.val.labels).tolist() == [2, 4]
    assert sorted(names(splits.train) + names(splits.val)) == sorted(map(str, (tmp_path / "train").rglob("*.png")))
    assert splits.test is None


def test_class_folders_alone_are_split_by_class_without_overlap_and_by_the_seed_only(tmp_path):
    put(tmp_path, a=10, b=20)

    splits, again, other = (
        open_folder(tmp_path, val_fraction=0.25, test_fraction=0.2, split_seed=seed) for seed in (3, 3, 4)
    )

    assert [np.bincount(part.labels).tolist() for part in (splits.train, splits.val, splits.test)] == [
        [6, 12],
        [2, 4],
        [2, 4],
    ]
    together = names(splits.train) + names(splits.val) + names(splits.test)
    assert sorted(together) == sorted(map(str, tmp_path.rglob("*.png")))
    for part in ("train", "val", "test"):
        assert getattr(splits, part).fingerprint == getattr(again, part).fingerprint
        assert getattr(splits, part).fingerprint != getattr(other, part).fingerprint


def test_a_class_may_be_called_train(tmp_path):
    put(tmp_path, bus=10, train=10)

    assert open_folder(tmp_path).train.classes == ("bus", "train")


def test_extensions_of_any_case_are_images_and_other_files_are_not(tmp_path):
    put(tmp_path / "train", a=1, b=1)
    put(tmp_path / "val", a=1, b=1)
    for name in ("x.JPG", "x.Jpeg", "x.BMP", "x.webp", "x.PPM", "x.tif", "x.TIFF", "x.gif", "x.jfif"):
        (tmp_path / "train" / "a" / name).write_bytes(b"")

    assert np.bincount(open_folder(tmp_path).train.labels).tolist() == [10, 1]


def test_what_is_no_image_is_left_out_and_counted_by_ending(tmp_path):
    put(tmp_path / "train", a=1, b=1)
    put(tmp_path / "val", a=1, b=1)
    for name in ("x.heic", "y.HEIC", "labels.txt", "README"):
        (tmp_path / "train" / "a" / name).write_bytes(b"")
    os.mkfifo(tmp_path / "train" / "b" / "z.jpg")

    with pytest.warns(UserWarning, match=r"\.heic \(2\), .*; known are .*jfif") as told:
        splits = open_folder(tmp_path)

    assert len(splits.train) == 2
    for kind in (".txt (1)", "without ending (1)", "pipes and the like (1)"):
        assert kind in str(told[0].message)


def test_pipes_sockets_and_endings_without_number_are_counted_in_one_short_line_and_never_opened(tmp_path, monkeypatch):
    put(tmp_path / "train", a=1, b=1)
    put(tmp_path / "val", a=1, b=1)
    monkeypatch.chdir(tmp_path / "train/a")  # a socket's path may have 107 characters
    for name in ("pipe", "pipe.heic", "pipe.png"):
        os.mkfifo(name)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        for number in range(20):
            Path(f"scan.{number}").write_bytes(b"")
        Path(os.fsdecode(b"scan.\n\xff")).write_bytes(b"")

        with pytest.warns(UserWarning, match=r"pipes and the like \(4\), .* and 17 more; known are") as told:
            splits = open_folder(tmp_path)

    assert len(splits.train) == 2 and len(told) == 1
    assert str(told[0].message).isprintable()


def test_hidden_and_junk_folders_are_never_a_class_and_are_counted(tmp_path):
    put(tmp_path / "train", a=2, b=2)
    put(tmp_path / "val", a=1, b=1)
    put(tmp_path / "train", **{".ipynb_checkpoints": 1, "__MACOSX": 2})
    put(tmp_path / "train" / "a", **{".ipynb_checkpoints": 1})
    (tmp_path / "train" / "a" / "._a_00.png").write_bytes(b"x")
    (tmp_path / "train" / ".DS_Store").write_bytes(b"x")

    with pytest.warns(UserWarning, match=r"left out 5 hidden or junk .*: \.DS_Store, \._a_00\.png, \.ipynb_.*__MACOSX"):
        splits = open_folder(tmp_path)

    assert splits.train.classes == ("a", "b") and len(splits.train) == 4


def test_images_beside_the_class_folders_are_left_out_and_counted(tmp_path):
    put(tmp_path / "train", a=2, b=2)
    put(tmp_path / "val", a=1, b=1)
    Image.new("L", (8, 8)).save(tmp_path / "train" / "stray.png")

    with pytest.warns(UserWarning, match=r"left out 1 images of no class directly in .*train: stray\.png"):
        assert len(open_folder(tmp_path).train) == 4


def test_a_flat_test_folder_is_no_test_set_and_says_so(tmp_path):
    put(tmp_path / "train", a=1, b=1)
    put(tmp_path / "val", a=1, b=1)
    put(tmp_path, test=3)

    with pytest.warns(UserWarning, match="test has no class folders: there is no test set"):
        assert open_folder(tmp_path).test is None


def empty_class(root):
    put(root / "train", a=1, b=1, c=0)


def empty_class_in_val(root):
    put(root / "train", a=1, b=1)
    put(root / "val", a=1, b=0)


def other_classes(root):
    put(root / "train", a=1, b=1, dog=1)
    put(root / "val", a=1, b=1, dogs=1, cats=1)


def no_images(root):
    put(root / "train", a=0, b=0)
    (root / "train" / "a" / "notes.txt").write_text("x")


def symlink_to_parent(root):
    put(root / "train", a=1, b=1)
    (root / "train" / "a" / "loop").symlink_to("..")


def symlinks_to_each_other(root):
    put(root / "train", a=1, b=1)
    (root / "train" / "a" / "there").symlink_to("../b")
    (root / "train" / "b" / "back").symlink_to("../a")


def symlink_to_itself(root):
    put(root, a=1, b=1)
    (root / "loop").symlink_to("loop")


def flat_val(root):
    put(root / "train", a=1, b=1)
    put(root, val=3)


def val_alone(root):
    put(root / "val", a=1, b=1)
    (root / "train").mkdir()


def other_test_classes(root):
    for part, last in (("train", "b"), ("val", "b"), ("test", "c")):
        put(root / part, a=1, **{last: 1})


REFUSALS = {
    "nothing": (lambda root: None, r"no class folders in {root}, and no images; sort"),
    "flat": (
        lambda root: Image.new("L", (8, 8)).save(root / "a.png"),
        "no class folders in {root}, but 1 images; sort",
    ),
    "no images": (no_images, r"no images in the folders of {root}/train \(a, b\); known are bmp gif jfif jpeg"),
    "empty class": (empty_class, r"no images in class folder c of {root}/train; add some .* or remove it"),
    "empty class in val": (empty_class_in_val, r"no images in class folder b of {root}/val; add some .* or remove it"),
    "one class": (lambda root: put(root, a=5), "only one class, a, in {root}; a classifier needs two"),
    "other classes": (
        other_classes,
        "different classes; only in {root}/train: dog; only in {root}/val: cats, dogs; give both the same",
    ),
    "other test classes": (other_test_classes, "only in {root}/train: b; only in {root}/test: c"),
    "loop": (symlink_to_parent, "the link {root}/train/a/loop leads back to a folder above it"),
    "loop of two": (symlinks_to_each_other, "the link {root}/train/a/there/back leads back to a folder above it"),
    "loop to itself": (symlink_to_itself, "the link {root}/loop leads to itself"),
    "flat val": (flat_val, r"no class folders in {root}/val, but 3 images; .*data=imagenet"),
    "val without train": (val_alone, "{root}/val has class folders but {root}/train has none; put the training"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_folder_that_is_no_data_set_is_refused_in_one_line_with_the_place_and_the_way_out(tmp_path, case):
    make, message = REFUSALS[case]
    make(tmp_path)

    with pytest.raises(ValueError, match=message.replace("{root}", str(tmp_path))) as raised:
        open_folder(tmp_path)

    assert "\n" not in str(raised.value)


def test_a_missing_root_and_a_file_as_root_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/gone; give one that holds train/<class>"):
        open_folder(tmp_path / "gone")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="file is not a folder"):
        open_folder(tmp_path / "file")


def test_a_link_to_a_class_folder_elsewhere_is_followed_and_a_dangling_image_is_kept_for_the_reader_to_name(tmp_path):
    put(tmp_path / "elsewhere", a=2)
    put(tmp_path / "root", b=2)
    (tmp_path / "root" / "a").symlink_to(tmp_path / "elsewhere" / "a")
    (tmp_path / "root" / "b" / "gone.jpg").symlink_to("nowhere")

    splits = open_folder(tmp_path / "root", val_fraction=0, test_fraction=0)

    assert splits.train.labels.tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(OSError, match=r"gone\.jpg: it is a link to nowhere"):
        splits.train.read(4)


def test_a_class_name_with_a_line_break_stays_on_one_line_of_the_message(tmp_path):
    put(tmp_path / "train", a=1, b=1, **{os.fsdecode(b"x\n\xff"): 0})

    with pytest.raises(ValueError, match=r"class folder x\\n\\udcff of"):
        open_folder(tmp_path)


CALTECH = [
    ("caltech101", "101_ObjectCategories", "BACKGROUND_Google"),
    ("caltech256", "256_ObjectCategories", "257.clutter"),
]


@pytest.mark.parametrize(("name", "inner", "clutter"), CALTECH)
@pytest.mark.parametrize("layout", ["{name}/{inner}", "{inner}", "root itself", "caltech-{number}/{inner}"])
def test_caltech_is_found_in_the_usual_places_with_or_without_its_clutter(tmp_path, name, inner, clutter, layout):
    layout = inner if layout == "root itself" else layout.format(name=name, inner=inner, number=name[-3:])
    put(tmp_path / layout, **{"Faces": 8, "Faces_easy": 8, clutter: 8})
    root = tmp_path / inner if layout == inner else tmp_path

    assert open_caltech(root, name).train.classes == ("Faces", "Faces_easy")
    assert clutter in open_caltech(root, name, clutter=True).train.classes


def test_caltech_takes_the_files_of_each_class_and_not_what_lies_deeper_or_is_no_image(tmp_path):
    put(tmp_path / "256_ObjectCategories", **{"056.dog": 8, "198.spider": 8})
    put(tmp_path / "256_ObjectCategories" / "056.dog" / "greg", vision309=3)
    (tmp_path / "256_ObjectCategories" / "198.spider" / "RENAME2").write_text("x")

    with pytest.warns(UserWarning, match=r"left out what is no image below .*: folders \(1\), without ending \(1\)"):
        splits = open_caltech(tmp_path, "caltech256", val_fraction=1 / 3, test_fraction=0.25)

    assert [np.bincount(part.labels).tolist() for part in (splits.train, splits.val, splits.test)] == [
        [4, 4],
        [2, 2],
        [2, 2],
    ]


def test_caltech_that_is_not_there_tells_where_it_looked_and_how_to_get_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"looked in {tmp_path}/caltech101/101_ObjectCategories, .*download=true"
    ):
        open_caltech(tmp_path)


@pytest.mark.parametrize(("name", "inner", "clutter"), CALTECH)
def test_caltech_is_downloaded_by_torchvision_only_when_asked_and_not_there(
    tmp_path, monkeypatch, name, inner, clutter
):
    calls = []

    def fetch(root, download):
        calls.append((root, download))
        put(tmp_path / name / inner, ant=8, bee=8)

    monkeypatch.setattr(datasets, name.capitalize(), fetch)

    assert open_caltech(tmp_path, name, download=True).train.classes == ("ant", "bee")
    open_caltech(tmp_path, name, download=True)
    ((root, download),) = calls
    assert download and Path(root).parent == tmp_path  # a folder of its own, which is gone
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_find_folder_fetches_only_what_is_not_there_and_says_where_it_looked(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    with pytest.raises(FileNotFoundError, match=f"no toys found; looked in {a}, {b}; buy some"):
        find_folder([a, b], what="toys", how="buy some")

    assert find_folder([a, b], "toys", "buy some", fetch=b.mkdir) == b
    assert find_folder([a, b], "toys", "buy some", fetch=lambda: pytest.fail("fetched again")) == b

    def broken():
        (tmp_path / "toys/d").mkdir(parents=True)
        raise RuntimeError("Error downloading\nx")

    with pytest.raises(OSError, match=r"could not download toys: Error downloading\\nx; buy some"):
        find_folder([tmp_path / "toys/d/e"], "toys", "buy some", fetch=broken)
    assert not (tmp_path / "toys").exists()  # what was made and not filled
