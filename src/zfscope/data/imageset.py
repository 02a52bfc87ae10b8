"""Labelled images that are read one at a time: from files, or from an array in memory or on disk.

Every data set of this package is a function that returns `Splits` of these. What `read` returns is always 8-bit RGB
(see ``zfscope.data.reading`` for files).
"""

import hashlib
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from PIL import Image

from zfscope.data.reading import UnreadableImage, read_pixels, unreadable
from zfscope.networks.preprocessing import CanvasKind
from zfscope.schema import nearest, printable


class LeftOut(Protocol):
    """What keeps the images of a part that cannot be read, see ``zfscope.data.quarantine``."""

    causes: dict[bytes, str]  # of all of them, by what finds them, as in ``FileImages``
    settled: frozenset[bytes]  # those that stay left out without being tried again

    def add(self, row: bytes, cause: str) -> None:
        """Leave out one more."""


class Canvases(Protocol):
    """What keeps decoded images, see ``zfscope.data.cache``."""

    kind: CanvasKind

    def canvas(self, row: int) -> np.ndarray:
        """One of them, ``(side, side, 3)`` uint8."""


@dataclass(frozen=True)
class Stored:
    """Where the canvases of a set's images are: ``rows (N,)`` int64 in ``canvases``, -1 for those that are not."""

    canvases: Canvases
    rows: np.ndarray


class ImageSet:
    """Labelled images that are read one at a time; base class of `FileImages`, `ArrayImages` and `JoinedImages`.

    ``labels`` are positions in ``classes``, ``(N,)`` int64, or ``(N, K)`` float32 of 0 and 1 where an image may have
    several labels. ``_rows`` holds what finds an image, ``(N, …)``, such as its file name. ``quarantine`` keeps those
    that cannot be read, of a whole part of a data set and so of all its subsets; with None they are refused.
    """

    _rows: np.ndarray
    quarantine: LeftOut | None = None

    def __init__(self, labels: np.ndarray, classes: Sequence[str]):
        self.classes = tuple(classes)
        labels = np.asarray(labels)
        if labels.ndim == 1 and labels.dtype.kind in "iu":
            fits = not len(labels) or (labels.min() >= 0 and labels.max() < len(self.classes))
            self.labels = labels.astype(np.int64, copy=False)
        elif labels.ndim == 2:
            fits = labels.shape[1] == len(self.classes) and bool(np.isin(labels, (0, 1)).all())
            self.labels = labels.astype(np.float32, copy=False)
        else:
            fits = False
        if not fits:
            raise ValueError(
                f"labels for {len(self.classes)} classes must be (N,) integers from 0 to {len(self.classes) - 1}, or "
                f"(N, {len(self.classes)}) of 0 and 1, but came as {labels.dtype} of shape {labels.shape}; "
                "give one label or row per image"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, short_side: int | None = None) -> Image.Image:
        """Image number ``index`` as 8-bit RGB; ``short_side`` says that no more pixels than that are needed there."""
        return Image.fromarray(self.pixels(index, short_side))

    def pixels(self, index: int, short_side: int | None = None) -> np.ndarray:
        """What ``read`` gives, as ``(H, W, 3)`` uint8, not to be written to."""
        raise NotImplementedError

    def canvas(self, index: int, kind: CanvasKind) -> np.ndarray:
        """Image number ``index`` on a canvas of this kind, ``(side, side, 3)`` uint8, not to be written to."""
        return kind.draw(self.pixels(index, kind.side))

    def name(self, index: int) -> str:
        """What to call an image in a message: a path, or ``phantom/test/17``."""
        raise NotImplementedError

    def key(self, index: int) -> str:
        """What to call an image in a list of images: one line, the same wherever the data set lies."""
        raise NotImplementedError

    def leave_out(self, index: int, error: UnreadableImage) -> None:
        """Note that an image cannot be read; where no quarantine is kept the error is raised."""
        if self.quarantine is None:
            raise error
        self.quarantine.add(self._rows[index], error.cause)

    def readable(self) -> Self:
        """The images that are not left out; from here on one that cannot be read is refused."""
        images = self.subset(np.arange(len(self)))
        images.quarantine = None
        return images

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The images at these positions (integers, or a mask of N booleans), in this order; they keep their names."""
        indices = np.asarray(indices)
        if indices.dtype == bool and indices.shape != (len(self),):
            raise ValueError(f"a mask of {len(self)} images must have shape ({len(self)},), but has {indices.shape}")
        rows = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(np.int64)
        subset = object.__new__(type(self))
        subset.__dict__.update(self.__dict__)
        subset.__dict__.pop("fingerprint", None)
        subset.labels, subset._rows = self.labels[rows], self._rows[rows]
        return subset

    def only(self, classes: Sequence[str]) -> Self:
        """The images of these classes, which alone remain; where an image may have several, those with any of them.

        ``classes`` are two or more names out of ``self.classes``; their order stays that of the data set.
        """
        for name in classes:
            if name not in self.classes:
                raise ValueError(f"there is no class {name!r} in this data set; {nearest(name, self.classes)}")
        columns = [number for number, name in enumerate(self.classes) if name in set(classes)]
        several = self.labels.ndim == 2
        images = self.subset(self.labels[:, columns].any(1) if several else np.isin(self.labels, columns))
        images.labels = images.labels[:, columns] if several else np.searchsorted(columns, images.labels)
        images.classes = tuple(self.classes[number] for number in columns)
        return images

    def ready(self) -> None:
        """Before other processes read them: what is made only when it is read is made here."""

    @property
    def fingerprint(self) -> str:
        """Hex digest that changes when names, order, labels, classes or (see each class) contents do."""
        raise NotImplementedError

    @property
    def origin(self) -> str:
        """Like ``fingerprint``, but the same for every size that a data set reduces its images to."""
        return self.fingerprint


class FileImages(ImageSet):
    """Labelled image files: ``paths`` relative to ``root`` (by default the deepest folder that holds all) or below it.

    Names are kept as one numpy array of bytes relative to ``root``: 1.3 million of them take about 40 MB, and pickle to
    a worker as one block. Of images that are ``stored`` canvases come from there.
    """

    stored: Stored | None = None

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        labels: np.ndarray,
        classes: Sequence[str],
        root: str | os.PathLike | None = None,
    ):
        super().__init__(labels, classes)
        if len(paths) != len(self.labels):
            raise ValueError(f"{len(paths)} paths but {len(self.labels)} labels: give one label per path")
        names = [os.fspath(path) for path in paths]
        if root is None:
            root = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in names]) if names else ""
            names = [os.path.abspath(name) for name in names]
        self.root = os.fspath(root)
        self.sizes_before: dict[int, int] = {}
        prefix = os.path.join(self.root, "")
        self._rows = np.array([os.fsencode(name.removeprefix(prefix)) for name in names], dtype=np.bytes_)

    def size(self, index: int) -> int:
        """Bytes of the file of image ``index``; -1 where there is none."""
        return _size(os.fsencode(self.path(index)))

    def path(self, index: int) -> Path:
        """The file of image ``index``."""
        return Path(self.root, os.fsdecode(self._rows[index]))

    def name(self, index: int) -> str:
        """The path, in one line."""
        return printable(utf8(os.fsencode(self.path(index))))

    def key(self, index: int) -> str:
        """The path relative to the root; escaped, also a backslash and a leading #, so that no two become alike."""
        text = utf8(self._rows[index])
        if text.isprintable() and "\\" not in text and text[0] != "#":  # all names of most sets, and there are millions
            return text
        text = printable(text.replace("\\", "\\\\"))
        return "\\x23" + text[1:] if text[0] == "#" else text

    @cached_property
    def fingerprint(self) -> str:
        """Digest of names relative to the root, file sizes, labels and classes: a moved folder keeps its own.

        Of images that an earlier leg of a run could not read, ``sizes_before`` has the size that counts.
        """
        sizes = np.array([_size(os.path.join(os.fsencode(self.root), name)) for name in self._rows], dtype="<i8")
        for index, size in self.sizes_before.items():
            sizes[index] = size
        return _digest(b"\0".join(self._rows.tolist()), sizes.tobytes(), _described(self))

    def content(self, index: int) -> bytes:
        """What the file holds."""
        try:
            if not self.path(index).is_file():  # opening a pipe would wait for ever
                return b""
            return self.path(index).read_bytes()
        except OSError:  # the reader of images says why
            return b""

    def canvas(self, index: int, kind: CanvasKind) -> np.ndarray:
        """As in the base class."""
        if self.stored is not None and self.stored.canvases.kind == kind and (row := self.stored.rows[index]) >= 0:
            return self.stored.canvases.canvas(int(row))
        return super().canvas(index, kind)

    def pixels(self, index: int, short_side: int | None = None, content: bytes | None = None) -> np.ndarray:
        """The decoded file, see `read_pixels`."""
        if self.quarantine is not None and self._rows[index] in self.quarantine.settled:
            raise unreadable(self.path(index), self.quarantine.causes[self._rows[index]])
        return read_pixels(self.path(index), short_side, content)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """As in the base class; of all images the size of today counts."""
        images = super().subset(indices)
        images.sizes_before = {}
        if self.stored is not None:
            indices = np.asarray(indices)
            rows = self.stored.rows[indices if indices.dtype == bool else indices.astype(np.int64)]
            images.stored = Stored(self.stored.canvases, rows)
        return images

    def readable(self) -> Self:
        """As in the base class."""
        left_out = list(self.quarantine.causes) if self.quarantine is not None else []
        images = self.subset(~np.isin(self._rows, np.array(left_out, dtype=np.bytes_)))
        images.quarantine = None
        return images


class ArrayImages(ImageSet):
    """Labelled images of one size in an array, which may be a memory map; no pixel is copied until it is read.

    ``images`` are ``(N, H, W, 3)`` or, grey, ``(N, H, W)`` uint8; image 17 is called ``{prefix}/17``.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], prefix: str):
        super().__init__(labels, classes)
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
            raise ValueError(
                f"images must be uint8 of shape (N, H, W) or (N, H, W, 3), but came as {images.dtype} of shape "
                f"{images.shape}; convert them"
            )
        if len(images) != len(self.labels):
            raise ValueError(f"{len(images)} images but {len(self.labels)} labels: give one label per image")
        self.images = images
        self.prefix = prefix
        self._rows = np.arange(len(images))

    def pixels(self, index: int, short_side: int | None = None) -> np.ndarray:
        """One image at its full size, grey repeated."""
        pixels = np.asarray(self.images[self._rows[index]])
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)

    def name(self, index: int) -> str:
        """Prefix and position in the whole array, also in a subset."""
        return f"{self.prefix}/{self._rows[index]}"

    def key(self, index: int) -> str:
        """The name: it holds no path."""
        return self.name(index)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of names, shape, labels, classes and the pixels of 64 images spread evenly."""
        sample = np.unique(np.linspace(0, max(len(self) - 1, 0), 64).astype(int))[: len(self)]
        pixels = b"".join(np.ascontiguousarray(self.images[row]).tobytes() for row in self._rows[sample])
        rows = self._rows.astype("<i8").tobytes()
        return _digest(self.prefix.encode(), rows, repr(self.images.shape[1:]).encode(), pixels, _described(self))

    def __getstate__(self) -> dict:
        # numpy pickles a memory map as all its bytes; a spawned worker shall open the file instead. Only a map of a
        # whole file array qualifies: the offset of a slice of one is still that of its parent.
        state = dict(self.__dict__)
        images = self.images
        if isinstance(images, np.memmap) and isinstance(images.base, mmap.mmap) and images.flags.c_contiguous:
            state["images"] = None
            state["mapped"] = {"filename": images.filename, "offset": images.offset, "shape": images.shape}
        return state

    def __setstate__(self, state: dict) -> None:
        mapped = state.pop("mapped", None)
        self.__dict__.update(state)
        if mapped:
            self.images = np.memmap(dtype=np.uint8, mode="r", **mapped)


class JoinedImages(ImageSet):
    """Several sets of the same classes, one behind the other; names and contents stay those of their own set."""

    def __init__(self, sets: Sequence[ImageSet]):
        if not sets or any(images.classes != sets[0].classes for images in sets):
            raise ValueError("only sets of the same classes can be joined, one or more")
        super().__init__(np.concatenate([images.labels for images in sets]), sets[0].classes)
        self.sets = tuple(sets)
        owners = np.repeat(np.arange(len(sets)), [len(images) for images in sets])
        self._rows = np.stack([owners, np.concatenate([np.arange(len(images)) for images in sets])], axis=1)

    def pixels(self, index: int, short_side: int | None = None) -> np.ndarray:
        """Image number ``index`` as its own set reads it."""
        images, position = self._find(index)
        return images.pixels(position, short_side)

    def canvas(self, index: int, kind: CanvasKind) -> np.ndarray:
        """The same of its canvas."""
        images, position = self._find(index)
        return images.canvas(position, kind)

    def name(self, index: int) -> str:
        """Its name in its own set."""
        images, position = self._find(index)
        return images.name(position)

    def leave_out(self, index: int, error: UnreadableImage) -> None:
        """As its own set does."""
        images, position = self._find(index)
        images.leave_out(position, error)

    def key(self, index: int) -> str:
        """Its key in its own set; those of two sets may be alike."""
        images, position = self._find(index)
        return images.key(position)

    def ready(self) -> None:
        """Each set's own."""
        for images in self.sets:
            images.ready()

    @property
    def fingerprint(self) -> str:
        """Digest of the sets' own ones, of which images are in this set, and of labels and classes."""
        return self._digest_of(images.fingerprint for images in self.sets)

    @property
    def origin(self) -> str:
        """The same of the sets' own origins."""
        return self._digest_of(images.origin for images in self.sets)

    def _digest_of(self, sets: Iterable[str]) -> str:
        own = [digest.encode() for digest in sets]
        return _digest(*own, self._rows.astype("<i8").tobytes(), _described(self))

    def _find(self, index: int) -> tuple[ImageSet, int]:
        owner, position = self._rows[index]
        return self.sets[owner], int(position)


def utf8(name: bytes) -> str:
    """A file's name as text, the same in every locale; undecodable bytes become surrogates."""
    return name.decode("utf-8", "surrogateescape")


def _size(path: bytes) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _described(images: ImageSet) -> bytes:
    labels = np.ascontiguousarray(images.labels, dtype=images.labels.dtype.newbyteorder("<"))
    return repr((images.classes, labels.dtype.str, labels.shape)).encode() + labels.tobytes()


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
