"""Fashion-MNIST: 60,000 and 10,000 pictures of clothes, 28 x 28 px, grey, ten classes.

A small real data set for trials, which the paper does not use. Licence MIT.

Source: Xiao, Rasul & Vollgraf (2017), arXiv 1708.07747.
"""

from functools import partial
from pathlib import Path

from torchvision import datasets

from zfscope.data.sources.downloads import download_whole
from zfscope.data.sources.folders import find_folder
from zfscope.data.sources.idx import find_idx_file, idx_files, read_idx_part
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits, stratified_split

CLASSES = tuple(datasets.FashionMNIST.classes)


def open_fashion_mnist(config: DataConfig) -> Splits:
    """Open Fashion-MNIST from its four files ``*-ubyte``, or ``*-ubyte.gz``.

    ``config.root`` holds ``FashionMNIST/raw``, as torchvision lays it out and may fetch it, or the files themselves.
    """
    root = Path(config.root).expanduser()
    fetch = partial(download_whole, root, "FashionMNIST", lambda folder: datasets.FashionMNIST(folder, download=True))
    folder = find_folder(
        [root / "FashionMNIST" / "raw", root],
        what="Fashion-MNIST",
        how="get its four *-ubyte.gz from github.com/zalandoresearch/fashion-mnist (or install Debian's package "
        "dataset-fashion-mnist and use /usr/share/datasets/fashion-mnist), or set data.download=true",
        fetch=fetch if config.download else None,
        holds=lambda folder: find_idx_file(folder, idx_files("train")[0]) is not None,
    )
    images, test = (
        read_idx_part(folder, part, CLASSES, "Fashion-MNIST", "fashion_mnist") for part in ("train", "test")
    )
    train, val = stratified_split(images.labels, config.val_fraction, config.split_seed)
    return Splits(images.subset(train), images.subset(val), test)
