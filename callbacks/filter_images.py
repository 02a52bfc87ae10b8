"""Pictures of a layer's filters while a network trains. Source: Zeiler & Fergus (2014), Fig. 6."""

from collections.abc import Sequence

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from zfscope.callbacks.panel import show
from zfscope.callbacks.when import When, moment
from zfscope.figures import filter_sheet
from zfscope.networks.layers import conv_layers


class FilterImages(Callback):
    """Draw a conv layer's filters after each validation: one scale, the RMS of each; panel ``filter_images/<layer>``.

    Args:
        layer: Name of the conv layer; None for the first one.
        when: Every n-th epoch, or a list of epochs counted from 1.

    Raises:
        ValueError: If ``when`` names no epochs; before training, if there is no such layer. Where no layer was named
            and there is no conv layer, the pictures are left out with a warning.
    """

    def __init__(self, layer: str | None = None, when: int | Sequence[int] = 1) -> None:
        self.layer, self.when = layer, When(when)
        self._name: str | None = None
        self._conv: nn.Conv2d | None = None

    def refuse(self, pl_module: LightningModule, image: Tensor | None = None) -> None:
        """Refuse a layer that was named and is none."""
        layers = conv_layers(pl_module)
        if self.layer is not None and self.layer not in layers:
            known = ", ".join(layers) or "none"
            raise ValueError(f"FilterImages: no conv layer {self.layer!r}; the conv layers are {known}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layer, and refuse a name that is none."""
        layers = conv_layers(pl_module)
        self._name = self.layer if self.layer is not None else next(iter(layers), None)
        self._conv = layers.get(self._name)
        if self.layer is not None:
            self.refuse(pl_module)
        elif self._conv is None:
            rank_zero_warn("FilterImages: no pictures: the network has no conv layers")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and show."""
        if self._conv is not None and trainer.is_global_zero and self.when.is_now(trainer):
            sheet = filter_sheet(self._conv.weight, title=f"{self._name}, {moment(trainer)}")
            show(trainer, f"filter_images/{self._name}", sheet)
