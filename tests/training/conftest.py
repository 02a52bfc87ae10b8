"""A tiny classifier with its trainer, checkpoints included, on images of one bright colour each."""

from collections.abc import Callable

import lightning
import pytest
import torch

from tests.conftest import composed, tiny_images
from zfscope.callbacks import FilterRenorm
from zfscope.data.datamodule import ImageData
from zfscope.data.imageset import ArrayImages
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits
from zfscope.networks.build import build_network
from zfscope.networks.preprocessing import Preprocessing
from zfscope.schema import check
from zfscope.training.checkpointing import BestCheckpoint, CheckpointFiles, EpochCheckpoints, LastCheckpoint
from zfscope.training.classifier import Classifier
from zfscope.training.spec import OptimConfig

CLASSES = ("red", "green", "blue")
MODEL = {
    "name": "tiny",
    "conv1": {"maps": 6, "kernel_size": 3, "padding": 1, "pool": {}, "norm": "after_pool"},
    "fc6": {"units": 8, "dropout": 0.5},
    "fc8": {},
}


class StopAt(lightning.Callback):
    """Ctrl-C after so many batches."""

    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_end(self, trainer, *_):
        if trainer.fit_loop.epoch_loop.batch_progress.total.processed == self.batches:
            raise KeyboardInterrupt


def parts(
    folder,
    *,
    optim=None,
    count=30,
    epochs=3,
    labels=None,
    callbacks=(),
    seed=0,
    every_n_steps=None,
    workers=0,
    model=MODEL,
    batch_size=None,
    **options,
):
    """A trainer, a classifier and its data; ``options`` are the Trainer's."""
    torch.manual_seed(seed)
    images, numbers = tiny_images(count)
    data = ArrayImages(images, numbers if labels is None else labels, CLASSES, "tiny")
    sizes = {"resize": 24, "crop": 20, "num_workers": workers}
    sizes["batch_size"] = batch_size or 8 * options.get("accumulate_grad_batches", 1) * options.get("devices", 1)
    config = check(DataConfig, {**composed()["data"], **sizes})
    prepare = Preprocessing(24, 20, torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 0.02))
    network = build_network(model, 3, 20)
    network.classes, network.preprocessing = CLASSES, prepare
    optim = check(OptimConfig, {"lr": 0.05, "schedule": {"name": "plateau", "patience": 0}, **(optim or {})})
    classifier = Classifier(
        network,
        optim,
        seed=seed,
        config={"model": model, "optim": optim.model_dump()},
        data=data.fingerprint,
        multilabel=labels is not None,
    )
    best = BestCheckpoint(folder / "checkpoints", classifier.monitor)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        plugins=[CheckpointFiles()],
        callbacks=[
            FilterRenorm(0.4),
            best,
            EpochCheckpoints(folder / "checkpoints", [2]),
            LastCheckpoint(folder / "checkpoints", every_n_steps),
            *callbacks,
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **options,
    )
    return trainer, classifier, ImageData(Splits(data, data, data), config, prepare, seed)


@pytest.fixture
def fit() -> Callable:
    """Train the tiny classifier: ``fit(folder, last=None, **options of parts) -> (trainer, classifier)``."""

    def train(folder, last=None, **options):
        trainer, classifier, data = parts(folder, **options)
        trainer.fit(classifier, data, ckpt_path=last, weights_only=True)
        return trainer, classifier

    return train
