"""Averaged weights before their first update."""

import itertools
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import WeightAveraging


class CurrentUntilAveraged(lightning.Callback):
    """Until the first update of ``averaging``, which stands after it, the average is the current weights.

    Lightning keeps those that the training began with, and validates and saves them (its issue 21724).
    """

    def __init__(self, averaging: WeightAveraging) -> None:
        self.averaging = averaging

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Before the average stands in for the weights."""
        self._follow(pl_module)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Before the average is saved."""
        self._follow(pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Before the average becomes the weights."""
        self._follow(pl_module)

    @torch.no_grad()
    def _follow(self, pl_module: lightning.LightningModule) -> None:
        average = self.averaging._average_model
        if average is not None and average.n_averaged == 0:
            averages = itertools.chain(average.module.parameters(), average.module.buffers())
            for value, current in zip(
                averages, itertools.chain(pl_module.parameters(), pl_module.buffers()), strict=True
            ):
                value.copy_(current)
