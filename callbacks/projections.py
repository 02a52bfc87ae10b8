"""What feature maps respond to, while a network trains. Source: Zeiler & Fergus (2014), Fig. 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, IterableDataset, SequentialSampler

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


class Projections(lightning.Callback):
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
        self._miner: TopActivationsHook | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Find the network and refuse layers that it has not."""
        self._network, self._layers = as_network(pl_module, self.layers), None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse what cannot be shown before the first step; a loader that Lightning has not yet, before its pass."""
        if trainer.val_dataloaders is not None:
            self._try_out(trainer)

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start to listen."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and epoch_number(trainer) in self.when:
            if self._layers is None:
                self._try_out(trainer)
            self._order = order_of(validation_loader(trainer))
            self._miner = TopActivationsHook(self._network, self._layers, self.top)

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
            self._miner.indices = indices_of(self._order, batch, batch_idx) if dataloader_idx == 0 else None

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw and show."""
        if self._miner is None:
            return
        miner, self._miner = self._miner, None
        miner.close()
        if miner.top is None:
            rank_zero_warn(f"Projections: validation ran none of {', '.join(self._layers)}; there is nothing to show")
            return
        tables = miner.top.compute()  # meets the other ranks
        if not trainer.is_global_zero:
            return
        maps, chosen = {}, {}
        for layer, table in tables.items():
            maps[layer] = random_subset(len(table.values), self.maps, self.seed)
            chosen[layer] = type(table)(*(part.cpu()[maps[layer]] for part in table))
        dataset = validation_loader(trainer).dataset

        def read(indices: Sequence[int]) -> Tensor:
            with isolate_rng():
                return torch.stack([image_of(dataset[index]) for index in indices])

        if not reproduces_activations(self._network, chosen, maps, read):
            rank_zero_warn(
                "Projections: an image read again from the validation data set does not give the activations that it "
                "won with; are images changed at random, or between the loader and the module's forward? Then the "
                "panels show something else"
            )
        panels: dict[str, tuple[Tensor, Tensor]] = {}
        for winners in project_winners(self._network, chosen, maps, read, unpooling=self.unpooling):
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
        self._let_go()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Let go of the network."""
        self._let_go()

    def _let_go(self) -> None:
        if self._miner is not None:
            self._miner.close()
        self._network = self._layers = self._order = self._miner = None

    def _try_out(self, trainer: lightning.Trainer) -> None:
        """Find the layers that have maps; refuse a loader that cannot be followed, and what cannot be projected."""
        loader = validation_loader(trainer)
        last = len(loader.dataset) - 1
        with isolate_rng():
            item = loader.dataset[last]
        third = item[2] if isinstance(item, list | tuple) and len(item) > 2 else None
        if order_of(loader) is None and not (_is_number(third) and int(third) == last):
            raise ValueError(
                "Projections must know which images a validation batch holds: use a loader without shuffling, "
                "or data (image, label, index)"
            )
        self._layers = check_projectable(self._network, self.layers, image_of(item), self.unpooling)


def indices_of(order: Sequence[Sequence[int]] | None, batch: Any, batch_idx: int) -> Tensor:
    """Index in the data set of each image of a batch.

    Args:
        order: The indices of each batch, as ``order_of`` finds them; None where the batch's third part says them.
        batch: ``(images, ...)`` or images alone, as the loader gives them.
        batch_idx: Which batch of the loader it is.

    Raises:
        ValueError: If neither tells them.
    """
    images = image_of(batch)
    if order is not None and len(order[batch_idx]) == len(images):
        return torch.tensor(order[batch_idx], device=images.device)
    third = batch[2] if isinstance(batch, list | tuple) and len(batch) > 2 else None
    if isinstance(third, Tensor) and third.shape == images.shape[:1] and not third.is_floating_point():
        return third
    raise ValueError(
        f"Projections: which are the {len(images)} images of validation batch {batch_idx}? Its loader does not tell; "
        "give batches (images, labels, indices)"
    )


def order_of(loader: Any) -> list[list[int]] | None:
    """The indices of all batches of this rank, where asking for them again gives the same; else None."""
    batches = getattr(loader, "batch_sampler", None)
    if type(batches) is not BatchSampler:
        return None
    fixed = SequentialSampler | DistributedSampler | range | list | tuple
    return list(batches) if isinstance(batches.sampler, fixed) else None


def image_of(item: Any) -> Tensor:
    """The image or images of an item or batch: its first part, or all of it.

    Raises:
        ValueError: If that is no tensor.
    """
    image = item[0] if isinstance(item, list | tuple) and len(item) else item
    if not hasattr(image, "__array__"):
        raise ValueError(
            f"pictures need validation data (image, ...) with the image as a tensor, but got {type(image).__name__}"
        )
    return torch.as_tensor(image)


def validation_loader(trainer: lightning.Trainer) -> Any:
    """The first validation loader; winners are read from its data set by index.

    Raises:
        ValueError: If that cannot be done.
    """
    loader = trainer.val_dataloaders
    while isinstance(loader, list | tuple | dict) and loader:
        loader = next(iter(loader.values())) if isinstance(loader, dict) else loader[0]
    dataset = getattr(loader, "dataset", None)
    readable = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not readable or isinstance(dataset, IterableDataset) or not len(dataset):
        raise ValueError(
            "pictures of single validation images need a validation data set with dataset[index] and a length"
        )
    return loader


def _is_number(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, Tensor) and value.numel() == 1)
