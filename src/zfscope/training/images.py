"""The images of a training before its first step: hashed, decoded once, averaged; and those that it leaves out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zfscope.data.cache import fill
from zfscope.data.contents import check_unchanged, contents_of, warn_of_repeats
from zfscope.data.datamodule import workers_for
from zfscope.data.imageset import FileImages
from zfscope.data.quarantine import (
    MANIFEST,
    TooManyUnreadable,
    check_images,
    collecting,
    mark_unreadable,
    quarantines,
    recall,
    write_manifest,
)
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits
from zfscope.data.statistics import Statistics, statistics_of
from zfscope.networks.preprocessing import CanvasKind


def examine(
    splits: Splits, config: DataConfig, folder: Path, checkpoint: Mapping[str, Any] | None, path: Path | None
) -> tuple[Statistics, dict[str, np.ndarray]]:
    """Look at all images before the first step; returns the training images' statistics and the hashes of every part.

    With ``config.check`` every image is decoded once, and those that cannot be read are left out; their hashes are
    `UNREADABLE`. A run in ``folder`` that goes on from a ``checkpoint``, read from ``path``, must meet the images that
    it has met.

    Raises:
        TooManyUnreadable: If more images of a part cannot be read than may be left out.
        ValueError: If images changed since the checkpoint was written.
    """
    before = {} if checkpoint is None else checkpoint.get("zfscope", {})
    workers = workers_for(splits.train, config)
    kind = CanvasKind(config.resize, resizer=config.resizer)
    # Measuring and checking draw numbers, reading what was found does not.
    with torch.random.fork_rng(devices=[]), collecting(splits):
        if config.cache_images:
            fill(splits, config.cache, kind, workers)
        contents = contents_of(splits, config.cache, None if config.check else config.mean_images)
        check_unchanged(before.get("contents"), path, splits, contents)
        if checkpoint is not None:
            recall(splits, folder)
        options = {"most": config.mean_images, "num_workers": workers, "contents": contents["train"]}
        statistics = statistics_of(splits.train, kind, config.cache, **options)
        if config.check:
            check_images(splits, config.cache, config.resize, workers, contents)
    if config.check:
        mark_unreadable(splits, contents)
    if config.check and before.get("config", {}).get("data", {}).get("check"):
        check_unchanged(before.get("contents"), path, splits, contents, checked=True)
    warn_of_repeats(splits, contents)
    return statistics, contents


def recall_sizes(splits: Splits, checkpoint: Mapping[str, Any]) -> None:
    """Count the images that a run could not read with the size that they had: whole ones may stand in their place."""
    for part, images in _files_of(splits).items():
        sizes = checkpoint.get("zfscope", {}).get("unread", {}).get(part, {})
        images.sizes_before = {int(index): int(size) for index, size in sizes.items() if 0 <= index < len(images)}


def sizes_of_unread(splits: Splits) -> dict[str, dict[int, int]]:
    """What `recall_sizes` takes, of images that are not known to be unreadable before they are read."""
    return {part: images.sizes_before for part, images in _files_of(splits).items()}


def note_unreadable(splits: Splits, contents: Mapping[str, Tensor], checked: bool, folder: Path | None) -> None:
    """List in ``folder`` what is left out, now and whenever more is found while the run reads.

    An image that no check has found has not been seen by the run, which may go on with a whole one in its place: its
    hash in ``contents``, which checkpoints hold, becomes 0, which is unknown, and its size is kept.
    """
    for part, quarantine in quarantines(splits).items():
        quarantine.noted = partial(_note, splits, contents, folder, part)
        for index in () if checked else quarantine.positions().tolist():
            quarantine.noted(index)
    if folder is not None:
        write_manifest(splits, folder)


def _note(splits: Splits, contents: Mapping[str, Tensor], folder: Path | None, part: str, index: int) -> None:
    if part in contents:
        contents[part][index] = 0
    images = splits.parts[part]
    images.sizes_before.setdefault(index, images.size(index))
    if folder is not None:
        write_manifest(splits, folder)


def _files_of(splits: Splits) -> dict[str, FileImages]:
    """The parts that are files, of those that a run must find unchanged."""
    parts = {"train": splits.train, "val": splits.val}
    return {part: images for part, images in parts.items() if isinstance(images, FileImages)}


@contextmanager
def telling_how_to_go_on(folder: Path) -> Iterator[None]:
    """Where too many images turn out unreadable while a run reads, its refusal says how it goes on.

    Before the first step nothing of it is kept.
    """
    try:
        yield
    except TooManyUnreadable as error:
        if not (folder / "checkpoints" / "last.ckpt").is_file():
            (folder / MANIFEST).unlink(missing_ok=True)
            raise
        way = f"put whole ones in their place, then go on with resume={folder}"
        raise ValueError(f"{error.told}; {way}") from error
