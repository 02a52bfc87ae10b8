"""Data sets by name, the order in which images come, and the loaders that a Trainer wants.

The order of a run's batches is a function of (seed, number of the batch), nothing is stored, and so a run
that goes on in the middle of an epoch meets exactly the images that it would have met.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from joblib import cpu_count
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.utils.data import DataLoader

from zfscope.data.exclusions import without
from zfscope.data.imageset import ArrayImages, ImageSet
from zfscope.data.loader import Loader
from zfscope.data.order import TrainBatches, check_batch_size, share_of
from zfscope.data.quarantine import with_quarantine
from zfscope.data.sources.elpv import open_elpv
from zfscope.data.sources.fashion_mnist import open_fashion_mnist
from zfscope.data.sources.folders import open_caltech, open_folder
from zfscope.data.sources.imagenet import open_imagenet
from zfscope.data.sources.phantom import open_phantom
from zfscope.data.sources.torchvision import open_torchvision
from zfscope.data.sources.voc import open_voc
from zfscope.data.spec import TORCHVISION, DataConfig
from zfscope.data.splits import Splits
from zfscope.data.statistics import Statistics
from zfscope.data.transforms import Examples, TrainTransform
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.ranks import own_batches
from zfscope.schema import about

OPENERS: dict[str, Callable[[DataConfig], Splits]] = {
    "phantom": lambda config: open_phantom(Path(config.cache) / "phantom", config.split_seed),
    "elpv": open_elpv,
    "folder": open_folder,
    "imagenet": lambda config: open_imagenet(config.root),
    "caltech101": open_caltech,
    "caltech256": open_caltech,
    "voc2012": lambda config: open_voc(config.root, config.download),
    "fashion_mnist": open_fashion_mnist,
    "torchvision": open_torchvision,
}


def open_data(config: DataConfig, key: str = "data") -> Splits:
    """Open the data set that ``conf/data`` names: all of it, or the classes, cells and images that it asks for.

    Refused where a folder is missing or what lies there makes no data set, with where it looked and how to get it. From
    each part a few images may be left out that cannot be read (see ``zfscope.data.quarantine``).
    ``key`` says in messages where the config stands.
    """
    if config.name == "torchvision" and config.dataset is None:
        raise ValueError(f"data=torchvision needs {key}.dataset=, one of {', '.join(TORCHVISION)}")
    if config.root is None and config.name not in ("phantom", "elpv"):
        raise ValueError(f"data={config.name} needs {key}.root=DIR, the folder that holds it")
    with about(key, config.name) if config.root is None else about(f"{key}.root", config.root):
        splits = OPENERS[config.name](config)
    if config.cells is not None:
        splits = splits.map(lambda images: images.subset(images.types == config.cells))
    if config.classes is not None:
        with about(f"{key}.classes", f"[{','.join(config.classes)}]"):
            splits = splits.map(lambda images: images.only(config.classes))
    if config.exclude is not None:  # the paper removed what Caltech's images share with ImageNet from its training
        with about(f"{key}.exclude", config.exclude):
            splits = replace(splits, train=without(splits.train, config.exclude))
    return with_quarantine(splits)


class ImageData(lightning.LightningDataModule):
    """Loaders over the parts of a data set; batches are ``(image (N, 3, H, W), label, index)``.

    N is smaller where images cannot be read. In training and validation it may be 0, and all that is left of the image
    is its dimension N.

    ``statistics`` are needed for ``augment.pca_colour``. ``done`` is set when a run goes on: the batches behind it, for
    loaders that are opened before the Trainer knows.
    """

    def __init__(
        self,
        splits: Splits,
        config: DataConfig,
        preprocessing: Preprocessing,
        seed: int = 0,
        statistics: Statistics | None = None,
    ) -> None:
        super().__init__()
        self.splits, self.config, self.preprocessing, self.seed = splits, config, preprocessing, seed
        self.done = 0
        self.directions = statistics.colour_directions() if statistics is not None else None
        check_batch_size(config.batch_size, len(splits.train))

    @property
    def num_workers(self) -> int:
        """Processes that load; with ``auto`` none for small arrays in memory, else up to eight."""
        return workers_for(self.splits.train, self.config)

    @property
    def images_at_a_time(self) -> int:
        """Of the ``data.batch_size`` images of a step, those that this rank takes through the network at a time."""
        return share_of(self.config.batch_size, self.trainer.world_size, accumulated_batches(self.trainer))

    def readers(self, images: ImageSet) -> dict[str, Any]:
        """The options of a loader of these images that say who reads them.

        Processes decode files; what is decoded already is read by threads of this process: one, or
        ``data.num_workers``.
        """
        if getattr(images, "stored", None) is not None:
            return {"threads": 1 if self.config.num_workers == "auto" else self.config.num_workers}
        return {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}

    def train_dataloader(self) -> DataLoader:
        """Random views of the training images."""
        trainer, config = self.trainer, self.config
        transform = TrainTransform(self.preprocessing, config.augment, self.seed, self.directions)
        overfit = trainer.overfit_batches
        batches = TrainBatches(
            len(self.splits.train),
            config.batch_size,
            self.seed,
            position=lambda: max(self.done, trainer.fit_loop.epoch_loop.batch_progress.total.processed),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            accumulated=accumulated_batches(trainer),
        )
        batches.only = overfit if isinstance(overfit, int) else -int(-overfit * len(batches) // 1)
        return Loader(
            Examples(self.splits.train, transform, self.preprocessing.canvas_kind),
            batch_sampler=batches,
            **self.readers(self.splits.train),
            pin_memory=torch.cuda.is_available(),
            keeps_empty=True,
        )

    def val_dataloader(self) -> DataLoader:
        """The middle crop of the validation images, in order; each rank takes its own, none is repeated."""
        transform, trainer = self.preprocessing, self.trainer
        ranks = {"rank": trainer.global_rank, "world_size": trainer.world_size}
        return self._in_order(self.splits.val, transform, self.images_at_a_time, **ranks, keeps_empty=True)

    def canvases(self, images: ImageSet, batch_size: int) -> DataLoader:
        """All whole canvases in order, for evaluation with one and ten crops; of a shared pass this process's own."""
        return self._in_order(images, self.preprocessing.normalised_canvas, batch_size)

    def centre_crops(self, images: ImageSet, batch_size: int) -> DataLoader:
        """The middle crops of all images in order, as validation sees them; of a shared pass this process's own."""
        return self._in_order(images, self.preprocessing, batch_size)

    def _in_order(
        self,
        images: ImageSet,
        transform: Callable[..., Tensor],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        keeps_empty: bool = False,
    ) -> DataLoader:
        order = own_batches(len(images), batch_size)
        if world_size > 1:
            order = {"batch_size": batch_size, "sampler": range(rank, len(images), world_size)}
        return Loader(
            Examples(images, transform, self.preprocessing.canvas_kind),
            **order,
            **self.readers(images),
            pin_memory=torch.cuda.is_available(),
            keeps_empty=keeps_empty,
        )


def accumulated_batches(trainer: lightning.Trainer) -> int:
    """How many batches share the images of a step; 1 where a callback says so by epoch, and multiplies the images."""
    by_epoch = any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks)
    return 1 if by_epoch else trainer.accumulate_grad_batches


def workers_for(images: ImageSet, config: DataConfig) -> int:
    """Processes that decode images: ``auto`` needs none for arrays in memory, else up to eight."""
    if config.num_workers != "auto":
        return config.num_workers
    light = isinstance(images, ArrayImages) and config.augment.policy == "standard"
    return 0 if light else min(8, cpu_count())
