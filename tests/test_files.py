"""Files that are written whole or not at all, and what killed processes leave."""

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from zfscope import files
from zfscope.files import CannotWrite, map_array, remove_unfinished, replacing, write_arrays, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")

    with pytest.raises(RuntimeError, match="half"), replacing(path) as file:
        file.write(b"ne")
        raise RuntimeError("half")
    assert path.read_text() == "old" and names(tmp_path) == ["page.html"]

    with replacing(path, sync=True) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["page.html"]


def test_arrays_are_read_without_pickle(tmp_path):
    write_arrays(tmp_path / "arrays.npz", {"a": np.arange(3)})

    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as arrays:
        assert arrays["a"].tolist() == [0, 1, 2]


def test_what_libraries_write_through_it_is_what_they_write_alone(tmp_path):
    content, picture = {"weight": torch.randn(300, 200), "step": 3}, Image.effect_noise((90, 70), 40)
    writers = {
        "a.pt": lambda target: torch.save(content, target),
        "a.png": lambda target: picture.save(target, "png"),
        "a.jpg": lambda target: picture.save(target, "jpeg"),
        "a.npz": lambda target: np.savez_compressed(target, a=np.arange(5000), b=np.zeros((0, 3))),
    }
    (tmp_path / "alone").mkdir()
    for name, write in writers.items():
        with replacing(tmp_path / name) as file:
            write(file)
        with open(tmp_path / "alone" / name, "wb") as file:
            write(file)

        assert (tmp_path / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_places_may_be_written_in_any_order(tmp_path):
    with replacing(tmp_path / "table") as file:
        file.reserve(12)
        for place in (2, 0, 1):
            file.seek(4 * place)
            file.write(np.float32([place]))

    assert np.fromfile(tmp_path / "table", np.float32).tolist() == [0, 1, 2]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_that_the_disk_tells_late_leaves_the_old_file(tmp_path, monkeypatch, call):
    (tmp_path / "last.ckpt").write_text("old")

    def fail(*_, **__):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, call, fail)

    with pytest.raises(CannotWrite, match=r"last.ckpt cannot be written \(Disk quota exceeded\): it takes 3 bytes"):
        write_text(tmp_path / "last.ckpt", "new", sync=True)

    assert (tmp_path / "last.ckpt").read_text() == "old" and names(tmp_path) == ["last.ckpt"]


def test_another_error_of_the_disk_names_the_file_and_no_bytes(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", fail)

    with pytest.raises(CannotWrite) as caught, replacing(tmp_path / "last.ckpt") as file:
        torch.save({"weight": torch.zeros(3)}, file)

    assert str(caught.value) == f"{tmp_path}/last.ckpt cannot be written (Input/output error)"
    assert names(tmp_path) == []


def test_a_file_beyond_the_limit_of_the_process_is_told_with_its_bytes(tmp_path):
    """``ulimit -f`` lets a real write fail in its middle, on any machine."""
    code = (
        "import resource, torch; from zfscope.files import replacing\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"with replacing({str(tmp_path / 'a.pt')!r}) as file: torch.save({{'a': torch.zeros(100_000)}}, file)\n"
    )

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    last = answer.stderr.splitlines()[-1]
    assert "a.pt cannot be written (File too large): it takes 40" in last and "unexpected pos" not in answer.stderr
    assert names(tmp_path) == []


def test_a_mapped_array_is_refused_where_the_disk_has_no_room(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)

    with pytest.raises(CannotWrite, match=r"a.npy cannot be written \(No space left on device\): it takes 4,128 bytes"):
        map_array(tmp_path / "a.npy", np.dtype(np.float32), (10, 100))


# --- what killed processes leave ---


def killed_while_writing(path, size=1000):
    """A process that is killed within a write; its half file stays."""
    child = os.fork()
    if child == 0:
        with replacing(path) as file:
            file.write(bytes(size))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_the_next_writer_removes_what_killed_ones_left_and_nothing_else(tmp_path):
    killed_while_writing(tmp_path / "last.ckpt")
    (tmp_path / ".last.ckpt.4711.tmp").touch()  # of earlier versions
    (tmp_path / ".mine.tmp").touch()
    (tmp_path / "mine.0a.tmp").touch()
    assert len(names(tmp_path)) == 4

    write_text(tmp_path / "other", "x")

    assert names(tmp_path) == [".mine.tmp", "mine.0a.tmp", "other"]


def test_what_another_process_is_writing_stays(tmp_path):
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with replacing(tmp_path / "a") as file:
            os.write(ready[1], b"x")
            os.read(go_on[0], 1)
            file.write(b"whole")
        os._exit(0)
    os.read(ready[0], 1)

    with replacing(tmp_path / "b") as file:
        file.write(b"b")
        write_text(tmp_path / "c", "c")  # within another one of this process
    remove_unfinished(tmp_path, held=True)
    os.write(go_on[1], b"x")

    assert os.waitpid(child, 0)[1] == 0
    assert names(tmp_path) == ["a", "b", "c"] and (tmp_path / "a").read_bytes() == b"whole"


def test_a_file_that_is_taken_for_a_left_one_before_it_is_locked_is_begun_anew(tmp_path, monkeypatch):
    flock, calls = files.fcntl.flock, []

    def late(descriptor, how):
        calls.append(descriptor)
        if len(calls) == 1:
            remove_unfinished(tmp_path)
        flock(descriptor, how)

    monkeypatch.setattr(files.fcntl, "flock", late)

    write_text(tmp_path / "a", "whole")

    assert len(calls) == 3 and names(tmp_path) == ["a"]


def test_where_the_file_system_has_no_locks_files_are_written_and_what_was_left_stays(tmp_path, monkeypatch):
    killed_while_writing(tmp_path / "a")

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", none)
    write_text(tmp_path / "a", "whole")

    assert (tmp_path / "a").read_text() == "whole" and len(names(tmp_path)) == 2
