"""The switches of the images that are winning, kept while a pass over all images goes on.

With them a winner is projected without running its image again. A pool of 3x3 has nine places in a window, so a switch
fits into a byte: 0.33 MB for an image of ZFNet.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from zfscope.networks.chain import ConvNet
from zfscope.networks.network import Trace
from zfscope.networks.spec import PoolConfig


class KeptSwitches:
    """Switches of images, by their indices, in at most ``room`` bytes of host memory; no more are kept."""

    def __init__(self, network: ConvNet, room: float) -> None:
        self._network, self._room, self._kept = network, room, {}

    def __contains__(self, image: int) -> bool:
        return image in self._kept

    def update(self, trace: Trace, images: Tensor, winning: Tensor) -> None:
        """Keep the switches of those images of the trace, ``images (N,)``, that are ``winning``; others lose theirs."""
        winners = set(winning.tolist())
        for image in self._kept.keys() - winners:
            del self._kept[image]
        size = sum(self._bytes_each(layer, switches) for layer, switches in trace.switches.items())
        rows = [row for row, image in enumerate(images.tolist()) if image in winners and image not in self._kept]
        rows = rows[: max(0, int(self._room // size) - len(self._kept))] if size else []
        if not rows:
            return
        packed = {
            layer: packed_switches(switches[rows], self._pool(layer), trace.widths[layer]).cpu()
            for layer, switches in trace.switches.items()
        }
        for number, row in enumerate(rows):
            # Copies, or one image that stays would hold the memory of all.
            self._kept[int(images[row])] = {layer: part[number].clone() for layer, part in packed.items()}

    def trace(self, inputs: Tensor, images: Sequence[int]) -> Trace:
        """A trace of images that are kept, their inputs ``(N, 3, H, W)``; it holds the switches, and no maps."""
        trace = Trace(inputs)
        for layer in self._kept[images[0]]:
            packed = torch.stack([self._kept[image][layer] for image in images])
            trace.widths[layer] = self._network.sizes[layer, "conv"]
            trace.switches[layer] = unpacked_switches(packed.to(inputs.device), self._pool(layer), trace.widths[layer])
        return trace

    def _bytes_each(self, layer: str, switches: Tensor) -> int:
        return switches[0].numel() * _type_of(self._pool(layer)).itemsize

    def _pool(self, layer: str) -> PoolConfig:
        return self._network.spec[layer].pool


def packed_switches(switches: Tensor, pool: PoolConfig, width: int) -> Tensor:
    """Switches ``(N, C, h, w)``, flat indices into maps ``width`` wide, as places in windows, ``(N, h, w, C)``."""
    switches = switches.permute(0, 2, 3, 1).int()
    within = switches - _corners(switches, pool, width).int()
    places = within.clone()
    for row in range(1, pool.kernel_size):  # rows are counted by comparing, many times faster than dividing
        places.add_(within >= row * width, alpha=pool.kernel_size - width)
    return places.to(_type_of(pool))


def unpacked_switches(places: Tensor, pool: PoolConfig, width: int) -> Tensor:
    """The inverse of `packed_switches`: ``(N, C, h, w)`` int64, laid out in memory with the maps last."""
    switches = _corners(places, pool, width) + places
    for row in range(1, pool.kernel_size):
        switches.add_(places >= row * pool.kernel_size, alpha=width - pool.kernel_size)
    return switches.permute(0, 3, 1, 2)


def _type_of(pool: PoolConfig) -> torch.dtype:
    """What holds a place in a window."""
    return torch.uint8 if pool.kernel_size**2 <= 2**8 else torch.int32


def _corners(windows: Tensor, pool: PoolConfig, width: int) -> Tensor:
    """The flat index of each window's first cell, ``(h, w, 1)``, for ``windows (N, h, w, C)``."""
    rows, columns = (pool.stride * torch.arange(side, device=windows.device) for side in windows.shape[1:3])
    return (rows[:, None] * width + columns)[..., None]
