"""Slurm: a job that is put back into the queue, or was preempted, goes on where it stood."""

import os
import signal

import pytest
import torch

from tests.commands.test_stops import PLACES, QUICK, content, interrupted
from tests.conftest import quick_first


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A batch job of one task, and an ``scontrol`` that notes what it is asked."""
    values = {"SLURM_JOB_ID": "123", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    values |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return program


@pytest.mark.parametrize("place", quick_first(["a step", "validation", "saving", "evaluation"], 1))
@pytest.mark.parametrize("folder", [["hydra.run.dir=own"], []])
def test_a_job_whose_time_is_over_is_requeued_and_goes_on_exactly(
    command, tiny, tmp_path, monkeypatch, job, place, folder
):
    own = [*tiny, *QUICK]
    command("train", *own, "hydra.run.dir=whole")
    with monkeypatch.context() as patch:
        interrupted(patch, PLACES[place][0], signal.SIGUSR1, PLACES[place][1])
        code, _, err = command("train", *own, *folder)
    (run,) = [tmp_path / "own"] if folder else (tmp_path / "outputs").iterdir()
    typed = run.relative_to(tmp_path)
    told = f"stopped by SIGUSR1; job 123 is back in the queue; go on with python train.py resume={typed}"
    assert (code, err) == (128 + signal.SIGUSR1, f"train.py: {told}\n")
    assert (tmp_path / "asked").read_text() == "requeue 123\n"

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again, _, err = command("train", *own, *folder)

    assert again == 0, err
    for stopped, whole in zip(content(run), content(tmp_path / "whole"), strict=True):
        torch.testing.assert_close(stopped, whole, rtol=0, atol=0)
    code, out, _ = command("train", *own, *folder)  # a job that trains several networks comes by here again
    assert code == 0 and f"{typed} has finished" in out


def test_a_queue_that_refuses_is_told_in_the_same_line(command, tiny, monkeypatch, job):
    job.write_text("#!/bin/sh\necho Invalid job id specified >&2\nexit 1\n")
    interrupted(monkeypatch, PLACES["a step"][0], signal.SIGUSR1, 5)

    code, _, err = command("train", *tiny, *QUICK, "hydra.run.dir=run")

    told = "job 123 could not be put back into the queue (Invalid job id specified); go on with"
    assert (code, err) == (138, f"train.py: stopped by SIGUSR1; {told} python train.py resume=run\n")


def test_another_training_of_a_job_that_came_back_starts_anew(command, tiny, tmp_path, monkeypatch, job):
    assert command("train", *tiny, *QUICK, "hydra.run.dir=one")[0] == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    assert command("train", *tiny, *QUICK, "seed=1", "hydra.run.dir=other")[0] == 0
    code, _, err = command("train", *tiny, *QUICK, "seed=1", "hydra.run.dir=one")

    assert (tmp_path / "other/checkpoints/last.ckpt").is_file()
    assert code == 2 and "one holds a run; go on with resume=one" in err


def test_control_a_command_that_does_not_look_for_its_run_finds_its_folder_taken(command, tiny, monkeypatch, job):
    with monkeypatch.context() as patch:
        interrupted(patch, PLACES["a step"][0], signal.SIGUSR1, 5)
        command("train", *tiny, *QUICK, "hydra.run.dir=own")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr("zfscope.commands.configs.with_resumption", lambda overrides: overrides)

    code, _, err = command("train", *tiny, *QUICK, "hydra.run.dir=own")

    assert code == 2 and "own holds a run" in err


def test_a_run_on_a_machine_with_slurm_is_not_told_to_use_srun(command, tiny, tmp_path, monkeypatch, recwarn):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    code, _, err = command("train", *tiny, *QUICK, "hydra.run.dir=run")

    assert code == 0, err
    assert [str(warning.message) for warning in recwarn if "srun" in str(warning.message)] == []


# --- sweeps ---


def test_a_job_of_a_sweep_whose_time_is_over_is_requeued_once_and_goes_on_exactly(
    command, tiny, tmp_path, monkeypatch, job
):
    sweep = ["-m", *tiny, *QUICK, "seed=0,1"]
    command("train", *sweep, "hydra.sweep.dir=whole")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setattr("zfscope.stops.is_listening", lambda: False)  # as in a process that submitit starts
    earlier = signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # where submitit's own handler stands
    with monkeypatch.context() as patch:
        interrupted(patch, PLACES["a step"][0], signal.SIGUSR2, 8)
        code, out, _ = command("train", *sweep, "hydra.sweep.dir=six")
    assert signal.signal(signal.SIGUSR2, earlier) == signal.SIG_IGN
    assert code == 128 + signal.SIGUSR2
    assert "job 1 stopped by SIGUSR2; job 77_1 is back in the queue" in out
    assert (tmp_path / "asked").read_text() == "requeue 77_1\n"
    assert not (tmp_path / "six/1/results.json").exists()

    code, _, err = command("train", *sweep, "hydra.sweep.dir=six")

    assert code == 0, err
    for stopped, whole in zip(content(tmp_path / "six/1"), content(tmp_path / "whole/1"), strict=True):
        torch.testing.assert_close(stopped, whole, rtol=0, atol=0)
