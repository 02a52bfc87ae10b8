"""What goes wrong in an architecture, in numbers, while a network trains. Source: Zeiler & Fergus (2014), Fig. 6."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from zfscope.callbacks.omissions import network_for, told_once
from zfscope.callbacks.when import When
from zfscope.deconvnet.winners import NoFeatureMaps, layers_to_watch
from zfscope.diagnostics import MapWatch, dead_maps, filter_frequencies, first_filters, near_dead_maps
from zfscope.networks.hooked import as_network
from zfscope.networks.network import Network
from zfscope.schema import listed


class Diagnostics(Callback):
    """Dead maps of each layer and spatial frequencies of the first filters, logged at each validation epoch.

    ``diagnostics/<layer>/dead_maps`` and ``…/near_dead_maps`` count over the validation pass that runs anyway (of
    several loaders the first), and ``diagnostics/dead_share`` is the share 0-1 of dead maps among all of these layers.
    ``diagnostics/<first conv layer>/low_frequency_energy``, ``middle_…``, ``high_…`` and
    ``energy_beyond_stride`` are shares 0-1, the median over its filters. See ``zfscope.diagnostics``.

    Args:
        layers: Layers to count in; default: all that give activations. Of a foreign module's conv layers, which come
            before its ReLUs, none is counted; name those.
        when: Every n-th epoch, or a list of epochs counted from 1.

    Raises:
        ValueError: If ``when`` names no epochs; before training, if there is no such layer. Where no layer was named,
            a network without such layers or without filters is told of in a warning.
    """

    def __init__(self, layers: Sequence[str] | None = None, when: int | Sequence[int] = 1) -> None:
        self.layers, self.when = layers, When(when)
        self._network: Network | None = None
        self._told = False
        self._watch: MapWatch | None = None

    def refuse(self, pl_module: LightningModule, image: Tensor | None = None) -> None:
        """Refuse layers that were named and cannot be counted in."""
        if self.layers is not None:
            layers_to_watch(as_network(pl_module, self.layers), self.layers)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the network and refuse layers that it has not."""
        self.refuse(pl_module)
        self._network, self._told = network_for("Diagnostics", pl_module, self.layers, "no numbers"), False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put hooks on: before other callbacks do, and off after them, for both keep compiled code from running."""
        if self._network is not None and self.when.is_now(trainer):
            self._watch = MapWatch(self._network, self.layers)
            self._watch.listening = False

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Of several loaders the first counts."""
        if self._watch is not None:
            self._watch.listening = dataloader_idx == 0

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """What other callbacks run after the pass does not count."""
        if self._watch is not None:
            self._watch.listening = False

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count and log."""
        if self._watch is None:
            return
        values: dict[str, Tensor] = {}
        dead: list[Tensor] = []
        for layer, metric in self._watch.ranges.items():
            ranges = metric.compute()  # meets the other ranks
            dead.append(dead_maps(ranges))
            values[f"{layer}/dead_maps"] = dead[-1].sum()
            values[f"{layer}/near_dead_maps"] = near_dead_maps(ranges).sum()
        if dead:
            values["dead_share"] = torch.cat(dead).double().mean()
        first = first_filters(self._network)
        if not self._told:
            self._told = True
            self._tell(self._watch, first is not None)
        if first is not None:
            name, conv = first
            shares = filter_frequencies(conv.weight, conv.stride)
            for band in ("low", "middle", "high"):
                values[f"{name}/{band}_frequency_energy"] = getattr(shares, band).nanmedian()
            values[f"{name}/energy_beyond_stride"] = shares.beyond_stride.nanmedian()
        for key, value in values.items():
            # All ranks have the same value; sync_dist only tells Lightning that this was thought of. It sends the value
            # round on its device, and NCCL takes none from a CPU.
            pl_module.log(f"diagnostics/{key}", value.float().to(pl_module.device), sync_dist=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the hooks off."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _tell(self, watch: MapWatch, has_filters: bool) -> None:
        """Warn of what the network has not."""
        lacking = [] if has_filters else ["no frequencies: the network has no conv layers"]
        if not watch.ranges and not watch.layers:
            names = listed(self._network.layers)
            lacking.append(f"no dead maps: none of {names} ends in an activation; name modules that do: layers=[…]")
        elif not watch.ranges:
            cause = told_once(self._network, NoFeatureMaps(self._network, watch.layers))
            lacking.append(f"no dead maps: {cause}")
        if lacking:
            rank_zero_warn(f"Diagnostics: {'; '.join(lacking)}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off: Lightning tears nothing down after an exception."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off, and let go of the network."""
        if self._watch is not None:
            self._watch.close()
        self._network = self._watch = None
