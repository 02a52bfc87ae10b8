"""Loggers, and what W&B's own tool reads back from an offline run."""

import json
import os
import re
import subprocess
import sys
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from tests.callbacks.conftest import Module, Pictures, fit, trainer_of
from zfscope.callbacks import FilterImages, FilterRenorm, build_logger, finish, show
from zfscope.callbacks.loggers import REDACTED, flatten, redact


class Logging(Module):
    """Logs a loss each step, and an error that grows from epoch to epoch; 6 batches an epoch."""

    def __init__(self):
        super().__init__(training=Pictures(24))

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, _):
        self.log("val/top1_error", 50.0 + 10 * self.current_epoch)


def test_config_is_flattened_and_secrets_are_redacted(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "s3cr3t-value")
    config = {"model": {"conv1": {"maps": 96}, "conv3": None}, "api_key": "abc", "data": {"root": "/x/s3cr3t-value"}}

    assert redact(flatten(config)) == {
        "model.conv1.maps": 96,
        "model.conv3": None,
        "api_key": REDACTED,
        "data.root": REDACTED,
    }


def test_loggers_that_are_unknown_are_refused(tmp_path):
    with pytest.raises(ValueError, match="logger=mlflow is unknown; the loggers are wandb, csv, tensorboard, none"):
        build_logger("mlflow", tmp_path)
    with pytest.raises(ValueError, match="mode=shared must be offline, online or disabled"):
        build_logger("wandb", tmp_path, mode="shared")


def test_loggers_without_wandb(tmp_path):
    logger = build_logger("csv", tmp_path, config={"a": {"b": 1}})

    logger.log_metrics({"loss": 0.5}, step=3)
    logger.save()

    assert build_logger("none", tmp_path) is False
    assert isinstance(build_logger("tensorboard", tmp_path, config={"a": {"b": 1}}), TensorBoardLogger)
    assert isinstance(logger, CSVLogger)
    assert (tmp_path / "csv/version_0/metrics.csv").read_text().split() == ["loss,step", "0.5,3"]
    assert "a.b: 1" in (tmp_path / "csv/version_0/hparams.yaml").read_text()
    assert finish(False) is None and finish(logger) is None


@cache
def inspected(folder, *options):
    """What W&B's own tool reads back from an offline run, without a server."""
    tool = Path(sys.executable).with_name("wandb")
    command = [tool, "leet", "inspect", "--json", *options, folder]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def history_of(folder):
    records = map(json.loads, inspected(folder).splitlines())
    return [record["history"]["item"] for record in records if record["type"] == "history"]


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Two trainings in one process, one after the other, the second one ending badly."""
    runs = []
    for number, code in ((1, 0), (2, 3)):
        folder = tmp_path_factory.mktemp("run") / "with space"
        logger = build_logger(
            "wandb",
            folder,
            name=f"run {number}",
            group="sweep",
            tags=["mini", "x" * 80, "logger.api_key=opensesame"],
            config={"model": {"number": number}, "password": "opensesame"},
            run_id=f"run{number}",
            log_model=False,
        )
        try:
            fit(folder, Logging(), FilterImages(), FilterRenorm(0.05), logger=logger, max_epochs=2)
        finally:
            line = finish(logger, code)
        runs.append((folder, line))
    return runs


def test_an_offline_run_holds_keys_steps_epochs_and_pictures(two_runs):
    folder, line = two_runs[0]
    (run_folder,) = (folder / "wandb").glob("offline-run-*-run1")

    rows = history_of(run_folder)

    assert line == f"wandb sync '{run_folder}'"
    panels = [row for row in rows if "filter_images/conv1.filenames" in row]
    assert [row["epoch"] for row in panels] == [0, 1]
    assert [row["trainer/global_step"] for row in panels] == [6, 12]
    assert [row["epoch"] for row in rows if "val/top1_error" in row] == [0, 1]
    assert len([row for row in rows if "train/loss" in row]) == 12
    assert len([row for row in rows if "filter_renorm/conv2" in row]) == 2
    media = [run_folder / "files" / row["filter_images/conv1.filenames"][0] for row in panels]
    stored = sorted((folder / "figures/filter_images/conv1").iterdir())
    assert len(media) == 2 and all(one.samefile(other) for one, other in zip(media, stored, strict=True))


def test_the_summary_of_an_offline_run_keeps_the_least_error_and_no_secret(two_runs):
    folder, _ = two_runs[0]
    (run_folder,) = (folder / "wandb").glob("offline-run-*")

    text = inspected(run_folder, "--summary")
    run = json.loads(text)

    assert run["summary"]["val/top1_error"] == {"min": 50}
    assert run["config"]["model.number"] == 1 and run["config"]["password"] == REDACTED
    assert "opensesame" not in text
    assert run["tags"] == [f"logger.api_key={REDACTED}", "mini", "x" * 64]
    assert (run["name"], run["state"], run["exit_code"]) == ("run 1", "finished", 0)


def test_pictures_and_errors_have_the_epoch_as_axis_and_the_training_loss_the_step(two_runs):
    (run_folder,) = (two_runs[0][0] / "wandb").glob("offline-run-*")

    records = [json.loads(line) for line in inspected(run_folder).splitlines()]

    axes = {
        record["metric"].get("name") or record["metric"]["glob_name"]: record["metric"].get("step_metric")
        for record in records
        if record["type"] == "metric"
    }
    assert axes["*"] == axes["val/top1_error"] == "epoch"
    assert axes["train/loss"] == "trainer/global_step"


def test_two_runs_of_one_process_stay_apart(two_runs):
    for number, (folder, _) in enumerate(two_runs, start=1):
        (run_folder,) = (folder / "wandb").glob("offline-run-*")
        assert run_folder.name.endswith(f"run{number}")
        assert len([row for row in history_of(run_folder) if "val/top1_error" in row]) == 2
        run = json.loads(inspected(run_folder, "--summary"))
        assert run["config"]["model.number"] == number
        assert run["exit_code"] == (0 if number == 1 else 3)


def test_a_run_left_open_by_others_does_not_swallow_ours_and_a_first_picture_has_its_epoch(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    left_open = wandb.init(project="other", dir=tmp_path, mode="offline", settings=wandb.Settings(silent=True))
    try:
        logger = build_logger("wandb", tmp_path / "run")
        trainer = trainer_of(tmp_path / "run", logger=logger)
        monkeypatch.setattr(type(trainer), "current_epoch", 2)
        show(trainer, "panel", Image.new("RGB", (6, 4)))
        finish(logger)
    finally:
        left_open.finish()

    (run_folder,) = (tmp_path / "run/wandb").glob("offline-run-*")
    (row,) = history_of(run_folder)
    assert (row["epoch"], row["panel.count"], row["panel.captions"]) == (2, 1, ["epoch 3"])


def test_an_online_run_without_a_key_warns_and_goes_on_offline(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    with pytest.warns(UserWarning, match=r"W&B is not within reach \(no API key for"):
        logger = build_logger("wandb", tmp_path / "run", mode="online", log_model=True)
    line = finish(logger)

    assert line.startswith(f"wandb sync {tmp_path / 'run' / 'wandb'}/offline-run-")


class RefusingServer(BaseHTTPRequestHandler):
    """Answers whatever is asked that the key is wrong."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(401)
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_): ...


# W&B keeps the first server that a process talked to, so this needs a process of its own.
IN_A_PROCESS = """
import sys, warnings
from zfscope.callbacks import loggers
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    logger = loggers.build_logger("wandb", sys.argv[1], mode="online", run_id="run1")
    logger.log_metrics({"loss": 0.5}, step=1)
    print(loggers.finish(logger))
for warning in told:
    print(warning.message)
"""


@pytest.mark.slow  # W&B tries each for several seconds
@pytest.mark.parametrize("server", ["wrong key", "unreachable"])
def test_an_online_run_whose_server_refuses_it_or_is_out_of_reach_warns_once_and_goes_on_offline(tmp_path, server):
    with ThreadingHTTPServer(("127.0.0.1", 0), RefusingServer) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        port = refusing.server_port if server == "wrong key" else 9
        place = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "a" * 40, "WANDB_SILENT": "true"}
        command = [sys.executable, "-c", IN_A_PROCESS, str(tmp_path)]
        answer = subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True, timeout=120)
        refusing.shutdown()

    assert answer.returncode == 0, answer.stderr
    sync, *told = [line for line in answer.stdout.splitlines() if "W&B" in line or line.startswith("wandb sync")]
    assert re.fullmatch(rf"wandb sync '?{tmp_path}/wandb/offline-run-\d+_\d+-run1'?", sync)
    assert len(told) == 1, told
    assert re.match(r"W&B is not within reach \(.*\); this run is logged offline, `wandb sync` sends it later", told[0])
