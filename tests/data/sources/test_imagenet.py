"""ImageNet: class folders, flat validation images and the devkit that tells their classes."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

from zfscope.data.sources.imagenet import open_imagenet

WNIDS = ["n01440764", "n02084071", "n02105855", "n04285008"]


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10)).save(path, format="JPEG")


def devkit(root, truth, rows):
    """The two files of the devkit, with the fields, types and nesting of the real ``meta.mat``."""
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in truth))
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    synsets = np.zeros((len(rows), 1), dtype=[*kinds, ("children", "O"), ("wordnet_height", "O")])
    for i, (number, wnid, children) in enumerate(rows):
        synsets[i, 0] = (float(number), wnid, "some, words", "a gloss", float(len(children)), np.array(children), 1.0)
    scipy.io.savemat(folder / "meta.mat", {"synsets": synsets})


def train(root, wnids=WNIDS):
    for wnid in wnids:
        put(root / "train" / wnid / f"{wnid}_1.JPEG")


def flat_val(root, numbers):
    for number in numbers:
        put(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")


# As in the devkit, the numbers do not follow the order of the WordNet ids, and an inner node stands among the leaves.
ROWS = [
    (3, "n01440764", []),
    (1, "n04285008", []),
    (1001, "n02083346", [2, 4]),
    (4, "n02084071", []),
    (2, "n02105855", []),
]


def test_class_folders_of_train_and_val_are_read_with_wnids_as_classes(tmp_path):
    train(tmp_path)
    for wnid in WNIDS:
        put(tmp_path / "val" / wnid / "ILSVRC2012_val_00000007.JPEG")

    splits = open_imagenet(tmp_path)

    assert splits.train.classes == splits.val.classes == tuple(WNIDS)
    assert splits.val.labels.tolist() == [0, 1, 2, 3]
    assert splits.test is None


def test_a_flat_val_folder_gets_its_classes_from_the_devkit(tmp_path):
    train(tmp_path)
    flat_val(tmp_path, [1, 2, 3, 4, 5])
    devkit(tmp_path, truth=[1, 2, 3, 4, 1], rows=ROWS)

    val = open_imagenet(tmp_path).val

    wnid_of = {val.path(i).name: val.classes[label] for i, label in enumerate(val.labels)}
    assert wnid_of == {
        "ILSVRC2012_val_00000001.JPEG": "n04285008",
        "ILSVRC2012_val_00000002.JPEG": "n02105855",
        "ILSVRC2012_val_00000003.JPEG": "n01440764",
        "ILSVRC2012_val_00000004.JPEG": "n02084071",
        "ILSVRC2012_val_00000005.JPEG": "n04285008",
    }
    assert val.read(0).size == (12, 10)


def test_of_a_subset_each_flat_image_keeps_its_own_line_and_other_classes_are_left_out(tmp_path):
    train(tmp_path, ["n01440764", "n04285008"])
    flat_val(tmp_path, [2, 4, 5, 6])
    devkit(tmp_path, truth=[4, 3, 4, 1, 2, 1], rows=ROWS)

    val = open_imagenet(tmp_path).val

    assert [(val.path(i).name[-6:-5], int(label)) for i, label in enumerate(val.labels)] == [
        ("2", 0),
        ("4", 1),
        ("6", 1),
    ]


def test_other_classes_in_val_than_in_train_are_refused(tmp_path):
    train(tmp_path)
    for wnid in (*WNIDS[:3], "n09999999"):
        put(tmp_path / "val" / wnid / "x.JPEG")

    with pytest.raises(ValueError, match="only in .*/train: n04285008; only in .*/val: n09999999"):
        open_imagenet(tmp_path)


def test_what_is_missing_is_named_with_the_way_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/imagenet; get ILSVRC2012_img_train\.tar"):
        open_imagenet(tmp_path / "imagenet")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/train; get ILSVRC2012_img_train\.tar"):
        open_imagenet(tmp_path)
    train(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/val; get .*image-net\.org"):
        open_imagenet(tmp_path)
    flat_val(tmp_path, [1])
    with pytest.raises(
        FileNotFoundError, match=r"val lie flat, and there is no .*ground_truth\.txt to tell.*devkit_t12"
    ):
        open_imagenet(tmp_path)


@pytest.mark.parametrize(
    ("truth", "numbers"), [([1], [1, 2]), ([99], [1]), (["x"], [1])], ids=["too short", "unknown id", "no number"]
)
def test_a_ground_truth_that_does_not_fit_is_refused(tmp_path, truth, numbers):
    train(tmp_path)
    flat_val(tmp_path, numbers)
    devkit(tmp_path, truth=truth, rows=ROWS)

    with pytest.raises(ValueError, match=r"ground_truth\.txt does not fit .*; unpack the devkit anew"):
        open_imagenet(tmp_path)


def test_a_damaged_meta_file_is_refused_by_name(tmp_path):
    train(tmp_path)
    flat_val(tmp_path, [1])
    devkit(tmp_path, truth=[1], rows=ROWS)
    (tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").write_bytes(b"nonsense" * 99)

    with pytest.raises(ValueError, match=r"cannot read .*meta\.mat"):
        open_imagenet(tmp_path)


def test_flat_images_of_none_of_the_training_classes_are_refused(tmp_path):
    train(tmp_path, ["n01440764", "n04285008"])
    flat_val(tmp_path, [1])
    devkit(tmp_path, truth=[2], rows=ROWS)

    with pytest.raises(ValueError, match="none of the 1 images of .*val is of a class in train"):
        open_imagenet(tmp_path)
