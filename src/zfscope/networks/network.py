"""A classifier with named layers, and the trace that one forward pass leaves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from zfscope.networks.preprocessing import Preprocessing


@dataclass
class Trace:
    """What one forward pass leaves behind for looking.

    Attributes:
        images: The network inputs, ``(N, 3, H, W)``.
        maps: Feature maps by layer: after the pool where there is one, else after the ReLU
            ``(N, C, h, w)``; fc6, fc7 after their ReLU ``(N, units)``; fc8: the logits.
        switches: For a layer that pools, where each maximum was: the flat index
            ``row * W + column`` in the map below the pool, ``(N, C, h, w)``.
        logits: ``(N, num_classes)``.
    """

    images: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)
    switches: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


class Network(nn.Module):
    """A classifier with named layers that tools can look into.

    Attributes:
        layers: The names, in order.
        classes: The classes' names, if known.
        preprocessing: How its images are prepared, if known.
        num_classes: Number of classes; None if that is not known.
        image_size: Height and width of the input, in pixels; None if that is not known.
    """

    layers: tuple[str, ...]

    def __init__(self, num_classes: int | None = None, image_size: int | None = None) -> None:
        super().__init__()
        if any(number is not None and number < 1 for number in (num_classes, image_size)):
            raise ValueError(f"num_classes and image_size must be 1 or more, but are {num_classes} and {image_size}")
        self.num_classes = num_classes
        self.image_size = image_size
        self.classes: tuple[str, ...] | None = None
        self.preprocessing: Preprocessing | None = None

    def trace(self, images: Tensor) -> Trace:
        """Run the images once and keep what looking needs."""
        raise NotImplementedError

    def map_module(self, layer: str) -> nn.Module:
        """The submodule whose output is the layer's feature map; ``forward`` calls it once.

        Args:
            layer: A name from ``layers``.

        Raises:
            ValueError: If there is no such layer.
        """
        raise NotImplementedError

    def features(self, images: Tensor, layer: str) -> Tensor:
        """The feature maps of one layer, as in ``Trace.maps``.

        Args:
            images: Preprocessed images, ``(N, 3, H, W)``.
            layer: A name from ``layers``.

        Raises:
            ValueError: If there is no such layer.
        """
        self.check_layer(layer)
        return self.trace(images).maps[layer]

    def preprocess(self, image: Image.Image | np.ndarray | Tensor) -> Tensor:
        """The input ``(3, crop, crop)`` for one image: PIL, uint8 array (H, W, 3) or uint8 tensor (3, H, W)."""
        return self._preprocessing()(image)

    def unpreprocess(self, inputs: Tensor) -> Tensor:
        """Inputs ``(…, 3, crop, crop)`` back as images, float 0-255."""
        return self._preprocessing().unpreprocess(inputs)

    @property
    def classifier_prefix(self) -> str:
        """How the names of the parameters of the classes' layer begin: the ones that another data set has anew."""
        return f"{self.layers[-1]}."

    def check_layer(self, layer: str) -> None:
        """Refuse a name that is no layer, with the list of those that are."""
        if layer not in self.layers:
            raise ValueError(f"no layer {layer!r}; the layers are {', '.join(self.layers)}")

    def _preprocessing(self) -> Preprocessing:
        if self.preprocessing is None:
            raise ValueError("this network has no preprocessing yet; load_network sets it from a checkpoint")
        return self.preprocessing


def run_to(network: Network, images: Tensor, layer: str) -> Any:
    """The output of a layer's module as ``forward`` makes it, and nothing above it.

    Where a module runs several times in a pass, the first time counts.

    Args:
        network: Any network.
        images: Network inputs, ``(N, 3, H, W)``.
        layer: A name from its ``layers``.

    Raises:
        ValueError: If there is no such layer, or its module never runs.
    """
    reached: list[Any] = []

    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        reached.append(output)
        raise _Reached

    hook = network.map_module(layer).register_forward_hook(stop)
    try:
        with uncompiled():
            network.forward(images)
    except _Reached:
        return reached[0]
    finally:
        hook.remove()
    raise ValueError(f"layer {layer!r} does not run when the network does; choose another layer")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards, also after an exception, each submodule is again in the mode that it had."""
    modes = [(each, each.training) for each in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for each, training in modes:
            each.training = training


_eager, _eager_holders = ExitStack(), 0


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled code as ordinary code inside: it would not see hooks and rules that came after it.

    Several may hold this at a time and let go in any order, as callbacks do.
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


class _Reached(BaseException):
    """A layer was computed: what ends the pass; no handler of ordinary errors may swallow it."""
