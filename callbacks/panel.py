"""Where a picture goes: always to a file of the run folder, then to each logger that takes images.

``figures/<key>/epoch_NNN.png`` is the picture of an epoch's end. Of a validation inside an epoch
(``trainer.val_check_interval``) it is ``epoch_NNN_batch_NNNNNN.png``, with the number of the epoch's training batches
before it.
"""

import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from zfscope.callbacks.when import batch_number, epoch_number, moment
from zfscope.files import CannotWrite, replacing

LARGE = 2**19  # pixels above which W&B gets a JPEG: of grids of photographs a tenth of a PNG's size, and fast
# Of PNG files: hardly larger than usual, written in half the time. Projections are all grain, without repetitions to
# search for.
COMPRESSION = {"compress_level": 1, "compress_type": zlib.Z_RLE}


def show(trainer: Trainer, key: str, picture: Image.Image) -> Path | None:
    """Write a picture to ``<run folder>/figures/<key>/epoch_NNN.png`` and send it to the loggers under its key.

    A validation inside an epoch has a name of its own, as above, so that it overwrites no other's picture. A file that
    cannot be written or a logger that fails is told in a warning; the training goes on.

    The trainer's ``default_root_dir`` is the run folder, ``key`` the panel, such as ``projections/conv5``. Only global
    rank 0 writes. Returns the file, or None if it was not written.
    """
    if not trainer.is_global_zero:
        return None
    folder = Path(trainer.default_root_dir, "figures", *(_plain(part) for part in key.split("/")))
    batch = batch_number(trainer)
    inside = "" if batch is None else f"_batch_{batch:06d}"
    path = folder / f"epoch_{epoch_number(trainer):03d}{inside}.png"
    failed: list[tuple[Logger, Exception]] = []
    with ThreadPoolExecutor(1) as beside:  # W&B's JPEG is encoded meanwhile
        writing = beside.submit(_write, picture, path)
        for logger in trainer.loggers:
            try:
                _send(logger, trainer, key, picture, path if _is_small(picture) and not writing.result() else None)
            except Exception as error:  # whatever a server or its client does must not end a training of days
                failed.append((logger, error))
    if cause := writing.result():
        rank_zero_warn(f"{key}: {cause}")
    for logger, error in failed:
        place = "" if cause else f"; its file is in {folder}"
        rank_zero_warn(f"{key}: {type(logger).__name__} did not take the picture ({error}){place}")
    return None if cause else path


def _write(picture: Image.Image, path: Path) -> str:
    """Write a picture whole; returns why it could not be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            picture.save(file, "png", **COMPRESSION)
    except CannotWrite as error:
        return f"no picture: {error}"
    except OSError as error:
        return f"the picture was not written to {path.parent} ({error}); free space or mend its permissions"
    return ""


def _is_small(picture: Image.Image) -> bool:
    return picture.width * picture.height <= LARGE


def _send(logger: Logger, trainer: Trainer, key: str, picture: Image.Image, path: Path | None) -> None:
    """Hand a picture to one logger, if it takes images."""
    if isinstance(logger, WandbLogger):
        import wandb

        inside = "" if batch_number(trainer) is None else f", step {trainer.global_step}"
        caption = moment(trainer) + inside
        if _is_small(picture):  # a PNG: encoded once is enough, if it could be written
            image = wandb.Image(str(path) if path else picture, caption=caption)
        else:
            image = wandb.Image(picture, caption=caption, file_type="jpg")
        # ``epoch`` as Lightning logs it beside every metric, from 0, so that pictures and errors share one axis.
        logger.log_metrics({key: [image], "epoch": trainer.current_epoch}, step=trainer.global_step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, np.asarray(picture), trainer.global_step, dataformats="HWC")


def _plain(name: str) -> str:
    """Make one part of a path from any text: no separators, no leading dot, so it cannot leave its folder."""
    return re.sub(r"[^\w.-]+", "_", name).lstrip(".")[:100] or "_"
