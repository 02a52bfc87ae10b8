"""A classifier with named layers, and the trace that one forward pass records."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from zfscope.networks.geometry import ReceptiveField
from zfscope.networks.layers import conv_layers
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.spec import ConvLayer, DenseLayer


@dataclass
class Trace:
    """What one forward pass records.

    Attributes:
        images: The network inputs, ``(N, 3, H, W)``.
        maps: Feature maps by layer: after the pool where there is one, else after the ReLU
            ``(N, C, h, w)``; fc6, fc7 after their ReLU ``(N, units)``; fc8: the logits.
        switches: For a layer that pools, where each maximum was: the flat index
            ``row * W + column`` in the map below the pool, ``(N, C, h, w)``.
        widths: The width ``W`` of that map, by layer.
        logits: ``(N, num_classes)``; of a network without a head its features ``(N, F)``.
    """

    images: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)
    switches: dict[str, Tensor] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    logits: Tensor | None = None


class Network(nn.Module):
    """A classifier with named layers whose feature maps can be read; it never writes into the images it is called with.

    ``classes`` (their names), ``preprocessing``, ``num_classes`` and ``image_size`` (height and width of the input,
    pixels) are None where they are not known. A network without a head has 0 classes and gives features ``(N, F)`` in
    place of logits. ``spec`` describes each layer of a chain; it is empty for other networks.
    """

    layers: tuple[str, ...]  # the names, from the pixels up
    may_lack_head = False  # whether num_classes=0 builds a network that gives features, as timm's do
    has_switches = False  # whether traces record the switches of the pools
    channels_last: frozenset[str] = frozenset()  # layers whose outputs are (N, h, w, C): no feature maps

    def __init__(self, num_classes: int | None = None, image_size: int | None = None) -> None:
        super().__init__()
        least = (num_classes, 0 if self.may_lack_head else 1), (image_size, 1)
        if any(number is not None and number < limit for number, limit in least):
            raise ValueError(f"num_classes and image_size must be 1 or more, but are {num_classes} and {image_size}")
        self.num_classes = num_classes
        self.image_size = image_size
        self.classes: tuple[str, ...] | None = None
        self.preprocessing: Preprocessing | None = None
        self.spec: dict[str, ConvLayer | DenseLayer] = {}

    def trace(self, images: Tensor, top: str | None = None) -> Trace:
        """Run the images ``(N, 3, H, W)`` once and record the trace; a chain stops at the layer ``top``."""
        raise NotImplementedError

    def map_module(self, layer: str) -> nn.Module:
        """The submodule whose output is the layer's feature map; ``forward`` calls it once."""
        raise NotImplementedError

    def receptive_field(self, layer: str, image_size: int | None = None) -> ReceptiveField:
        """The receptive field of one unit of a layer's feature map (see ``fields.receptive_field``)."""
        raise NotImplementedError

    def field_below_pool(self, layer: str, image_size: int | None = None) -> ReceptiveField:
        """The receptive field of the conv unit that a pooled activation's switch points to."""
        return self.receptive_field(layer, image_size)

    def features(self, images: Tensor, layer: str) -> Tensor:
        """The feature maps of one layer for preprocessed images ``(N, 3, H, W)``, as in ``Trace.maps``."""
        self.check_layer(layer)
        return self.trace(images, top=layer).maps[layer]

    def run_up_to(self, images: Tensor, layers: Sequence[str]) -> None:
        """Run at least up to the highest of ``layers``, for callers that record them by hooks."""
        self(images)

    def preprocess(self, image: Image.Image | np.ndarray | Tensor) -> Tensor:
        """The input ``(3, crop, crop)`` for one image: PIL, uint8 array (H, W, 3) or uint8 tensor (3, H, W)."""
        return self.checked_preprocessing()(image)

    def unpreprocess(self, inputs: Tensor) -> Tensor:
        """Inputs ``(…, 3, crop, crop)`` back as images, float 0-255."""
        return self.checked_preprocessing().unpreprocess(inputs)

    def checked_preprocessing(self) -> Preprocessing:
        """How its images are prepared; a network that has no preprocessing is refused."""
        if self.preprocessing is None:
            raise ValueError("this network has no preprocessing yet; load_network sets it from a checkpoint")
        return self.preprocessing

    def as_input(self, images: Tensor) -> Tensor:
        """Images on the device and in the dtype of the weights."""
        return images.to(self._weight())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._weight().device

    @property
    def layers_with_maps(self) -> tuple[str, ...]:
        """The layers that have feature maps: all but the dense ones, and those with the channels last."""
        layers = (layer for layer in self.layers if layer not in self.channels_last)
        return tuple(layer for layer in layers if not isinstance(self.map_module(layer), nn.Linear))

    @property
    def conv_modules(self) -> dict[str, nn.Conv2d]:
        """The conv modules by the names that users know, bottom to top."""
        return conv_layers(self)

    @property
    def classifier_prefixes(self) -> tuple[str, ...]:
        """What the names of the classifier's parameters begin with: they start fresh for another number of classes.

        Empty where the network has no head; timm's distilled networks have two.
        """
        return (f"{self.layers[-1]}.",)

    @property
    def layers_below_classes(self) -> tuple[str, ...]:
        """The layers but for the classifier's."""
        ends = tuple(f".{prefix}" for prefix in self.classifier_prefixes)
        return tuple(layer for layer in self.layers if not any(end.endswith(f".{layer}.") for end in ends))

    def is_of_classifier(self, name: str) -> bool:
        """Whether a parameter of this name belongs to the classifier."""
        return name.startswith(self.classifier_prefixes)

    @property
    def map_sizes(self) -> list[int]:
        """Height of the map above each filtering and pooling, bottom to top; empty where that is not known."""
        return []

    def summary(self) -> list[tuple[str, ...]]:
        """A row for each layer: name, filters, map sizes, receptive field / stride, parameters."""
        raise NotImplementedError

    def check_head(self) -> None:
        """Refuse a network without a head where classes are asked for."""
        if self.num_classes == 0:
            raise ValueError(
                "this network has no head and tells no classes apart; it can be asked for projections, invariance, "
                "correspondence, diagnostics, embedding, transfer and probes"
            )

    def check_layer(self, layer: str) -> None:
        """Refuse a name that is no layer; the message lists the layers."""
        if layer not in self.layers:
            raise ValueError(f"no layer {layer!r}; the layers are {', '.join(self.layers)}")

    def _weight(self) -> Tensor:
        return next((weight for weight in self.parameters() if weight.is_floating_point()), torch.empty(0))


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)


@contextmanager
def watching(modules: Mapping[str, nn.Module], watch: Callable[[str, Any], Any]) -> Iterator[None]:
    """Call ``watch(name, output)`` whenever one of the modules has run; the only place that registers such hooks.

    What ``watch`` returns, unless None, replaces the output. Compiled code runs as ordinary code meanwhile: what was
    compiled before does not call hooks.
    """
    with ExitStack() as stack:
        stack.enter_context(uncompiled())
        for name, module in modules.items():
            hook = module.register_forward_hook(lambda _module, _inputs, output, name=name: watch(name, output))
            stack.callback(hook.remove)
        yield


def run_to(network: Network, images: Tensor, layer: str) -> Any:
    """The output of a layer's module as ``forward`` makes it, and nothing above it; of several runs the first counts.

    Raises:
        ValueError: If there is no such layer, or its module never runs.
    """
    outputs: list[Any] = []

    def stop(_layer: str, output: Any) -> None:
        outputs.append(output)
        raise _LayerReached

    try:
        with watching({layer: network.map_module(layer)}, stop):
            network.forward(images)
    except _LayerReached:
        return outputs[0]
    raise ValueError(f"layer {layer!r} does not run when the network does; choose another layer")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards, also after an exception, each submodule is again in the mode that it had."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training


_eager, _eager_holders = ExitStack(), 0


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled code as ordinary code inside: it does not call hooks and rules added after it was compiled.

    Several blocks may be open at a time and close in any order, as those of callbacks do.
    """
    global _eager_holders
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and loading the compiler takes seconds
        yield
        return
    if _eager_holders == 0:
        _eager.enter_context(torch.compiler.set_stance("force_eager"))
    _eager_holders += 1
    try:
        yield
    finally:
        _eager_holders -= 1
        if _eager_holders == 0:
            _eager.close()


class _LayerReached(BaseException):
    """Ends a pass once a layer was computed; not an ``Exception``, so that no handler of errors swallows it."""
