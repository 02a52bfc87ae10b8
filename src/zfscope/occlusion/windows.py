"""Occlusion by windows: only what the occluder changes is computed anew.

A square changes only a window of each layer. So the unoccluded image goes forward once, and for each position of the
square only the *change* of each layer's window is carried up: filtering is linear, ``conv(old + change) = conv(old) +
conv(change)``, and a change has fewer cells than what it changes. Nothing is approximated.

Source: Zeiler & Fergus (2014), Sec. 4.2 and Fig. 7.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zfscope.networks.chain import ConvNet
from zfscope.networks.spec import ConvLayer
from zfscope.occlusion.passes import PASS_BYTES, OcclusionBatches, Passes

# Bytes of the largest windows of a tile, the positions that go up together: more share a call, fewer stay in a cache
# and share what the border cuts off.
TILE_BYTES = 2**23
DENSE_BATCH = 256  # top maps that go through the dense layers together, whose weights are read once for all of them


@dataclass(frozen=True)
class _Span:
    """One axis of the windows of one layer, for a run of squares that lie whole cells apart at every layer.

    Origins are those of the run's first square, in cells; windows may overhang the map where another one's does not.
    """

    below: int  # cells of the change that comes from below
    padding: int  # what the change is padded with, so that its filtering covers all that it reaches
    skip: int  # cells to leave out at the start of that filtering
    inner: int  # its cells that are used
    offset: int  # where these begin in the window that is unpooled yet
    low: int  # where that window begins, in the conv's map
    cells: int  # how many it has
    step: int  # pixels from one cell of the conv's map to the next
    out_low: int  # where the window of the layer's output begins
    out_cells: int  # how many cells it has
    out_step: int  # pixels from one to the next


@dataclass(frozen=True)
class _Run:
    """Some positions along one axis and the windows that they change."""

    numbers: list[int]  # which positions
    starts: list[int]  # their first pixels
    pixels: tuple[int, int]  # where the first square begins, and how many of its pixels lie in the image
    spans: list[_Span]  # by layer, as far as the change comes: a stride that is larger than its kernel can pass it by

    def cells(self, low: int, count: int, step: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The cells ``(positions, count)`` of windows that begin at ``low`` for the first; and which lie in the map."""
        moves = torch.tensor([(start - self.starts[0]) // step for start in self.starts])
        cells = (moves[:, None] + torch.arange(low, low + count)).to(device)
        return cells, (cells >= 0) & (cells < side)


class CachedLayer:
    """A conv layer of the unoccluded image, and how a change gets through it.

    Its maps lie as rows, ``(cells, C)``, with one more for whatever is outside: minus infinity before the ReLU, so that
    it stays 0 whatever is added, and 0 after. Windows go up to the top layer's ReLU; what is above it sees whole maps.
    """

    def __init__(self, network: ConvNet, name: str, top: bool) -> None:
        self.spec: ConvLayer = network.spec[name]
        parts = dict(getattr(network, name).named_children())
        pool, norm = parts.get("pool"), parts.get("norm")
        before = self.spec.norm == "before_pool" and pool is not None
        self._to_maps = [part for part in (norm if before else None, pool) if part is not None]
        self._above = [] if before or norm is None else [norm]
        self.conv = parts["conv"]
        self.weight = self.conv.weight.contiguous(memory_format=torch.channels_last)
        # Without pool and norm the old output is the rectified old row, which is read anyway.
        self.plain = top or not (self._to_maps or self._above)
        self.pool = None if self.plain else self.spec.pool

    def record(self, below: Tensor) -> tuple[Tensor, Tensor]:
        """Keep of the unoccluded image what its changes need; give feature maps and output, ``(1, C, h, w)``."""
        filtered = self.conv(below)
        feature_maps = self.to_maps(filtered.relu())
        out = self.above(feature_maps)
        self.side, self.out_side = filtered.shape[2], (filtered if self.plain else out).shape[2]
        self.filtered = _rows(filtered, -math.inf)
        self.out_rows = None if self.plain else _rows(out, 0)
        return feature_maps, out

    def to_maps(self, rectified: Tensor) -> Tensor:
        """From the ReLU to the feature map."""
        for part in self._to_maps:
            rectified = part(rectified)
        return rectified

    def above(self, feature_maps: Tensor) -> Tensor:
        """From the feature map to what the next layer gets."""
        for part in self._above:
            feature_maps = part(feature_maps)
        return feature_maps


class WindowedPasses(Passes):
    """Carries the change that a square makes up a chain of conv layers, window by window."""

    def __init__(self, network: ConvNet, image: Tensor, fill: Tensor, size: int, layer: str) -> None:
        super().__init__(network, image, fill, size, layer)
        network.check_images(image[None])
        self.side, self.device = image.shape[1], image.device
        self.dense = [name for name in network.layers if not isinstance(network.spec[name], ConvLayer)]
        self.layers: dict[str, CachedLayer] = {}
        below = image[None].contiguous(memory_format=torch.channels_last)
        self.change = _rows(fill.view(-1, 1, 1) - below, 0)  # of each pixel, if the square covers it
        convs = network.layers[: -len(self.dense)]
        self.watched: Tensor | None = None
        for name in convs:
            self.layers[name] = self.top = CachedLayer(network, name, top=name == convs[-1])
            feature_maps, below = self.top.record(below)
            if name == layer:
                self.watched = feature_maps[0]
        self.top_rows = self.top.filtered.relu()
        self.classes = network.num_classes
        self.sums = self._dense(below.flatten(1))[1] if self.watched is None else self.watched.sum((1, 2))[None]
        self.tile, self.held = self._budget()

    def watch(self, target: int, feature_map: int | None) -> int:
        """Choose the feature map that is watched; refuse a class or a map that is not there."""
        feature_map = super().watch(target, feature_map)
        if self.watched is not None:
            old = self.watched[feature_map].flatten()
            self.old_map = torch.cat([old, old.new_zeros(1)])
        return feature_map

    def share(self, starts: Sequence[range]) -> float:
        """Multiply-adds of the conv layers' windows as a share of those of full passes."""
        windows = whole = 0
        runs = [self._runs(axis) for axis in starts]
        for number, old in enumerate(self.layers.values()):
            reached = [[run for run in axis if len(run.spans) > number] for axis in runs]
            cells = [sum(len(run.starts) * run.spans[number].below for run in axis) for axis in reached]
            values = old.weight.numel()
            windows += values * math.prod(cells) / old.spec.stride**2
            whole += values * old.side**2 * math.prod(len(axis) for axis in starts)
        return windows / whole

    def run(self, starts: Sequence[range]) -> OcclusionBatches:
        """Yield logits and activations, some tiles at a time."""
        rows, columns = (self._runs(axis) for axis in starts)
        held: list[tuple[Tensor, Tensor, Tensor]] = []
        for row in rows:
            for column in columns:
                where = torch.tensor([i * len(starts[1]) + j for i in row.numbers for j in column.numbers])
                held.append((where, *self._tile(row, column)))
                if sum(len(where) for where, _, _ in held) >= self.held:
                    yield self._finish(held)
                    held = []
        if held:
            yield self._finish(held)

    def _finish(self, held: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        where, tops, activation = (torch.cat(parts) for parts in zip(*held, strict=True))
        logits, units = self._dense(tops)
        return where, logits, units[:, self.feature_map] if self.layer in self.dense else activation

    def _dense(self, tops: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(P, classes)`` of top maps ``(P, C * h * w)``; the watched layer, if it is a dense one."""
        watched = tops
        for name in self.dense:
            for part in getattr(self.network, name).children():
                tops = _linear(part, tops) if isinstance(part, nn.Linear) else part(tops)
            if name == self.layer:
                watched = tops
        return tops, watched

    def _tile(self, row: _Run, column: _Run) -> tuple[Tensor, Tensor]:
        """Top maps ``(P, C * h * w)`` and activations ``(P,)`` of the squares at all rows and columns of two runs."""
        index, _ = self._cells(row, column, [(*run.pixels, 1) for run in (row, column)], self.side)
        count = len(index)
        change = self.change[index].permute(0, 3, 1, 2)
        activation = self.sums[0, self.feature_map].expand(count)
        tops = self.top_rows.repeat(count, 1, 1)
        for (name, old), *across in zip(self.layers.items(), row.spans, column.spans):  # noqa: B905, spans may be fewer
            conv = old.conv
            paddings = [span.padding for span in across]
            added = F.conv2d(change, old.weight, None, conv.stride, paddings, groups=conv.groups)
            added = added[(..., *(slice(span.skip, span.skip + span.inner) for span in across))]
            index, inside = self._cells(row, column, [(span.low, span.cells, span.step) for span in across], old.side)
            maps = old.filtered[index].permute(0, 3, 1, 2)
            if old.plain:
                change = maps.add(added).relu_()
                change.sub_(maps.relu_())
                if name == self.layer:
                    activation = activation + change[:, self.feature_map].sum((1, 2))
                continue
            maps[(..., *(slice(span.offset, span.offset + span.inner) for span in across))] += added
            maps = old.to_maps(maps.relu_())
            outs = [(span.out_low, span.out_cells, span.out_step) for span in across]
            index, inside = self._cells(row, column, outs, old.out_side)
            if name == self.layer:
                differs = (maps[:, self.feature_map] - self.old_map[index]) * inside
                activation = activation + differs.sum((1, 2))
            change = old.above(maps).sub_(old.out_rows[index].permute(0, 3, 1, 2))
            if not inside.all():
                change.mul_(inside[:, None])
        if min(len(row.spans), len(column.spans)) == len(self.layers):
            tops[torch.arange(count)[:, None, None], index] += change.permute(0, 2, 3, 1)
        tops = tops[:, :-1].unflatten(1, (self.top.side, self.top.side)).permute(0, 3, 1, 2)
        feature_maps = self.top.to_maps(tops)
        if self.layers.get(self.layer) is self.top:
            activation = feature_maps[:, self.feature_map].sum((1, 2))
        return self.top.above(feature_maps).flatten(1), activation

    def _cells(
        self, row: _Run, column: _Run, windows: Sequence[tuple[int, int, int]], side: int
    ) -> tuple[Tensor, Tensor]:
        """Which rows of an old map the windows of a tile are, and which of their cells lie in it: ``(P, h, w)``."""
        (rows, in_rows), (columns, in_columns) = (
            run.cells(*window, side, self.device) for run, window in zip((row, column), windows, strict=True)
        )
        inside = (in_rows[:, None, :, None] & in_columns[None, :, None, :]).flatten(0, 1)
        flat = (rows[:, None, :, None] * side + columns[None, :, None, :]).flatten(0, 1)
        return flat.masked_fill_(~inside, side**2), inside

    def _budget(self) -> tuple[int, int]:
        """Positions along each axis of a tile, and positions whose top maps are held: what memory allows."""
        spans = self._run_of([0], [(self.side - self.size) // 2]).spans
        windows = [span.cells**2 * len(old.weight) for old, span in zip(self.layers.values(), spans)]  # noqa: B905
        tops = self.top_rows.numel()
        item = self.top_rows.element_size()
        positions = TILE_BYTES // (max(windows + [tops]) * item)
        return max(1, math.isqrt(positions)), max(1, min(DENSE_BATCH, PASS_BYTES // (tops * item)))

    def _runs(self, starts: range) -> list[_Run]:
        """Cut one axis of positions into runs whose windows are alike: of one phase of the chain's stride."""
        strides = [old.spec.stride * (old.pool.stride if old.pool else 1) for old in self.layers.values()]
        phase = math.prod(strides)
        alike: dict[int, list[int]] = {}
        for number, start in enumerate(starts):
            alike.setdefault(start % phase, []).append(number)
        runs = []
        for numbers in alike.values():
            pieces = math.ceil(len(numbers) / self.tile)
            for piece in range(pieces):
                piece_numbers = numbers[piece * len(numbers) // pieces : (piece + 1) * len(numbers) // pieces]
                runs.append(self._run_of(piece_numbers, [starts[number] for number in piece_numbers]))
        return runs

    def _run_of(self, numbers: list[int], starts: list[int]) -> _Run:
        """Follow the squares of a run up the chain, along one axis."""
        moves = starts[-1] - starts[0]

        def trimmed(low: int, high: int, side: int, step: int) -> tuple[int, int]:
            # What overhangs the map for every square of the run is left out.
            return max(low, -(moves // step)), min(high, side)

        low, high = trimmed(starts[0], starts[0] + self.size, self.side, 1)
        pixels, step, spans = (low, max(0, high - low)), 1, []
        for old in self.layers.values():
            if high <= low:
                break
            conv = old.spec
            step *= conv.stride
            first = -((conv.kernel_size - 1 - conv.padding - low) // conv.stride)
            first, end = trimmed(first, (high - 1 + conv.padding) // conv.stride + 1, old.side, step)
            whole, out, out_step = (first, end), (first, end), step
            if old.pool is not None:
                pool = old.pool
                out_step = step * pool.stride
                out = -((pool.kernel_size - 1 - first) // pool.stride), (end - 1) // pool.stride + 1
                out = trimmed(*out, old.out_side, out_step)
                whole = out[0] * pool.stride, (out[1] - 1) * pool.stride + pool.kernel_size
                first, end = max(first, whole[0]), min(end, whole[1])
            if end <= first or out[1] <= out[0]:
                break
            above = low + conv.padding - first * conv.stride
            after = (end - 1) * conv.stride - conv.padding + conv.kernel_size - high
            skip = math.ceil(max(0, after - above, -above) / conv.stride)
            spans.append(
                _Span(
                    below=high - low,
                    padding=above + skip * conv.stride,
                    skip=skip,
                    inner=end - first,
                    offset=first - whole[0],
                    low=whole[0],
                    cells=whole[1] - whole[0],
                    step=step,
                    out_low=out[0],
                    out_cells=out[1] - out[0],
                    out_step=out_step,
                )
            )
            (low, high), step = out, out_step
        return _Run(numbers, starts, pixels, spans)


def _rows(maps: Tensor, outside: float) -> Tensor:
    """Maps ``(1, C, h, w)`` as rows ``(h * w + 1, C)``, the last one for what is outside."""
    rows = maps[0].permute(1, 2, 0).flatten(0, 1)
    return torch.cat([rows, rows.new_full((1, rows.shape[1]), outside)])


def _linear(linear: nn.Linear, inputs: Tensor) -> Tensor:
    """A dense layer's filtering, by oneDNN where it can: on an AMD processor 1.3 to 1.6 times as fast as MKL."""
    if inputs.device.type == "cpu" and inputs.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return F.linear(inputs.to_mkldnn(), linear.weight, linear.bias).to_dense()
    return linear(inputs)
