"""Occlusion by full passes: the whole network runs once for each position of the occluder."""

from collections.abc import Iterator, Sequence
from numbers import Integral

import torch
from torch import Tensor

from zfscope.networks.network import Network, Trace, watching

PASS_BYTES = 2**26  # of the largest maps in one batch of full passes, and of the top maps that are held

# Flat positions (P,), their logits (P, classes), their activations (P,).
OcclusionBatches = Iterator[tuple[Tensor, Tensor, Tensor]]


def logits_of(trace: Trace) -> Tensor:
    """The logits of a trace, ``(N, classes)``; refused where a network gives something else."""
    if not isinstance(trace.logits, Tensor) or trace.logits.ndim != 2:
        raise ValueError("occlusion needs a network that gives logits (N, classes) for images (N, 3, H, W)")
    return trace.logits


class Passes:
    """What both ways of going through the positions share; ``run`` yields the logits and activations of each.

    ``sums`` are those of the watched layer's maps in the unoccluded image, ``(1, C)``.
    """

    def __init__(self, network: Network, image: Tensor, fill: Tensor, size: int, layer: str) -> None:
        self.network, self.image, self.fill, self.size, self.layer = network, image, fill, size, layer
        self.sums, self.classes, self.feature_map = image.new_zeros(1, 0), 0, 0

    def watch(self, target: int, feature_map: int | None) -> int:
        """Choose the feature map that is watched; refuse a class or a map that is not there."""
        limits = [("target", target, "the classes", self.classes)]
        limits.append(("feature_map", feature_map, f"the maps of {self.layer}", self.sums.shape[1]))
        for name, number, what, count in limits:
            if number is None:
                continue
            if not _is_whole(number) or not 0 <= number < count:
                raise ValueError(f"{name} must be one of {what}, 0 … {count - 1}, but is {number}")
        self.feature_map = int(self.sums[0].argmax()) if feature_map is None else int(feature_map)
        return self.feature_map


class FullPasses(Passes):
    """All of the network for each position, a batch at a time."""

    def __init__(self, network: Network, image: Tensor, fill: Tensor, size: int, layer: str) -> None:
        super().__init__(network, image, fill, size, layer)
        largest = [image.numel()]

        def measure(_name: str, output: object) -> None:
            if isinstance(output, Tensor):
                largest.append(output.numel())

        with watching(dict(network.named_modules()), measure):
            logits, self.sums = self._pass(image[None])
        self.classes = logits.shape[1]
        self.batch_size = max(1, min(64, PASS_BYTES // (max(largest) * image.element_size())))

    def run(self, starts: Sequence[range]) -> OcclusionBatches:
        """Yield logits and activations, batch by batch."""
        squares = torch.cartesian_prod(*(torch.tensor(axis) for axis in starts)).view(-1, 2)
        for where in torch.arange(len(squares)).split(self.batch_size):
            images = self.image.repeat(len(where), 1, 1, 1)
            for image, (row, column) in zip(images, squares[where].tolist(), strict=True):
                image[:, row : row + self.size, column : column + self.size] = self.fill.view(-1, 1, 1)
            logits, sums = self._pass(images)
            yield where, logits, sums[:, self.feature_map]

    def _pass(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(N, classes)`` and the sums of the layer's maps ``(N, C)``."""
        trace = self.network.trace(images.contiguous(memory_format=torch.channels_last))
        logits, maps = logits_of(trace), trace.maps[self.layer]
        if not isinstance(maps, Tensor) or maps.ndim not in (2, 4):
            raise ValueError(f"layer {self.layer!r} has no feature maps (N, C, h, w) or (N, C); choose another layer")
        return logits, maps.sum((2, 3)) if maps.ndim == 4 else maps


def _is_whole(number: object) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)
