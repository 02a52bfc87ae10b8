"""Sweeps on a real Slurm: preempted, at the end of their time, killed, repeated; minutes, by `make test-slurm`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.commands.sweeping import states
from tests.commands.test_stops import content
from tests.conftest import ROOT, on_folders, write_folders
from tests.slurm.cluster import CPUS, asked, slurm

pytestmark = pytest.mark.slurm

# The seconds that a step takes are by its seed: what happens to a job then happens within its training.
SLOW = """
import time
from lightning.pytorch.callbacks import Callback

class Slow(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        with open(f"steps_{module.seed}", "a") as file:
            file.write(".")
        time.sleep({1: 1.0, 2: 2.5, 3: 0.2, 11: 0.5, 12: 0.5, 13: 0.5, 14: 0.5}.get(module.seed, 0.0))
"""
SLURM = (
    "hydra/launcher=slurm",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.timeout_min=2",
    "hydra.launcher.signal_delay_s=30",
)
AGAIN = ("resume=six", "trust=[slow.Slow]")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def place(tmp_path, cluster):
    """A working directory with images, and how to type a command there."""
    write_folders(tmp_path / "images", {"train": 8, "val": 4})
    (tmp_path / "slow.py").write_text(SLOW)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    return Place(tmp_path, cluster | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"})


class Place:
    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment
        own = ["evaluate.ten_crops=false", "trust=[slow.Slow]", "+callbacks.slow._target_=slow.Slow"]
        self.training = [*on_folders(folder / "images"), "trainer.max_epochs=20", *own]

    def start(self, *typed):
        command = [sys.executable, str(ROOT / "train.py"), *typed]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, **pipes)

    def type(self, *typed):
        process = self.start(*typed)
        out, err = process.communicate(timeout=1200)
        return process.returncode, out, err

    def asked(self, *command):
        return asked(*command, environment=self.environment)

    def queue(self):
        """The tasks of arrays in the queue: state by number of the task."""
        lines = self.asked("squeue", "-h", "-r", "-o", "%K %T").splitlines()
        return {task: state for task, state in (line.split() for line in lines if line)}

    def wait_for(self, what, seconds=240):
        until = time.monotonic() + seconds
        while not (answer := what()):
            assert time.monotonic() < until, (self.queue(), self.logs())
            self.asked("scontrol", "update", "job=" + self.array(), "starttime=now")  # a requeued job waits two minutes
            time.sleep(0.5)
        return answer

    def array(self):
        return next(iter(self.asked("squeue", "-h", "-r", "-o", "%F").split()), "0")

    def logs(self):
        return {path.name: path.read_text()[-1500:] for path in self.folder.glob("six/.submitit/*/*.err")}


def test_a_sweep_whose_jobs_are_preempted_and_run_out_of_time_ends_with_the_weights_of_whole_runs(place):
    code, _, err = place.type("-m", *place.training, "seed=1,2", "trust=[]", "callbacks.slow=null", "hydra.sweep.dir=w")
    assert code == 0, err
    sweep = place.start("-m", *SLURM, *place.training, "seed=0,1,2,9", "hydra.sweep.dir=six")
    place.wait_for(lambda: (place.folder / "six/1/checkpoints/last.ckpt").is_file())
    place.asked("scontrol", "requeue", f"{place.array()}_1")
    out, err = within(place, sweep)

    assert sweep.returncode == 0, (out, err, place.logs())
    assert states(out) == ["finished"] * 4
    assert restarts(place, 1)[0] == "preempted" and restarts(place, 2)[0] == "out of time"
    for number, whole in (("1", "0"), ("2", "1")):
        pairs = zip(content(place.folder / f"six/{number}"), content(place.folder / f"w/{whole}"), strict=True)
        for again, once in pairs:
            torch.testing.assert_close(again, once, rtol=0, atol=0)

        assert len((place.folder / f"steps_{number}").read_text()) == 60  # none was made twice

    before = len(list((place.folder / "six/.submitit").iterdir()))
    code, out, err = place.type(*AGAIN)

    assert code == 0, err
    assert "no job of this sweep is left to run" in out and states(out) == ["finished"] * 4
    assert len(list((place.folder / "six/.submitit").iterdir())) == before and place.queue() == {}


def within(place, sweep):
    """Wait for the end of a sweep; what it printed."""
    place.wait_for(lambda: sweep.poll() is not None, 900)
    return sweep.communicate()


def restarts(place, number):
    """Why a job was stopped, each time, by its log."""
    (log,) = place.folder.glob(f"six/.submitit/*_{number}/*_log.out")
    told = [line for line in log.read_text().splitlines() if f"job {number} stopped by" in line]
    causes = {"SIGTERM": "preempted", "SIGUSR2": "out of time"}
    assert all("back in the queue" in line for line in told if "SIGUSR2" in line), told
    return [next(cause for name, cause in causes.items() if name in line) for line in told]


def test_jobs_that_run_or_wait_are_listed_and_not_started_twice_and_one_that_was_killed_is_repeated(place):
    sweep = place.start("-m", *SLURM, *place.training, "seed=11,12,13,14", "hydra.sweep.dir=six")
    place.wait_for(lambda: (place.folder / "six/0/checkpoints/last.ckpt").is_file())
    sweep.kill()
    sweep.wait()

    code, out, err = place.type(*AGAIN)

    assert code == 1, err
    assert (code, states(out)) == (1, ["running"] * CPUS + ["waiting"] * (4 - CPUS))
    assert len(place.queue()) == 4
    assert "no job of this sweep is left to run" in out

    killed = [pid for pid in trainings(place.folder) if b"SLURM_ARRAY_TASK_ID=0\0" in content_of(pid, "environ")]
    assert len(killed) == 1
    os.kill(killed[0], signal.SIGKILL)
    place.asked("scancel", f"{place.array()}_3")
    place.wait_for(lambda: not place.queue(), 600)
    code, out, err = place.type(*AGAIN)

    assert code == 0, (out, err, place.logs())
    assert "2 jobs submitted to Slurm" in out and states(out) == ["finished"] * 4


def trainings(folder):
    """The processes in which jobs of Slurm train that were submitted in a folder."""
    beginning = f"{sys.executable}\0-u\0-m\0submitit.core._submit\0{folder}/".encode()
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [pid for pid in pids if content_of(pid, "cmdline").startswith(beginning)]


def content_of(pid, file):
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:
        return b""


def test_a_submission_that_slurm_refuses_ends_in_one_line_and_leaves_nothing(place):
    before = sorted(place.folder.iterdir())

    code, _, err = place.type("-m", *SLURM, "hydra.launcher.partition=none", *place.training, "seed=0,1")

    assert code == 2, err
    assert "invalid partition" in err and len(err.splitlines()) == 1, err
    assert [path for path in sorted(place.folder.iterdir()) if path not in before] == []
