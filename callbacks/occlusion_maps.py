"""What a network says while a square slides over an image, at each epoch. Source: Zeiler & Fergus (2014), Fig. 7."""

from collections.abc import Callable, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from zfscope.callbacks.batches import Part, classes_of, image_of, label_of, readable_items, validation_set
from zfscope.callbacks.omissions import left_out, network_for, told_once, with_way_out
from zfscope.callbacks.panel import show
from zfscope.callbacks.when import When, in_training, moment
from zfscope.deconvnet.choice import Choice, check_choice, told
from zfscope.deconvnet.winners import NoFeatureMaps, as_pictures, layers_to_watch, random_order
from zfscope.figures import occlusion_panel
from zfscope.networks.hooked import as_network
from zfscope.networks.network import Network, evaluating
from zfscope.occlusion.passes import logits_of
from zfscope.occlusion.sensitivity import look, projected


class OcclusionMaps(Callback):
    """Occlusion maps of the same validation images after each validation; panels ``occlusion/<image index>``.

    The images are a fixed random subset of the first validation loader's data set, read once and kept. Their target is
    their label; where the data has no whole-number labels, the most probable class. Class names are the network's, or
    those of the data set (``dataset.classes``).

    What cannot be shown is left out with a warning: of a network without feature maps, such as a vision transformer,
    the strongest map and its projection. What was named here and cannot be is refused.

    Args:
        images: How many.
        size: Side of the square in pixels; default: 48 of 224 pixels, in proportion.
        stride: Between two positions in pixels; default: 16 of 224 pixels, in proportion.
        fill: Value inside the square, in network inputs: 0 is the mean grey.
        layer: Whose strongest map is shown; default: the last layer with maps.
        when: Every n-th epoch, or a list of epochs counted from 1.
        seed: Of the subset.
        rule: Of the strongest map's projection: ``auto``, ``deconvnet``, ``guided`` or ``gradient``, which takes any
            network; see ``zfscope.deconvnet.project``.
        image_of: Where the images of the data set's items are: a key, a place or a function; default: first in a
            tuple, under a usual name such as ``image`` in a dict.
        label_of: Where their labels are, likewise; default: second in a tuple, under a name such as ``label``.

    Raises:
        ValueError: If a number is below 1; before training, if an option was given and cannot be: a layer, a square
            larger than an image, a rule, or a key that the data has not.

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
        rule: Choice | None = "auto",
        image_of: str | int | Callable[[Any], Tensor] | None = None,
        label_of: str | int | Callable[[Any], Any] | None = None,
    ) -> None:
        if any(number is not None and number < 1 for number in (images, size, stride)):
            raise ValueError(f"OcclusionMaps: images={images}, size={size} and stride={stride} must be 1 or more")
        rule = rule or "auto"  # null in the configs of older runs
        check_choice(rule)
        self.images, self.layer, self.when, self.seed, self.rule = images, layer, When(when), seed, rule
        self.parts: tuple[Part, Part] = image_of, label_of
        self.square = {"size": size, "stride": stride, "fill": fill}
        self._network: Network | None = None
        self._classes: Sequence[str] | None = None
        self._subjects: dict[int, tuple[Tensor, int | None]] | None = None  # None: not read yet; empty: nothing to show
        self._layer, self._number = "", 0  # whose activations are followed; how many classes there are
        self._has_maps = self._projectable = True

    def refuse(self, pl_module: LightningModule, image: Tensor) -> None:
        """Refuse a layer, a square or a rule that were given and cannot be; ``image`` is an input ``(C, H, W)``."""
        if self.layer is not None:
            layers_to_watch(as_network(pl_module, [self.layer]), [self.layer])
        if self._typed:
            network = as_network(pl_module, None if self.layer is None else [self.layer])
            self._try_out(network, image, None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the network and refuse a layer that it has not."""
        layers = None if self.layer is None else [self.layer]
        self._network = network_for("OcclusionMaps", pl_module, layers)
        if layers is not None:
            layers_to_watch(self._network, layers)
        self._subjects = {} if self._network is None else None

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
        if not self._subjects or not trainer.is_global_zero or not self.when.is_now(trainer):
            return
        subjects, self._subjects = self._subjects, {}
        with left_out("OcclusionMaps"), isolate_rng():
            for index, (image, label) in subjects.items():
                self._draw(trainer, index, image, label)
            self._subjects = subjects

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of network and images."""
        self._network, self._subjects = None, None

    @property
    def _typed(self) -> bool:
        """Whether an option was given that a network or an image may not allow."""
        return self.layer is not None or self.rule != "auto" or any(self.square.values())

    def _prepare(self, trainer: Trainer) -> None:
        """Read the images; look at the first with the square at its corners, and see whether it can be projected."""
        if self._subjects is not None or not trainer.is_global_zero:
            return
        subjects, self._subjects = {}, {}
        with left_out("OcclusionMaps", typed=any(part is not None for part in self.parts)):
            dataset = validation_set(trainer)
            order = random_order(len(dataset), self.seed).tolist()
            for index, item in sorted(islice(readable_items(dataset, order), self.images), key=itemgetter(0)):
                subjects[index] = image_of(item, self.parts[0]), label_of(item, self.parts[1])
            self._classes = self._network.classes or classes_of(dataset)
        if not subjects:
            return
        with left_out("OcclusionMaps", typed=self._typed), isolate_rng():
            image, label = next(iter(subjects.values()))
            self._try_out(self._network, image, label)
            self._subjects = subjects

    def _try_out(self, network: Network, image: Tensor, label: int | None) -> None:
        """Choose what is shown, and look with the square at the corners of an image ``(C, H, W)``."""
        self._layer, self._number = self._follow(network, image)
        corners = {**self.square, "stride": max(image.shape[1:])}
        maps = look(network, image.clone(), self._target(label), layer=self._layer, **corners)
        self._projectable = self._has_maps
        if not self._has_maps:
            return
        try:
            projected(network, image.clone(), maps.layer, maps.occlusion.feature_map, self.rule)
        except Exception as error:
            if self.rule != "auto":
                raise
            cause = with_way_out(str(error), "OcclusionMaps", "occlusion_maps")
            rank_zero_warn(f"OcclusionMaps: the panels come without projections: {cause}")
            self._projectable = False

    @torch.no_grad()
    def _follow(self, network: Network, image: Tensor) -> tuple[str, int]:
        """The layer whose activations are followed, and the number of classes.

        It is the last one with maps; without any the last one that gives ``(N, C)``, whose panels are left out.
        """
        with evaluating(network):
            trace = network.trace(network.as_input(image[None].clone()))
        number = logits_of(trace).shape[1]
        self._has_maps = True
        if self.layer is not None:
            return self.layer, number
        axes = {layer: maps.ndim for layer, maps in trace.maps.items() if isinstance(maps, Tensor) and len(maps) == 1}
        spatial = [layer for layer in network.layers_with_maps if axes.get(layer) == 4]
        dense = [layer for layer in network.layers if axes.get(layer) == 2]
        if not spatial and not dense:
            raise NoFeatureMaps(network, network.layers_with_maps)
        self._has_maps = bool(spatial)
        if not spatial:
            cause = told_once(network, NoFeatureMaps(network, network.layers_with_maps))
            rank_zero_warn(f"OcclusionMaps: the panels come without the strongest map and its projection: {cause}")
        return (spatial or dense)[-1], number

    def _target(self, label: int | None) -> int | None:
        """The label, where it is one of the network's classes."""
        return label if label is not None and 0 <= label < self._number else None

    def _draw(self, trainer: Trainer, index: int, image: Tensor, label: int | None) -> None:
        network, classes, rule, tile = self._network, self._classes, self.rule, None
        label = self._target(label)
        maps = look(network, image.clone(), label, layer=self._layer, **self.square)
        if self._projectable:
            tile = projected(network, image.clone(), maps.layer, maps.occlusion.feature_map, rule)
        named = classes is not None and label is not None and label < len(classes)
        true = "" if label is None else f", {classes[label] if named else f'class {label}'}"
        title = f"validation image {index}{true}, {moment(trainer)}"
        if tile is not None:
            title += told(network, maps.layer, image[None], rule)
        picture = as_pictures(network, image[None])[0]
        panel = occlusion_panel(picture, maps, classes=classes, projection=tile, title=title, with_map=self._has_maps)
        show(trainer, f"occlusion/{index}", panel)
