"""Files that are downloaded: the server is asked first, and what fails is told in one line with the way out.

torch.hub waits for a server without end, huggingface_hub for minutes, and neither says where a file may be put by hand.
"""

import hashlib
import os
import socket
import sys
import tempfile
import textwrap
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from zfscope.files import replacing
from zfscope.networks.tensors import cause_of

ASK_SECONDS = 4  # for a server's first answer, its name's resolution included
SECONDS_WITHOUT_BYTES = 10  # within a download; huggingface_hub's own


@contextmanager
def downloading(name: str, url: str, target: str | Path, cached: Path | None = None) -> Iterator[None]:
    """Download the public weights ``name`` inside, once ``url`` answers; it is not asked where ``cached`` is there.

    Any error becomes a ConnectionError of one line that says how to get the file offline: put into ``target``.
    """
    try:
        if cached is None or not cached.is_file():
            ask_server(url)
        with answering(SECONDS_WITHOUT_BYTES):
            yield
    except Exception as error:  # no connection, an error page, a wrong checksum and half a file differ in their kind
        advises = "weights_only" in str(error)  # torch does, of a file in its cache
        text = f"the file {cause_of(error)}" if advises else f"{type(error).__name__}: {error}"
        cause = textwrap.shorten(text, 160, placeholder=" …")
        raise ConnectionError(
            f"{name}: the weights could not be downloaded from {url} ({cause}); without a network connection put that "
            f"file {target}{os.sep}, or say where it is: weights_file=FILE"
        ) from error


@contextmanager
def answering(seconds: float) -> Iterator[None]:
    """Within the block a server that sends nothing for so long is an error; torch would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def ask_server(url: str, seconds: float = ASK_SECONDS) -> None:
    """Raise what keeps a server from answering, ``TimeoutError`` where it takes too long; any answer will do."""
    errors: list[Exception] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "zfscope"})
        try:
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError as answer:  # some servers know no HEAD, or send elsewhere
            answer.close()
        except Exception as error:
            errors.append(error)

    # In a thread: the resolution of names has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    if thread.is_alive() or (errors and isinstance(getattr(errors[0], "reason", errors[0]), TimeoutError)):
        raise TimeoutError(f"no answer within {seconds:g} s")
    if errors:
        raise errors[0]


def unpacked(url: str, file: Path, sha1: str) -> Path:
    """``file``, out of the zip archive at ``url`` where it is not there with that SHA-1 (hex); its path.

    pytorchcv's own download knows no limit of time and leaves what is half or wrong where it shall lie.
    """
    if file.is_file():
        with open(file, "rb") as content:
            if hashlib.file_digest(content, "sha1").hexdigest() == sha1:
                return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        archive = os.path.join(folder, "archive.zip")
        torch.hub.download_url_to_file(url, archive, progress=sys.stderr.isatty())
        digest = hashlib.sha1()
        with zipfile.ZipFile(archive) as zipped, zipped.open(file.name) as source, replacing(file) as target:
            while block := source.read(2**20):
                digest.update(block)
                target.write(block)
            if digest.hexdigest() != sha1:
                raise ValueError(f"{file.name} there has another checksum than {sha1}")
    return file
