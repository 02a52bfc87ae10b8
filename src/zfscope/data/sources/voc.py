"""PASCAL VOC 2012: photographs with any of 20 labels; the test labels are not public.

The lists are read by our own code: torchvision's ``VOCDetection`` gives XML of boxes, not the labels of the task.

Source: Zeiler & Fergus (2014), Sec. 5.2 and Table 6. Counting difficult objects as absent is our choice.
"""

from functools import partial
from pathlib import Path

import numpy as np
from torchvision import datasets

from zfscope.data.imageset import FileImages
from zfscope.data.sources.downloads import download_whole
from zfscope.data.sources.folders import find_folder
from zfscope.data.splits import Splits
from zfscope.schema import printable

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def open_voc(root: str | Path, download: bool = False) -> Splits:
    """Open the official training and validation images of 2012 (5,717 and 5,823) with their 20 labels.

    Labels are ``(N, 20)`` float32: 1 where the class is in the image, 0 where it is not, and also 0 where all of its
    objects are marked difficult (0 in the files ``ImageSets/Main/<class>_<part>.txt``, which the official evaluation
    ignores). There is no test set.

    ``root`` holds ``VOCdevkit/VOC2012`` or ``VOC2012``, or is this folder itself; torchvision may ``download`` it.
    """
    root, name = Path(root).expanduser(), "VOC2012"
    fetch = partial(datasets.VOCDetection, year="2012", image_set="trainval", download=True)
    folder = find_folder(
        [root / "VOCdevkit" / name, root / "TrainVal" / "VOCdevkit" / name, root / name]
        + ([root] if root.name == name else []),
        what="PASCAL VOC 2012",
        how="get VOCtrainval 2012 from host.robots.ox.ac.uk/pascal/VOC and unpack it there, or set data.download=true",
        fetch=partial(download_whole, root, name, fetch, ["VOCtrainval_11-May-2012.tar"]) if download else None,
    )
    return Splits(train=_part(folder, "train"), val=_part(folder, "val"))


def _part(folder: Path, part: str) -> FileImages:
    first, columns = None, []
    for name in CLASSES:
        path = folder / "ImageSets" / "Main" / f"{name}_{part}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"no list {printable(path)}; unpack the VOCtrainval archive anew")
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
        rows = [line.split() for line in lines if line.strip()]
        wrong = next((row for row in rows if len(row) != 2 or row[1] not in ("-1", "0", "1")), None)
        if wrong is not None or not rows:
            shown = printable(" ".join(wrong)) if wrong else "nothing"
            raise ValueError(f"{printable(path)} must list images with -1, 0 or 1, but has {shown!r}; unpack it anew")
        images = [image for image, _ in rows]
        first = first or images
        if images != first:
            raise ValueError(
                f"{printable(path)} names other images than {CLASSES[0]}_{part}.txt; unpack the archive anew"
            )
        columns.append([flag == "1" for _, flag in rows])
    labels = np.array(columns, dtype=np.float32).T
    return FileImages([f"JPEGImages/{image}.jpg" for image in first], labels, CLASSES, folder)
