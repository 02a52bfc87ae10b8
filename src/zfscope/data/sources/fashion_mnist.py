"""Fashion-MNIST: 60,000 and 10,000 pictures of clothes, 28 x 28 px, grey, ten classes.

A small real data set for trials, which the paper does not use. Licence MIT.

Source: Xiao, Rasul & Vollgraf (2017), arXiv 1708.07747.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from torchvision import datasets

from zfscope.data.imageset import ArrayImages
from zfscope.data.sources.folders import find_folder
from zfscope.data.splits import Splits, stratified_split
from zfscope.schema import printable

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def open_fashion_mnist(root: str | Path, download: bool = False, val_fraction: float = 0.1, seed: int = 0) -> Splits:
    """Open Fashion-MNIST from its four files ``*-ubyte``, or ``*-ubyte.gz``.

    Args:
        root: Folder with ``FashionMNIST/raw``, as torchvision lays it out, or with the files themselves.
        download: Whether torchvision may fetch it when it is not there.
        val_fraction: Share of the 60,000 training images that validates.
        seed: Fixes which ones.

    Raises:
        FileNotFoundError: If it is not there: where it looked and how to get it.
        ValueError: If a file is damaged.
    """
    root = Path(root).expanduser()
    folder = find_folder(
        [root / "FashionMNIST" / "raw", root],
        what="Fashion-MNIST",
        how="get its four *-ubyte.gz from github.com/zalandoresearch/fashion-mnist (or install Debian's package "
        "dataset-fashion-mnist and use /usr/share/datasets/fashion-mnist), or set download=true",
        fetch=(lambda: datasets.FashionMNIST(str(root), download=True)) if download else None,
        holds=lambda folder: _file(folder, "train-images-idx3-ubyte") is not None,
    )
    images = _part(folder, "train")
    train, val = stratified_split(images.labels, val_fraction, seed)
    return Splits(images.subset(train), images.subset(val), _part(folder, "t10k"))


def _part(folder: Path, part: str) -> ArrayImages:
    images = _read_idx(folder, f"{part}-images-idx3-ubyte", dimensions=3)
    labels = _read_idx(folder, f"{part}-labels-idx1-ubyte", dimensions=1)
    if len(images) != len(labels):
        raise ValueError(f"{printable(folder)} has {len(images)} {part} images but {len(labels)} labels; get them anew")
    return ArrayImages(images, labels, CLASSES, prefix="fashion_mnist/" + {"train": "train", "t10k": "test"}[part])


def _read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """Bytes in the IDX format: 0, 0, type 8, number of dimensions; sizes as big-endian int32; then the values."""
    path = _file(folder, name)
    if path is None:
        raise FileNotFoundError(f"no file {printable(folder / name)} or {name}.gz; get all four files of Fashion-MNIST")
    start = 4 + 4 * dimensions
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = struct.unpack(f">{1 + dimensions}I", data[:start])
    except (EOFError, zlib.error, gzip.BadGzipFile, struct.error) as error:
        raise ValueError(f"{printable(path)} is damaged ({error}); get it anew") from error
    if magic != 0x0800 + dimensions or len(data) != start + math.prod(shape):
        raise ValueError(f"{printable(path)} is no IDX file of {dimensions} dimensions, or cut off; get it anew")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
