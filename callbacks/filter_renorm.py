"""Keep the RMS of conv filters within a radius while a network trains.

Source: Zeiler & Fergus (2014), Sec. 3: without it a few first-layer filters dominate.
"""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from zfscope.networks.layers import conv_layers, filter_rms, rescale_filters_


class FilterRenorm(Callback):
    """After each optimiser step, rescale every conv filter whose RMS exceeds the radius.

    Logs each epoch ``filter_renorm/<layer>``: how many of its filters were rescaled at least once; and
    ``filter_rms/<layer>``: the largest RMS that one of them had before. Frozen layers are left as they are.

    Args:
        radius: Largest RMS of a filter, above 0. The paper's 0.1 belongs to inputs in about [-128, 128].

    Raises:
        ValueError: If ``radius`` is not above 0, or the model has no conv layer.
    """

    def __init__(self, radius: float = 0.1) -> None:
        if not radius > 0:
            raise ValueError(f"filter_rms={radius} must be above 0 (the paper's is 0.1); null turns it off")
        self.radius = radius
        self._layers: dict[str, nn.Conv2d] = {}
        self._above: dict[str, Tensor] = {}
        self._largest: dict[str, Tensor] = {}
        self._step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the conv layers."""
        self._layers = conv_layers(pl_module)
        if not self._layers:
            raise ValueError("FilterRenorm needs a model with conv layers; take it out of the callbacks")

    def state_dict(self) -> dict[str, Any]:
        """The counts of an epoch that a run may stop in."""
        return {"step": self._step, "above": dict(self._above), "largest": dict(self._largest)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._step = state_dict["step"]
        self._above, self._largest = dict(state_dict["above"]), dict(state_dict["largest"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting anew."""
        self._step = trainer.global_step
        self._above, self._largest = {}, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Rescale if the optimiser made a step; while gradients accumulate it makes none."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        for name, layer in self._layers.items():
            if layer.weight.requires_grad:
                largest = filter_rms(layer.weight.detach()).amax()
                above = rescale_filters_(layer.weight, self.radius)
                if name in self._above:  # of a resumed run they may come from another device
                    above = above | self._above[name].to(above.device)
                    largest = torch.maximum(largest, self._largest[name].to(largest.device))
                self._above[name], self._largest[name] = above, largest

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how many filters were rescaled, and how far the largest had grown."""
        for name, above in self._above.items():
            pl_module.log(f"filter_renorm/{name}", above.sum().float())
            pl_module.log(f"filter_rms/{name}", self._largest[name].float())
