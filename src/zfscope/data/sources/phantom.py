"""The phantom: drawn images with known ground truth, a calibration target as in medical imaging.

Ten classes of composed objects lie at random position, scale and rotation, in random colours and light, over cluttered
backgrounds. The classes share their parts (eyes, wheels, leaves, spikes, bars, discs), and the parts of other objects
lie scattered in every background, so that only the *arrangement* of parts tells the classes apart. For every image the
mask of the object and the boxes of its parts are known, which no set of photographs offers.

Every image is a pure function of (seed, split, index), drawn with numpy and Pillow.

Source: not in the paper; a stand-in for ImageNet that needs no download. All of it is our choice.
"""

import contextlib
import io
import math
import multiprocessing
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from zfscope.console import counting
from zfscope.data.imageset import ArrayImages
from zfscope.data.sources.phantom_objects import CLASSES
from zfscope.data.sources.phantom_scene import SIZE, SPLITS, check_seed, draw
from zfscope.data.splits import Splits
from zfscope.files import check_writable, checksum, replacing, write_text
from zfscope.schema import printable
from zfscope.stops import MachineFault

VERSION = 4  # part of the cached files' names: raise it with every change that alters a pixel
_CHUNK = 50  # images drawn by a worker at a time
IMAGES_WORTH_PROCESSES = 600  # images; fewer are drawn sooner than processes start


class DrawnPixels:
    """Images of one split, ``(N, 128, 128, 3)`` uint8 like an array, drawn when the first of them is looked at.

    Classes, labels and names are known before: what these refuse is refused without drawing, which takes a minute.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, path: Path, seed: int, split: str, size: int):
        self.path, self.work, self.shape = path, (seed, split, size), (size, SIZE, SIZE, 3)
        self._pixels: np.ndarray | None = None

    def pixels(self) -> np.ndarray:
        """The images, mapped from the cache; drawn there first where they are missing or damaged."""
        if self._pixels is None:
            before = _state(self.path)
            self._pixels = _mapped(self.path, self.shape[0])
            if self._pixels is None:
                self._draw(before)
                self._pixels = _mapped(self.path, self.shape[0])
        if self._pixels is None:
            raise OSError(f"the drawn images {self.path} cannot be read back; give the phantom another cache folder")
        return self._pixels

    def _draw(self, before: tuple[int, int] | None) -> None:
        """Draw the file, missing or damaged in the state ``before``; one that comes second waits for the first."""
        check_writable(self.path.parent, "data.cache", needed=math.prod(self.shape))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_suffix(".lock"))
        try:
            with lock:
                if _state(self.path) == before:
                    _draw_into(self.path, *self.work)
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.pixels()[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.pixels(), dtype, copy=copy)

    def __getstate__(self) -> dict[str, Any]:
        self.pixels()  # another process opens the file
        return {**self.__dict__, "_pixels": None}


class Phantom(ArrayImages):
    """The drawn images ``(N, 128, 128, 3)`` of one split, in the order of `draw`'s index, with their ground truth."""

    def __init__(self, images: np.ndarray | DrawnPixels, seed: int, split: str):
        super().__init__(images, np.arange(len(images)) % len(CLASSES), CLASSES, f"phantom/{split}")
        self.seed = seed
        self.split = split

    def ready(self) -> None:
        """Draw the images where they are not drawn yet."""
        np.asarray(self.images[:0])

    def mask(self, index: int) -> np.ndarray:
        """Where the object is seen in image ``index``, ``(128, 128)`` bool; drawn anew, a few milliseconds."""
        return draw(self.seed, self.split, int(self._rows[index])).mask

    def parts(self, index: int) -> dict[str, tuple[int, int, int, int]]:
        """Boxes of the object's parts in image ``index``, see `Sample`; drawn anew, a few milliseconds."""
        return draw(self.seed, self.split, int(self._rows[index])).parts


def open_phantom(cache: str | os.PathLike, seed: int = 0, sizes: Sequence[int] = (6000, 1000, 4000)) -> Splits:
    """The phantom as a data set; each part is drawn when it is first looked at, then mapped from the cache.

    Drawing all of it takes about a minute on two cores, and 540 MB of the cache; a cache without room for what is
    missing is refused here. Another ``seed`` gives other images of the same kind; ``sizes`` are the numbers of
    training, validation and test images, whose classes are balanced to within one.
    """
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"sizes of the phantom must be three numbers of images, 1 or more each, not {tuple(sizes)}")
    check_seed(seed)
    parts = {
        split: DrawnPixels(Path(cache) / f"phantom-v{VERSION}-seed{seed}-{split}-{size}.npy", seed, split, size)
        for split, size in zip(SPLITS, sizes, strict=True)
    }
    missing = sum(math.prod(part.shape) for part in parts.values() if not part.path.is_file())
    if missing:
        check_writable(cache, "data.cache", needed=missing)
    return Splits(*(Phantom(part, seed, split) for split, part in parts.items()))


def _state(path: Path) -> tuple[int, int] | None:
    """What tells a file from another of its name; None where there is none."""
    try:
        return path.stat().st_ino, path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _mapped(path: Path, size: int) -> np.ndarray | None:
    """The cached images; None if they are missing, or damaged, with a warning."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        if images.shape == (size, SIZE, SIZE, 3) and images.dtype == np.uint8 and _checksum_fits(path):
            return images
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError):
        pass
    warnings.warn(f"{printable(path)} is damaged; its images are drawn anew", stacklevel=2)
    return None


def _checksum_fits(path: Path) -> bool:
    """Whether a file is as it was drawn; one that was drawn before checksums were kept is trusted."""
    try:
        return _checksum_file(path).read_text(encoding="utf-8") == checksum(path)
    except FileNotFoundError:
        return True


def _checksum_file(path: Path) -> Path:
    return path.with_suffix(".crc32")


def _draw_into(path: Path, seed: int, split: str, size: int) -> None:
    """Draw a split into its file, in two processes where that is worth their start."""
    check_writable(path.parent, "data.cache", needed=size * SIZE * SIZE * 3)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_told_if_killed())
        draw_chunks = map
        # A daemonic process may have no children.
        if size >= IMAGES_WORTH_PROCESSES and not multiprocessing.current_process().daemon:
            context = multiprocessing.get_context("spawn")
            draw_chunks = stack.enter_context(ProcessPoolExecutor(2, mp_context=context)).map
        path.parent.mkdir(parents=True, exist_ok=True)
        work = [(seed, split, start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK)]
        chunks = draw_chunks(_draw_images, work)
        header = io.BytesIO()
        about = {"descr": "|u1", "fortran_order": False, "shape": (size, SIZE, SIZE, 3)}
        np.lib.format.write_array_header_1_0(header, about)
        with replacing(path) as file, counting(f"Drawing phantom/{split}", size) as count:
            file.reserve(len(header.getvalue()) + size * SIZE * SIZE * 3)
            file.write(header.getvalue())
            value = zlib.crc32(header.getvalue())
            for chunk in chunks:
                file.write(chunk)
                value = zlib.crc32(chunk, value)
                count(len(chunk))
            write_text(_checksum_file(path), f"{value:08x}")


@contextlib.contextmanager
def _told_if_killed() -> Iterator[None]:
    try:
        yield
    except BrokenExecutor:
        raise MachineFault("a process that draws the phantom was killed (no memory left?); start again") from None


def _draw_images(work: tuple[int, str, int, int]) -> np.ndarray:
    seed, split, start, stop = work
    return np.stack([draw(seed, split, index).image for index in range(start, stop)])
