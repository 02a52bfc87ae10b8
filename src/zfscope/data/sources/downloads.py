"""Downloads by torchvision: a data set comes whole, or nothing of it stays.

torchvision unpacks an archive where the data set shall lie, and takes what lies there for the whole data set. So it
works in a hidden folder ``.NAME.TOKEN.tmp`` beside it, from which a finished data set is moved. While a process
downloads it holds a lock on that folder (flock); one whose process was killed is removed by the next download.
"""

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from io import StringIO
from pathlib import Path

from zfscope.console import console
from zfscope.files import UNFINISHED
from zfscope.networks.downloads import answering
from zfscope.schema import shown
from zfscope.stops import MachineFault

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SECONDS_WITHOUT_ANSWER = 60.0  # of a server, before a download ends


def download_whole(root: Path, what: str, fetch: Callable[[str], object], archives: Sequence[str] = ()) -> None:
    """Let ``fetch`` download a data set into a folder of its own, whose path it gets, then move that into ``root``.

    Archives that lie in ``root`` already, at these paths, need not be downloaded if their checksums hold. Whatever
    ``fetch`` raises goes through, and nothing that it made is left.
    """
    root.mkdir(parents=True, exist_ok=True)
    remove_left(root)
    console.print(f"downloading {what} into {root}", markup=False, highlight=False, soft_wrap=True)
    with _folder_beside(root / what) as folder, answering(SECONDS_WITHOUT_ANSWER), _bars_for_terminals():
        for archive in archives:
            if (root / archive).is_file():
                (folder / archive).parent.mkdir(parents=True, exist_ok=True)
                (folder / archive).symlink_to((root / archive).absolute())
        fetch(str(folder))
        for archive in archives:
            _check_end(folder / archive)
            if (folder / archive).is_symlink():
                (folder / archive).unlink()
        _move_into(folder, root)


@contextmanager
def told_in_one_line(what: str, way: str, folders: Iterable[Path]) -> Iterator[None]:
    """Whatever ends a download within the block becomes an ``OSError`` with data set, cause and way out.

    Of ``folders``, and of those above them, the ones are removed that the block made and left empty.
    """
    made = {place for folder in folders for place in (folder, *folder.parents) if not place.exists()}
    try:
        yield
    except BaseException as error:
        for folder in sorted(made, reverse=True):
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, MachineFault) or not isinstance(error, Exception):
            raise
        # Of urllib, torchvision, tarfile, zipfile, zlib, gdown: a dozen kinds.
        cause = shown(str(error), 400) or type(error).__name__
        raise OSError(f"could not download {what}: {cause}; {way}") from error


def remove_left(root: Path) -> None:
    """Remove the folders of downloads whose processes were killed."""
    for folder in root.iterdir():
        if fcntl is None or UNFINISHED.fullmatch(folder.name) is None or not folder.is_dir() or folder.is_symlink():
            continue
        with suppress(OSError):  # BlockingIOError: another process downloads
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if descriptor is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _bars_for_terminals() -> redirect_stderr | nullcontext:
    """Bars are for terminals; in a log each is a line of thousands of pieces."""
    return nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO())


def _check_end(archive: Path) -> None:
    """Refuse a plain ``.tar`` that is cut off: Python's reader takes a cut between two files for its end."""
    if archive.suffix == ".tar" and archive.is_file():
        with open(archive, "rb") as file:
            file.seek(max(0, archive.stat().st_size - 512))
            if file.read() != bytes(512):
                raise ValueError(f"{archive.name} is cut off")


def _move_into(folder: Path, target: Path) -> None:
    """Move what a folder holds into another one; files of the same names are replaced."""
    for entry in list(os.scandir(folder)):
        place = target / entry.name
        if entry.is_dir(follow_symlinks=False) and place.is_dir():
            _move_into(Path(entry.path), place)
        else:
            os.replace(entry.path, place)
