"""The one way in which this project writes a file: whole or not at all, with one line where the disk is full.

A file is written under a hidden name beside its target, ``.NAME.TOKEN.tmp``, and takes the target's name when it is
whole. While it is written its process holds a lock on it (flock), which the kernel lets go when the process ends,
however it ends. So what such a process left is told from what another one is writing, also where process numbers
repeat: in containers, after a restart.
"""

import csv
import errno
import io
import os
import re
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from zfscope.stops import MachineFault

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]

UNFINISHED = re.compile(r"\..+\.[0-9a-f]+\.tmp")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, a limit of the process


class CannotWrite(MachineFault):
    """A file could not be written; the message names it, the cause and, where the disk is full, the bytes."""


class WholeFile(io.RawIOBase):
    """A binary file for one writer. After the first error it takes what comes and only counts it.

    So no library between (torch, PIL, numpy) hides the error behind one of its own, and at the end it is known how many
    bytes the whole file has. ``check`` raises the error.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        super().__init__()
        self.path, self.size, self.error = path, 0, None
        self._descriptor, self._position = descriptor, 0

    def writable(self) -> bool:
        """It is; PIL finds no ``fileno`` and writes through ``write``."""
        return True

    def seekable(self) -> bool:
        """Also backwards, as zip files need it."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        """The byte that is written next."""
        return self._position

    def write(self, data: Any) -> int:
        """Write all of it."""
        rest = memoryview(data)
        rest = rest.cast("B") if rest.nbytes else memoryview(b"")
        length = len(rest)
        try:
            if self.error is None:
                os.lseek(self._descriptor, self._position, os.SEEK_SET)
            while self.error is None and len(rest):
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            self.error = error
            with suppress(OSError):  # another's file may need the room
                os.ftruncate(self._descriptor, 0)
        self._position += length
        self.size = max(self.size, self._position)
        return length

    def reserve(self, size: int) -> None:
        """Take the disk's room for so many bytes, before hours are spent on what is written there."""
        _reserve(self._descriptor, size, self.path)

    def check(self, sync: bool) -> None:
        """Raise what went wrong; with ``sync`` all of it is on the disk afterwards."""
        if self.error is None:
            try:
                if sync:
                    os.fsync(self._descriptor)
                os.close(os.dup(self._descriptor))  # a network's file system tells only now that its disk is full
            except OSError as error:
                self.error = error
                os.ftruncate(self._descriptor, 0)
        if self.error is not None:
            raise cannot_write(self.path, self.error, self.size)

    def close(self) -> None:
        """Close it, and so unlock it."""
        if not self.closed:
            with suppress(OSError):
                os.close(self._descriptor)
        super().close()


def cannot_write(path: str | Path, error: OSError, needed: int | None = None) -> CannotWrite:
    """The error of writing ``path`` as one line; ``needed`` are the bytes that it takes."""
    cause = f"{path} cannot be written ({error.strerror or error})"
    if error.errno not in FULL:
        return CannotWrite(cause)
    place = Path(path).absolute().parent
    while not place.exists():
        place = place.parent
    takes = "" if needed is None else f"it takes {needed:,} bytes, and "
    return CannotWrite(f"{cause}: {takes}{shutil.disk_usage(place).free:,} are free in {place}; free space there")


@contextmanager
def replacing(path: str | Path, *, sync: bool = False) -> Iterator[WholeFile]:
    """Write a file whole or not at all: every file of this project goes through here.

    Yields a binary file, which takes the place of ``path`` when the block ends and is removed when the block raises.
    What killed processes left in that folder is removed too. With ``sync`` file and name are on the disk afterwards, as
    is needed of what a later start relies on (checkpoints, results).

    Raises:
        CannotWrite: If the disk is full, or fails.
    """
    path = Path(path)
    remove_unfinished(path.parent)
    temporary, file = _open_beside(path)
    try:
        try:
            yield file
        except Exception:
            if file.error is not None:  # what the writer made of it
                file.check(sync)
            raise
        file.check(sync)
        if fcntl is None:  # Windows renames no open file
            file.close()
        try:
            os.replace(temporary, path)
        except OSError as error:
            raise cannot_write(path, error, file.size) from None
        if sync:
            _sync_folder(path.parent)
    finally:
        file.close()
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, *, sync: bool = False) -> None:
    """Write a file of UTF-8 by `replacing`."""
    with replacing(path, sync=sync) as file:
        file.write(text.encode())


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an ``.npz`` by `replacing`; ``numpy.load`` reads it without pickle."""
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


def table_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV; no cell is one that a spreadsheet takes for a formula."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerows([header, *([_as_text(cell) for cell in row] for row in rows)])
    return table.getvalue()


def checksum(path: str | Path) -> str:
    """CRC-32 of a file, eight hex digits; at the speed of memory, twice as fast as over a memory map."""
    value = 0
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            value = zlib.crc32(piece, value)
    return f"{value:08x}"


def check_writable(folder: str | Path, key: str, needed: int = 0) -> None:
    """Refuse a folder that cannot be written or made, or whose disk has less than ``needed`` bytes left.

    Nothing is left behind; ``key`` names the folder in the message.
    """
    place = Path(folder).expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(f"{key}={folder} cannot be written ({error.strerror}); choose another folder") from None
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OSError(
            f"{key}={folder} needs {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free; free space or choose "
            "another folder"
        )


def map_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """Make an ``.npy`` and map it; its bytes are taken first, for where none is left a mapping kills the process."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with open(path, "r+b") as file:
        _reserve(file.fileno(), path.stat().st_size, path)
    return array


def remove_unfinished(folder: Path, *, held: bool = False) -> None:
    """Remove what killed processes left half-written in a folder.

    Folders among it go only where the caller says that the folder is ``held``: that no other process writes there.
    Where the file system has no locks, files stay too.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if UNFINISHED.fullmatch(entry.name) is None or entry.is_symlink():
                continue
            if not entry.is_dir():
                _remove_if_left(entry.path)
            elif held:
                shutil.rmtree(entry.path, ignore_errors=True)


def _as_text(cell: Any) -> Any:
    return "'" + cell if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell


def _reserve(descriptor: int, size: int, path: Path) -> None:
    if not hasattr(os, "posix_fallocate"):  # Windows, macOS
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise cannot_write(path, error, size) from None


def _open_beside(path: Path) -> tuple[Path, WholeFile]:
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(temporary, flags, 0o666)
        except OSError as error:
            raise cannot_write(path, error) from None
        if _is_locked(descriptor) and os.fstat(descriptor).st_nlink:
            return temporary, WholeFile(path, descriptor)
        os.close(descriptor)  # before it was locked another process took it for one that was left, and removes it


def _is_locked(descriptor: int) -> bool:
    """Whether the file is locked now, or cannot be: then no other process takes it for one that was left."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _remove_if_left(path: str) -> None:
    with suppress(OSError):
        if fcntl is None:
            os.unlink(path)
            return
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # Windows, and file systems that do not know it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
