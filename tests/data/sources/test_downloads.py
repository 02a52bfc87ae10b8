"""Downloads from a server on this machine: whole, with another checksum, cut off, stopped."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from torchvision import datasets

from tests.conftest import ROOT
from tests.data.sources import torchvision_layouts
from tests.data.sources.archives import from_here, pack_caltech101, pack_caltech256, serving, tar
from tests.data.sources.test_folders import open_caltech, put
from tests.data.sources.test_torchvision import opened
from tests.data.sources.torchvision_layouts import md5
from zfscope.data.sources.downloads import download_whole, remove_left

CALTECH = {
    "caltech101": (pack_caltech101, "101_ObjectCategories", "BACKGROUND_Google"),
    "caltech256": (pack_caltech256, "256_ObjectCategories", "257.clutter"),
}


@pytest.fixture(params=CALTECH)
def packed(request, tmp_path):
    """The name of one of the two, its archive, and the address of a server that has it."""
    pack, inner, clutter = CALTECH[request.param]
    put(tmp_path / "images" / inner, **{"ant": 8, "bee": 9, clutter: 7})
    (tmp_path / "served").mkdir()
    archive = pack(tmp_path / "images", tmp_path / "served")
    with serving(tmp_path / "served") as address:
        yield request.param, archive, address


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def test_an_archive_is_downloaded_and_unpacked_whole_and_once(packed, tmp_path, monkeypatch, capfd):
    name, archive, address = packed
    from_here(monkeypatch, archive, address)

    splits = open_caltech(tmp_path / "root", name, download=True, val_fraction=0.25, test_fraction=0.25)

    assert splits.train.classes == ("ant", "bee")
    assert sum(map(len, splits.parts.values())) == 17
    assert {path.split("/")[0] for path in everything_in(tmp_path / "root")} == {name}
    out, err = capfd.readouterr()
    assert f"downloading {name} into {tmp_path / 'root'}" in out and err == ""
    archive.unlink()
    open_caltech(tmp_path / "root", name, download=True)


def test_an_archive_that_lies_there_is_taken_where_its_checksum_holds_and_stays(packed, tmp_path, monkeypatch):
    name, archive, _ = packed
    from_here(monkeypatch, archive, "http://127.0.0.1:9")  # nobody answers there
    place = tmp_path / "root" / name / archive.name
    place.parent.mkdir(parents=True)
    archive.rename(place)

    assert open_caltech(tmp_path / "root", name, download=True).train.classes == ("ant", "bee")
    assert place.is_file() and not place.is_symlink()


@pytest.mark.parametrize("damage", ["another checksum", "cut off", "cut off, checksum alike", "not there", "no server"])
def test_what_does_not_come_whole_is_told_in_one_line_and_nothing_is_left(packed, tmp_path, monkeypatch, damage):
    name, archive, address = packed
    whole = md5(archive)
    if damage.startswith("cut off"):
        archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    checksum = {"another checksum": "0" * 32, "cut off": whole}.get(damage, md5(archive))
    from_here(monkeypatch, archive, address if damage != "no server" else "http://127.0.0.1:9", checksum)
    if damage == "not there":
        archive.unlink()

    with pytest.raises(OSError, match=rf"^could not download {name[-3:]}_Obj\w+: \S.*; get {name} from") as told:
        open_caltech(tmp_path / "root", name, download=True)

    assert "\n" not in str(told.value) and len(str(told.value)) < 600
    assert not (tmp_path / "root").exists()


def test_a_stop_while_it_is_unpacked_leaves_nothing_and_what_a_kill_left_goes_with_the_next_download(tmp_path):
    def half(folder):
        put_half(folder)
        raise KeyboardInterrupt

    def put_half(folder):
        os.makedirs(f"{folder}/toys/one")

    with pytest.raises(KeyboardInterrupt):
        download_whole(tmp_path / "root", "toys", half)
    assert everything_in(tmp_path / "root") == []

    code = (
        "import os, pathlib, sys, time\nfrom zfscope.data.sources.downloads import download_whole\n"
        "def half(folder):\n    os.makedirs(f'{folder}/toys/one')\n    print('half', flush=True)\n    time.sleep(60)\n"
        f"download_whole(pathlib.Path({str(tmp_path / 'root')!r}), 'toys', half)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    while process.stdout.readline().strip() != "half":
        pass
    remove_left(tmp_path / "root")
    assert any(path.endswith("toys/one") for path in everything_in(tmp_path / "root"))  # while it works it keeps it
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "root/toys").exists()

    download_whole(tmp_path / "root", "toys", put_half)

    assert everything_in(tmp_path / "root") == ["toys", "toys/one"]


def test_a_server_that_does_not_answer_ends_a_download_and_what_was_set_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr("zfscope.data.sources.downloads.SECONDS_WITHOUT_ANSWER", 0.2)
    before = socket.getdefaulttimeout()
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(TimeoutError):
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        download_whole(tmp_path, "toys", lambda folder: urllib.request.urlretrieve(address, f"{folder}/toys"))

    assert socket.getdefaulttimeout() == before
    assert everything_in(tmp_path) == []


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """The address of a server that has CIFAR-10 in small, which torchvision takes for the authors'."""
    torchvision_layouts.cifar(tmp_path / "images", monkeypatch)
    (tmp_path / "served").mkdir()
    archive = tmp_path / "served/cifar-10-python.tar.gz"
    archive.write_bytes(tar(tmp_path / "images/cifar-10-batches-py", "gz"))
    with serving(tmp_path / "served") as address:
        monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}/{archive.name}")
        monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
        yield archive


def test_a_data_set_of_torchvision_is_downloaded_where_it_is_not_there_or_not_whole(cifar, tmp_path):
    first = opened(tmp_path / "root", "CIFAR10", download=True)
    batch = tmp_path / "root/cifar-10-batches-py/data_batch_2"
    (batch.parent / "data_batch_5").unlink()
    batch.write_bytes(b"other")

    again = opened(tmp_path / "root", "CIFAR10", download=True)

    assert again.train.fingerprint == first.train.fingerprint
    assert np.array_equal(np.asarray(again.train.read(25)), np.asarray(first.train.read(25)))
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["cifar-10-batches-py", cifar.name]


def test_what_a_failed_download_of_torchvision_finds_stays_and_the_way_out_is_told(cifar, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/mine.txt").write_text("mine")

    with pytest.raises(
        OSError, match=r": could not download CIFAR10: .*corrupted.*; try again, or put it into \S+/root"
    ):
        opened(tmp_path / "root", "CIFAR10", download=True)

    assert everything_in(tmp_path / "root") == ["mine.txt"]


def test_faces_need_a_package_for_their_download(tmp_path, monkeypatch):
    monkeypatch.setattr("zfscope.data.sources.torchvision.find_spec", lambda name: None)

    with pytest.raises(FileNotFoundError, match=r"by the package gdown, which is not there; run: pip install gdown"):
        opened(tmp_path / "root", "CelebA", download=True)

    assert not (tmp_path / "root").exists()
