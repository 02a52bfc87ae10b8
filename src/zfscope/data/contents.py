"""What the images of a set hold, as a hash of each: an image that changed or stands in two parts is noticed.

Files are read for it once. An index in the cache folder keeps the hash of each file with its size, its times and its
inode; a file of which these are as they were is taken as unchanged. A moved or copied folder is read once more.

Source: the paper says nothing about it; all of it here is our choice.
"""

import hashlib
import os
import stat
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np
from torch import Tensor

from zfscope.console import progress
from zfscope.data.imageset import ArrayImages, FileImages, ImageSet, JoinedImages
from zfscope.data.splits import Splits
from zfscope.files import write_arrays
from zfscope.schema import listed, printable

HASH_BYTES = 8  # of a SHA-256: two images of two million share one by chance in 1 of 10 million sets
NOT_SETTLED = 2_000_000_000  # ns: a file may change again within the tick of its file system's clock, 2 s at most
UNREADABLE = 255  # each byte in place of the hash of an image that cannot be read
PARTS = {"train": "training", "val": "validation", "test": "test"}
_CHUNK = 64  # files that a thread reads at a time
_QUICK = 2000  # files that are read before a bar would do more than flicker


def contents_of(splits: Splits, cache: str | Path, most: int | None = None) -> dict[str, np.ndarray]:
    """The hashes of every part, see `content_hashes`; of the training images only ``most`` need be read, as there."""
    parts = splits.parts.items()
    return {part: content_hashes(images, cache, most if part == "train" else None) for part, images in parts}


def content_hashes(images: ImageSet, cache: str | Path, most: int | None = None, *, known: bool = True) -> np.ndarray:
    """A hash of each image, ``(N, 8)`` uint8; zeros where a file was never read or cannot be.

    Of files that is a hash of their bytes, of arrays one of the pixels. ``most`` files, spread evenly, are read where
    the index in ``cache`` does not know them, None reads all; of the rest, those that the index knows are read again if
    they changed. With ``known`` False the index is not asked.
    """
    if isinstance(images, ArrayImages):
        return _rows(hash_of(np.ascontiguousarray(images.images[row])) for row in images._rows)
    if isinstance(images, JoinedImages):
        hashes = [content_hashes(part, cache) for part in images.sets]
        return np.stack([hashes[owner][position] for owner, position in images._rows])
    return _hashes_of_files(images, Path(cache), most, known)


def contents_digest(images: ImageSet, cache: str | Path) -> str:
    """Hex digest of the fingerprint and of what every image holds: the key of what was computed from them."""
    return hashlib.sha256(images.fingerprint.encode() + content_hashes(images, cache).tobytes()).hexdigest()


def evenly_spread(count: int, most: int | None) -> np.ndarray:
    """Positions of ``most`` of ``count`` images, or of all, ``(min(most, count),)`` int64."""
    return np.linspace(0, count - 1, count if most is None else min(most, count)).round().astype(int)


def check_unchanged(
    recorded: Mapping[str, Tensor] | None,
    path: str | Path,
    splits: Splits,
    contents: Mapping[str, np.ndarray],
    checked: bool = False,
) -> None:
    """Refuse to resume a checkpoint, read from ``path``, with training or validation images of other contents.

    ``recorded`` are the hashes that it holds; an image counts where they are known then and now. With ``checked`` both
    say which images cannot be read, and those must be the same.
    """
    for part, before in (recorded or {}).items():
        now, before = contents[part], before.numpy()
        if len(now) != len(before):  # the fingerprint says that
            continue
        known = before.any(1) & now.any(1)
        if not checked:
            known &= (before != UNREADABLE).any(1) & (now != UNREADABLE).any(1)
        changed = np.flatnonzero(known & (before != now).any(1))
        if len(changed):
            names = listed((splits.parts[part].name(index) for index in changed), most=3)
            raise ValueError(
                f"the {PARTS[part]} images changed since {path} was written, {len(changed)} of {len(now)}: {names}; "
                f"put the old ones back, or start a new run with weights={path}"
            )


def warn_of_repeats(splits: Splits, contents: Mapping[str, np.ndarray]) -> None:
    """Warn of images that stand in two parts, byte for byte, with their number and the first pair."""
    for (one, earlier), (other, later) in combinations(contents.items(), 2):
        first, second = as_numbers(earlier), as_numbers(later)
        nothing = int.from_bytes([UNREADABLE] * HASH_BYTES)
        repeated = np.flatnonzero(np.isin(second, first[(first != 0) & (first != nothing)]))
        if len(repeated):
            original = int(np.flatnonzero(first == second[repeated[0]])[0])
            pair = splits.parts[one].name(original), splits.parts[other].name(int(repeated[0]))
            warnings.warn(
                f"{len(repeated)} of the {len(later)} {PARTS[other]} images also stand among the {PARTS[one]} "
                f"images, such as {pair[1]}, which is {pair[0]}",
                stacklevel=2,
            )


def _hashes_of_files(images: FileImages, cache: Path, most: int | None, ask: bool) -> np.ndarray:
    root, names = os.fsencode(os.path.realpath(images.root)), images._rows
    known = _read_index(_index_of(images, cache))
    states = states_of(images)
    place = np.searchsorted(known["names"], names).clip(max=len(known["names"]) - 1)
    is_known = (known["names"][place] == names) & ask
    same = is_known & (states[:, 3] >= 0) & (known["states"][place] == states).all(1)
    hashes = np.where(same[:, None], known["hashes"][place], np.uint8(0))
    wanted = is_known.copy()
    wanted[evenly_spread(len(names), most)] = True
    to_read = np.flatnonzero(wanted & ~same & (states[:, 0] >= 0))
    if not len(to_read):
        return hashes
    hashes[to_read] = _read_files([os.path.join(root, name) for name in names[to_read]])
    note_hashes(images, hashes, states, cache)
    return hashes


def states_of(images: FileImages) -> np.ndarray:
    """Size, time of the content, time of the inode (ns) and inode of each file, ``(N, 4)`` int64.

    -1 where there is no file that can be read; of a file that may still change without a later time the inode is -1,
    which no file has, so that it is read again.
    """
    root, before = os.fsencode(os.path.realpath(images.root)), time.time_ns()
    states = np.array([_state(os.path.join(root, name)) for name in images._rows], dtype=np.int64).reshape(-1, 4)
    states[states[:, 1:3].max(1) > before - NOT_SETTLED, 3] = -1
    return states


def note_hashes(images: FileImages, hashes: np.ndarray, states: np.ndarray, cache: str | Path) -> None:
    """Keep in the index what files hold, ``(N, 8)``, of the states that they had before they were read."""
    path, names = _index_of(images, Path(cache)), images._rows
    known, own = _read_index(path), hashes.any(1)
    others = ~np.isin(known["names"], names)
    known = {
        "names": np.concatenate([known["names"][others], names[own]]),
        "states": np.concatenate([known["states"][others], states[own]]),
        "hashes": np.concatenate([known["hashes"][others], hashes[own]]),
    }
    order = np.unique(known["names"], return_index=True)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, {name: values[order] for name, values in known.items()})


def _index_of(images: FileImages, cache: Path) -> Path:
    root = os.fsencode(os.path.realpath(images.root))
    return cache / f"contents_{hashlib.sha256(root).hexdigest()[:16]}.npz"


def _read_index(path: Path) -> dict[str, np.ndarray]:
    """The files that were read: names sorted; size, times of change (ns) and inode ``(M, 4)``; hashes ``(M, 8)``.

    One row that fits no file stands in an index that is missing or damaged.
    """
    nothing = {"names": np.array([b"/"]), "states": np.full((1, 4), -2), "hashes": np.zeros((1, HASH_BYTES), np.uint8)}
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:  # a zip compares its checksums
            known = {name: arrays[name] for name in nothing}
        if len(known["names"]) and all(known[name].shape[1:] == nothing[name].shape[1:] for name in nothing):
            return known
    except FileNotFoundError:
        return nothing
    except Exception:  # zipfile, zlib and numpy raise a dozen kinds
        pass
    warnings.warn(f"{printable(path)} is damaged; the images are read again", stacklevel=2)
    return nothing


def _state(path: bytes) -> tuple[int, int, int, int]:
    """Size, time of the content, time of the inode (ns), inode; -1 where there is no file that can be read."""
    try:
        state = os.stat(path)
    except OSError:
        return -1, -1, -1, -1
    if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait for ever
        return -1, -1, -1, -1
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def _read_files(paths: list[bytes]) -> np.ndarray:
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # reading and hashing leave Python's lock
        done: Iterable[list[bytes]] = pool.map(lambda chunk: [_hash_file(path) for path in chunk], chunks)
        done = done if len(paths) < _QUICK else progress(done, "reading what the images hold", len(chunks))
        return _rows(value for chunk in done for value in chunk)


def _hash_file(path: bytes) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return hash_of(file.read())
    except OSError:  # the reader of images will say it, if it is needed
        return bytes(HASH_BYTES)


def hash_of(content: bytes | np.ndarray) -> bytes:
    """The first 8 bytes of the SHA-256."""
    return hashlib.sha256(content).digest()[:HASH_BYTES]


def _rows(hashes: Iterator[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, HASH_BYTES).copy()


def as_numbers(hashes: np.ndarray) -> np.ndarray:
    """Hashes ``(N, 8)`` uint8 as ``(N,)`` uint64."""
    return np.ascontiguousarray(hashes).view(np.uint64).reshape(-1)
