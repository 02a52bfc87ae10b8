"""Fashion-MNIST: 60,000 and 10,000 pictures of clothes, 28 x 28 px, grey, ten classes.

A small real data set for trials, which the paper does not use. Licence MIT.

Source: Xiao, Rasul & Vollgraf (2017), arXiv 1708.07747.
"""

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file

from zfscope.data.imageset import ArrayImages
from zfscope.data.sources.folders import find_folder
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits, stratified_split
from zfscope.schema import printable

CLASSES = tuple(datasets.FashionMNIST.classes)


def open_fashion_mnist(config: DataConfig) -> Splits:
    """Open Fashion-MNIST from its four files ``*-ubyte``, or ``*-ubyte.gz``.

    ``config.root`` holds ``FashionMNIST/raw``, as torchvision lays it out and may fetch it, or the files themselves.
    """
    root = Path(config.root).expanduser()
    folder = find_folder(
        [root / "FashionMNIST" / "raw", root],
        what="Fashion-MNIST",
        how="get its four *-ubyte.gz from github.com/zalandoresearch/fashion-mnist (or install Debian's package "
        "dataset-fashion-mnist and use /usr/share/datasets/fashion-mnist), or set data.download=true",
        fetch=(lambda: datasets.FashionMNIST(str(root), download=True)) if config.download else None,
        holds=lambda folder: _file(folder, "train-images-idx3-ubyte") is not None,
    )
    images = _part(folder, "train")
    train, val = stratified_split(images.labels, config.val_fraction, config.split_seed)
    return Splits(images.subset(train), images.subset(val), _part(folder, "t10k"))


def _part(folder: Path, part: str) -> ArrayImages:
    images = _read(folder, f"{part}-images-idx3-ubyte", read_image_file)
    labels = _read(folder, f"{part}-labels-idx1-ubyte", read_label_file)
    if len(images) != len(labels):
        raise ValueError(f"{printable(folder)} has {len(images)} {part} images but {len(labels)} labels; get them anew")
    return ArrayImages(images, labels, CLASSES, prefix="fashion_mnist/" + {"train": "train", "t10k": "test"}[part])


def _read(folder: Path, name: str, read: Callable[[str], Tensor]) -> np.ndarray:
    """What torchvision's reader finds in a file, or in a ``.gz``, which it does not unpack itself."""
    path = _file(folder, name)
    if path is None:
        raise FileNotFoundError(f"no file {printable(folder / name)} or {name}.gz; get all four files of Fashion-MNIST")
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


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
