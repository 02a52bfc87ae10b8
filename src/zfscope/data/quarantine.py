"""Images that cannot be read: left out of a data set, counted and listed, up to a limit for each of its parts.

An image that is left out keeps its index, makes its batch smaller and is in no number. ``check_images`` finds such
images before they are needed; without it they are found when they are first read.

Source: the paper says nothing about it; all of it here is our choice.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from csv import DictReader
from pathlib import Path

import numpy as np

from zfscope.console import progress
from zfscope.data.contents import PARTS, UNREADABLE, as_numbers, content_hashes
from zfscope.data.imageset import FileImages, ImageSet
from zfscope.data.loader import ImageItems, Loader
from zfscope.data.reading import UnreadableImage
from zfscope.data.splits import Splits
from zfscope.files import table_text, write_arrays, write_text
from zfscope.schema import printable

MANIFEST = "quarantine.csv"
_ONE_IN = 1000  # images of a part, which may be left out; of every part one may
_NAMED = 30  # images that a refusal names
_DECODED = "decoded.npz"  # in the cache: hashes of all images that were decoded once


class TooManyUnreadable(ValueError):
    """More images of a part cannot be read than may be left out; ``told`` is the message without the way out."""

    def __init__(self, told: str) -> None:
        super().__init__(f"{told}; replace or remove them")
        self.told = told


class Quarantine:
    """The images of one part of a data set that cannot be read.

    ``noted``, where it is set, is called with the index of each image that is found while a run or an analysis reads.
    """

    def __init__(self, part: str, images: ImageSet) -> None:
        self.part, self.images = part, images
        self.causes: dict[bytes, str] = {}
        self.settled: frozenset[bytes] = frozenset()
        self.collecting = False  # all are wanted first, then told together
        self.noted: Callable[[int], None] | None = None

    @property
    def limit(self) -> int:
        """How many may be left out: 0.1 %, and one of any part."""
        return max(1, len(self.images) // _ONE_IN)

    @property
    def is_exceeded(self) -> bool:
        """Whether there are more, or no image is left."""
        return len(self.causes) > self.limit or len(self.causes) == len(self.images)

    def add(self, row: bytes, cause: str) -> None:
        """Leave out one more, told with a warning where it is the part's first.

        Raises:
            TooManyUnreadable: If there are too many now.
        """
        if row in self.causes:
            return
        self.causes[row] = cause
        if self.collecting:
            return
        index = int(np.flatnonzero(self.images._rows == row)[0])
        if self.noted is not None:
            self.noted(index)
        if self.is_exceeded:
            raise TooManyUnreadable(self.told())
        if len(self.causes) == 1:
            warnings.warn(
                f"cannot read {self.images.name(index)}: {cause}; it is left out, as up to {self.limit} of the "
                f"{len(self.images):,} {PARTS[self.part]} images may be",
                stacklevel=2,
            )

    def positions(self) -> np.ndarray:
        """The indices of those that are left out, sorted int64."""
        if not self.causes:
            return np.empty(0, np.int64)
        return np.flatnonzero(np.isin(self.images._rows, np.array(list(self.causes))))

    def entries(self) -> Iterator[tuple[int, str, str]]:
        """Index, path and cause of each, by index."""
        for index in self.positions().tolist():
            yield index, self.images.name(index), self.causes[self.images._rows[index]]

    def told(self) -> str:
        """That there are too many, and which; a long list is shortened."""
        names = [f"{name} ({cause})" for _, name, cause in self.entries()]
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        return (
            f"{len(names):,} of the {len(self.images):,} {PARTS[self.part]} images cannot be read, and at most "
            f"{self.limit} may be left out: {', '.join(names[:_NAMED])}{more}"
        )


def with_quarantine(splits: Splits) -> Splits:
    """The same parts; images that cannot be read are left out of them from here on."""
    for part, images in splits.parts.items():
        images.quarantine = Quarantine(part, images)
    return splits


def quarantines(splits: Splits) -> dict[str, Quarantine]:
    """What each part leaves out, of the parts that may leave out any."""
    return {part: images.quarantine for part, images in splits.parts.items() if images.quarantine is not None}


def counts(splits: Splits) -> dict[str, int]:
    """How many images of each part are left out."""
    own = quarantines(splits)
    return {part: len(own[part].causes) if part in own else 0 for part in splits.parts}


@contextmanager
def collecting(splits: Splits) -> Iterator[None]:
    """Within the block nothing is told or refused; at its end what was found is settled, and told or refused at once.

    Raises:
        TooManyUnreadable: If a part leaves out too many, with those of all such parts.
    """
    parts = quarantines(splits)
    for quarantine in parts.values():
        quarantine.collecting = True
    try:
        yield
    finally:
        for quarantine in parts.values():
            quarantine.collecting, quarantine.settled = False, frozenset(quarantine.causes)
    exceeded = [quarantine.told() for quarantine in parts.values() if quarantine.is_exceeded]
    if exceeded:
        raise TooManyUnreadable("; ".join(exceeded))
    found = [quarantine for quarantine in parts.values() if quarantine.causes]
    if found:
        _, name, cause = next(found[0].entries())
        each = (f"{len(own.causes):,} of the {len(own.images):,} {PARTS[own.part]} images" for own in found)
        one = sum(len(own.causes) for own in found) == 1
        left_out = "is left out, as it cannot be read:" if one else "are left out, as they cannot be read, such as"
        warnings.warn(f"{' and '.join(each)} {left_out} {name} ({cause})", stacklevel=3)


def check_images(
    splits: Splits, cache: str | Path, short_side: int, num_workers: int, contents: dict[str, np.ndarray] | None = None
) -> None:
    """Decode all images of all parts that are not known, by their contents, to be readable.

    Those that cannot be read are left out. ``short_side`` is how many pixels are needed there; ``contents`` are the
    hashes of the images, see `content_hashes`; with None they are made. What was decoded is noted in ``cache``, also
    where this is stopped.
    """
    for part, images in splits.parts.items():
        if not isinstance(images, FileImages) or images.quarantine is None:
            continue
        hashes = content_hashes(images, cache) if contents is None else contents[part]
        doubtful = np.flatnonzero(~_is_decoded(hashes, cache))
        if not len(doubtful):
            continue
        done = 0
        loader = Loader(_Decoded(images.subset(doubtful), short_side), 32, num_workers=num_workers, keeps_empty=True)
        try:
            for _ in progress(loader, f"Reading each of the {PARTS[part]} images once"):
                done += loader.batch_size
        finally:
            tried = doubtful[:done]
            note_decoded(hashes[tried[~np.isin(tried, images.quarantine.positions())]], cache)


def note_decoded(hashes: np.ndarray, cache: str | Path) -> None:
    """Note in the cache that images of these hashes, ``(N, 8)`` uint8, were decoded."""
    known, numbers, path = _decoded(cache), as_numbers(hashes), Path(cache) / _DECODED
    new = numbers[(numbers != 0) & ~_stands_in(known, numbers)]
    if len(new):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, {"hashes": np.sort(np.concatenate([known, new]))})


def mark_unreadable(splits: Splits, contents: dict[str, np.ndarray]) -> None:
    """Put `UNREADABLE` in place of the hashes of images that are left out: what they hold is in no number."""
    for part, quarantine in quarantines(splits).items():
        contents[part][quarantine.positions()] = UNREADABLE


def manifest(splits: Splits) -> str:
    """The images that are left out, as CSV: part, index, path, reason."""
    rows = ((part, *entry) for part, quarantine in quarantines(splits).items() for entry in quarantine.entries())
    return table_text(("part", "index", "path", "reason"), rows)


def write_manifest(splits: Splits, folder: Path) -> None:
    """Write ``quarantine.csv`` into a run folder, where any image is left out."""
    if any(counts(splits).values()):
        write_text(folder / MANIFEST, manifest(splits))


def recall(splits: Splits, folder: Path) -> None:
    """Leave out what a run left out earlier, by its manifest, as far as it still cannot be read."""
    parts = quarantines(splits)
    try:
        with open(folder / MANIFEST, encoding="utf-8", newline="") as file:
            rows = [(row["part"], int(row["index"])) for row in DictReader(file)]
    except FileNotFoundError:
        return
    except (KeyError, TypeError, ValueError) as error:  # not UTF-8 too
        warnings.warn(f"{printable(folder / MANIFEST)} cannot be read ({error}) and is written anew", stacklevel=2)
        return
    for part, index in rows:
        if part in parts and 0 <= index < len(parts[part].images):
            images = parts[part].images
            try:
                images.read(index)
            except UnreadableImage as error:
                images.leave_out(index, error)


class _Decoded(ImageItems):
    """Images that are decoded and let go of."""

    def __init__(self, images: ImageSet, short_side: int) -> None:
        self.images, self.short_side = images, short_side

    def __getitem__(self, index: int) -> int:
        self.images.pixels(index, self.short_side)
        return index

    def nothing(self) -> None:
        return None


def _is_decoded(hashes: np.ndarray, cache: str | Path) -> np.ndarray:
    numbers = as_numbers(hashes)
    return (numbers != 0) & _stands_in(_decoded(cache), numbers)


def _stands_in(ascending: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Which numbers stand in an ascending array; of a million seven times as fast as ``numpy.isin``."""
    if not len(ascending):
        return np.zeros(len(numbers), dtype=bool)
    return ascending[np.searchsorted(ascending, numbers).clip(max=len(ascending) - 1)] == numbers


def _decoded(cache: str | Path) -> np.ndarray:
    """Hashes of images that were decoded, sorted uint64; none where the file is missing or damaged."""
    with suppress(FileNotFoundError):
        try:
            with np.load(Path(cache) / _DECODED, allow_pickle=False) as arrays:  # a zip compares its checksums
                hashes = arrays["hashes"]
            if hashes.dtype == np.uint64 and hashes.ndim == 1:
                return hashes
        except FileNotFoundError:
            raise
        except Exception:  # zipfile, zlib and numpy raise a dozen kinds
            pass
        warnings.warn(f"{printable(Path(cache) / _DECODED)} is damaged; the images are decoded again", stacklevel=2)
    return np.empty(0, np.uint64)
