"""How a run ends: what it leaves, when it has finished, and what a resumed one does then."""

import csv
import dataclasses
import itertools
import json
import re
import zipfile

import pytest
import torch
from lightning.pytorch.callbacks import Timer

from tests.conftest import quick_first
from zfscope import load_network
from zfscope.networks.checkpoints import read_checkpoint, run_config, save_network

QUICK = ("callbacks=none", "evaluate.ten_crops=false")


def results(folder):
    return json.loads((folder / "results.json").read_text())


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_checkpoints_of_epochs_hold_weights_alone(run_copy):
    epoch, last = (read_checkpoint(run_copy / f"checkpoints/{name}.ckpt") for name in ("epoch_002", "last"))

    assert {"optimizer_states", "loops", "callbacks"} <= last.keys()
    assert epoch.keys() <= {"state_dict", "zfscope", "epoch", "global_step", "pytorch-lightning_version"}
    assert all(torch.equal(epoch["state_dict"][name], tensor) for name, tensor in last["state_dict"].items())
    sizes = [(run_copy / f"checkpoints/{name}.ckpt").stat().st_size for name in ("epoch_002", "last")]
    assert sizes[0] < 0.7 * sizes[1]


def test_checkpoints_of_epochs_hold_averaged_weights_where_there_are_any(command, tiny, tmp_path):
    code, _, err = command("train", *tiny, *QUICK, "+optim.ema.decay=0.5".replace("+", "++"), "hydra.run.dir=run")

    assert code == 0, err
    epoch, last = (read_checkpoint(tmp_path / f"run/checkpoints/{name}.ckpt") for name in ("epoch_002", "last"))
    assert all(torch.equal(epoch["state_dict"][name], tensor) for name, tensor in last["state_dict"].items())
    raw = last["current_model_state"]
    assert any(not torch.equal(raw[name], tensor) for name, tensor in epoch["state_dict"].items())


def test_what_the_checkpoints_take_is_said_first_and_is_what_they_take(trained_run):
    said = (trained_run.parent / "stdout.txt").read_text()

    whole, alone = re.search(r"best and last with ([\d.]+) MB each, 2 of epochs with ([\d.]+) MB", said).groups()
    for name, size in (("last", whole), ("epoch_001", alone)):
        taken = (trained_run / f"checkpoints/{name}.ckpt").stat().st_size / 1e6
        assert float(size) <= taken < float(size) + 0.3


def test_checkpoints_that_the_disk_has_no_room_for_are_refused_before_the_first_step(
    command, tiny, tmp_path, monkeypatch
):
    class Usage:
        free = 100_000

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)

    code, _, err = command("train", *tiny, "hydra.run.dir=run")

    assert code == 2
    assert re.search(r"the checkpoints need \d+ MB, and 0 MB are free in run; free space, or keep fewer", err)
    assert not (tmp_path / "run").exists()


def test_a_run_that_ends_before_its_first_validation_says_so_in_a_line(command, tiny, tmp_path, recwarn):
    code, out, err = command("train", *tiny, *QUICK, "trainer.max_steps=2", "hydra.run.dir=run")

    assert code == 0, err
    assert "no validation has run: the errors are those of the last step, 2" in out.splitlines()
    assert not [str(warning.message) for warning in recwarn if "ckpt" in str(warning.message)]
    assert not [str(warning.message) for warning in recwarn if "monitor" in str(warning.message)]
    assert results(tmp_path / "run")["conditions"]["evaluated"] == "last"
    assert "val/top1_error" in results(tmp_path / "run")["metrics"]


# --- resuming ---


def damage(path):
    """Other bytes within the largest tensor."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    middle = largest.header_offset + largest.file_size // 2
    content[middle : middle + 8] = bytes(255 - value for value in content[middle : middle + 8])
    path.write_bytes(content)


def test_a_damaged_last_checkpoint_is_replaced_by_the_newest_whole_one_with_a_warning(command, run_copy):
    best = read_checkpoint(run_copy / "checkpoints/best.ckpt")["global_step"]
    damage(run_copy / "checkpoints/last.ckpt")

    with pytest.warns(
        UserWarning, match=rf"last\.ckpt is damaged at .*; the run goes on from .*best\.ckpt, step {best}"
    ):
        code, _, err = command("train", "resume=outputs/run", "trainer.max_epochs=3")

    assert code == 0, err
    assert read_checkpoint(run_copy / "checkpoints/last.ckpt")["global_step"] == 9


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_by_name(command, run_copy):
    for path in (run_copy / "checkpoints").iterdir():
        damage(path)

    code, _, err = command("train", "resume=outputs/run", "trainer.max_epochs=3")

    assert code == 2 and "outputs/run/checkpoints/last.ckpt is damaged at" in err


def test_a_checkpoint_to_go_on_from_can_be_named(command, run_copy):
    damage(run_copy / "checkpoints/last.ckpt")

    code, _, err = command("train", "resume=outputs/run/checkpoints/best.ckpt", "trainer.max_epochs=3")
    refused, _, alone = command("train", "resume=outputs/run/checkpoints/epoch_001.ckpt", "trainer.max_epochs=4")

    assert code == 0, err
    assert results(run_copy)["conditions"]["epochs"] == 3
    assert refused == 2 and "epoch_001.ckpt holds weights alone; a run goes on from last.ckpt" in alone


@pytest.mark.parametrize(
    ("end", "later"),
    [
        (["+trainer.max_time=00:00:00:01", "trainer.max_epochs=-1", "optim/schedule=constant"],
         ["trainer.max_time=00:00:00:02"]),
        (["trainer.max_epochs=50", "+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, "
          "monitor: val/loss, patience: 0, min_delta: 100}"], ["callbacks.stop.min_delta=200"]),
        (["trainer.max_steps=4"], ["trainer.max_steps=5"]),
    ],
    ids=["time", "early stopping", "steps"],
)  # fmt: skip
def test_a_run_that_has_finished_is_left_as_it_is_and_goes_on_with_a_later_end(command, tiny, tmp_path, end, later):
    run = tmp_path / "run"
    started = [override for override in tiny if not override.startswith("trainer.max_epochs")]
    code, _, err = command("train", *started, *QUICK, *end, "hydra.run.dir=run")
    assert code == 0, err
    before, steps = files_of(run), read_checkpoint(run / "checkpoints/last.ckpt")["global_step"]

    same, out, err = command("train", "resume=run")
    assert (same, err) == (0, "") and "run has finished after" in out
    assert files_of(run) == before
    more, _, err = command("train", "resume=run", *later)

    assert more == 0, err
    assert read_checkpoint(run / "checkpoints/last.ckpt")["global_step"] > steps


@pytest.mark.parametrize(
    "case",
    quick_first(
        [
            ("trainer.max_steps=4", "trainer.max_steps=-1", "trainer.max_steps=-1"),  # within an epoch of 6
            ("trainer.max_steps=12", "trainer.max_steps=15", "trainer.max_steps=15"),  # at the end of one
            ("trainer.max_steps=4", "trainer.max_steps=15", "trainer.max_steps=15"),
            ("trainer.max_steps=6", "trainer.max_steps=-1", "trainer.max_steps=-1"),
            ("+trainer.max_time=00:00:10:00", "trainer.max_time=null", "trainer.max_steps=-1"),
        ],
        2,
    ),
)
def test_a_run_with_a_later_end_ends_with_the_weights_of_a_whole_one(command, tiny, tmp_path, monkeypatch, case):
    end, later, whole = case
    looks = itertools.count(1)
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_: 0.0 if next(looks) < 6 else 3600.0)  # of max_time alone
    other = ("trainer.max_epochs", "data.batch_size")
    own = [override for override in tiny if not override.startswith(other)]
    own += ["data.batch_size=4", "trainer.max_epochs=3", "optim/schedule=constant", "evaluate.enabled=false", *QUICK]
    assert command("train", *own, whole, "hydra.run.dir=whole")[0] == 0
    assert command("train", *own, end, "hydra.run.dir=run")[0] == 0
    before = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"]

    code, _, err = command("train", "resume=run", later)

    assert code == 0, err
    run, other = (read_checkpoint(tmp_path / f"{name}/checkpoints/last.ckpt") for name in ("run", "whole"))
    assert before < run["global_step"] == other["global_step"]
    assert all(torch.equal(run["state_dict"][name], tensor) for name, tensor in other["state_dict"].items())
    errors = [results(tmp_path / name)["metrics"]["train/top1_error"]["value"] for name in ("run", "whole")]
    assert errors[0] == errors[1]


def test_a_run_goes_on_when_the_weights_that_it_started_from_are_gone(command, tiny, trained_run, tmp_path):
    start = load_network(trained_run)
    start.preprocessing = dataclasses.replace(start.preprocessing, mean=start.preprocessing.mean + 20)
    save_network(start, run_config(trained_run), tmp_path / "start.ckpt")
    own = [override for override in tiny if not override.startswith("trainer.max_epochs")]
    own += ["weights=start.ckpt", "optim/schedule=constant", "evaluate.enabled=false", *QUICK]
    assert command("train", *own, "trainer.max_epochs=2", "hydra.run.dir=whole")[0] == 0
    assert command("train", *own, "trainer.max_epochs=1", "hydra.run.dir=run")[0] == 0
    (tmp_path / "start.ckpt").unlink()

    code, out, err = command("train", "resume=run", "trainer.max_epochs=2")

    assert code == 0, err
    assert "weights from" not in out
    run, whole = (load_network(tmp_path / name / "last") for name in ("run", "whole"))
    assert all(torch.equal(run.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())
    assert torch.equal(run.preprocessing.mean, start.preprocessing.mean)
    identity, expected = (results(tmp_path / name)["conditions"]["identity"] for name in ("run", "whole"))
    assert identity["facts"]["weights"] == expected["facts"]["weights"]
    assert [leg["changed"] for leg in identity["legs"]] == [{"trainer.max_epochs": [1, 2]}]


# --- what is logged last ---


def test_the_last_results_are_in_the_csv_file(command, tiny, tmp_path):
    code, _, err = command("train", *tiny, *QUICK, "logger=csv", "hydra.run.dir=run")

    assert code == 0, err
    (path,) = (tmp_path / "run").rglob("metrics.csv")
    with open(path, encoding="utf-8") as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    final = {key: float(value) for row in rows for key, value in row.items() if key.startswith("final/")}
    assert final["final/val/top1_error"] == pytest.approx(
        results(tmp_path / "run")["metrics"]["val/top1_error"]["value"]
    )
    assert final["final/parameters"] == results(tmp_path / "run")["conditions"]["parameters"]
    assert any("val/loss" in row for row in rows)


def test_tensorboard_has_one_file_with_the_last_results(command, tiny, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    code, _, err = command("train", *tiny, *QUICK, "logger=tensorboard", "hydra.run.dir=run")

    assert code == 0, err
    (path,) = (tmp_path / "run").rglob("events.out.tfevents*")
    accumulator = events.EventAccumulator(str(path))
    accumulator.Reload()
    assert {"final/val/top1_error", "val/top1_error"} <= set(accumulator.Tags()["scalars"])


# --- larger allocations ---


def test_a_run_on_one_device_within_a_larger_slurm_allocation_runs(command, tiny, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")

    code, _, err = command("train", *tiny, *QUICK, "trainer.max_epochs=1")

    assert code == 0, err


def test_several_tasks_of_srun_for_one_device_are_refused(command, tiny, monkeypatch):
    for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "4")

    code, _, err = command("train", *tiny, *QUICK)

    assert code == 2 and "srun started several tasks of a training on one device; use srun --ntasks=1" in err


def test_a_loss_that_is_no_number_advises_only_a_checkpoint_that_is_there(command, tiny, tmp_path):
    first, _, err = command("train", *tiny, *QUICK, "optim.lr=1e30", "trainer.max_epochs=1", "hydra.run.dir=run")
    assert first == 2 and err.strip().endswith("lower optim.lr or set trainer.gradient_clip_val=1")
    assert not (tmp_path / "run").exists()

    command("train", *tiny, *QUICK, "trainer.max_epochs=1", "hydra.run.dir=run")
    later, _, err = command("train", "resume=run", "optim.lr=1e30", "trainer.max_epochs=3")

    assert later == 2 and "go on from the last checkpoint with resume=run optim.lr=…" in err
    assert load_network(tmp_path / "run").classes == ("cat", "dog", "owl")
