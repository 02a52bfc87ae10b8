"""Full disks: what was there stays, one line tells file and bytes, and a run goes on when there is room again.

The disks are small ones in memory (tmpfs), which only root may mount: elsewhere these tests are skipped, and say so.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import quick_first
from zfscope.files import CannotWrite, map_array, replacing, write_arrays, write_text
from zfscope.networks.checkpoints import read_checkpoint, write_checkpoint
from zfscope.protocols.features import write_tables
from zfscope.runs import read_results, replacing_results, write_results
from zfscope.training import checkpointing

MEGABYTE = 2**20


@pytest.fixture
def disk(tmp_path):
    """The folder of a disk of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if not mounted or mounted.returncode:
        pytest.skip(f"NOT TESTED, full disks: no disk can be mounted here ({mounted and mounted.stderr.strip()})")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk, left):
    """Leave so many bytes free, in whole pages."""
    (disk / "ballast").unlink(missing_ok=True)
    free = shutil.disk_usage(disk).free
    with open(disk / "ballast", "wb") as file:
        file.write(bytes(free - left))


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "ballast")


NOISE = np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)
WRITERS = {  # each takes about a megabyte
    "last.ckpt": lambda path: write_checkpoint({"weights": {str(n): torch.randn(90) for n in range(2000)}}, path),
    "results.json": lambda path: write_results(path.parent, {}, {"text": "a" * MEGABYTE}),
    "epoch_001.png": lambda path: save_picture(path),
    "arrays.npz": lambda path: write_arrays(path, {"a": NOISE}),
    "page.html": lambda path: write_text(path, "a" * MEGABYTE),
}


def save_picture(path):
    with replacing(path) as file:
        Image.fromarray(NOISE).save(file, "png")


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_one_line_with_the_bytes(disk, name, record_property):
    offsets = [round(part * 100_000) & -4096 for part in range(10)]  # tmpfs gives whole pages
    for offset in offsets:
        (disk / name).write_bytes(b"old")
        fill(disk, offset)

        with pytest.raises(CannotWrite) as caught:
            WRITERS[name](disk / name)

        told = re.fullmatch(
            rf"{disk}/{name} cannot be written \(No space left on device\): it takes ([\d,]+) bytes, and ([\d,]+) are "
            rf"free in {disk}; free space there",
            str(caught.value),
        )
        needed, free = (int(number.replace(",", "")) for number in told.groups())
        assert free == offset and (disk / name).read_bytes() == b"old" and names(disk) == [name]
    (disk / "ballast").unlink()
    WRITERS[name](disk / name)
    assert (disk / name).stat().st_size == needed
    record_property("cases", len(offsets))


def test_results_that_do_not_fit_leave_the_earlier_ones(disk):
    write_results(disk, {}, {"name": "earlier"})
    (disk / "figures").mkdir()
    (disk / "figures/a.png").write_bytes(b"old")
    fill(disk, 500_000)

    with pytest.raises(CannotWrite, match="epoch_001.png cannot be written"), replacing_results(disk) as new:
        write_results(new, {}, {"name": "later"})
        save_picture(new / "epoch_001.png")

    assert read_results(disk)["conditions"] == {"name": "earlier"}
    assert names(disk) == ["figures", "results.json"] and (disk / "figures/a.png").read_bytes() == b"old"


def test_an_array_that_is_mapped_is_refused_and_does_not_kill_the_process(disk):
    fill(disk, MEGABYTE)

    with pytest.raises(CannotWrite, match=r"a.npy cannot be written .*it takes 4,000,128 bytes, and [\d,]+ are free"):
        map_array(disk / "a.npy", np.dtype(np.float32), (1000, 1000))


def test_features_that_do_not_fit_are_refused_before_they_are_computed(disk, monkeypatch):
    class Batches(list):
        dataset = range(4000)

    class Network(torch.nn.Module):
        def trace(self, inputs):
            return type("Trace", (), {"images": inputs, "maps": {"conv1": inputs.repeat(1, 100, 1, 1)}})

    monkeypatch.setattr("zfscope.protocols.features._check_room", lambda *_: None)  # another process was quicker
    fill(disk, MEGABYTE)
    batches = Batches([(torch.zeros(1, 1, 1, 1), None, torch.zeros(1))])

    with pytest.raises(CannotWrite, match="conv1.f32 cannot be written .* it takes 1,600,000 bytes"):
        write_tables(Network(), batches, {"conv1": disk / "conv1.f32"}, torch.device("cpu"))

    assert names(disk) == []


# --- commands ---


@pytest.mark.parametrize("case", quick_first([("last", 0), ("last", 40_000), ("best", 40_000), ("epoch_002", 0)], 1))
def test_a_training_that_meets_a_full_disk_ends_in_one_line_and_goes_on(command, tiny, disk, monkeypatch, case):
    """The disk fills up before a checkpoint of the second epoch; a best one is sure in the first alone."""
    (name, left), epoch = case, int(case[0] != "best")
    own = [*tiny, "checkpoints.epochs=[1,2]", "evaluate.ten_crops=false"]
    command("train", *own, f"hydra.run.dir={disk}/whole")
    original = checkpointing.write_checkpoint

    def write(content, path):
        if Path(path).stem == name and content["epoch"] == epoch and not (disk / "ballast").exists():
            fill(disk, left)
        original(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "write_checkpoint", write)
        code, _, err = command("train", *own, f"hydra.run.dir={disk}/run")

    run = disk / "run"
    assert code == 2 and len(err.splitlines()) == 1, err
    assert re.match(
        rf"train.py: {run}/checkpoints/{name}.ckpt cannot be written \(No space left on device\): it takes [\d,]+ "
        r"bytes, and [\d,]+ are free in .*; free space there; what was saved is whole: go on with python train.py "
        rf"resume={run}$",
        err.strip(),
    ), err
    for path in run.rglob("*.ckpt"):
        read_checkpoint(path)
    assert not list(run.rglob("*.tmp"))
    (disk / "ballast").unlink()
    assert command("train", f"resume={run}")[0] == 0
    weights = [read_checkpoint(place / "checkpoints/last.ckpt")["state_dict"] for place in (run, disk / "whole")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["csv", "tensorboard", "wandb"])
def test_pictures_that_do_not_fit_are_warnings_and_logs_one_line(command, tiny, disk, monkeypatch, recwarn, logger):
    from zfscope.training.classifier import Classifier

    original, steps = Classifier.validation_step, []

    def validation_step(self, batch, index):
        steps.append(1)
        if len(steps) == 3:
            fill(disk, 0)
        return original(self, batch, index)

    monkeypatch.setattr(Classifier, "validation_step", validation_step)
    own = [override for override in tiny if not override.startswith(("logger", "callbacks"))]
    own += [f"logger={logger}", "callbacks.projections=null", "callbacks.feature_evolution=null"]

    code, _, err = command("train", *own, f"hydra.run.dir={disk}/run")

    assert len(err.splitlines()) == 1, err
    (line,) = err.splitlines()
    assert code == 2 and line.startswith("train.py: "), err
    assert "No space left on device" in line and line.endswith(f"go on with python train.py resume={disk}/run")
    warned = [str(warning.message) for warning in recwarn]
    picture = r"filter_images/conv1: no picture: .*conv1/epoch_\d+.png cannot be written .*: it takes [\d,]+ bytes"
    assert any(re.match(picture, line) for line in warned)
    assert not any("Exception in thread" in line for line in warned)


def test_a_job_of_a_sweep_that_meets_a_full_disk_is_a_line_of_the_table(command, tiny, disk, monkeypatch):
    original, calls = checkpointing.write_checkpoint, []

    def write(content, path):
        calls.append(path)
        if len(calls) == 2:
            fill(disk, 0)
        original(content, path)

    monkeypatch.setattr(checkpointing, "write_checkpoint", write)

    code, out, err = command("train", "-m", *tiny, "seed=0,1", f"hydra.sweep.dir={disk}/six")

    assert code == 1 and "Traceback" not in err, err
    assert "2 jobs" in out and "job 0 failed: " in out and "job 1 failed: " in out


def test_pictures_count_in_what_a_run_needs(command, tiny, tmp_path, monkeypatch):
    class Usage:
        free = 50 * MEGABYTE

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    own = [override for override in tiny if not override.startswith(("callbacks", "trainer.max_epochs"))]

    code, _, err = command("train", *own, "trainer.max_epochs=100", "hydra.run.dir=run")

    assert code == 2
    assert "need 0 MB and pictures about 116 MB, and 52 MB are free in run; free space, or keep fewer: " in err
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_needs_no_room_for_what_it_replaces(command, run_copy, monkeypatch):
    whole = (run_copy / "checkpoints/last.ckpt").stat().st_size

    class Usage:
        free = round(1.5 * whole)

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)

    code, _, err = command("train", f"resume={run_copy}", "trainer.max_epochs=3", "callbacks.filter_images=null")

    assert code == 0, err
    assert json.loads((run_copy / "results.json").read_text())["conditions"]["epochs"] == 3


def test_control_a_file_that_is_written_in_place_is_lost_on_a_full_disk(disk):
    (disk / "last.ckpt").write_bytes(b"old")
    fill(disk, 4096)

    with pytest.raises((OSError, RuntimeError)):
        torch.save({"weights": torch.randn(250_000)}, disk / "last.ckpt")

    assert (disk / "last.ckpt").read_bytes() != b"old"
