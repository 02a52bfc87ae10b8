"""Data sets that torchvision downloads and reads, by its names: an allow-list, and one way to open them.

torchvision finds the files and reads its lists (but CelebA's); images in files are decoded by our own policy, one at a
time. What it has a checksum for is compared first. CIFAR's files are pickles: they are read only if their checksums
hold.

Source: each entry's is its data set's own; holding out validation images where there are none is our choice.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from zfscope.data.imageset import ArrayImages, FileImages, ImageSet
from zfscope.data.sources.celeba import ATTRIBUTES, check_target, open_celeba
from zfscope.data.sources.downloads import download_whole, told_in_one_line
from zfscope.data.sources.folders import check_same_classes
from zfscope.data.sources.idx import idx_files, read_idx_part
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits, stratified_split
from zfscope.schema import listed, printable, shown
from zfscope.stops import MachineFault

DIGITS = tuple("0123456789")
Files = Iterable[tuple[str, str | None]]  # a file or folder below the root, and the MD5 that torchvision knows of it


@dataclass(frozen=True)
class Source:
    """A data set of torchvision's as it is used here."""

    open: Callable[[DataConfig], Splits]
    files: Callable[[], Files]  # without which it is not there; images that a list names are looked at by themselves
    fetch: Sequence[dict[str, object]]  # keywords of torchvision's class, one by one, for a download
    archives: tuple[str, ...]  # where torchvision puts what it unpacks
    target: str
    licence: str  # as far as its authors state one


def open_torchvision(config: DataConfig) -> Splits:
    """Open the data set ``config.dataset`` of ``SOURCES`` below ``config.root``, as torchvision lays it out there.

    The parts are the authors'; where they have no validation images, ``config.val_fraction`` of the training images of
    each class are held out. With ``config.download`` torchvision downloads what is not there or not whole.

    Raises:
        OSError: If it is not there, not whole, of other content, or could not be downloaded: one line.
    """
    name, root = config.dataset, Path(config.root).expanduser()
    source, place = SOURCES[name], printable(root)
    if name == "CelebA" and not (root / "celeba").is_dir():
        check_target(config.target)  # before gigabytes are downloaded
    for may_download in (config.download, False):
        problem = _absent_files(source, name, root)
        if problem is None:
            splits = _read(source, config)
            problem = _absent_images(splits, name)
            if problem is None:
                return splits
        if may_download:
            _download(source, name, root)
    way = "what was downloaded is not whole; try again" if config.download else "set data.download=true to download it"
    raise FileNotFoundError(f"no whole {name} as torchvision lays it out in {place}: {problem}; {way}")


def _absent_files(source: Source, name: str, root: Path) -> str | None:
    """What is not there, or has another content than torchvision knows."""
    files = list(source.files())
    absent = [path for path, _ in files if not _is_there(root / path)]
    if absent:
        return f"there is no {listed(printable(root / path) for path in absent)}"
    for path, md5 in files:
        if md5 is not None and not check_integrity(root / path, md5):
            return f"{printable(root / path)} is not the file whose checksum torchvision knows, and was not read"
    return None


def _is_there(path: Path) -> bool:
    return path.exists() or path.with_name(f"{path.name}.gz").is_file()


def _read(source: Source, config: DataConfig) -> Splits:
    try:
        return source.open(config)
    except (MachineFault, MemoryError):
        raise
    except Exception as error:  # torchvision's and SciPy's readers fail with KeyError, IndexError and more
        if str(error).startswith("data."):
            raise
        cause = shown(f"{type(error).__name__}: {error}", 400)
        raise ValueError(f"the lists or arrays of {config.dataset} cannot be read ({cause}); get it anew") from error


def _absent_images(splits: Splits, name: str) -> str | None:
    """Which of the images that the lists name are not there; a damaged one is found by its reader."""
    for images in splits.parts.values():
        if not isinstance(images, FileImages):
            return None
        folders = {os.path.dirname(row) for row in images._rows}
        there = {folder: _names_in(os.path.join(os.fsencode(images.root), folder)) for folder in folders}
        absent = [
            index for index, row in enumerate(images._rows) if os.path.basename(row) not in there[os.path.dirname(row)]
        ]
        if absent:
            return f"{len(absent):,} of {len(images):,} images are not there, such as {images.name(absent[0])}"
    return None


def _names_in(folder: bytes) -> set[bytes]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _download(source: Source, name: str, root: Path) -> None:
    """Download it whole; refused, with nothing left, is what does not come or has another checksum."""
    if name == "CelebA" and find_spec("gdown") is None:
        raise FileNotFoundError(
            "torchvision downloads CelebA from Google Drive by the package gdown, which is not there; run: "
            "pip install gdown, or get it from mmlab.ie.cuhk.edu.hk/projects/CelebA.html and unpack it in "
            f"{printable(root / 'celeba')}"
        )
    reader = getattr(datasets, name)

    def fetch(folder: str) -> None:
        for keywords in source.fetch:
            reader(folder, download=True, **keywords)

    with told_in_one_line(name, f"try again, or put it into {printable(root)} as torchvision lays it out", [root]):
        download_whole(root, name, fetch, source.archives)


def _held_out(train: ImageSet, test: ImageSet, config: DataConfig) -> Splits:
    """The authors' training and test images; of the training images some of each class validate."""
    rest, val = stratified_split(train.labels, config.val_fraction, config.split_seed)
    return Splits(train.subset(rest), train.subset(val), test)


def _open_mnist(config: DataConfig) -> Splits:
    folder, classes = Path(config.root, "MNIST", "raw"), datasets.MNIST.classes
    train, test = (read_idx_part(folder, part, classes, "MNIST", "MNIST") for part in ("train", "test"))
    return _held_out(train, test, config)


def _open_svhn(config: DataConfig) -> Splits:
    def part(split: str) -> ArrayImages:
        own = datasets.SVHN(config.root, split)
        return ArrayImages(np.ascontiguousarray(own.data.transpose(0, 2, 3, 1)), own.labels, DIGITS, f"SVHN/{split}")

    return _held_out(part("train"), part("test"), config)


def _open_cifar(name: str, config: DataConfig) -> Splits:
    def part(is_train: bool) -> ArrayImages:
        own = getattr(datasets, name)(config.root, train=is_train)  # compares checksums again before it unpickles
        prefix = f"{name}/{'train' if is_train else 'test'}"
        return ArrayImages(own.data, np.array(own.targets), own.classes, prefix)

    return _held_out(part(True), part(False), config)


def _open_flowers(config: DataConfig) -> Splits:
    def part(split: str) -> FileImages:
        own = datasets.Flowers102(config.root, split)
        return FileImages(own._image_files, np.array(own._labels), own.classes, own._base_folder)

    return Splits(part("train"), part("val"), part("test"))


def _open_pets(config: DataConfig) -> Splits:
    owns = [datasets.OxfordIIITPet(config.root, split) for split in ("trainval", "test")]
    pairs = [
        {label: path.name.rsplit("_", 1)[0] for label, path in zip(own._labels, own._images, strict=True)}
        for own in owns
    ]
    names = pairs[1] | pairs[0]
    numbers = sorted(names)
    classes = [" ".join(word.title() for word in names[number].split("_")) for number in numbers]
    train, test = (
        FileImages(own._images, np.searchsorted(numbers, own._labels), classes, own._base_folder) for own in owns
    )
    return _held_out(train, test, config)


def _open_food(config: DataConfig) -> Splits:
    def part(split: str) -> FileImages:
        own = datasets.Food101(config.root, split)
        return FileImages(own._image_files, np.array(own._labels), own.classes, own._base_folder)

    train, test = part("train"), part("test")
    check_same_classes(train, test)
    return _held_out(train, test, config)


def _cifar_files(name: str) -> Files:
    own = getattr(datasets, name)
    lists = [*own.train_list, *own.test_list, (own.meta["filename"], own.meta["md5"])]
    return [(f"{own.base_folder}/{file}", md5) for file, md5 in lists]


def _celeba_files() -> Files:
    lists = [(f"celeba/{file}", md5) for _, md5, file in datasets.CelebA.file_list if file.endswith(".txt")]
    return [*lists, ("celeba/img_align_celeba", None)]


def _flowers_files() -> Files:
    lists = [datasets.Flowers102._file_dict[name] for name in ("label", "setid")]
    return [*((f"flowers-102/{file}", md5) for file, md5 in lists), ("flowers-102/jpg", None)]


def _unchecked(*paths: str) -> Callable[[], Files]:
    """Files of which torchvision knows no checksum, but that of the archive that it unpacks."""
    return lambda: [(path, None) for path in paths]


# What each is. A licence is what the authors' own pages say; "not stated" where they say nothing.
SOURCES: dict[str, Source] = {
    "MNIST": Source(
        _open_mnist,
        _unchecked(*(f"MNIST/raw/{name}" for part in ("train", "test") for name in idx_files(part))),
        fetch=[{}],
        archives=tuple(f"MNIST/raw/{file}" for file, _ in datasets.MNIST.resources),
        target="10 digits",
        licence="not stated",
    ),
    "SVHN": Source(
        _open_svhn,
        lambda: [datasets.SVHN.split_list[split][1:] for split in ("train", "test")],
        fetch=[{"split": "train"}, {"split": "test"}],
        archives=("train_32x32.mat", "test_32x32.mat"),
        target="10 digits",
        licence="for non-commercial use only",
    ),
    "CelebA": Source(
        open_celeba,
        _celeba_files,
        fetch=[{}],
        archives=tuple(f"celeba/{file}" for _, _, file in datasets.CelebA.file_list),
        target=f"one of {len(ATTRIBUTES)} attributes (`data.target=Smiling`), or `identity`",
        licence="for non-commercial research purposes only",
    ),
    "CIFAR10": Source(
        partial(_open_cifar, "CIFAR10"),
        partial(_cifar_files, "CIFAR10"),
        fetch=[{}],
        archives=("cifar-10-python.tar.gz",),
        target="10 kinds of objects",
        licence="not stated",
    ),
    "CIFAR100": Source(
        partial(_open_cifar, "CIFAR100"),
        partial(_cifar_files, "CIFAR100"),
        fetch=[{}],
        archives=("cifar-100-python.tar.gz",),
        target="100 kinds of objects",
        licence="not stated",
    ),
    "Flowers102": Source(
        _open_flowers,
        _flowers_files,
        fetch=[{}],
        archives=("flowers-102/102flowers.tgz",),
        target="102 flowers",
        licence="not stated",
    ),
    "OxfordIIITPet": Source(
        _open_pets,
        _unchecked(
            "oxford-iiit-pet/annotations/trainval.txt", "oxford-iiit-pet/annotations/test.txt", "oxford-iiit-pet/images"
        ),
        fetch=[{}],
        archives=("oxford-iiit-pet/images.tar.gz", "oxford-iiit-pet/annotations.tar.gz"),
        target="37 breeds of cats and dogs",
        licence="CC BY-SA 4.0",
    ),
    "Food101": Source(
        _open_food,
        _unchecked("food-101/meta/train.json", "food-101/meta/test.json", "food-101/images"),
        fetch=[{}],
        archives=("food-101.tar.gz",),
        target="101 dishes",
        licence="the pictures are not the authors': beyond scientific fair use, ask their owners",
    ),
}
