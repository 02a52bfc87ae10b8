"""A sweep is repeated by its folder: what is missing or failed runs; the table is read from the folders."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module

import joblib
import pytest
import torch
import yaml
from hydra.core.plugins import Plugins

from tests.commands.refusals import refused
from tests.commands.sweeping import SIX, states
from tests.commands.test_stops import PLACES, QUICK, content, interrupted
from tests.conftest import ROOT
from zfscope.runs import lock
from zfscope.training.classifier import Classifier

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
AGAIN = {"the same line": SIX, "resume=": ("resume=six",), "an absolute path": ("resume=PLACE/six",)}


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A sweep that was submitted, and what ``squeue`` answers: ``queue(lines, code)``."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    def answers(*lines, code=0):
        (tmp_path / "six/.submitit").mkdir(exist_ok=True)
        (tmp_path / "six/.submitit/three.json").write_text("[0, 2, 3]")
        (tmp_path / "six/.submitit/one.json").write_text("[3]")
        program = tmp_path / "bin/squeue"
        (tmp_path / "bin/lines").write_text("".join(f"{line}\n" for line in lines))
        program.write_text(f"#!/bin/sh\ncat {tmp_path}/bin/lines {'>&2' if code else ''}\nexit {code}\n")
        program.chmod(0o755)

    return answers


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("way", AGAIN)
def test_a_sweep_that_is_repeated_runs_what_is_missing_or_failed_and_leaves_the_rest(command, starts, tmp_path, way):
    code, out, _ = command("train", *SIX)
    assert (code, states(out)) == (1, ["finished", "failed", "finished", "stopped"])
    assert "job 1 failed: out of memory" in out
    assert "what is missing or failed runs with python train.py resume=six" in out
    starts.clear()
    again = [word.replace("PLACE", str(tmp_path)) for word in AGAIN[way]]

    code, out, err = command("train", *again)

    assert code == 0, err
    assert starts == [(1, "number_1", False), (2, "number_3", True)]
    assert states(out) == ["finished"] * 4
    starts.clear()
    code, out, _ = command("train", *again)
    assert (code, starts, states(out)) == (0, [], ["finished"] * 4)
    assert "no job of this sweep is left to run" in out


def test_a_job_that_failed_and_is_killed_the_next_time_is_stopped(command, starts, monkeypatch):
    command("train", *SIX)
    monkeypatch.setenv("KILLED", "1")

    _, out, _ = command("train", "resume=six")

    assert states(out) == ["finished", "stopped", "finished", "stopped"]


def test_a_sweep_in_a_folder_with_a_space_is_repeated_by_the_line_that_it_prints(command, starts, tmp_path):
    _, out, _ = command("train", *SIX[:-1], "hydra.sweep.dir='a b'")
    assert "runs with python train.py 'resume=a b'" in out

    code, _, err = command("train", "resume=a b")

    assert code == 0, err
    assert {path.name for path in (tmp_path / "a b").iterdir()} == {".lock", *"0123", "multirun.yaml"}


def test_a_job_without_a_folder_runs_and_another_folder_in_the_sweep_is_left(command, starts, tmp_path):
    command("train", "-m", "seed=0,3,5", "hydra.sweep.dir=six")
    (tmp_path / "six/1").rename(tmp_path / "elsewhere")
    (tmp_path / "six/notes").mkdir()
    starts.clear()

    code, out, err = command("train", "resume=six")

    assert code == 0, err
    assert [seed for seed, *_ in starts] == [3] and "3 jobs" in out


def test_more_values_of_the_same_sweep_join_it(command, starts):
    command("train", "-m", "seed=0,3", "hydra.sweep.dir=six")
    starts.clear()

    code, out, err = command("train", "-m", "seed=0,3,4", "hydra.sweep.dir=six")

    assert code == 0, err
    assert [seed for seed, *_ in starts] == [4] and "3 jobs" in out


@pytest.mark.parametrize("seeds", ["0,3,2", "3,0,1"])
def test_other_values_in_the_folder_of_a_sweep_are_refused_in_one_line_and_nothing_changes(
    command, starts, tmp_path, seeds
):
    command("train", "-m", "seed=0,3", "optim.lr=0.1", "hydra.sweep.dir=six")
    before = files(tmp_path / "six")

    told = refused(command, tmp_path, "train", "-m", f"seed={seeds}", "optim.lr=0.2", "hydra.sweep.dir=six")

    assert "holds a job that was started with other values (" in told and "optim.lr=0.1" in told
    assert files(tmp_path / "six") == before


def test_a_sweep_of_analyses_computes_what_is_missing(command, trained_run, tmp_path):
    typed = [f"checkpoint={trained_run}", "device=cpu", "analysis.ten_crops=false", "hydra.sweep.dir=both"]
    command("analyze", "-m", *typed, "analysis.part=val,train", "logger=none")
    (tmp_path / "both/1/results.json").unlink()
    before = files(tmp_path / "both/0")

    code, _, err = command("analyze", "resume=both")

    assert code == 0, err
    assert files(tmp_path / "both/0") == before and (tmp_path / "both/1/results.json").is_file()
    told = refused(command, tmp_path, "train", "resume=both")
    assert told == "train.py: resume=both: it is a sweep of analyze.py; python analyze.py resume=both\n"


def test_a_job_that_another_process_runs_is_listed_and_not_started(command, starts, tmp_path):
    command("train", *SIX)
    starts.clear()

    with lock(tmp_path / "six/3"):
        code, out, _ = command("train", "resume=six")

    assert (code, states(out)) == (1, ["finished", "finished", "finished", "running"])
    assert [seed for seed, *_ in starts] == [1]
    assert "what is missing" not in out


def test_a_second_start_of_a_sweep_lists_its_jobs_and_ends_in_one_line(command, starts, tmp_path):
    command("train", *SIX)
    (tmp_path / "six/2").rename(tmp_path / "elsewhere")

    with lock(tmp_path / "six"), lock(tmp_path / "six/3"):
        code, out, err = command("train", *SIX)

    assert (code, states(out)) == (2, ["finished", "failed", "waiting", "running"])
    assert err.startswith("train.py: the run folder six is locked by another process") and err.count("\n") == 1


def test_a_job_that_a_signal_stopped_ends_with_the_weights_of_an_uninterrupted_one(
    command, tiny, tmp_path, monkeypatch
):
    command("train", "-m", *tiny, *QUICK, "seed=0,1", "hydra.sweep.dir=whole")
    with monkeypatch.context() as patch:
        interrupted(patch, PLACES["a step"][0], signal.SIGTERM, 8)
        code, _, err = command("train", "-m", *tiny, *QUICK, "seed=0,1", "hydra.sweep.dir=six")
    assert (code, err.splitlines()[-1]) == (
        143,
        "train.py: stopped by SIGTERM; go on with python train.py resume=six",
    )
    done = steps_of(tmp_path / "six/1")
    batches = []
    step = Classifier.training_step
    monkeypatch.setattr(Classifier, "training_step", lambda *given: (batches.append(1), step(*given))[1])

    code, _, err = command("train", "resume=six")

    assert code == 0, err
    assert done > 0 and done + len(batches) == steps_of(tmp_path / "whole/1")
    for stopped, whole in zip(content(tmp_path / "six/1"), content(tmp_path / "whole/1"), strict=True):
        torch.testing.assert_close(stopped, whole, rtol=0, atol=0)
    assert json.loads((tmp_path / "six/1/results.json").read_text())["conditions"]["overrides"][-1] == "seed=1"


def steps_of(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]


def test_a_job_that_goes_on_has_its_own_config(command, tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted(patch, PLACES["a step"][0], signal.SIGTERM, 2)
        command("train", "-m", *tiny, *QUICK, "seed=0,1", "hydra.sweep.dir=six")
    path = tmp_path / "six/0/.hydra/config.yaml"
    own = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(own | {"tags": ["of the start"]}))  # as if conf/ had said so then

    code, _, err = command("train", "resume=six")

    assert code == 0, err
    assert [yaml.safe_load((tmp_path / f"six/{job}/.hydra/config.yaml").read_text())["tags"] for job in "01"] == [
        ["of the start"],
        [],
    ]


def test_a_job_that_went_on_with_other_values_stays_a_job_of_its_sweep(command, tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted(patch, PLACES["a step"][0], signal.SIGTERM, 2)
        command("train", "-m", *tiny, *QUICK, "seed=0,1", "hydra.sweep.dir=six")
    command("train", "resume=six/0", "trainer.max_epochs=1")
    before = files(tmp_path / "six/0")

    code, _, err = command("train", "resume=six")

    assert code == 0, err
    assert files(tmp_path / "six/0") == before
    assert "trainer.max_epochs=1" in (tmp_path / "six/0/.hydra/overrides.yaml").read_text()


# --- launchers ---


def test_what_a_launcher_raises_ends_no_sweep_whose_jobs_are_left(command, starts, monkeypatch):
    launcher, launched = Plugins.instance().class_name_to_class[BASIC], []
    launch = launcher.launch

    def ends_early(self, job_overrides, initial_job_idx):
        launched.append(len(job_overrides))
        launch(self, job_overrides[:2], initial_job_idx)
        if len(job_overrides) > 2:
            raise RuntimeError("a process was killed")

    monkeypatch.setattr(launcher, "launch", ends_early)

    code, out, _ = command("train", *SIX)

    assert "the launcher ended early: a process was killed" in out
    assert launched == [4, 2]
    assert [seed for seed, *_ in starts] == [0, 1, 3, 2]
    assert [name for _, name, _ in starts] == [f"number_{number}" for number in range(4)]
    assert (code, states(out)) == (1, ["finished", "failed", "finished", "stopped"])


def test_a_launcher_that_starts_no_job_ends_in_one_line_and_leaves_nothing(command, starts, tmp_path, monkeypatch):
    def refuses(self, job_overrides, initial_job_idx):
        raise ValueError("invalid partition")

    monkeypatch.setattr(Plugins.instance().class_name_to_class[BASIC], "launch", refuses)

    told = refused(command, tmp_path, "train", *SIX)

    assert told == "train.py: no job of the sweep could be launched: invalid partition\n"


def test_a_launcher_without_a_sweep_is_refused(command, tmp_path):
    told = refused(command, tmp_path, "train", "hydra/launcher=joblib", "seed=0")

    assert told.startswith("train.py: hydra/launcher=joblib: a launcher starts the jobs of a sweep; add --multirun")


def test_slurm_is_refused_where_there_is_none(command, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    told = refused(command, tmp_path, "train", "-m", "hydra/launcher=slurm", "seed=0,1")

    assert told.startswith("train.py: hydra/launcher: sbatch, srun and squeue of Slurm are not found; ")


# --- Slurm's queue ---


def test_jobs_in_the_queue_are_listed_and_not_submitted_again(command, starts, tmp_path, queue):
    command("train", *SIX)
    (tmp_path / "six/2").rename(tmp_path / "elsewhere")
    starts.clear()
    own = [f"{task}|{tmp_path / 'six'} three.json" for task in ("0|RUNNING", "1|RUNNING", "2|PENDING")]
    queue(*own, "1|PENDING|/other three.json", "N/A|RUNNING|")

    code, out, _ = command("train", "resume=six")

    assert (code, states(out)) == (1, ["finished", "finished", "running", "waiting"])
    assert [seed for seed, *_ in starts] == [1]


def test_a_sweep_of_one_job_is_no_array(command, starts, tmp_path, queue):
    command("train", *SIX)
    starts.clear()
    queue(f"N/A|PENDING|{tmp_path / 'six'} one.json")

    _, out, _ = command("train", "resume=six")

    assert states(out) == ["finished", "finished", "finished", "waiting"]


def test_a_queue_that_does_not_answer_is_told_in_one_line_and_nothing_is_started(command, starts, queue):
    command("train", *SIX)
    starts.clear()
    queue("Unable to contact slurm controller", code=1)

    code, _, err = command("train", "resume=six")

    told = "which jobs of the sweep run or wait is not known: squeue: Unable to contact slurm controller"
    assert (code, err, starts) == (2, f"train.py: {told}\n", [])


# --- joblib ---


def test_joblib_has_no_more_processes_than_jobs_and_shares_the_cores_among_these(command, monkeypatch):
    seen = []

    class Parallel(joblib.Parallel):
        def __call__(self, tasks):
            seen.append((self.n_jobs, self.batch_size, len(list(tasks))))
            return []

    monkeypatch.setattr(import_module("hydra_plugins.hydra_joblib_launcher._core"), "Parallel", Parallel)
    monkeypatch.setattr("joblib.effective_n_jobs", lambda n_jobs: 8 if n_jobs == -1 else n_jobs)

    for typed in ([], ["hydra.launcher.n_jobs=2"]):
        command("train", "-m", "seed=0,1,2", "hydra/launcher=joblib", *typed)

    assert seen == [(3, 1, 3), (2, 1, 3)]


KILLER = """
import os, signal
from lightning.pytorch.callbacks import Callback

class Killer(Callback):
    def on_train_epoch_end(self, trainer, module):
        if module.seed == 1 and not os.path.exists("killed"):
            open("killed", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_process_of_joblib_costs_its_own_jobs_and_the_others_run(tmp_path, tiny):
    (tmp_path / "killer.py").write_text(KILLER)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    own = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1,2,3,4,5", *tiny, "hydra.sweep.dir=six"]
    own += ["trust=[killer.Killer]", "+callbacks.killer._target_=killer.Killer"]
    command = [sys.executable, str(ROOT / "train.py"), *own]

    first, second = (
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True) for _ in range(2)
    )

    assert first.returncode == 1, first.stderr
    assert "the launcher ended early" in first.stdout and "stopped" in states(first.stdout, 6)
    assert states(first.stdout, 6).count("finished") >= 4
    assert second.returncode == 0, second.stdout + second.stderr
    assert states(second.stdout, 6) == ["finished"] * 6


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_of_joblib_in_one_line_and_it_goes_on_exactly(command, tmp_path, tiny):
    own = ["-m", *tiny, QUICK[0], "trainer.max_epochs=40", "seed=0,1,2"]
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=six"]
    line = [sys.executable, str(ROOT / "train.py"), *own, *joblib]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}

    process = subprocess.Popen(line, cwd=tmp_path, start_new_session=True, **pipes)
    while not (tmp_path / "six/1/checkpoints/last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to all processes
    _, err = process.communicate(timeout=100)

    assert process.returncode == 130
    assert err.splitlines()[-1] == "train.py: stopped by SIGINT; go on with python train.py resume=six"
    assert command("train", "resume=six", "hydra/launcher=basic")[0] == 0
    assert command("train", *own, "hydra.sweep.dir=whole")[0] == 0
    for stopped, whole in zip(content(tmp_path / "six/1"), content(tmp_path / "whole/1"), strict=True):
        torch.testing.assert_close(stopped, whole, rtol=0, atol=0)
