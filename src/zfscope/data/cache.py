"""Images on their canvases, decoded once: uint8 of one size, in files that are mapped into memory.

A file holds up to 512 canvases, channels first, then of each image the hash of what its file holds, by which it is
found, and a hash of the canvas. So a moved, renamed or subdivided set finds its canvases, and a changed image does not.
Files are written whole, one after the other: a run that is killed loses the one that it had open.

Source: the paper says nothing about it; all of it here is our choice.
"""

import hashlib
import shutil
from bisect import bisect_right
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from zfscope.console import console, progress
from zfscope.data.contents import HASH_BYTES, PARTS, as_numbers, content_hashes, hash_of, note_hashes, states_of
from zfscope.data.imageset import FileImages, Stored
from zfscope.data.loader import ImageItems, Loader
from zfscope.data.quarantine import note_decoded
from zfscope.data.splits import Splits
from zfscope.files import CannotWrite, replacing
from zfscope.networks.preprocessing import CanvasKind
from zfscope.schema import printable

CANVASES = 512  # in a file
_BATCH = 32
_DECODERS = ("pillow", "simplejpeg", "torch", "torchvision")  # another version may give other pixels


class CanvasCache:
    """The canvases of one ``kind`` below the folder ``cache``, by the hash of their images."""

    def __init__(self, cache: str | Path, kind: CanvasKind) -> None:
        self.kind, self.folder = kind, Path(cache) / _name(kind)
        self.bytes_each = 3 * kind.side**2
        self.find()

    def __len__(self) -> int:
        return self._starts[-1]

    def find(self) -> None:
        """Look which files there are; one whose length is not that of whole canvases is ``broken`` and not read."""
        self.broken: list[Path] = []
        self.files, self._starts, hashes = [], [0], [np.empty(0, np.uint64)]
        self._maps: dict[int, np.ndarray] = {}
        for path in sorted(self.folder.glob("*.canvases")):
            count, rest = divmod(path.stat().st_size, self.bytes_each + 2 * HASH_BYTES)
            if rest or not count:
                self.broken.append(path)
            else:
                self.files.append(path)
                self._starts.append(self._starts[-1] + count)
                hashes.append(np.fromfile(path, np.uint64, count, offset=count * self.bytes_each))
        self._hashes = np.concatenate(hashes)
        self._order = np.argsort(self._hashes, kind="stable")

    def rows(self, hashes: np.ndarray) -> np.ndarray:
        """Where the canvases of images are, by the hashes ``(N, 8)`` of what these hold: ``(N,)`` int64, -1 nowhere."""
        numbers = as_numbers(hashes)
        if not len(self):
            return np.full(len(numbers), -1)
        places = np.searchsorted(self._hashes, numbers, sorter=self._order).clip(max=len(self) - 1)
        rows = self._order[places]
        return np.where((self._hashes[rows] == numbers) & (numbers != 0), rows, -1)

    def canvas(self, row: int) -> np.ndarray:
        """A canvas ``(side, side, 3)`` uint8: a view of the file, of which a change stays in this process."""
        number = bisect_right(self._starts, row) - 1
        if number not in self._maps:
            count, side = self._starts[number + 1] - self._starts[number], self.kind.side
            mapped = np.memmap(self.files[number], np.uint8, "c", shape=(count, 3, side, side))
            self._maps[number] = mapped.view(np.ndarray)  # of a memmap every slice costs microseconds
        return self._maps[number][row - self._starts[number]].transpose(1, 2, 0)

    def append(self, canvases: Tensor, hashes: np.ndarray) -> None:
        """Write one more file of canvases ``(N, 3, side, side)`` uint8 and the hashes ``(N, 8)`` of their images."""
        number = 1 + max((int(path.stem) for path in self.folder.glob("*.canvases")), default=-1)
        with replacing(self.folder / f"{number:06d}.canvases", sync=True) as file:
            file.write(canvases.numpy())
            file.write(np.ascontiguousarray(hashes))
            file.write(b"".join(hash_of(canvas) for canvas in canvases.numpy()))

    def damaged(self) -> Iterator[Path]:
        """The files of which a canvas is not what was written."""
        for path, start, end in zip(self.files, self._starts, self._starts[1:], strict=False):
            count = end - start
            stored = np.fromfile(path, np.uint8, offset=count * (self.bytes_each + HASH_BYTES))
            canvases = np.memmap(path, np.uint8, "r", shape=(count, self.bytes_each))
            if b"".join(hash_of(canvas) for canvas in canvases) != stored.tobytes():
                yield path

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_maps": {}}  # another process maps the files itself


def fill(splits: Splits, cache: str | Path, kind: CanvasKind, num_workers: int) -> CanvasCache:
    """Decode what has no canvas of this kind yet, of all parts that are files; then the parts read their canvases.

    One pass reads each file, hashes it and decodes it; what cannot be read is left out (`zfscope.data.quarantine`).
    Several processes that ask at once wait for the first.
    """
    parts = {part: images for part, images in splits.parts.items() if isinstance(images, FileImages)}
    canvases = CanvasCache(cache, kind)
    canvases.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(canvases.folder / ".lock"):
        canvases.find()
        # Not read for their hash alone: that is done while they are decoded.
        hashes = {part: content_hashes(images, cache, most=0) for part, images in parts.items()}
        missing = {part: np.flatnonzero(canvases.rows(hashes[part]) < 0) for part in parts}
        _announce(canvases, {part: len(indices) for part, indices in missing.items()})
        for part, indices in missing.items():
            if len(indices):
                _decode(canvases, parts[part], indices, PARTS[part], cache, num_workers)
                canvases.find()
    for part, images in parts.items():
        found = content_hashes(images, cache) if len(missing[part]) else hashes[part]
        images.stored = Stored(canvases, canvases.rows(found))
        note_decoded(found[images.stored.rows >= 0], cache)
    return canvases


def refresh(splits: Splits, cache: str | Path, kind: CanvasKind) -> list[Path]:
    """Trust neither the index of hashes nor the canvases: read all files and all canvases again.

    What differs is forgotten, so that `fill` makes it anew. Returns the files of canvases that were removed.
    """
    for images in splits.parts.values():
        if isinstance(images, FileImages):
            content_hashes(images, cache, known=False)
    canvases = CanvasCache(cache, kind)
    removed = [*canvases.broken, *canvases.damaged()]
    for path in removed:
        path.unlink()
    return removed


def _announce(canvases: CanvasCache, missing: dict[str, int]) -> None:
    needed = sum(missing.values()) * (canvases.bytes_each + 2 * HASH_BYTES)
    if not needed:
        return
    free = shutil.disk_usage(canvases.folder).free
    counts = " and ".join(f"{count:,} {PARTS[part]} images" for part, count in missing.items() if count)
    told = f"{needed / 1e9:,.1f} GB in {printable(canvases.folder)}"
    if needed > free:
        raise CannotWrite(
            f"data.cache_images=true: {counts} would take {told}, where {free / 1e9:,.1f} GB are free; give another "
            "folder with data.cache=DIR, or a smaller data.resize"
        )
    console.print(f"decoding {counts} once: {told}", markup=False, highlight=False, soft_wrap=True)


def _decode(
    canvases: CanvasCache, images: FileImages, indices: np.ndarray, called: str, cache: str | Path, num_workers: int
) -> None:
    states, seen = states_of(images.subset(indices)), set()
    hashes, read = np.zeros((len(indices), HASH_BYTES), np.uint8), np.zeros(len(indices), bool)
    waiting: list[Tensor] = []
    owners: list[np.ndarray] = []
    loader = Loader(_Canvases(images.subset(indices), canvases), _BATCH, num_workers=num_workers)
    try:
        for pixels, own, is_there, positions in progress(loader, f"Decoding the {called} images"):
            own, positions = own.numpy(), positions.numpy()
            hashes[positions], read[positions] = own, True
            numbers = as_numbers(own).tolist()
            new = [
                not there and number not in seen and not seen.add(number)
                for number, there in zip(numbers, is_there.tolist(), strict=True)
            ]
            waiting.append(pixels[torch.tensor(new)])
            owners.append(own[new])
            while sum(map(len, waiting)) >= CANVASES:
                _write(canvases, waiting, owners, CANVASES)
        if sum(map(len, waiting)):
            _write(canvases, waiting, owners, CANVASES)
    finally:
        note_hashes(images.subset(indices[read]), hashes[read], states[read], cache)


def _write(canvases: CanvasCache, waiting: list[Tensor], owners: list[np.ndarray], most: int) -> None:
    """Write the first ``most`` that wait, and take them off the lists."""
    pixels, hashes = torch.cat(waiting), np.concatenate(owners)
    canvases.append(pixels[:most], hashes[:most])
    waiting[:], owners[:] = [pixels[most:]], [hashes[most:]]


class _Canvases(ImageItems):
    """What is to be stored: ``(canvas (3, side, side), hash (8,), is there already, index)``."""

    def __init__(self, images: FileImages, canvases: CanvasCache) -> None:
        self.images, self.canvases = images, canvases

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, bool, int]:
        content = self.images.content(index)
        own = np.frombuffer(hash_of(content), np.uint8).copy()
        side = self.canvases.kind.side
        if self.canvases.rows(own[None])[0] >= 0:  # of a run that was killed before it noted what it had read
            return torch.zeros(3, side, side, dtype=torch.uint8), torch.from_numpy(own), True, index
        pixels = self.canvases.kind.draw(self.images.pixels(index, side, content))
        planar = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        return planar, torch.from_numpy(own), False, index


def _name(kind: CanvasKind) -> str:
    versions = ",".join(f"{name}=={version(name)}" for name in _DECODERS)
    digest = hashlib.sha256(f"{tuple(kind)} {versions}".encode()).hexdigest()[:8]
    return f"canvases_{kind.side}_{kind.crop_mode}_{kind.interpolation}_{kind.resizer}_{digest}"
