"""What feature maps respond to, while a network trains. Source: Zeiler & Fergus (2014), Fig. 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from zfscope.callbacks.panel import show
from zfscope.callbacks.when import When, epoch_number
from zfscope.figures import projection_sheet
from zfscope.networks import Network, network_of
from zfscope.winners import OUTSIDE, Miner, choose_maps, layers_to_watch, project_winners


class Projections(lightning.Callback):
    """The top 9 image patches of feature maps beside their deconvnet projections; panels ``projections/<layer>``.

    The winners are found inside the validation pass that runs anyway. Then the images that the shown maps need are
    read once more, go forward once and are projected.

    Args:
        layers: Layers to look into; default: the conv layers of a zfscope network, the stages of a timm model, up to
            five conv layers of any other module.
        maps: Feature maps shown of each layer, a fixed random subset.
        top: Winners shown of each.
        when: Every n-th epoch, or a list of epochs counted from 1.
        seed: Of the subset.
        unpooling: ``sum`` or ``overwrite``, see ``zfscope.deconvnet.project``.

    Raises:
        ValueError: If a number is below 1; before training, if there is no such layer.
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
        self._miner: Miner | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Find the network and refuse layers that it has not."""
        self._network = network_of(pl_module, self.layers)
        self.layers = layers_to_watch(self._network, self.layers)

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start to listen."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and epoch_number(trainer) in self.when:
            self._miner = Miner(self._network, self.layers, self.top)

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Tell the miner which images come."""
        if self._miner is not None:
            self._miner.indices = indices_of(trainer, batch, batch_idx) if dataloader_idx == 0 else None

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw and show."""
        if self._miner is None:
            return
        miner, self._miner = self._miner, None
        miner.close()
        if miner.top is None:
            return
        tables = miner.top.compute()  # meets the other ranks
        if not trainer.is_global_zero:
            return
        maps, chosen = {}, {}
        for layer, table in tables.items():
            maps[layer] = choose_maps(len(table.values), self.maps, self.seed)
            chosen[layer] = type(table)(*(part.cpu()[maps[layer]] for part in table))
        dataset = validation_set(trainer)
        found = project_winners(
            self._network,
            chosen,
            maps,
            lambda indices: torch.stack([torch.as_tensor(dataset[index][0]) for index in indices]),
            unpooling=self.unpooling,
        )
        panels: dict[str, tuple[Tensor, Tensor]] = {}
        for winners in found:
            if winners.layer not in panels:
                shape = *chosen[winners.layer].values.shape, *winners.patches.shape[1:]
                panels[winners.layer] = torch.full((2, *shape), OUTSIDE, dtype=torch.uint8).unbind()
            patches, projections = panels[winners.layer]
            patches[winners.rows, winners.ranks] = winners.patches
            projections[winners.rows, winners.ranks] = winners.tiles()[0]
        for layer, table in chosen.items():
            blank = torch.full((*table.values.shape, 3, 8, 8), OUTSIDE, dtype=torch.uint8)
            patches, projections = panels.get(layer, (blank, blank))
            sheet = projection_sheet(
                maps[layer], patches, projections, table.values, title=f"{layer}, epoch {epoch_number(trainer)}"
            )
            show(trainer, f"projections/{layer}", sheet)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Take the hooks off."""
        if self._miner is not None:
            self._miner.close()
            self._miner = None


def indices_of(trainer: lightning.Trainer, batch: Any, batch_idx: int) -> Tensor:
    """Index in the data set of each image of a batch: the batch's third part, else counted as the samplers count."""
    images = batch[0] if isinstance(batch, list | tuple) else batch
    if isinstance(batch, list | tuple) and len(batch) > 2:
        third = batch[2]
        if isinstance(third, Tensor) and third.shape == (len(images),) and not third.is_floating_point():
            return third
    dataloader = _first_loader(trainer)
    count = len(dataloader.dataset)
    start = batch_idx * (dataloader.batch_size or len(images))
    local = torch.arange(start, start + len(images), device=images.device)
    # A distributed sampler deals images out in turn, and begins again at the first to fill up its last round.
    return (local * trainer.world_size + trainer.global_rank) % count


def validation_set(trainer: lightning.Trainer) -> Any:
    """The data set that validation runs over; images are read from it by index."""
    return _first_loader(trainer).dataset


def _first_loader(trainer: lightning.Trainer) -> Any:
    loaders = trainer.val_dataloaders
    loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
    if not hasattr(getattr(loader, "dataset", None), "__getitem__"):
        raise ValueError("Projections reads the winners' images again: the validation data set needs dataset[index]")
    return loader
