"""The deconvnet of a chain of named layers: unpooling, rectification, filtering, on windows.

An activation reaches only its receptive field, so at every layer only that window is computed, many projections at a
time. Windows lie in memory maps last, ``(P, h, w, C)``: cells are gathered as rows, and convolutions are fastest so.

Source: Zeiler & Fergus (2014), Sec. 2.1 and Fig. 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zfscope.deconvnet.boxes import boxes_of, check_maps, check_positions, conv_cells, image_of_each, paste, strongest
from zfscope.networks.chain import ConvNet
from zfscope.networks.layers import last_windows
from zfscope.networks.network import Trace
from zfscope.networks.spec import ConvLayer

Unpooling = Literal["sum", "overwrite"]

# The largest windows of one chunk of projections, in bytes: with its work arrays it shall stay in a CPU's cache.
CHUNK_CPU, CHUNK_GPU = 2**25, 2**28
_FEW_CHANNELS = 4  # up to here a strided filtering goes down by phases, measured three times faster on a CPU


class ChainDeconvnet:
    """Projects activations of the ``trace`` that ``network`` left; filters and switches are prepared once."""

    def __init__(self, network: ConvNet, trace: Trace, unpooling: Unpooling = "sum") -> None:
        self.network, self.trace = network, trace
        self.convs = {name for name in network.layers if isinstance(network.spec[name], ConvLayer)}
        self._filters: dict[str, Tensor] = {}
        self._addresses: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}  # where unpooling overwrites: which windows are the last to point at a cell
        for name, switches in trace.switches.items():
            channels = switches.shape[1]
            rows = switches.permute(0, 2, 3, 1).reshape(-1, channels) * channels
            self._addresses[name] = rows.add_(torch.arange(channels, device=rows.device))
            if unpooling == "overwrite":
                last = last_windows(switches, network.sizes[name, "conv"])
                self._last[name] = last.permute(0, 2, 3, 1).reshape(-1, channels)

    @torch.no_grad()
    def project(
        self,
        layer: str,
        maps: Tensor,
        positions: Tensor | None = None,
        *,
        sources: Tensor | None = None,
        crop: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Project activations of a layer: any number from each image, which went forward once.

        The trace reaches up to ``layer`` at least. ``maps`` names the feature map of each projection, ``(P,)``,
        ``positions (P, 2)`` the (row, column) in it (default: its strongest activation), ``sources (P,)`` the image of
        the trace (default: each its own). Projections are ``(P, 3, H, W)``; with ``crop`` patches ``(P, 3, h, w)`` and
        boxes ``(P, 4)`` of what an activation can reach.
        """
        maps = maps.cpu()
        sources = image_of_each(self.trace.images, maps, sources)
        feature_maps = self.trace.maps[layer]
        check_maps(feature_maps, layer, maps)
        positions = (strongest(feature_maps, maps, sources) if positions is None else positions).cpu()
        check_positions(feature_maps, layer, positions, len(maps))
        address = [sources, maps, *(positions.unbind(1) if layer in self.convs else ())]
        values = feature_maps[tuple(part.to(feature_maps.device) for part in address)]
        return self.project_values(layer, values, maps, positions, sources, crop)

    @torch.no_grad()
    def project_values(
        self, layer: str, values: Tensor, maps: Tensor, positions: Tensor, sources: Tensor, crop: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As `project`, of activations whose values ``(P,)`` are known: the trace needs its switches alone."""
        if layer not in self.convs:
            side = self.network.image_size
            canvases = self.carry(layer, values, maps, None, sources, None)
            return (canvases, torch.tensor([0, 0, side, side]).repeat(len(maps), 1)) if crop else canvases
        cells = conv_cells(self.trace, layer, maps, positions, sources)
        boxes = boxes_of(self.network.field_below_pool(layer), cells)
        projections = self.carry(layer, values, maps, cells, sources, boxes if crop else None)
        return (projections, boxes) if crop else projections

    def carry(
        self, layer: str, values: Tensor, maps: Tensor, cells: Tensor | None, sources: Tensor, boxes: Tensor | None
    ) -> Tensor:
        """Carry values ``(P,)`` at conv units (None in a dense layer) down; whole canvases, or patches in ``boxes``."""
        side = self.network.image_size if boxes is None or not len(boxes) else int(boxes[0, 2] - boxes[0, 0])
        projections = values.new_zeros(len(maps), 3, side, side)
        origins = torch.zeros(len(maps), 2, dtype=torch.int64) if boxes is None else boxes[:, :2].flip(1)
        below = self.network.layers[: self.network.layers.index(layer)]
        chunks = self._chunks(layer, below)
        start = 0
        for chunk in torch.arange(len(maps)).split(chunks[below[-1]] if below else 1024):
            seed_cells = None if cells is None else cells[chunk]
            seeds = self._seed(layer, values[chunk.to(values.device)], maps[chunk], seed_cells)
            for windows, corners in self.descend(*seeds, sources[chunk], below, chunks):
                end = start + len(windows)
                paste(windows.permute(0, 3, 1, 2), corners, projections[start:end], origins[start:end])
                start = end
        return projections

    def _seed(self, layer: str, values: Tensor, maps: Tensor, cells: Tensor | None) -> tuple[Tensor, Tensor]:
        """The first filtering, of single activations ``(P,)``: what they put into the map below the layer."""
        module = getattr(self.network, layer)
        maps = maps.to(values.device)
        if cells is None:
            return self._dense(layer, values[:, None] * module.linear.weight[maps])
        conv = module.conv
        filters = (values[:, None, None, None] * conv.weight[maps]).permute(0, 2, 3, 1)
        windows = filters.new_zeros(len(values), *conv.kernel_size, conv.in_channels)
        group = maps // (conv.out_channels // conv.groups)
        for number, part in enumerate(windows.chunk(conv.groups, dim=3)):
            part.copy_(filters * (group == number)[:, None, None, None])
        corners = cells * conv.stride[0] - conv.padding[0]
        _clear_overhang(windows, corners, self._size_below(layer))
        return windows, corners

    def descend(
        self, windows: Tensor, corners: Tensor, sources: Tensor, below: Sequence[str], chunks: Mapping[str, int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows of the map above ``below``, carried down to pixels in pieces: unpool, rectify, filter.

        Windows grow on the way, so pieces shrink: above, many share a pass over the filters; below, few fit a cache.
        """
        if not below:
            yield windows, corners
            return
        *rest, name = below
        for part in zip(*(tensor.split(chunks[name]) for tensor in (windows, corners, sources)), strict=True):
            yield from self.descend(*self._step(name, *part), part[2], rest, chunks)

    def _step(self, name: str, windows: Tensor, corners: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        """From the map above a layer to the map below it."""
        if name not in self.convs:
            return self._dense(name, windows.relu() @ getattr(self.network, name).linear.weight)
        if name in self._addresses:
            windows, corners = self._unpool(name, windows, corners, sources)
        return self._filter(name, windows.relu(), corners)

    def _unpool(self, name: str, windows: Tensor, corners: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        """Put the values of each window to the positions of their switches, in a window of the map below the pool."""
        pool, size, below = self.network.spec[name].pool, self.network.sizes[name, "pool"], self._size(name)
        span = (windows.shape[1] - 1) * pool.stride + pool.kernel_size
        if span >= below:
            windows, corners, span = _whole(windows, corners, size), torch.zeros_like(corners), below
        count, height, width, channels = windows.shape
        device = windows.device
        cells = corners[:, None, :] + torch.arange(height)[None, :, None]  # (P, h, row or column)
        inside = cells.clamp(0, size - 1)
        rows = (sources[:, None, None] * size + inside[:, :, None, 0]) * size + inside[:, None, :, 1]
        rows = rows.flatten().to(device)
        index = self._addresses[name].index_select(0, rows).view(count, -1)
        if name in self._last:
            windows = windows * self._last[name].index_select(0, rows).view_as(windows)
        # Rows of the target are as long as the map's, so an address in the map is one in the target, but for a shift.
        length = ((span - 1) * below + span) * channels
        starts = corners * pool.stride
        index -= ((starts[:, 0] * below + starts[:, 1]) * channels)[:, None].to(device)
        if not torch.equal(cells, inside):  # overhanging cells are zero: anywhere is right for them
            index.clamp_(0, length - 1)
        target = windows.new_zeros(count, length).scatter_add_(1, index, windows.reshape(count, -1))
        spread = target.as_strided((count, span, span, channels), (length, below * channels, channels, 1))
        return spread, starts

    def _filter(self, name: str, windows: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
        """Filter rectified windows of a layer's own map down into the map below the layer."""
        conv, size, below = getattr(self.network, name).conv, self._size(name), self._size_below(name)
        kernel, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
        whole = (windows.shape[1] - 1) * stride + kernel >= below
        if whole and windows.shape[1] < size:
            windows, corners = _whole(windows, corners, size), torch.zeros_like(corners)
        span = (windows.shape[1] - 1) * stride + kernel
        windows = windows.permute(0, 3, 1, 2)
        if name not in self._filters:
            self._filters[name] = _filters(conv)
        if _by_phases(conv):
            phases = F.conv2d(windows, self._filters[name], padding=-(-kernel // stride) - 1)
            windows = _interleave(phases.permute(0, 2, 3, 1), stride)[:, :span, :span]
        else:
            windows = F.conv_transpose2d(windows, self._filters[name], stride=stride, groups=conv.groups)
            windows = windows.permute(0, 2, 3, 1)
        corners = corners * stride - padding
        if whole:
            return _whole(windows, corners, below), torch.zeros_like(corners)
        windows = windows.contiguous()
        _clear_overhang(windows, corners, below)
        return windows, corners

    def _dense(self, name: str, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of a dense layer, ``(P, values)``: whole maps where the layer below has maps."""
        corners = torch.zeros(len(vectors), 2, dtype=torch.int64)
        below = self.network.layers[: self.network.layers.index(name)]
        if below and below[-1] not in self.convs:
            return vectors, corners
        size = self._size_below(name)
        return vectors.view(len(vectors), -1, size, size).permute(0, 2, 3, 1).contiguous(), corners

    def _size(self, name: str) -> int:
        """Side of a layer's own map, below its pool."""
        return self.network.sizes[name, "conv"]

    def _size_below(self, name: str) -> int:
        """Side of the map that a layer filters."""
        position = self.network.layers.index(name)
        if position == 0:
            return self.network.image_size
        below = self.network.layers[position - 1]
        return self.network.sizes.get((below, "pool")) or self._size(below)

    def _chunks(self, layer: str, below: Sequence[str]) -> dict[str, int]:
        """How many projections go through each layer together, by the size of their windows in its own map."""
        field = self.network.field_below_pool(layer).size
        budget = CHUNK_CPU if self.trace.images.device.type == "cpu" else CHUNK_GPU
        chunks = {}
        for name in below:
            values = self.network.spec[name].maps if name in self.convs else self.network.spec[name].units
            if name in self.convs:
                values *= min(self._size(name), -(-field // self.network.field_below_pool(name).stride)) ** 2
            chunks[name] = max(1, budget // (values * self.trace.images.element_size()))
        return chunks


def _by_phases(conv: nn.Conv2d) -> bool:
    return conv.stride[0] > 1 and conv.in_channels <= _FEW_CHANNELS and conv.groups == 1


def _filters(conv: nn.Conv2d) -> Tensor:
    """Filters for the way down: as they are for a transposed convolution, or cut into phases.

    Output pixel ``y * stride + phase`` of a transposed convolution takes every ``stride``-th row of the filter: for
    each phase a plain convolution with the flipped rest of the filter.
    """
    weight, stride, kernel = conv.weight.detach(), conv.stride[0], conv.kernel_size[0]
    if not _by_phases(conv):
        return weight.contiguous(memory_format=torch.channels_last)
    taps = -(-kernel // stride)
    padded = F.pad(weight, (0, taps * stride - kernel) * 2)
    phases = padded.unflatten(3, (taps, stride)).unflatten(2, (taps, stride))  # (C, C_in, tap, phase, tap, phase)
    phases = phases.permute(3, 5, 1, 0, 2, 4).flatten(0, 2).flip(2, 3)
    return phases.contiguous(memory_format=torch.channels_last)


def _interleave(phases: Tensor, stride: int) -> Tensor:
    """``(P, h, w, stride * stride * C)``, phase by phase, to pixels ``(P, h * stride, w * stride, C)``."""
    count, height, width, _ = phases.shape
    parts = phases.unflatten(3, (stride, stride, -1)).permute(0, 1, 3, 2, 4, 5)
    return parts.reshape(count, height * stride, width * stride, -1)


def _whole(windows: Tensor, corners: Tensor, size: int) -> Tensor:
    """Paste windows ``(P, h, w, C)`` into whole maps of zeros, ``(P, size, size, C)``."""
    count, height, width, channels = windows.shape
    if height == width == size and not corners.any():
        return windows
    maps = windows.new_zeros(count, size, size, channels)
    paste(windows.permute(0, 3, 1, 2), corners, maps.permute(0, 3, 1, 2), torch.zeros_like(corners))
    return maps


def _clear_overhang(windows: Tensor, corners: Tensor, size: int) -> None:
    """Set to zero, in place, what lies outside of a map of ``size``: it fell into the padding."""
    cells = corners[:, None, :] + torch.arange(windows.shape[1])[None, :, None]
    inside = (cells >= 0) & (cells < size)
    if not inside.all():
        inside = inside.to(windows.device)
        windows.mul_((inside[:, :, None, 0] & inside[:, None, :, 1])[..., None])
