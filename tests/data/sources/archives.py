"""Archives as the authors pack them, which a server on this machine hands out instead of theirs."""

import functools
import http.server
import io
import tarfile
import threading
import zipfile
from contextlib import contextmanager

from torchvision.datasets import caltech

from tests.data.sources.torchvision_layouts import md5


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *_args):
        pass


@contextmanager
def serving(folder):
    """The address of a server of this folder, on the loopback interface."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def tar(folder, kind=""):
    """A folder as a tar archive, in bytes; ``kind`` is ``gz`` or nothing."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w:{kind}") as archive:
        archive.add(folder, folder.name)
    return packed.getvalue()


def pack_caltech101(images, target):
    """``caltech-101.zip``: the archive of the images in an archive, with what else lies there."""
    with zipfile.ZipFile(target / "caltech-101.zip", "w") as archive:
        archive.writestr("caltech-101/101_ObjectCategories.tar.gz", tar(images / "101_ObjectCategories", "gz"))
        archive.writestr("caltech-101/Annotations.tar", b"")
        archive.writestr("__MACOSX/caltech-101/._Annotations.tar", b"")
    return target / "caltech-101.zip"


def pack_caltech256(images, target):
    """``256_ObjectCategories.tar``."""
    path = target / "256_ObjectCategories.tar"
    path.write_bytes(tar(images / "256_ObjectCategories"))
    return path


def from_here(patch, archive, address, checksum=None):
    """Give torchvision's readers of Caltech this archive's address and checksum instead of the authors'."""
    fetch, own = caltech.download_and_extract_archive, {"filename": archive.name, "md5": checksum or md5(archive)}

    def fetch_from_here(_url, *arguments, **options):
        return fetch(f"{address}/{archive.name}", *arguments, **(options | own))

    patch.setattr(caltech, "download_and_extract_archive", fetch_from_here)
