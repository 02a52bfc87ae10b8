"""Where a picture goes: always to a file of the run folder, then to each logger that takes images.

``figures/<key>/epoch_NNN.jpg`` is the picture of an epoch's end. Of a validation inside an epoch
(``trainer.val_check_interval``) it is ``epoch_NNN_batch_NNNNNN.jpg``, with the number of the epoch's training batches
before it. What is drawn rather than photographed is a ``.png``.
"""

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from zfscope.callbacks.when import batch_number, epoch_number, moment
from zfscope.files import CannotWrite, replacing

# Of default panels the larger of the two files has 1.1 to 6 times the bytes of the other. Quality 95 with colours at
# full size is what keeps the SSIM of projections, which are all grain, at 0.98; WebP, at half size only, has 0.96.
FLAT = 0.75  # share of pixels that are as their left neighbours; above it the PNG is the smaller one, and exact
PNG = {"format": "png", "compress_level": 1, "compress_type": zlib.Z_RLE}  # a little larger, in half the time
JPEG = {"format": "jpeg", "quality": 95, "subsampling": 0}


def show(trainer: Trainer, key: str, picture: Image.Image) -> Path | None:
    """Write a picture to ``<run folder>/figures/<key>/epoch_NNN.jpg`` and send it to the loggers under its key.

    A drawing is a PNG (see above). A validation inside an epoch has a name of its own, so that it overwrites no other's
    picture. A file that cannot be written or a logger that fails is told in a warning; the training goes on.

    The trainer's ``default_root_dir`` is the run folder, ``key`` the panel, such as ``projections/conv5``. Only global
    rank 0 writes. Returns the file, or None if it was not written.
    """
    if not trainer.is_global_zero:
        return None
    folder = Path(trainer.default_root_dir, "figures", *(_plain(part) for part in key.split("/")))
    batch = batch_number(trainer)
    inside = "" if batch is None else f"_batch_{batch:06d}"
    ending, way = (".png", PNG) if is_flat(picture) else (".jpg", JPEG)
    path = folder / f"epoch_{epoch_number(trainer):03d}{inside}{ending}"
    cause = _write(picture, path, way)
    if cause:
        rank_zero_warn(f"{key}: {cause}")
    for logger in trainer.loggers:
        try:
            _send(logger, trainer, key, picture, None if cause else path, ending)
        except Exception as error:  # whatever a server or its client does must not end a training of days
            place = "" if cause else f"; its file is in {folder}"
            rank_zero_warn(f"{key}: {type(logger).__name__} did not take the picture ({error}){place}")
    return None if cause else path


def is_flat(picture: Image.Image) -> bool:
    """Whether a picture is drawn rather than photographed: text, lines, filters enlarged by a whole number."""
    pixels = np.asarray(picture)[::9]  # every ninth row tells
    same = (pixels[:, 1:] == pixels[:, :-1]).reshape(*pixels[:, 1:].shape[:2], -1).all(axis=2)
    return not same.size or float(same.mean()) >= FLAT


def _write(picture: Image.Image, path: Path, way: dict[str, Any]) -> str:
    """Write a picture whole, in place of an earlier one of either kind; returns why it could not be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            picture.save(file, **way)
        path.with_suffix(".jpg" if path.suffix == ".png" else ".png").unlink(missing_ok=True)
    except CannotWrite as error:
        return f"no picture: {error}"
    except OSError as error:
        return f"the picture was not written to {path.parent} ({error}); free space or mend its permissions"
    return ""


def _send(logger: Logger, trainer: Trainer, key: str, picture: Image.Image, path: Path | None, ending: str) -> None:
    """Hand a picture to one logger, if it takes images: its file, where there is one."""
    if isinstance(logger, WandbLogger):
        import wandb

        inside = "" if batch_number(trainer) is None else f", step {trainer.global_step}"
        caption = moment(trainer) + inside
        if path is not None:
            image = wandb.Image(str(path), caption=caption)
        else:
            image = wandb.Image(picture, caption=caption, file_type=ending[1:])
        # ``epoch`` as Lightning logs it beside every metric, from 0, so that pictures and errors share one axis.
        logger.log_metrics({key: [image], "epoch": trainer.current_epoch}, step=trainer.global_step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, np.asarray(picture), trainer.global_step, dataformats="HWC")


def _plain(name: str) -> str:
    """Make one part of a path from any text: no separators, no leading dot, so it cannot leave its folder."""
    return re.sub(r"[^\w.-]+", "_", name).lstrip(".")[:100] or "_"
