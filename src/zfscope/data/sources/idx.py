"""MNIST's format: images and labels of a part in two files ``*-ubyte``, plain or as ``*-ubyte.gz``.

Source: LeCun, Bottou, Bengio & Haffner (1998); Fashion-MNIST has the same files.
"""

import gzip
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor
from torchvision.datasets.mnist import read_image_file, read_label_file

from zfscope.data.imageset import ArrayImages
from zfscope.schema import printable

PARTS = {"train": "train", "test": "t10k"}  # how the files of our parts are called


def idx_files(part: str) -> tuple[str, str]:
    """The names of the files of a part, ``train`` or ``test``: images and labels."""
    return f"{PARTS[part]}-images-idx3-ubyte", f"{PARTS[part]}-labels-idx1-ubyte"


def find_idx_file(folder: Path, name: str) -> Path | None:
    """The file, plain or packed; None where neither lies there."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx_part(folder: Path, part: str, classes: Sequence[str], what: str, prefix: str) -> ArrayImages:
    """The grey images of a part, ``train`` or ``test``; ``what`` names the data set in messages, ``prefix`` images.

    Refused in one line, with the file, is what is missing or damaged.
    """
    names = idx_files(part)
    images = _read(folder, names[0], read_image_file, what)
    labels = _read(folder, names[1], read_label_file, what)
    if len(images) != len(labels):
        raise ValueError(
            f"{printable(folder)} has {len(images)} {PARTS[part]} images but {len(labels)} labels; get them anew"
        )
    return ArrayImages(images, labels, classes, prefix=f"{prefix}/{part}")


def _read(folder: Path, name: str, read: Callable[[str], Tensor], what: str) -> np.ndarray:
    """What torchvision's reader finds in a file, or in a ``.gz``, which it does not unpack itself."""
    path = find_idx_file(folder, name)
    if path is None:
        raise FileNotFoundError(f"no file {printable(folder / name)} or {name}.gz; get all four files of {what}")
    try:
        if path.suffix != ".gz":
            return read(str(path)).numpy()
        with tempfile.NamedTemporaryFile() as unpacked:
            unpacked.write(gzip.decompress(path.read_bytes()))
            unpacked.flush()
            return read(unpacked.name).numpy()
    except Exception as error:  # the reader asserts, and fails with KeyError, RuntimeError and more
        cause = printable(str(error)) or type(error).__name__
        raise ValueError(f"{printable(path)} is damaged ({cause}); get it anew") from error
