"""Leave listed images out of a set: those that also stand in another data set, as ``analysis=overlap`` lists them.

A list is UTF-8 text with one image per line, named by `ImageSet.key`; a line that begins with ``#`` is a comment.

Source: Zeiler & Fergus (2014), Sec. 5.2: images of Caltech-101 and -256 that also stand in ImageNet were removed from
its training set. The format is our choice.
"""

import os
import warnings
from pathlib import Path

import numpy as np

from zfscope.data.imageset import ImageSet
from zfscope.schema import listed, printable


def without(images: ImageSet, path: str | os.PathLike) -> ImageSet:
    """The images that a list does not name, in their order.

    A list with its comment alone leaves nothing out, with a warning; names that are not in this set are counted in one.
    Refused is a file that cannot be read, is empty or no text of names, or names no image of this set, or all images of
    a class.
    """
    names, where = _read(Path(path).expanduser())
    if not names:
        warnings.warn(f"{where} lists no image; all stay", stacklevel=2)
        return images
    named = np.fromiter((images.key(index) in names for index in range(len(images))), bool, len(images))
    if not named.any():
        raise ValueError(
            f"none of the {len(names)} images listed in {where} is in this set, where they are called like "
            f"{images.key(0)}; give the list that analysis=overlap wrote for it"
        )
    rest = images.subset(~named)
    emptied = np.flatnonzero((_counts(images) > 0) & (_counts(rest) == 0))
    if len(emptied):
        raise ValueError(
            f"{where} lists all images of class {listed(images.classes[number] for number in emptied)}; take some off "
            "the list, or leave the class out with data.classes=[…]"
        )
    missing = len(names) - int(named.sum())
    if missing:
        strangers = names - {images.key(int(index)) for index in np.flatnonzero(named)}
        warnings.warn(
            f"{missing} of the {len(names)} images listed in {where} are not in this set: {listed(sorted(strangers))}",
            stacklevel=2,
        )
    return rest


def exclusion_list(keys: list[str], comment: str) -> str:
    """The text of a list that `without` reads; the comment becomes its first line."""
    return "".join(f"{line}\n" for line in (f"# {printable(comment)}", *keys))


def _counts(images: ImageSet) -> np.ndarray:
    """Images of each class, ``(K,)``."""
    labels = images.labels
    return labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=len(images.classes))


def _read(path: Path) -> tuple[set[str], str]:
    """The names in a list, and what to call the list in a message."""
    where = printable(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no list of images {where}; analysis=overlap writes one") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} of {where} is not UTF-8; give a list of names, one per line, as analysis=overlap writes it"
        ) from None
    except OSError as error:
        raise ValueError(
            f"cannot read the list of images {where}: {error.strerror}; analysis=overlap writes one, exclude.txt"
        ) from None
    # Not splitlines: it also breaks at characters that a name may hold.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    for number, line in enumerate(lines, 1):
        if not line.isprintable():
            raise ValueError(
                f"line {number} of {where} is no name of an image: {printable(line[:80])}; such characters are written "
                "escaped, as analysis=overlap does"
            )
    if not any(lines):
        raise ValueError(f"the list of images {where} is empty; analysis=overlap writes one, or set data.exclude=null")
    return {line for line in lines if line and not line.startswith("#")}, where
