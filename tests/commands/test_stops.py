"""Signals: a command ends in one line, what was reached is kept, and a run goes on as if it had not been stopped."""

import csv
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pkgutil import resolve_name

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from tests.conftest import ROOT, quick_first, type_command
from zfscope.networks.checkpoints import read_checkpoint
from zfscope.training import checkpointing
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


def patched(patch, place, call, act):
    """At this call of a function something happens first."""
    owner, _, name = place.rpartition(".")
    holder, calls = resolve_name(owner), []
    original = getattr(holder, name)

    def wrapped(*arguments, **keywords):
        calls.append(1)
        if len(calls) == call:
            act()
        return original(*arguments, **keywords)

    patch.setattr(holder, name, wrapped)


def interrupted(monkeypatch, place, number, call):
    """At this call of a function the process gets a signal, and the function then does its work."""
    patched(monkeypatch, place, call, lambda: os.kill(os.getpid(), number))


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


@pytest.mark.parametrize("place", ["zfscope.training.run.open_data", "lightning.pytorch.trainer.trainer.Trainer.fit"])
@pytest.mark.parametrize("more", [[], ["-m", "seed=0,1"]], ids=["run", "sweep"])
def test_a_stop_at_the_start_leaves_nothing(command, tiny, tmp_path, monkeypatch, place, more):
    """Nor does one when the logger has begun to write."""
    interrupted(monkeypatch, place, signal.SIGTERM, 1)

    code, _, err = command("train", *more, *tiny, "logger=csv")

    assert (code, err.splitlines()[-1]) == (143, "train.py: stopped by SIGTERM; nothing had begun, nothing is left")
    assert {path.name for path in tmp_path.iterdir()} <= {"images", "cache"}


def test_a_stop_while_the_logger_starts_closes_it_and_leaves_nothing(command, tiny, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr("zfscope.callbacks.loggers.finish", lambda logger, code: closed.append((type(logger), code)))
    interrupted(monkeypatch, "zfscope.callbacks.loggers.run_id", signal.SIGTERM, 1)

    code, _, err = command("train", *tiny, "logger=csv")

    assert (code, err.splitlines()[-1]) == (143, "train.py: stopped by SIGTERM; nothing had begun, nothing is left")
    assert closed == [(CSVLogger, 1)]
    assert {path.name for path in tmp_path.iterdir()} <= {"images", "cache"}


def test_a_sweep_that_is_stopped_tells_the_jobs_that_did_not_run(command, tiny, tmp_path, monkeypatch):
    interrupted(monkeypatch, PLACES["a step"][0], signal.SIGTERM, 8)

    code, out, err = command("train", "-m", *tiny, *QUICK, "seed=0,1,2", "hydra.sweep.dir=six")

    assert code == 143
    rows = [line for line in out.splitlines() if "seed=" in line][-3:]
    assert [row.split("│")[-2].strip() for row in rows] == ["finished", "stopped", "not run"]
    assert err.splitlines()[-1] == "train.py: stopped by SIGTERM; go on with python train.py resume=six"
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


def typed(*arguments, **more):
    """A command in processes of their own, as where several ranks train."""
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    own = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    own |= {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own, **more)


@pytest.mark.parametrize("to_all", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("pause", quick_first([0.06, 0.0, 0.1, 0.2], 0))
def test_a_signal_stops_two_ranks_after_the_same_step_and_they_go_on(tiny, tmp_path, monkeypatch, to_all, pause):
    """Whether it comes to the first one alone or, as from a scheduler or a terminal, to both."""
    monkeypatch.chdir(tmp_path)
    own = [*tiny, "evaluate.enabled=false", "trainer.max_epochs=60", "checkpoints.epochs=[]"]
    own += ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"]
    process = typed(*own, "hydra.run.dir=run", start_new_session=True)
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("epoch 2/") for line in lines), process.stderr.read()
    time.sleep(pause)  # at the end of an epoch, within one or in a validation, which last about as long

    (os.killpg if to_all else os.kill)(process.pid, signal.SIGTERM)

    _, err = process.communicate(timeout=10)  # where a step and a save take less than 5 s
    *warned, told = err.splitlines()
    assert (process.returncode, told) == (143, "train.py: stopped by SIGTERM; go on with python train.py resume=run")
    assert all(line.startswith("warning: ") for line in warned), err
    with pytest.raises(ProcessLookupError):  # the other rank has ended too
        os.killpg(process.pid, 0)
    again = typed("resume=run")
    assert again.communicate(timeout=120)[1] == err.removesuffix(f"{told}\n") and again.returncode == 0
    whole = typed(*own, "hydra.run.dir=whole")
    whole.communicate(timeout=120)
    for stopped, whole in zip(content(tmp_path / "run"), content(tmp_path / "whole"), strict=True):
        torch.testing.assert_close(stopped, whole, rtol=0, atol=0)


@pytest.mark.slow  # twenty seconds of start-up
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("pause", [0.0, 0.5, 1.5, 2.5])
def test_a_stop_while_two_ranks_start_ends_them_and_leaves_nothing(tiny, tmp_path, monkeypatch, pause, number):
    monkeypatch.chdir(tmp_path)
    own = [*tiny, "trainer.max_epochs=200", "trainer.accelerator=cpu", "trainer.devices=2", "logger=wandb"]
    process = typed(*own, "hydra.run.dir=run", start_new_session=True)
    assert any(line.startswith("checkpoints: ") for line in iter(process.stdout.readline, "")), process.stderr.read()
    time.sleep(pause)

    os.killpg(process.pid, number)

    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in err
    told = err.splitlines()[-1].removeprefix(f"train.py: stopped by {number.name}; ")
    assert told == "nothing had begun, nothing is left" or (tmp_path / "run/checkpoints/last.ckpt").is_file(), told
    assert (tmp_path / "run").exists() == told.startswith("go on with")


@pytest.mark.parametrize("pause", quick_first([0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4], 1))
def test_a_signal_to_the_whole_process_group_ends_in_one_line_also_after_a_validation(
    tiny, tmp_path, monkeypatch, pause
):
    """Processes that load validation images start late, and libraries start threads in them."""
    monkeypatch.chdir(tmp_path)
    own = [*(override for override in tiny if "num_workers" not in override), "data.num_workers=2"]
    own += ["trainer.max_epochs=200", "checkpoints.epochs=[]", "evaluate.enabled=false"]
    process = typed(*own, "hydra.run.dir=run", start_new_session=True)
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("epoch 2/") for line in lines), process.stderr.read()
    time.sleep(pause)

    os.killpg(process.pid, signal.SIGTERM)

    _, err = process.communicate(timeout=10)  # where a step and a save take less than 5 s
    told = "train.py: stopped by SIGTERM; go on with python train.py resume=run"
    assert (process.returncode, err.splitlines()[-1]) == (143, told), err
    assert "Traceback" not in err and "killed by signal" not in err


def test_control_without_a_stop_of_our_own_a_signal_ends_a_training_with_another_code(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zfscope.stops.listening", lambda *_, **__: nullcontext())
    interrupted(monkeypatch, PLACES["a step"][0], signal.SIGTERM, PLACES["a step"][1])
    child = os.fork()
    if child == 0:
        try:
            os._exit(type_command(monkeypatch, "train", *tiny, "hydra.run.dir=run"))
        finally:
            os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 128 + signal.SIGTERM


def test_an_early_stop_that_waits_for_min_epochs_is_not_forgotten_and_told(command, tiny, tmp_path, monkeypatch):
    stop = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: lr, patience: 99, stopping_threshold: 0.005}"
    own = [*tiny, "evaluate.enabled=false", f"+callbacks.stop={stop}", "trainer.max_epochs=6", "+trainer.min_epochs=3"]
    own += [
        "optim/schedule=cosine",
        "optim.schedule.warmup_epochs=3",
        "optim.lr=0.01",
    ]  # a rate below the threshold in epoch 1 alone
    _, out, err = command("train", *own, "hydra.run.dir=whole")
    assert re.search(
        r"stopped after epoch 3, step \d+: asked for in epoch 1: Stopping threshold reached: lr = 0.00\d+ < 0.005", out
    ), out
    with monkeypatch.context() as patch:
        interrupted(patch, STEP, signal.SIGTERM, 5)
        assert command("train", *own, "hydra.run.dir=run")[0] == 143

    code, out, err = command("train", "resume=run")

    assert code == 0, err
    assert "stopped after epoch 3, step " in out
    for stopped, whole in zip(content(tmp_path / "run"), content(tmp_path / "whole"), strict=True):
        torch.testing.assert_close(stopped, whole, rtol=0, atol=0)


def test_a_stop_loses_no_logged_row_and_the_final_ones_stand_at_the_last_step(command, tiny, tmp_path, monkeypatch):
    own = [override for override in tiny if not override.startswith("logger")]
    own += ["logger=csv", "trainer.log_every_n_steps=1", *QUICK]

    def rows(run):
        tables = [csv.DictReader(path.open()) for path in sorted(run.rglob("metrics.csv"))]
        found = [row for table in tables for row in table]
        losses = [(row["step"], row["train/loss"]) for row in found if row["train/loss"]]
        return losses, [
            row["step"] for row in found if row.get("final/test/top1_error") or row.get("final/val/top1_error")
        ]

    assert command("train", *own, "hydra.run.dir=whole")[0] == 0
    with monkeypatch.context() as patch:
        interrupted(patch, STEP, signal.SIGTERM, 5)
        assert command("train", *own, "hydra.run.dir=run")[0] == 143
    assert command("train", "resume=run")[0] == 0

    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    losses, final = rows(tmp_path / "whole")
    assert len(losses) == 6 and final == ["6"]


def test_an_early_stop_that_waits_does_not_save_at_every_step(command, tiny, monkeypatch):
    stop = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: lr, stopping_threshold: 1}"
    own = [*tiny, "evaluate.enabled=false", f"+callbacks.stop={stop}", "trainer.max_epochs=6", "+trainer.min_epochs=4"]
    saved, original = [], checkpointing.write_checkpoint
    monkeypatch.setattr(checkpointing, "write_checkpoint", lambda *both: (saved.append(both[1]), original(*both)))

    assert command("train", *own, "checkpoints.epochs=[]", "hydra.run.dir=run")[0] == 0

    assert sum(str(path).endswith("last.ckpt") for path in saved) == 2 * 4  # before a validation and after it


def test_an_early_stop_does_not_hold_for_a_later_end(command, tiny, tmp_path):
    stop = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: lr, stopping_threshold: 1}"
    own = [*tiny, "evaluate.enabled=false", f"+callbacks.stop={stop}", "trainer.max_epochs=3", "hydra.run.dir=run"]
    assert command("train", *own)[0] == 0

    code, out, err = command("train", "resume=run", "callbacks.stop.stopping_threshold=-1.0")

    assert code == 0, err
    assert "stopped after" not in out
    assert json.loads((tmp_path / "run/results.json").read_text())["conditions"]["epochs"] == 3
