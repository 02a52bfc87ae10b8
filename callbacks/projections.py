"""What feature maps respond to, while a network trains. Source: Zeiler & Fergus (2014), Fig. 2."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from zfscope.activations import TopTable
from zfscope.callbacks.batches import image_of, indices_of, order_of, validation_loader
from zfscope.callbacks.panel import show
from zfscope.callbacks.when import When, epoch_number
from zfscope.deconvnet.winners import (
    OUTSIDE,
    TopActivationsHook,
    check_projectable,
    project_winners,
    random_subset,
    reproduces_activations,
)
from zfscope.figures import projection_sheet
from zfscope.networks.hooked import as_network
from zfscope.networks.network import Network


class Projections(Callback):
    """The top 9 image patches of feature maps beside their deconvnet projections; panels ``projections/<layer>``.

    The winners are found inside the validation pass that runs anyway. Then the images that the shown maps need are
    read once more, go forward once and are projected. Batches are ``(images, ...)`` or images alone; of several
    validation loaders the first counts. One that shuffles needs data whose third part is the index.

    Args:
        layers: Layers to look into; default: the conv layers of a zfscope network, the stages of a timm model, up to
            five conv layers of any other module.
        maps: Feature maps shown of each layer, a fixed random subset.
        top: Winners shown of each.
        when: Every n-th epoch, or a list of epochs counted from 1.
        seed: Of the subset.
        unpooling: ``sum`` or ``overwrite``, see ``zfscope.deconvnet.project``.

    Raises:
        ValueError: If a number is below 1; before training, if there is no such layer, the network cannot be
            projected, or winners could not be found again in the validation data set.
    """

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        maps: int = 6,
        top: int = 9,
        when: int | Sequence[int] = 1,
        seed: int = 0,
        unpooling: Literal["sum", "overwrite"] = "sum",
    ) -> None:
        if maps < 1 or top < 1:
            raise ValueError(f"Projections: maps={maps} and top={top} must be 1 or more")
        if unpooling not in ("sum", "overwrite"):
            raise ValueError(f"Projections: unpooling={unpooling!r} must be sum or overwrite")
        self.layers, self.maps, self.top, self.when, self.seed = layers, maps, top, When(when), seed
        self.unpooling = unpooling
        self._network: Network | None = None
        self._layers: tuple[str, ...] | None = None
        self._order: list[list[int]] | None = None
        self._hook: TopActivationsHook | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the network and refuse layers that it has not."""
        self._network, self._layers = as_network(pl_module, self.layers), None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be shown before the first step; a loader that Lightning has not yet, before its pass."""
        if trainer.val_dataloaders is not None:
            self._check(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to listen."""
        if self.when.is_now(trainer):
            if self._layers is None:
                self._check(trainer)
            self._order = order_of(validation_loader(trainer))
            self._hook = TopActivationsHook(self._network, self._layers, self.top)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Tell the hook which images come."""
        if self._hook is not None:
            self._hook.indices = indices_of(self._order, batch, batch_idx) if dataloader_idx == 0 else None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and show."""
        if self._hook is None:
            return
        hook, self._hook = self._hook, None
        hook.close()
        if hook.top is None:
            rank_zero_warn(f"Projections: validation ran none of {', '.join(self._layers)}; there is nothing to show")
            return
        tables = hook.top.compute()  # meets the other ranks
        if not trainer.is_global_zero:
            return
        maps = {layer: random_subset(len(table.values), self.maps, self.seed) for layer, table in tables.items()}
        tables = {layer: TopTable(*(part.cpu()[maps[layer]] for part in table)) for layer, table in tables.items()}
        dataset = validation_loader(trainer).dataset

        def read(indices: Sequence[int]) -> Tensor:
            with isolate_rng():
                return torch.stack([image_of(dataset[index]) for index in indices])

        if not reproduces_activations(self._network, tables, maps, read):
            rank_zero_warn(
                "Projections: an image read again from the validation data set does not give the activations that it "
                "won with; are images changed at random, or between the loader and the module's forward? Then the "
                "panels show something else"
            )
        panels: dict[str, Tensor] = {}  # patches and projections of each layer, (2, maps, top, 3, h, w)
        for winners in project_winners(self._network, tables, maps, read, unpooling=self.unpooling):
            shape = *tables[winners.layer].values.shape, *winners.patches.shape[1:]
            panel = panels.setdefault(winners.layer, torch.full((2, *shape), OUTSIDE, dtype=torch.uint8))
            panel[:, winners.rows, winners.ranks] = torch.stack([winners.patches, winners.tiles()[0]])
        for layer, table in tables.items():
            blank = torch.full((2, *table.values.shape, 3, 8, 8), OUTSIDE, dtype=torch.uint8)
            patches, projections = panels.get(layer, blank)
            title = f"{layer}, epoch {epoch_number(trainer)}"
            sheet = projection_sheet(maps[layer], patches, projections, table.values, title=title)
            show(trainer, f"projections/{layer}", sheet)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off: Lightning tears nothing down after an exception."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off, and let go of the network."""
        if self._hook is not None:
            self._hook.close()
        self._network = self._layers = self._order = self._hook = None

    def _check(self, trainer: Trainer) -> None:
        """Find the layers that have maps; refuse a loader that cannot be followed, and what cannot be projected."""
        loader = validation_loader(trainer)
        with isolate_rng():
            item = loader.dataset[len(loader.dataset) - 1]
        third = item[2] if isinstance(item, list | tuple) and len(item) > 2 else None
        is_number = isinstance(third, int) or (isinstance(third, Tensor) and third.numel() == 1)
        if order_of(loader) is None and not (is_number and int(third) == len(loader.dataset) - 1):
            raise ValueError(
                "Projections must know which images a validation batch holds: use a loader without shuffling, "
                "or data (image, label, index)"
            )
        if self.top > len(loader.dataset):
            rank_zero_warn(
                f"Projections: top={self.top}, but validation has {len(loader.dataset)} images: all of them are taken"
            )
        self._layers = check_projectable(self._network, self.layers, image_of(item), self.unpooling)
