"""ImageNet 2012: 1,000 classes, 1.28 million training and 50,000 validation images; test labels are not public.

Source: Zeiler & Fergus (2014), Sec. 5.1. The files are those of ILSVRC2012, which its makers give out on request only.
"""

import os
import re
from pathlib import Path

import numpy as np
import scipy.io

from zfscope.data.imageset import FileImages
from zfscope.data.sources.folders import check_same_classes, existing_folder, read_class_folders
from zfscope.data.splits import Splits
from zfscope.schema import printable

_DEVKIT = Path("ILSVRC2012_devkit_t12", "data")

_HOW = (
    "get ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from image-net.org (an "
    "account is needed) and unpack them to train/<wnid>/, val/ and ILSVRC2012_devkit_t12/"
)


def open_imagenet(root: str | Path) -> Splits:
    """Open ImageNet, or a subset of its classes, below ``root``.

    ``train/<wnid>/`` and ``val/<wnid>/``; or ``val/ILSVRC2012_val_00000001.JPEG`` and so on, as the archive unpacks,
    with the ground truth in ``ILSVRC2012_devkit_t12/data``. Flat validation images whose class is not among the
    training folders are left out. Classes are the WordNet ids (``n01440764``) in sorted order, the order of public
    weights. There is no test set.
    """
    root = existing_folder(root, _HOW)
    train_folder = existing_folder(root / "train", _HOW)
    val_folder = existing_folder(root / "val", _HOW)
    train = read_class_folders(train_folder)
    with os.scandir(val_folder) as entries:
        flat = sorted(entry.name for entry in entries if re.fullmatch(r"ILSVRC2012_val_\d{8}\.JPEG", entry.name))
    if flat:
        return Splits(train, _flat_val(val_folder, flat, root / _DEVKIT, train.classes))
    val = read_class_folders(val_folder)
    check_same_classes(train, val)
    return Splits(train, val)


def _flat_val(folder: Path, names: list[str], devkit: Path, classes: tuple[str, ...]) -> FileImages:
    truth_file, meta_file = devkit / "ILSVRC2012_validation_ground_truth.txt", devkit / "meta.mat"
    for file in (truth_file, meta_file):
        if not file.is_file():
            raise FileNotFoundError(
                f"the images of {printable(folder)} lie flat, and there is no {printable(file)} to tell their classes; "
                + _HOW
            )
    wnids = _wnid_of_id(meta_file)
    try:
        truth = [int(line) for line in truth_file.read_text(encoding="ascii").split()]
        wnid_of_image = [wnids[truth[int(name[15:23]) - 1]] for name in names]
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"{printable(truth_file)} does not fit {printable(meta_file)} and the {len(names)} images of "
            f"{printable(folder)}: {error!r}; unpack the devkit anew"
        ) from error
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    labelled = [(name, label_of[wnid]) for name, wnid in zip(names, wnid_of_image, strict=True) if wnid in label_of]
    if not labelled:
        raise ValueError(f"none of the {len(names)} images of {printable(folder)} is of a class in train; {_HOW}")
    return FileImages([name for name, _ in labelled], np.array([label for _, label in labelled]), classes, folder)


def _wnid_of_id(meta_file: Path) -> dict[int, str]:
    """WordNet id of each ILSVRC id.

    The devkit numbers 1 to 1000 in an order of its own, not that of the WordNet ids, and also lists 860 inner nodes
    (those with children), which no image belongs to.
    """
    try:
        synsets = scipy.io.loadmat(meta_file, squeeze_me=True)["synsets"]
        leaves = synsets[synsets["num_children"].astype(int) == 0]
        return {int(number): str(wnid) for number, wnid in zip(leaves["ILSVRC2012_ID"], leaves["WNID"], strict=True)}
    except Exception as error:  # a damaged file can fail anywhere in scipy's reader
        raise ValueError(f"cannot read {printable(meta_file)}: {error!r}; unpack the devkit anew") from error
