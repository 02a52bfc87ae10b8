"""Class folders: photographs sorted into one folder per class, such as subsets of ImageNet, Caltech-101 and -256.

Read by our own code: torchvision's Caltech readers open files by count, so that a gap fails, keep grey images grey and
break on a ``.DS_Store``.

Source: Zeiler & Fergus (2014), Sec. 5.2, for Caltech-101 and Caltech-256. Leaving out the clutter class, the layouts
and the splits by seed are our choice.
"""

import errno
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torchvision import datasets

from zfscope.data.imageset import FileImages, utf8
from zfscope.data.reading import EXTENSIONS
from zfscope.data.sources.downloads import download_whole, told_in_one_line
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits, stratified_split
from zfscope.schema import listed, printable

_JUNK = frozenset({"__macosx", "__pycache__", "@eadir", "lost+found", "thumbs.db", "desktop.ini"})
_VAL_NAMES = ("val", "valid", "validation")

_CALTECH = {
    "caltech101": ("101_ObjectCategories", "BACKGROUND_Google", "caltech101/caltech-101.zip", "Caltech101"),
    "caltech256": ("256_ObjectCategories", "257.clutter", "caltech256/256_ObjectCategories.tar", "Caltech256"),
}


def open_folder(config: DataConfig) -> Splits:
    """Open images that lie in class folders.

    With ``train/<class>/`` in ``config.root``, the parts are ``train``, ``val`` (or ``valid``, ``validation``) and, if
    it has class folders, ``test``; a missing ``val`` is carved out of ``train``, a missing ``test`` is None. With
    ``<class>/`` only, first the test and then the validation images are carved out of each class. Folders inside a
    class folder belong to the class. Hidden and junk folders are left out with a warning. Refused are no images, an
    empty class folder, fewer than two classes, other classes in ``val`` or ``test`` than in ``train``, and a symbolic
    link that leads back to a folder above it.
    """
    root = existing_folder(
        config.root, "give one that holds train/<class>/*.jpg and val/<class>/*.jpg, or <class>/*.jpg"
    )
    val = next((root / name for name in _VAL_NAMES if (root / name).is_dir()), root / _VAL_NAMES[0])
    if not _holds_class_folders(root / "train"):
        parts = [folder for folder in (val, root / "test") if _holds_class_folders(folder)]
        if parts:
            raise ValueError(
                f"{printable(parts[0])} has class folders but {printable(root / 'train')} has none; "
                "put the training images into train/<class>/"
            )
        return carved_splits(read_class_folders(root), config)
    train = read_class_folders(root / "train")
    test = None
    if _holds_class_folders(root / "test"):
        test = read_class_folders(root / "test")
        check_same_classes(train, test)
    elif (root / "test").is_dir():
        warnings.warn(f"{printable(root / 'test')} has no class folders: there is no test set", stacklevel=2)
    if not val.is_dir():
        rest, carved = stratified_split(train.labels, config.val_fraction, config.split_seed)
        return Splits(train.subset(rest), train.subset(carved), test)
    validation = read_class_folders(val)
    check_same_classes(train, validation)
    return Splits(train, validation, test)


def open_caltech(config: DataConfig) -> Splits:
    """Open Caltech-101 (9,144 images, 101 classes and clutter) or Caltech-256 (30,607 images, 256 classes and clutter).

    ``config.root`` holds ``101_ObjectCategories`` or ``256_ObjectCategories``, itself or in the folder of its archive.
    ``Faces`` and ``Faces_easy`` are both among the 101. There is no official split: one is carved out per class.
    """
    name, root = config.name, Path(config.root).expanduser()
    inner, background, archive, reader = _CALTECH[name]
    fetch = partial(
        download_whole, root, name, lambda folder: getattr(datasets, reader)(folder, download=True), [archive]
    )
    folder = find_folder(
        [root / name / inner, root / f"caltech-{name[-3:]}" / inner, root / inner]
        + ([root] if root.name == inner else []),
        what=inner,
        how=f"get {name} from data.caltech.edu and unpack it there, or set data.download=true",
        fetch=fetch if config.download else None,
    )
    # Not recursive: 056.dog holds a stray folder, and the official counts are of the files directly in a class.
    images = read_class_folders(folder, leave_out=() if config.clutter else (background,), recursive=False)
    return carved_splits(images, config)


def find_folder(
    candidates: Sequence[Path],
    what: str,
    how: str,
    fetch: Callable[[], object] | None = None,
    holds: Callable[[Path], bool] = Path.is_dir,
) -> Path:
    """The first folder of ``candidates`` that ``holds`` the data set.

    ``fetch`` downloads it; it is called only when no candidate holds it. ``what`` and ``how`` (to get it) are for
    messages.
    """
    for attempt in (None, fetch):
        if attempt:
            with told_in_one_line(what, how.partition(", or set ")[0], [folder.parent for folder in candidates]):
                attempt()
        for folder in candidates:
            if holds(folder):
                return folder
    looked = ", ".join(printable(folder) for folder in candidates)
    raise FileNotFoundError(f"no {what} found; looked in {looked}; {how}")


def read_class_folders(folder: Path, leave_out: tuple[str, ...] = (), recursive: bool = True) -> FileImages:
    """All images of the class folders in ``folder``; classes and files in the order of their names.

    Folders inside a class folder belong to the class if ``recursive``. Refusals as for `open_folder`.
    """
    junk: list[str] = []
    others: list[str] = []
    above = (_identity(folder),)
    with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    classes, names, labels, empty = [], [], [], []
    for entry in entries:
        if _is_junk(entry.name):
            junk.append(entry.name)
        elif entry.name not in leave_out and _is_folder(entry):
            files = sorted(_images_below(entry.path, entry.name, above, recursive, junk, others))
            if not files:
                empty.append(entry.name)
            labels.append(np.full(len(files), len(classes)))
            classes.append(utf8(os.fsencode(entry.name)))  # one name in every locale
            names.extend(files)
    where = printable(folder)
    if junk:
        warnings.warn(
            f"left out {len(junk)} hidden or junk files and folders below {where}: {listed(sorted(set(junk)))}",
            stacklevel=3,
        )
    flat = [entry.name for entry in entries if _is_image(entry.name) and entry.is_file()]
    if not classes:
        raise ValueError(
            f"no class folders in {where}, {f'but {len(flat)} images' if flat else 'and no images'}; sort the images "
            "into one folder per class (data=imagenet reads ImageNet's flat val folder)"
        )
    if flat:
        warnings.warn(f"left out {len(flat)} images of no class directly in {where}: {listed(flat)}", stacklevel=3)
    if not names:
        raise ValueError(f"no images in the folders of {where} ({listed(classes)}); known are {_known()}")
    if empty:
        raise ValueError(f"no images in class folder {listed(empty)} of {where}; add some ({_known()}) or remove it")
    if len(classes) == 1:
        raise ValueError(f"only one class, {printable(classes[0])}, in {where}; a classifier needs two class folders")
    if others:
        kinds = listed(f"{kind} ({count})" for kind, count in Counter(others).most_common())
        warnings.warn(f"left out what is no image below {where}: {kinds}; known are {_known()}", stacklevel=3)
    return FileImages(names, np.concatenate(labels), classes, folder)


def carved_splits(images: FileImages, config: DataConfig) -> Splits:
    """Carve the test images out of every class, then the validation images out of what is left."""
    rest, test = stratified_split(images.labels, config.test_fraction, config.split_seed)
    train, val = stratified_split(images.labels[rest], config.val_fraction, config.split_seed)
    return Splits(
        images.subset(rest[train]), images.subset(rest[val]), images.subset(test) if len(test) else None, carved=True
    )


def check_same_classes(train: FileImages, other: FileImages) -> None:
    """Refuse another folder whose classes are not those of the training folder, naming the difference."""
    if train.classes == other.classes:
        return
    differences = [
        f"only in {printable(one.root)}: {listed(missing)}"
        for one, another in ((train, other), (other, train))
        if (missing := [name for name in one.classes if name not in set(another.classes)])
    ]
    raise ValueError(f"different classes; {'; '.join(differences)}; give both the same class folders")


def existing_folder(root: str | Path, way_out: str) -> Path:
    """``root`` as a path, ``~`` expanded, refused unless it is a folder."""
    folder = Path(root).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {printable(folder)}; {way_out}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{printable(folder)} is not a folder; {way_out}")
    return folder


def _images_below(
    folder: str,
    name: str,
    above: tuple[tuple[int, int], ...],
    recursive: bool,
    junk: list[str],
    others: list[str],
) -> Iterator[str]:
    """Image files in a folder, as paths that begin with ``name``; whether they can be opened is not asked yet.

    Names of ``junk`` and the endings of ``others`` are added to these lists.
    """
    identity = _identity(folder)
    if identity in above:
        raise ValueError(f"the link {printable(folder)} leads back to a folder above it, without end; remove it")
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_junk(entry.name):
                junk.append(entry.name)
            elif _is_image(entry.name) and (entry.is_symlink() or entry.is_file()):
                yield f"{name}/{entry.name}"
            elif recursive and _is_folder(entry):
                inner = f"{name}/{entry.name}"
                yield from _images_below(entry.path, inner, (*above, identity), recursive, junk, others)
            elif entry.is_file():
                others.append(os.path.splitext(entry.name)[1].lower() or "without ending")
            else:
                others.append("folders" if entry.is_dir() else "pipes and the like")


def _holds_class_folders(folder: Path) -> bool:
    """Whether a folder is a part of a data set and not a class (VOC, for one, has a class called train)."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(_is_folder(entry) for entry in entries if not _is_junk(entry.name))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"the link {printable(entry.path)} leads to itself, without end; remove it") from error
        raise


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _identity(folder: str | Path) -> tuple[int, int]:
    state = os.stat(folder)
    return state.st_dev, state.st_ino


def _known() -> str:
    return " ".join(sorted(extension[1:] for extension in EXTENSIONS))
