"""What feature maps respond to, while a network trains. Source: Zeiler & Fergus (2014), Fig. 2."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from zfscope.activations import TopTable
from zfscope.callbacks.batches import (
    KeptImages,
    Part,
    first_loader,
    image_of,
    indices_of,
    names_its_index,
    order_of,
    read_item,
    readable_dataset,
    readable_items,
)
from zfscope.callbacks.omissions import layers_drawn, left_out, network_for
from zfscope.callbacks.panel import show
from zfscope.callbacks.when import When, moment
from zfscope.deconvnet.choice import Choice, check_choice, told
from zfscope.deconvnet.sameness import sameness, told_same
from zfscope.deconvnet.winners import (
    OUTSIDE,
    TopActivationsHook,
    project_winners,
    reproduces_activations,
)
from zfscope.figures import projection_sheet
from zfscope.networks.hooked import as_network
from zfscope.networks.network import Network


class Projections(Callback):
    """The top 9 image patches of feature maps beside their deconvnet projections; panels ``projections/<layer>``.

    The winners are found inside the validation pass that runs anyway; of several validation loaders the first counts.
    Then the images that the shown maps need are read once more, go forward once and are projected. Where nobody tells
    which images a batch holds (the loader shuffles, or the data set cannot be read by index) the winning images are
    kept in memory instead, up to ``top`` for each map that is shown; that takes a single process.

    What cannot be shown is left out with a warning. What was named here and cannot be is refused.

    Args:
        layers: Layers to look into; default: the conv layers of a zfscope network, the stages of a timm model or of
            another deep one such as a ResNet, up to five conv layers of any other module.
        maps: Feature maps shown of each layer, a fixed random subset.
        top: Winners shown of each.
        when: Every n-th epoch, or a list of epochs counted from 1.
        seed: Of the subset.
        unpooling: ``sum`` or ``overwrite``, see ``zfscope.deconvnet.project``.
        rule: ``auto``, ``deconvnet``, ``guided`` or ``gradient``, see there; with ``auto`` layers that neither of its
            two rules is defined for are left out, ``gradient`` takes any network.
        image_of: Where the images of batches and of the data set's items are: a key, a place or a function; default:
            first in a tuple, under a usual name such as ``image`` in a dict.

    Raises:
        ValueError: If a number is below 1; before training, if ``layers``, ``unpooling``, ``rule`` or ``image_of`` were
            given and cannot be.
    """

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        maps: int = 6,
        top: int = 9,
        when: int | Sequence[int] = 1,
        seed: int = 0,
        unpooling: Literal["sum", "overwrite"] = "sum",
        rule: Choice | None = "auto",
        image_of: str | int | Callable[[Any], Tensor] | None = None,
    ) -> None:
        if maps < 1 or top < 1:
            raise ValueError(f"Projections: maps={maps} and top={top} must be 1 or more")
        if unpooling not in ("sum", "overwrite"):
            raise ValueError(f"Projections: unpooling={unpooling!r} must be sum or overwrite")
        rule = rule or "auto"  # null in the configs of older runs
        check_choice(rule)
        self.layers, self.maps, self.top, self.when, self.seed = layers, maps, top, When(when), seed
        self.unpooling, self.rule = unpooling, rule
        self.part: Part = image_of
        self._network: Network | None = None
        self._layers: tuple[str, ...] | None = None  # None: not known yet; empty: nothing can be shown
        self._told: dict[str, str] = {}  # what the titles say of each layer's rule
        self._shape: tuple[int, ...] = ()  # of an image, (C, H, W)
        self._order: list[list[int]] | None = None
        self._kept: KeptImages | None = None
        self._hook: TopActivationsHook | None = None
        self._failed = False  # to draw; this process goes on to meet the others

    def refuse(self, pl_module: LightningModule, image: Tensor) -> None:
        """Refuse layers, a rule or an unpooling that were given and cannot be; ``image`` is an input ``(C, H, W)``."""
        if self._typed:
            self._drawn(as_network(pl_module, self.layers), image)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the network and refuse layers that it has not."""
        self._network = network_for("Projections", pl_module, self.layers)
        self._layers, self._failed = () if self._network is None else None, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be shown before the first step; a loader that Lightning has not yet, before its pass."""
        if trainer.val_dataloaders is not None and self._layers is None:
            self._prepare(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to listen."""
        if not self.when.is_now(trainer):
            return
        if self._layers is None:
            self._prepare(trainer)
        self._listen(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Tell the hook which images come."""
        now = self.when.is_now(trainer)
        if dataloader_idx == 0 and self._layers is None and (now or trainer.sanity_checking):
            self._prepare(trainer, batch)  # of a stream nothing is seen before its first batch
            if now:
                self._listen(trainer)
        if self._hook is None:
            return
        self._hook.indices = None
        if dataloader_idx == 0:
            with left_out("Projections"):
                if self._kept is not None:
                    self._hook.indices = self._kept.number(image_of(batch, self.part))
                else:
                    self._hook.indices = indices_of(self._order, batch, batch_idx, self.part)
            if self._hook.indices is None:
                self._stop()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the images that may be shown, where they cannot be read again."""
        if self._hook is not None and self._kept is not None and dataloader_idx == 0:
            self._kept.keep(self._hook.tables())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and show."""
        if self._hook is None:
            return
        hook, kept, self._hook, self._kept = self._hook, self._kept, None, None
        hook.close()
        for message in hook.mismatches.values():
            rank_zero_warn(f"Projections: not all layers are drawn: {message}")
        self._layers = tuple(layer for layer in self._layers if layer not in hook.mismatches)
        if hook.top is None:
            names = f"validation ran none of {', '.join(self._layers)}" if self._layers else "no layer is left"
            rank_zero_warn(f"Projections: {names}; there is nothing to show")
            return
        tables = hook.top.compute()  # meets the other ranks
        if not trainer.is_global_zero or self._failed:
            return
        self._failed = True
        with left_out("Projections"):
            there = {layer: table for layer, table in tables.items() if layer in self._layers}
            there = {layer: TopTable(*(part.cpu() for part in table)) for layer, table in there.items()}
            self._draw(trainer, there, hook.maps, kept)
            self._failed = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off: Lightning tears nothing down after an exception."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off, and let go of the network."""
        if self._hook is not None:
            self._hook.close()
        self._network = self._layers = self._order = self._kept = self._hook = None

    def _prepare(self, trainer: Trainer, batch: Any = None) -> None:
        """Find the layers that can be drawn, with an image of the validation data or of a batch of it."""
        dataset = readable_dataset(first_loader(trainer.val_dataloaders))
        if dataset is None and batch is None:
            return
        if dataset is not None and self.top > len(dataset):
            rank_zero_warn(
                f"Projections: top={self.top}, but validation has {len(dataset)} images: all of them are taken"
            )
        self._layers, image = (), None
        with left_out("Projections", typed=self.part is not None):
            backwards = range(len(dataset) - 1, -1, -1) if dataset is not None else ()
            _, last = next(readable_items(dataset, backwards), (None, None))
            image = image_of(batch, self.part)[0] if dataset is None else image_of(last, self.part)
        if image is None:
            return
        with left_out("Projections", typed=self._typed):
            layers, ways = self._drawn(self._network, image), (self.rule, self.unpooling)
            self._told = {layer: told(self._network, layer, image[None], *ways) for layer in layers}
            self._layers, self._shape = layers, tuple(image.shape)

    @property
    def _typed(self) -> bool:
        return self.layers is not None or self.rule != "auto" or self.unpooling != "sum"

    def _drawn(self, network: Network, image: Tensor) -> tuple[str, ...]:
        return layers_drawn("Projections", "projections", network, image, self.layers, self.rule, self.unpooling)

    def _listen(self, trainer: Trainer) -> None:
        """Put hooks on, and see how the images of a batch will be known."""
        if not self._layers:
            return
        loader = first_loader(trainer.val_dataloaders)
        dataset = readable_dataset(loader)
        self._order = None if dataset is None else order_of(loader)
        numbered = self._order is not None
        if dataset is not None and not numbered:
            index, item = next(readable_items(dataset, range(len(dataset) - 1, -1, -1)))
            numbered = names_its_index(item, index)
        if not numbered and trainer.world_size > 1:
            rank_zero_warn(
                "Projections: no pictures: which images a validation batch holds must be known where several processes "
                "train; use a loader without shuffling, or data (image, label, index)"
            )
            self._layers = ()
            return
        self._kept = None if numbered else KeptImages()
        ways = {"strict": False, "most": self.maps, "seed": self.seed}
        self._hook = TopActivationsHook(self._network, self._layers, self.top, **ways)

    def _stop(self) -> None:
        """Draw nothing any more."""
        self._hook.close()
        self._hook, self._kept, self._layers = None, None, ()

    def _draw(
        self, trainer: Trainer, tables: dict[str, TopTable], maps: dict[str, Tensor], kept: KeptImages | None
    ) -> None:
        dataset = readable_dataset(first_loader(trainer.val_dataloaders))

        def read(indices: Sequence[int]) -> Tensor:
            if kept is not None:
                return kept.read(indices)
            return torch.stack([image_of(read_item(dataset, index), self.part) for index in indices])

        if not reproduces_activations(self._network, tables, maps, read):
            rank_zero_warn(
                "Projections: an image read again from the validation data set does not give the activations that it "
                "won with; are images changed at random, or between the loader and the module's forward? Then the "
                "panels show something else"
            )
        panels: dict[str, Tensor] = {}  # patches and projections of each layer, (2, maps, top, 3, h, w)
        boxes = {layer: torch.zeros(*table.values.shape, 4, dtype=torch.int64) for layer, table in tables.items()}
        ways = {"unpooling": self.unpooling, "rule": self.rule}
        for winners in project_winners(self._network, tables, maps, read, **ways):
            shape = *tables[winners.layer].values.shape, *winners.patches.shape[1:]
            panel = panels.setdefault(winners.layer, torch.full((2, *shape), OUTSIDE, dtype=torch.uint8))
            panel[:, winners.rows, winners.ranks] = torch.stack([winners.patches, winners.tiles()[0]])
            boxes[winners.layer][winners.rows, winners.ranks] = winners.boxes.cpu()
        for layer, table in tables.items():
            blank = torch.full((2, *table.values.shape, 3, 8, 8), OUTSIDE, dtype=torch.uint8)
            patches, projections = panels.get(layer, blank)
            alike = sameness(projections, boxes[layer], table.indices, self._shape[1:], self.seed)
            title = f"{layer}, {moment(trainer)}{self._told[layer]}"
            title += told_same(self._network, layer, alike, self._shape)
            sheet = projection_sheet(maps[layer], patches, projections, table.values, title=title)
            show(trainer, f"projections/{layer}", sheet)
