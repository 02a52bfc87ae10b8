"""How features come to be while a network trains. Source: Zeiler & Fergus (2014), Fig. 4."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from zfscope.callbacks.batches import Part, first_loader, image_of, readable_dataset
from zfscope.callbacks.omissions import layers_drawn, left_out, network_for
from zfscope.callbacks.panel import show
from zfscope.callbacks.when import When, epoch_number
from zfscope.data.reading import UnreadableImage
from zfscope.deconvnet.choice import Choice, check_choice, told
from zfscope.deconvnet.winners import layers_to_watch, random_subset
from zfscope.evolution import Evolution, join, observe
from zfscope.figures import evolution_sheet
from zfscope.networks.hooked import as_network
from zfscope.networks.network import Network


class FeatureEvolution(Callback):
    """The strongest activation of feature maps, projected, epoch beside epoch; panels ``feature_evolution/<layer>``.

    At the end of each chosen epoch a fixed subset of the training images, kept in memory, goes through the network as
    it is. Checkpoints hold the strips, so that a resumed run continues them.

    What cannot be shown is left out with a warning. What was named here and cannot be is refused.

    Args:
        layers: Layers to look into; default: the conv layers of a zfscope network, the stages of a timm model or of
            another deep one such as a ResNet, up to five conv layers of any other module.
        maps: Feature maps shown of each layer, a fixed random subset.
        epochs: Epochs counted from 1, or n for every n-th.
        images: Training images among which the strongest activation is sought, a fixed random subset.
        seed: Of both subsets, and of the images' random views where the data set makes any.
        batch_size: Images that go forward together.
        rule: ``auto``, ``deconvnet``, ``guided`` or ``gradient``, see ``zfscope.deconvnet.project``; with ``auto``
            layers that neither of its two rules is defined for are left out, ``gradient`` takes any network.
        image_of: Where the images of the data set's items are: a key, a place or a function; default: first in a
            tuple, under a usual name such as ``image`` in a dict.

    Raises:
        ValueError: If a number is below 1; before training, if ``layers``, ``rule`` or ``image_of`` were given and
            cannot be.

    Source: Zeiler & Fergus (2014), Fig. 4: over all training examples; a subset is our choice.
    """

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        maps: int = 4,
        epochs: int | Sequence[int] = (1, 2, 5, 10, 20, 30, 40, 64),
        images: int = 256,
        seed: int = 0,
        batch_size: int = 32,
        rule: Choice | None = "auto",
        image_of: str | int | Callable[[Any], Tensor] | None = None,
    ) -> None:
        if min(maps, images, batch_size) < 1:
            raise ValueError(
                f"FeatureEvolution: maps={maps}, images={images} and batch_size={batch_size} must be 1 or more"
            )
        rule = rule or "auto"  # null in the configs of older runs
        check_choice(rule)
        self.layers, self.maps, self.epochs, self.images = layers, maps, When(epochs), images
        self.seed, self.batch_size, self.rule = seed, batch_size, rule
        self.part: Part = image_of
        self.strips: dict[str, Evolution] = {}
        self._network: Network | None = None
        self._layers: tuple[str, ...] = ()
        self._indices = torch.empty(0, dtype=torch.int64)
        self._inputs: tuple[Tensor, Tensor] | None = None  # of those that can be read: indices and network inputs

    @property
    def state_key(self) -> str:
        """A strip drawn under other settings is another one."""
        layers = self.layers if self.layers is None else list(self.layers)
        rule = {} if self.rule == "auto" else {"rule": self.rule}
        return self._generate_state_key(layers=layers, maps=self.maps, images=self.images, seed=self.seed, **rule)

    def state_dict(self) -> dict[str, Any]:
        """The strips so far: tensors and plain containers."""
        return {"indices": self._indices, "found": {layer: dict(vars(strip)) for layer, strip in self.strips.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the strips of a checkpoint."""
        self._indices = state_dict["indices"]
        self.strips = {layer: Evolution(**strip) for layer, strip in state_dict["found"].items()}

    def refuse(self, pl_module: LightningModule, image: Tensor) -> None:
        """Refuse layers or a rule that were given and cannot be; ``image`` is an input ``(C, H, W)``."""
        if self.layers is not None or self.rule != "auto":
            self._drawn(as_network(pl_module, self.layers), image)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the network and refuse layers that it has not."""
        self._network = network_for("FeatureEvolution", pl_module, self.layers)
        if self.layers is not None:
            layers_to_watch(self._network, self.layers)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the images, forget epochs that come again, and look at one image: what is refused is refused now."""
        self._layers, self._inputs = (), None
        dataset, first = None, None
        with left_out("FeatureEvolution", typed=self.part is not None):
            dataset = _training_set(trainer)
        if dataset is None or self._network is None:
            return
        indices = random_subset(len(dataset), self.images, self.seed)
        earlier = {layer: strip.before(epoch_number(trainer)) for layer, strip in self.strips.items()}
        self.strips = {layer: strip for layer, strip in earlier.items() if strip.epochs}
        if self.strips and not torch.equal(indices, self._indices):
            rank_zero_warn("FeatureEvolution: the training set is not the checkpoint's; the strips begin anew")
            self.strips = {}
        self._indices = indices
        if not trainer.is_global_zero:
            return
        with left_out("FeatureEvolution", typed=self.part is not None):
            _, first = self._read(dataset, indices, 1)
        if first is None:
            return
        with left_out("FeatureEvolution", typed=self.layers is not None or self.rule != "auto"):
            self._layers = self._drawn(self._network, first[0])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, draw and show."""
        epoch = epoch_number(trainer)
        if epoch not in self.epochs or not trainer.is_global_zero or not self._layers:
            return
        layers, self._layers = self._layers, ()
        with left_out("FeatureEvolution"):
            if self._inputs is None:
                self._inputs = self._read(_training_set(trainer), self._indices)
            self._draw(trainer, epoch, layers)
            self._layers = layers

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of network and images."""
        self._network = self._inputs = None

    def _drawn(self, network: Network, image: Tensor) -> tuple[str, ...]:
        return layers_drawn("FeatureEvolution", "feature_evolution", network, image, self.layers, self.rule)

    def _draw(self, trainer: Trainer, epoch: int, layers: tuple[str, ...]) -> None:
        indices, inputs = self._inputs

        def read(wanted: Sequence[int]) -> Tensor:
            return inputs[torch.searchsorted(indices, torch.tensor(wanted))]

        ways = self.maps, self.seed, self.batch_size, self.rule
        for layer, moment in observe(self._network, epoch, read, indices, layers, *ways).items():
            earlier = [self.strips[layer].before(epoch)] if layer in self.strips else []
            strip = self.strips[layer] = join([*earlier, moment])
            title = f"{layer}, epoch {epoch}" + told(self._network, layer, inputs[:1], self.rule)
            sheet = evolution_sheet(strip.maps, strip.epochs, strip.tiles, strip.values, strip.indices, title=title)
            show(trainer, f"feature_evolution/{layer}", sheet)

    def _read(self, dataset: Any, indices: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
        """Network inputs ``(N, C, H, W)`` of these images, or the first ``most``, and their indices.

        Images that cannot be read are left out. A random view is a function of the seed and the index.
        """
        inputs: list[Tensor] = []
        read: list[int] = []
        for index in indices.tolist():
            if len(inputs) == most:
                break
            with isolate_rng():
                number = (self.seed * 1_000_003 + index) % 2**32
                torch.default_generator.manual_seed(number)
                random.seed(number)
                np.random.seed(number)
                try:
                    item = dataset[index]
                except UnreadableImage:  # the training's loader tells
                    continue
            read.append(index)
            inputs.append(image_of(item, self.part))
            if inputs[-1].ndim != 3 or inputs[-1].shape != inputs[0].shape:
                raise ValueError(
                    f"image {index} of the training set came as {tuple(inputs[-1].shape)}, image {read[0]} as "
                    f"{tuple(inputs[0].shape)}; they must be (C, H, W), all of one size"
                )
        return torch.tensor(read), torch.stack(inputs)


def _training_set(trainer: Trainer) -> Any:
    """The first training data set; images are read from it by index."""
    dataset = readable_dataset(first_loader(trainer.train_dataloader))
    if dataset is None:
        raise ValueError("some training images are read again: the data set needs dataset[index] and a length")
    return dataset
