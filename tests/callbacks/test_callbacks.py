"""Callbacks in short trainings on the CPU: what they change, which files they leave, what an offline W&B run holds."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zfscope.callbacks import FilterImages, FilterRenorm, When, build_logger, finish, show
from zfscope.callbacks.loggers import REDACTED, flatten, redact
from zfscope.figures import filter_sheet
from zfscope.networks.layers import conv_layers, filter_rms


class Tiny(lightning.LightningModule):
    """conv1 -> conv2 -> linear on 12 images; batches of 2, so 6 batches an epoch."""

    def __init__(self, channels=3, lr=0.5):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential()
        self.network.add_module("conv1", nn.Sequential())
        self.network.conv1.add_module("conv", nn.Conv2d(channels, 4, 3))
        self.network.add_module("conv2", nn.Conv2d(4, 5, 3))
        self.network.add_module("fc8", nn.Sequential(nn.Flatten(), nn.Linear(80, 2)))
        self.channels, self.lr = channels, lr

    def loss(self, batch):
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def training_step(self, batch, _):
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, _):
        self.log("val/top1_error", 50.0 + 10 * self.current_epoch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def _data(self):
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(12, self.channels, 8, 8, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(12) % 2), batch_size=2)

    train_dataloader = val_dataloader = _data


def trainer_of(folder, *callbacks, logger=False, **options):
    return lightning.Trainer(
        **({"max_epochs": 2, "log_every_n_steps": 1} | options),
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def picture(value=0):
    return Image.new("RGB", (6, 4), (value, 0, 0))


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, [1, 2, 3, 4, 5, 6]), (3, [3, 6]), ([1, 2, 5], [1, 2, 5]), (range(2, 4), [2, 3])]
)
def test_epochs_to_look_at_count_from_one(epochs, expected):
    assert [epoch for epoch in range(1, 7) if epoch in When(epochs)] == expected


@pytest.mark.parametrize("epochs", [0, -2, [], [1, 0], [1.5], True, ["2"]], ids=str)
def test_epochs_that_are_none_are_refused(epochs):
    with pytest.raises(ValueError, match=r"must be a whole number n .* or a list of epochs, all 1 or more"):
        When(epochs)


class Watch(lightning.Callback):
    """Notes the largest RMS of each kind of layer after each batch."""

    def __init__(self):
        self.rms = {"conv1": [], "conv2": [], "fc8": []}

    def on_train_batch_end(self, trainer, pl_module, *_):
        layers = conv_layers(pl_module) | {"fc8": pl_module.network.fc8[1]}
        for name, layer in layers.items():
            self.rms[name].append(float(filter_rms(layer.weight.detach()).max()))


def test_filters_stay_within_the_radius_after_every_step_and_dense_layers_are_left_alone(tmp_path):
    watch = Watch()

    trainer_of(tmp_path, FilterRenorm(0.05), watch).fit(Tiny())

    assert max(watch.rms["conv1"]) <= 0.05 * 1.00001 and max(watch.rms["conv2"]) <= 0.05 * 1.00001
    assert max(watch.rms["fc8"]) > 0.05


def test_while_gradients_accumulate_filters_are_not_touched(tmp_path):
    watch = Watch()

    trainer_of(tmp_path, FilterRenorm(0.05), watch, accumulate_grad_batches=3, max_epochs=1).fit(Tiny())

    within = [rms <= 0.05 * 1.00001 for rms in watch.rms["conv1"]]
    assert within == [False, False, True, True, True, True]


def test_filters_above_the_radius_are_counted_once_an_epoch(tmp_path):
    model = Tiny(lr=1e-6)
    with torch.no_grad():
        model.network.conv1.conv.weight[:3] *= 100

    trainer_of(tmp_path, FilterRenorm(1.0), logger=build_logger("csv", tmp_path)).fit(model)

    rows = np.genfromtxt(tmp_path / "csv/version_0/metrics.csv", delimiter=",", names=True, deletechars="")
    counted = rows["filter_renorm/conv1"]
    assert counted[~np.isnan(counted)][0] == 3  # they are at the radius from then on, and may drift above it again


def test_frozen_filters_are_left_as_they_are(tmp_path):
    model = Tiny()
    model.network.conv1.requires_grad_(False)
    before = model.network.conv1.conv.weight.clone()

    trainer_of(tmp_path, FilterRenorm(0.01)).fit(model)

    assert torch.equal(model.network.conv1.conv.weight, before)


def test_filter_renorm_refuses_what_cannot_be_done(tmp_path):
    with pytest.raises(ValueError, match="filter_rms=0 must be above 0"):
        FilterRenorm(0)
    model = Tiny()
    model.network = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with pytest.raises(ValueError, match="needs a model with conv layers"):
        trainer_of(tmp_path, FilterRenorm(0.1)).fit(model)


def test_filter_images_leaves_a_sheet_of_the_trained_filters_for_each_epoch_asked(tmp_path):
    model = Tiny()

    trainer = trainer_of(tmp_path, FilterImages(when=[2, 3, 4]), max_epochs=3)
    trainer.fit(model)
    trainer.validate(model, verbose=False)  # Lightning's epoch is then the fourth, which was not trained

    folder = tmp_path / "figures/filter_images/conv1"
    assert sorted(path.name for path in folder.iterdir()) == ["epoch_002.png", "epoch_003.png"]
    expected = filter_sheet(model.network.conv1.conv.weight, title="conv1, epoch 3")
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "epoch_003.png")), np.asarray(expected))


@pytest.mark.parametrize("channels", [1, 5])
def test_filter_images_takes_any_layer_and_any_number_of_channels(tmp_path, channels):
    callbacks = [FilterImages(), FilterImages("conv2")]

    trainer_of(tmp_path, *callbacks, max_epochs=1).fit(Tiny(channels))

    assert (tmp_path / "figures/filter_images/conv1/epoch_001.png").is_file()
    assert (tmp_path / "figures/filter_images/conv2/epoch_001.png").is_file()


def test_an_unknown_layer_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="no conv layer 'conv6'; the conv layers are conv1, conv2"):
        trainer_of(tmp_path, FilterImages("conv6")).fit(Tiny())

    assert not (tmp_path / "figures").exists()


def test_conv_layers_have_short_names_only_where_these_are_unique():
    model = nn.ModuleDict({"conv1": nn.Conv2d(1, 1, 1), "a": nn.ModuleDict({"conv2": nn.Conv2d(1, 1, 1)})})
    model["b"] = nn.ModuleDict({"conv2": nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1))})
    model["stem"] = nn.Conv2d(1, 1, 1)

    assert list(conv_layers(model)) == ["conv1", "a.conv2", "b.conv2.1", "stem"]


def test_several_figures_of_a_panel_become_files_by_name_inside_the_run_folder(tmp_path):
    trainer = trainer_of(tmp_path / "run")

    paths = show(trainer, "a/../../b", {"dog": picture(1), "../../cat/1": picture(2)})

    assert [path.name for path in paths] == ["epoch_001_dog.png", "epoch_001__.._cat_1.png"]
    assert all(path.resolve().is_relative_to(tmp_path / "run/figures") for path in paths)
    assert Image.open(paths[1]).getpixel((0, 0)) == (2, 0, 0)


def test_tensorboard_gets_the_picture(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = build_logger("tensorboard", tmp_path, config={"a": {"b": 1}})
    assert isinstance(logger, TensorBoardLogger)

    show(trainer_of(tmp_path, logger=logger), "filter_images/conv1", picture(7))
    logger.finalize("success")

    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Tags()["images"] == ["filter_images/conv1"]
    assert events.Images("filter_images/conv1")[0].width == 6


def test_a_failing_logger_warns_and_the_file_is_there(tmp_path, monkeypatch):
    logger = TensorBoardLogger(tmp_path, name="tensorboard")
    monkeypatch.setattr(logger.experiment, "add_image", lambda *_, **__: 1 / 0)

    with pytest.warns(UserWarning, match="TensorBoardLogger did not take the picture .division by zero."):
        paths = show(trainer_of(tmp_path, logger=logger), "panel", picture())

    assert paths == [tmp_path / "figures/panel/epoch_001.png"] and paths[0].is_file()


def test_a_picture_that_cannot_be_written_warns(tmp_path):
    (tmp_path / "figures").write_text("in the way")

    with pytest.warns(UserWarning, match="panel: the picture was not written to"):
        assert show(trainer_of(tmp_path), "panel", picture()) == []


def test_what_could_not_be_written_is_not_sent_from_an_older_file(tmp_path, monkeypatch):
    class Recording(WandbLogger):
        def __init__(self):
            self.sent = []

        def log_metrics(self, metrics, step=None):
            self.sent += metrics["panel"]

        log_hyperparams = save = finalize = lambda *_, **__: None

    def half_written(self, path, *_, **__):
        Path(path).write_bytes(b"half a picture")
        raise OSError("disk full")

    logger = Recording()
    show(trainer_of(tmp_path), "panel", picture(7))
    monkeypatch.setattr(Image.Image, "save", half_written)
    monkeypatch.setattr("wandb.Image", lambda given, **_: given)

    with pytest.warns(UserWarning, match="was not written to .*disk full"):
        written = show(trainer_of(tmp_path, logger=logger), "panel", picture(9))

    assert written == [] and logger.sent[0].getpixel((0, 0))[0] == 9
    assert Image.open(tmp_path / "figures/panel/epoch_001.png").getpixel((0, 0))[0] == 7


def test_panels_refuse_what_wandb_would_drop_and_names_that_would_overwrite(tmp_path):
    with pytest.raises(ValueError, match="panel has 50 figures; W&B shows 49 of a key"):
        show(trainer_of(tmp_path), "panel", {str(index): picture() for index in range(50)})
    with pytest.raises(ValueError, match="give the same file"):
        show(trainer_of(tmp_path), "panel", {"a b": picture(), "a/b": picture()})


def test_only_rank_zero_writes(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    monkeypatch.setattr(type(trainer), "is_global_zero", False)

    assert show(trainer, "panel", picture()) == []
    assert not (tmp_path / "figures").exists()


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
    with pytest.raises(ValueError, match="mode=shared must be offline or online"):
        build_logger("wandb", tmp_path, mode="shared")


def test_loggers_without_wandb(tmp_path):
    logger = build_logger("csv", tmp_path, config={"a": {"b": 1}})

    logger.log_metrics({"loss": 0.5}, step=3)
    logger.save()

    assert build_logger("none", tmp_path) is False
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
            trainer_of(folder, FilterImages(), FilterRenorm(0.05), logger=logger).fit(Tiny())
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
    assert len(media) == 2
    for one, other in zip(media, stored, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(other)))


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
        show(trainer, "panel", {"a": picture(), "b": picture()})
        finish(logger)
    finally:
        left_open.finish()

    (run_folder,) = (tmp_path / "run/wandb").glob("offline-run-*")
    (row,) = history_of(run_folder)
    assert (row["epoch"], row["panel.count"], row["panel.captions"]) == (2, 2, ["a epoch 3", "b epoch 3"])


def test_an_online_run_without_a_key_warns_and_goes_on_offline(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    with pytest.warns(UserWarning, match=r"W&B is not within reach \(No API key configured"):
        logger = build_logger("wandb", tmp_path / "run", mode="online", log_model=True)
    line = finish(logger)

    assert line.startswith(f"wandb sync {tmp_path / 'run' / 'wandb'}/offline-run-")


class Silent(Logger):
    """A logger that takes no images."""

    name = version = "silent"

    def log_metrics(self, metrics, step=None): ...

    def log_hyperparams(self, params): ...


def test_loggers_that_take_no_images_are_passed_over(tmp_path, recwarn):
    assert len(show(trainer_of(tmp_path, logger=Silent()), "panel", picture())) == 1

    assert not [warning for warning in recwarn if "did not take" in str(warning.message)]
