"""Where a picture goes: always to a file of the run folder, then to each logger that takes images."""

import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import lightning
import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from zfscope.callbacks.when import epoch_number

MOST_IMAGES = 49  # W&B shows fewer than 50 images of a key at one step
LARGE = 2**19  # pixels above which W&B gets a JPEG: of grids of photographs a tenth of a PNG's size, and fast
# Of PNG files: hardly larger than usual, written in half the time. Projections are all grain, without repetitions to
# search for.
COMPRESSION = {"compress_level": 1, "compress_type": zlib.Z_RLE}


def show(trainer: lightning.Trainer, key: str, figures: Image.Image | Mapping[str, Image.Image]) -> list[Path]:
    """Write figures to ``<run folder>/figures/<key>/epoch_NNN[_<name>].png``; send them to the loggers under one key.

    A file that cannot be written or a logger that fails is told in a warning; the training goes on.

    Args:
        trainer: Its ``default_root_dir`` is the run folder. Only global rank 0 writes.
        key: Panel, such as ``projections/conv5``.
        figures: One figure, or fewer than 50 by name; the names are captions.

    Returns:
        The files written.

    Raises:
        ValueError: If there are 50 figures or more, or names that would share a file.
    """
    if not isinstance(figures, Mapping):
        figures = {"": figures}
    if len(figures) > MOST_IMAGES:
        raise ValueError(f"{key} has {len(figures)} figures; W&B shows {MOST_IMAGES} of a key, so join some into grids")
    if not trainer.is_global_zero:
        return []
    epoch = epoch_number(trainer)
    folder = Path(trainer.default_root_dir, "figures", *(_plain(part) for part in key.split("/")))
    paths = {name: folder / (f"epoch_{epoch:03d}" + (f"_{_plain(name)}" if name else "") + ".png") for name in figures}
    if len(set(paths.values())) < len(paths):
        raise ValueError(f"{key}: the names {', '.join(figures)} give the same file; use letters, digits, - and _")
    written: dict[str, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in paths.items():
            temporary = path.with_suffix(".tmp")
            figures[name].save(temporary, "png", **COMPRESSION)
            os.replace(temporary, path)
            written[name] = path
    except OSError as error:
        rank_zero_warn(f"{key}: the picture was not written to {folder} ({error}); free space or mend its permissions")
    for logger in trainer.loggers:
        try:
            _send(logger, trainer, key, figures, written)
        except Exception as error:  # whatever a server or its client does must not end a training of days
            rank_zero_warn(
                f"{key}: {type(logger).__name__} did not take the picture ({error}); its file is in {folder}"
            )
    return list(written.values())


def _send(
    logger: Logger,
    trainer: lightning.Trainer,
    key: str,
    figures: Mapping[str, Image.Image],
    written: Mapping[str, Path],
) -> None:
    """Hand figures to one logger, if it takes images."""
    epoch = epoch_number(trainer)
    if isinstance(logger, WandbLogger):
        import wandb

        images = []
        for name, figure in figures.items():
            caption = f"{name} epoch {epoch}".strip()
            if figure.width * figure.height <= LARGE and name in written:
                images.append(wandb.Image(str(written[name]), caption=caption))  # encoded once is enough
            else:
                images.append(wandb.Image(figure, caption=caption, file_type=_file_type(figure)))
        # ``epoch`` as Lightning logs it beside every metric, from 0, so that pictures and errors share one axis.
        logger.log_metrics({key: images, "epoch": trainer.current_epoch}, step=trainer.global_step)
    elif isinstance(logger, TensorBoardLogger):
        for name, figure in figures.items():
            tag = f"{key}/{name}" if name else key
            logger.experiment.add_image(tag, np.asarray(figure), trainer.global_step, dataformats="HWC")


def _file_type(figure: Image.Image) -> str:
    """Give the file type for W&B; the run folder has PNG always."""
    return "jpg" if figure.width * figure.height > LARGE else "png"


def _plain(name: str) -> str:
    """Make one part of a path from any text: no separators, no leading dot, so it cannot leave its folder."""
    return re.sub(r"[^\w.-]+", "_", name).lstrip(".")[:100] or "_"
