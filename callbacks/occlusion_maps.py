"""What a network says while a square slides over an image, at each epoch. Source: Zeiler & Fergus (2014), Fig. 7."""

from collections.abc import Sequence

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from zfscope.callbacks.batches import image_of, label_of, validation_loader
from zfscope.callbacks.panel import show
from zfscope.callbacks.when import When, epoch_number, in_training
from zfscope.deconvnet.winners import as_pictures, random_subset
from zfscope.figures import occlusion_panel
from zfscope.networks.hooked import as_network
from zfscope.networks.network import Network
from zfscope.occlusion.sensitivity import look, projected


class OcclusionMaps(Callback):
    """Occlusion maps of the same validation images after each validation; panels ``occlusion/<image index>``.

    The images are a fixed random subset of the first validation loader's data set, read once and kept. Their target is
    their label; where the data has no whole-number labels, the most probable class.

    Args:
        images: How many.
        size: Side of the square in pixels; default: 48 of 224 pixels, in proportion.
        stride: Between two positions in pixels; default: 16 of 224 pixels, in proportion.
        fill: Value inside the square, in network inputs: 0 is the mean grey.
        layer: Whose strongest map is shown; default: the last layer with maps.
        when: Every n-th epoch, or a list of epochs counted from 1.
        seed: Of the subset.

    Raises:
        ValueError: If a number is below 1; before training, if there is no such layer, the square is larger than an
            image, or the validation data set cannot be read by index.

    Source: Zeiler & Fergus (2014), Fig. 7. To be quick the panels have no projections from other images;
    ``analysis=occlusion`` has them.
    """

    def __init__(
        self,
        images: int = 2,
        size: int | None = None,
        stride: int | None = None,
        fill: float = 0.0,
        layer: str | None = None,
        when: int | Sequence[int] = 1,
        seed: int = 0,
    ) -> None:
        if any(number is not None and number < 1 for number in (images, size, stride)):
            raise ValueError(f"OcclusionMaps: images={images}, size={size} and stride={stride} must be 1 or more")
        self.images, self.layer, self.when, self.seed = images, layer, When(when), seed
        self.square = {"size": size, "stride": stride, "fill": fill}
        self._network: Network | None = None
        self._subjects: dict[int, tuple[Tensor, int | None]] = {}
        self._projectable = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the network and refuse a layer that it has not."""
        self._network = as_network(pl_module, None if self.layer is None else [self.layer])
        self._subjects, self._projectable = {}, True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be shown before the first step; a loader that Lightning has not yet, before its pass."""
        if trainer.val_dataloaders is not None:
            self._prepare(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the images, if that has not been done."""
        if in_training(trainer):
            self._prepare(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, draw and show."""
        if not trainer.is_global_zero or not self.when.is_now(trainer):
            return
        network = self._network
        for index, (image, label) in self._subjects.items():
            try:
                with isolate_rng():
                    maps = look(network, image, label, layer=self.layer, **self.square)
                    strongest = maps.occlusion.feature_map
                    tile = projected(network, image, maps.layer, strongest) if self._projectable else None
            except ValueError as error:  # NaN by now: that is the training's affair
                rank_zero_warn(f"OcclusionMaps: no panels: {error}")
                return
            true = "" if label is None else f", {network.classes[label] if network.classes else f'class {label}'}"
            title = f"validation image {index}{true}, epoch {epoch_number(trainer)}"
            picture = as_pictures(network, image[None])[0]
            panel = occlusion_panel(picture, maps, classes=network.classes, projection=tile, title=title)
            show(trainer, f"occlusion/{index}", panel)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of network and images."""
        self._network, self._subjects = None, {}

    def _prepare(self, trainer: Trainer) -> None:
        """Read the images; look at the first with the square at its corners, and see whether it can be projected."""
        if self._subjects or not trainer.is_global_zero:
            return
        dataset = validation_loader(trainer).dataset
        with isolate_rng():
            for index in random_subset(len(dataset), self.images, self.seed).tolist():
                item = dataset[index]
                self._subjects[index] = image_of(item), label_of(item)
            image, label = next(iter(self._subjects.values()))
            corners = {**self.square, "stride": max(image.shape[1:])}
            maps = look(self._network, image, label, layer=self.layer, **corners)
            try:
                projected(self._network, image, maps.layer, maps.occlusion.feature_map)
            except ValueError as error:
                rank_zero_warn(f"OcclusionMaps: the panels come without projections: {error}")
                self._projectable = False
