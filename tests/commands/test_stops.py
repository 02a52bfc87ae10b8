"""Signals: a command ends in one line, what was reached is kept, and a run goes on as if it had not been stopped."""

import json
import multiprocessing
import os
import signal
import time

import pytest
import torch

from tests.conftest import quick_first, type_command
from zfscope.networks.checkpoints import read_checkpoint
from zfscope.training.classifier import Classifier

QUICK = ("evaluate.ten_crops=false", "trainer.max_epochs=2")
STEP, VALIDATION = (f"zfscope.training.classifier.Classifier.{kind}_step" for kind in ("training", "validation"))
PLACES = {  # what is under way when the signal comes, and at which call
    "a step": (STEP, 5),
    "validation": (VALIDATION, 2),
    "evaluation": ("zfscope.training.run.predict", 1),
    "the last step of an epoch": (STEP, 3),
    "the first step": (STEP, 1),
    "a later validation": (VALIDATION, 4),
    "a picture": ("zfscope.callbacks.filter_images.show", 2),
    "saving the first time": ("zfscope.training.checkpointing.write_checkpoint", 1),
    "saving": ("zfscope.training.checkpointing.write_checkpoint", 3),
}
SCHEDULES = (
    "optim/schedule=plateau optim.schedule.patience=0",
    "optim/schedule=cosine ++optim.ema.decay=0.5 trainer.accumulate_grad_batches=2",
)


def interrupted(monkeypatch, place, number, call):
    """At this call of a function the process gets a signal, and the function then does its work."""
    owner, _, name = place.rpartition(".")
    parts = owner.split(".")
    module = __import__(".".join(parts[:-1] if parts[-1][0].isupper() else parts), fromlist=["x"])
    holder = getattr(module, parts[-1]) if parts[-1][0].isupper() else module
    original, calls = getattr(holder, name), []

    def wrapped(*arguments, **keywords):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*arguments, **keywords)

    monkeypatch.setattr(holder, name, wrapped)


def content(run):
    results = json.loads((run / "results.json").read_text())
    checkpoint = read_checkpoint(run / "checkpoints/last.ckpt")
    moments = checkpoint["optimizer_states"][0]["state"]
    values = {name: metric["value"] for name, metric in results["metrics"].items()}
    return values, checkpoint["global_step"], checkpoint["state_dict"], moments


@pytest.mark.parametrize(
    "case",
    quick_first(
        [
            (place, schedule, signal.SIGINT if place == "a step" else signal.SIGTERM)
            for schedule in SCHEDULES
            for place in PLACES
        ],
        4,
    ),
)
def test_a_run_that_a_signal_stops_ends_in_one_line_and_goes_on_as_a_whole_one(
    command, tiny, tmp_path, monkeypatch, case
):
    place, schedule, number = case
    own = [
        *tiny,
        *QUICK,
        *schedule.split(),
        "callbacks=default",
        *(f"callbacks.{name}=null" for name in ("projections", "occlusion_maps")),
    ]
    command("train", *own, "hydra.run.dir=whole")

    with monkeypatch.context() as patch:
        interrupted(patch, PLACES[place][0], number, PLACES[place][1])
        code, _, err = command("train", *own, "hydra.run.dir=run")

    assert code == 128 + number
    (line,) = err.splitlines()
    assert line.startswith(f"train.py: stopped by {number.name}; ")
    kept = (tmp_path / "run/checkpoints/last.ckpt").is_file()
    assert ("go on with python train.py resume=run" in line) == kept
    again, _, err = command("train", *(["resume=run"] if kept else [*own, "hydra.run.dir=run"]))
    assert again == 0, err
    for stopped, whole in zip(content(tmp_path / "run"), content(tmp_path / "whole"), strict=True):
        torch.testing.assert_close(stopped, whole, rtol=0, atol=0)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_stop_at_the_start_leaves_nothing(command, tiny, tmp_path, monkeypatch):
    interrupted(monkeypatch, "zfscope.training.run.open_data", signal.SIGTERM, 1)

    code, _, err = command("train", *tiny)

    assert (code, err) == (143, "train.py: stopped by SIGTERM; nothing had begun, nothing is left\n")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_sweep_that_is_stopped_tells_the_jobs_that_did_not_run(command, tiny, tmp_path, monkeypatch):
    interrupted(monkeypatch, PLACES["a step"][0], signal.SIGTERM, 8)

    code, out, err = command("train", "-m", *tiny, *QUICK, "seed=0,1,2", "hydra.sweep.dir=six")

    assert code == 143
    rows = [line for line in out.splitlines() if "seed=" in line][-3:]
    assert [row.split("│")[-2].strip() for row in rows] == ["finished", "no results", "not run"]
    assert err.splitlines()[-1] == "train.py: stopped by SIGTERM; go on with python train.py resume=six/1"
    assert not (tmp_path / "six/2").exists()


def test_a_second_ctrl_c_leaves_at_once(tiny, tmp_path, monkeypatch):
    def twice(self, batch, index):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the process went on")

    monkeypatch.setattr(Classifier, "training_step", twice)
    monkeypatch.chdir(tmp_path)
    child = os.fork()
    if child == 0:
        try:
            type_command(monkeypatch, "train", *tiny, "hydra.run.dir=run")
        finally:
            os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130


@pytest.mark.slow  # processes that load images, each started anew
def test_a_signal_to_all_processes_stops_as_one_to_the_run(command, tiny, tmp_path, monkeypatch):
    own = [*(override for override in tiny if "num_workers" not in override), *QUICK, "data.num_workers=2"]
    command("train", *own, "hydra.run.dir=whole")

    def training_step(self, batch, index):
        if self.trainer.global_step == 4:
            for process in (*multiprocessing.active_children(), multiprocessing.current_process()):
                os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.5)
        return original(self, batch, index)

    original = Classifier.training_step
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", training_step)
        code, _, err = command("train", *own, "hydra.run.dir=run")

    assert (code, len(err.splitlines())) == (143, 1)
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 5
    assert command("train", "resume=run")[0] == 0
    for stopped, whole in zip(content(tmp_path / "run"), content(tmp_path / "whole"), strict=True):
        torch.testing.assert_close(stopped, whole, rtol=0, atol=0)


def test_an_analysis_that_is_stopped_leaves_nothing(command, trained_run, tmp_path, monkeypatch):
    interrupted(monkeypatch, "zfscope.analyses.evaluate.predict", signal.SIGINT, 1)

    code, _, err = command(
        "analyze", "analysis=evaluate", f"checkpoint={trained_run}", "device=cpu", "logger=none", "hydra.run.dir=found"
    )

    assert code == 130 and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
