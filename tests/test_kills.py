"""Processes that are killed while they save: what was saved is whole, and the next start leaves nothing behind."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from zfscope.networks.checkpoints import read_checkpoint, write_checkpoint
from zfscope.runs import claim, read_results, replacing_results, write_results


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True], ids=["TMPDIR here", "TMPDIR on another file system"])
def test_of_50_kills_within_saves_of_100_mb_none_costs_the_checkpoint_or_leaves_a_file(
    tmp_path, monkeypatch, elsewhere, record_property
):
    if elsewhere and not os.path.isdir("/dev/shm"):
        pytest.skip("NOT TESTED, another file system for TMPDIR: there is no /dev/shm")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", "/dev/shm" if elsewhere else str(tmp_path))
    path, content = tmp_path / "run/checkpoints/last.ckpt", {"weight": torch.randn(25_000_000)}
    since = time.monotonic()
    write_checkpoint({**content, "step": 0}, path)
    takes = time.monotonic() - since
    outcomes, kept = [], 0
    for number in range(1, 51):
        ready, generator = os.pipe(), random.Random(number)
        child = os.fork()
        if child == 0:
            os.write(ready[1], b"x")
            write_checkpoint({**content, "step": number}, path)
            os._exit(0)
        os.read(ready[0], 1)
        for end in ready:
            os.close(end)
        time.sleep(generator.random() * takes)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = [entry.name for entry in path.parent.iterdir() if entry.name != "last.ckpt"]

        with claim(tmp_path / "run"):  # the next start
            pass

        outcomes.append(bool(left))
        step = read_checkpoint(path)["step"]
        assert step in (kept, number)
        kept = step
        assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]
    assert sum(outcomes) > 15  # so many were killed with a half-written file
    record_property("cases", len(outcomes))


def test_control_a_checkpoint_that_is_written_in_place_is_lost_to_a_kill(tmp_path):
    content, path = {"weight": torch.randn(2_000_000)}, tmp_path / "last.ckpt"
    write_checkpoint(content, path)
    size, child = path.stat().st_size, os.fork()
    if child == 0:
        with path.open("wb") as file:
            torch.save(content, Half(file, size // 2))
        os._exit(0)
    os.waitpid(child, 0)

    with pytest.raises(ValueError, match="last.ckpt"):
        read_checkpoint(path)


class Half:
    """A file whose process is killed when so many bytes are written."""

    def __init__(self, file, size):
        self.file, self.size = file, size

    def write(self, data):
        written = self.file.write(data)
        if self.file.tell() > self.size:
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    def flush(self):
        self.file.flush()


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.05, 0.4, 1.1])
def test_a_training_that_is_killed_goes_on_and_nothing_is_left(tiny, tmp_path, monkeypatch, pause):
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *tiny, "evaluate.enabled=false", "hydra.run.dir=run"]
    command += ["model.fc6.units=2000", "model.fc7.units=2000", "checkpoints.every_n_steps=1"]

    def start(*arguments):
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    run = start(*command, "trainer.max_epochs=200")
    assert any(line.startswith("epoch 1/") for line in iter(run.stdout.readline, "")), run.stderr.read()
    time.sleep(pause)
    run.kill()
    run.communicate()
    step = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"]
    again = start(sys.executable, str(ROOT / "train.py"), "resume=run", f"trainer.max_steps={step + 2}")
    _, err = again.communicate(timeout=300)

    assert again.returncode == 0, err
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == step + 2
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_results_that_a_kill_interrupts_are_all_the_earlier_or_all_the_later_ones(tmp_path, monkeypatch):
    """Killed before each of the operations on files in turn."""
    states = []
    for number in range(1, 60):
        folder = tmp_path / str(number)
        (folder / "figures").mkdir(parents=True)
        (folder / "figures/old.png").write_text("old")
        (folder / "arrays.npz").write_text("old")
        write_results(folder, {}, {"name": "old"})
        child = os.fork()
        if child == 0:
            kill_at(number)
            with replacing_results(folder) as new:
                (new / "figures").mkdir()
                (new / "figures/new.png").write_text("new")
                (new / "pairs.csv").write_text("new")
                write_results(new, {}, {"name": "new"})
            os._exit(0)
        states.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        if states[-1] == 0:
            break

        with claim(folder):
            pass

        there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        old = [".lock", "arrays.npz", "figures/old.png", "results.json"]
        new = [".lock", "figures/new.png", "pairs.csv", "results.json"]
        assert there == {"old": old, "new": new}[read_results(folder)["conditions"]["name"]]
    assert states[-1] == 0 and len(states) > 10 and set(states[:-1]) == {-signal.SIGKILL}


def test_results_are_replaced_while_their_arrays_still_lie_in_a_folder_of_the_run(tmp_path):
    """As the projections of an analysis, which are copied from there when it saves."""
    (tmp_path / ".projections.0.tmp").mkdir()
    (tmp_path / ".projections.0.tmp/0.npy").write_bytes(b"arrays")

    with replacing_results(tmp_path) as new:
        write_results(new, {}, {"name": "projections"})

        assert (tmp_path / ".projections.0.tmp/0.npy").read_bytes() == b"arrays"
    assert (tmp_path / ".projections.0.tmp/0.npy").read_bytes() == b"arrays"


def kill_at(number):
    """Kill this process before its n-th operation on a file."""
    calls = []

    def counted(original):
        def call(*arguments, **more):
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **more)

        return call

    for name in ("mkdir", "unlink", "rmdir", "rename", "replace"):
        setattr(os, name, counted(getattr(os, name)))
    Path.touch = counted(Path.touch)


def test_a_run_that_goes_on_removes_what_a_killed_one_left(command, run_copy):
    orphans = [run_copy / place / ".a.0123abcd.tmp" for place in (".", ".hydra", "checkpoints", "figures/some/conv1")]
    for orphan in orphans:
        orphan.parent.mkdir(parents=True, exist_ok=True)
        orphan.write_bytes(bytes(100))
    (run_copy / ".results.tmp/figures").mkdir(parents=True)
    (run_copy / ".projections.0.tmp").mkdir()

    code, _, err = command("train", f"resume={run_copy}", "trainer.max_epochs=3")

    assert code == 0, err
    assert not [path for path in run_copy.rglob("*") if path.name.endswith(".tmp")]
    assert json.loads((run_copy / "results.json").read_text())["conditions"]["epochs"] == 3


def test_a_folder_of_a_stranger_removes_nothing_outside_it(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ".mine.0123abcd.tmp").touch()
    run = tmp_path / "run"
    (run / ".results.new").mkdir(parents=True)
    (run / ".results.new/none ..").touch()
    for name in ("figures", "checkpoints", ".hydra", ".results.tmp", ".a.00.tmp"):
        (run / name).symlink_to(outside)

    with claim(run):
        pass

    assert [path.name for path in outside.iterdir()] == [".mine.0123abcd.tmp"]
