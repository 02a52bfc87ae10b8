"""Where a picture goes: a file of the run folder always, and each logger that takes images."""

import numpy as np
import pytest
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image, ImageDraw

from tests.callbacks.conftest import trainer_of
from zfscope.callbacks import show
from zfscope.callbacks.panel import is_flat


def picture(value=0, size=(6, 4)):
    return Image.new("RGB", size, (value, 0, 0))


class Recording(WandbLogger):
    """Keeps what W&B would be sent."""

    def __init__(self):
        self.sent = []

    def log_metrics(self, metrics, step=None):
        self.sent.append(metrics)

    log_hyperparams = save = finalize = lambda *_, **__: None


class Silent(Logger):
    """A logger that takes no images."""

    name = version = "silent"

    def log_metrics(self, metrics, step=None): ...

    def log_hyperparams(self, params): ...


@pytest.fixture
def images_of_wandb(monkeypatch):
    """``wandb.Image`` gives back what it is called with."""
    monkeypatch.setattr("wandb.Image", lambda content, **options: (content, options))


def test_whatever_the_key_the_file_lies_inside_the_run_folder(tmp_path):
    path = show(trainer_of(tmp_path / "run"), "a/../../b c", picture(2))

    assert path.resolve().is_relative_to(tmp_path / "run/figures") and path.name == "epoch_001.png"
    assert path.parent.name == "b_c"
    assert Image.open(path).getpixel((0, 0)) == (2, 0, 0)
    assert [entry.name for entry in path.parent.iterdir()] == ["epoch_001.png"]


def test_tensorboard_gets_the_picture(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="tensorboard")

    show(trainer_of(tmp_path, logger=logger), "filter_images/conv1", picture(7))
    logger.finalize("success")

    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Tags()["images"] == ["filter_images/conv1"]
    assert events.Images("filter_images/conv1")[0].width == 6


def photograph(side=64):
    """Grain in all colours, as projections and photographs have it; above it a title's strip."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    pixels[:8] = 255
    return Image.fromarray(pixels)


def test_a_photograph_is_a_jpeg_and_a_drawing_an_exact_png(tmp_path, monkeypatch):
    monkeypatch.undo()
    drawing = picture(5, (64, 48))
    ImageDraw.Draw(drawing).text((2, 2), "conv1, epoch 1")

    drawn, taken = (show(trainer_of(tmp_path), key, image) for key, image in (("a", drawing), ("b", photograph())))

    assert (drawn.name, taken.name) == ("epoch_001.png", "epoch_001.jpg")
    assert Image.open(drawn).tobytes() == drawing.tobytes() and not is_flat(photograph())
    assert Image.open(taken).size == (64, 64) and Image.open(taken).format == "JPEG"


def test_of_two_kinds_of_picture_one_file_is_left(tmp_path, monkeypatch):
    monkeypatch.undo()
    for image, name in ((picture(), "epoch_001.png"), (photograph(), "epoch_001.jpg"), (picture(), "epoch_001.png")):
        show(trainer_of(tmp_path), "panel", image)

        assert [entry.name for entry in (tmp_path / "figures/panel").iterdir()] == [name]


def test_wandb_gets_the_written_file(tmp_path, images_of_wandb):
    logger = Recording()

    path = show(trainer_of(tmp_path, logger=logger), "panel", picture())

    assert [metrics["panel"] for metrics in logger.sent] == [[(str(path), {"caption": "epoch 1"})]]
    assert [metrics["epoch"] for metrics in logger.sent] == [0]  # as Lightning counts beside every metric


def test_loggers_that_take_no_images_are_passed_over(tmp_path, recwarn):
    assert show(trainer_of(tmp_path, logger=Silent()), "panel", picture()).is_file()

    assert not [warning for warning in recwarn if "did not take" in str(warning.message)]


def test_a_failing_logger_warns_and_the_file_is_written(tmp_path, monkeypatch):
    logger = TensorBoardLogger(tmp_path, name="tensorboard")
    monkeypatch.setattr(logger.experiment, "add_image", lambda *_, **__: 1 / 0)

    with pytest.warns(UserWarning, match="TensorBoardLogger did not take the picture .division by zero."):
        path = show(trainer_of(tmp_path, logger=logger), "panel", picture())

    assert path == tmp_path / "figures/panel/epoch_001.png" and path.is_file()


def test_a_picture_that_cannot_be_written_warns(tmp_path):
    (tmp_path / "figures").write_text("in the way")

    with pytest.warns(UserWarning, match="panel: the picture was not written to"):
        assert show(trainer_of(tmp_path), "panel", picture()) is None


def test_what_could_not_be_written_is_not_sent_from_an_older_file(tmp_path, monkeypatch, images_of_wandb):
    def half_written(self, file, *_, **__):
        file.write(b"half a picture")
        raise OSError("disk full")

    logger = Recording()
    show(trainer_of(tmp_path), "panel", picture(7))
    monkeypatch.setattr(Image.Image, "save", half_written)

    with pytest.warns(UserWarning, match="was not written to .*disk full"):
        path = show(trainer_of(tmp_path, logger=logger), "panel", picture(9))

    assert path is None and logger.sent[0]["panel"][0][0].getpixel((0, 0))[0] == 9
    assert Image.open(tmp_path / "figures/panel/epoch_001.png").getpixel((0, 0))[0] == 7
    assert len(list((tmp_path / "figures/panel").iterdir())) == 1


def test_only_rank_zero_writes(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    monkeypatch.setattr(type(trainer), "is_global_zero", False)

    assert show(trainer, "panel", picture()) is None
    assert not (tmp_path / "figures").exists()
