"""What is wrong with an architecture: dead maps, filters that mix frequencies, aliasing.

Source: Zeiler & Fergus (2014), Sec. 4.1 and Fig. 6: AlexNet's first layer "is a mix of extremely high and low frequency
information, with little coverage of the mid frequencies", and its second "shows aliasing artifacts caused by the large
stride 4". The paper shows pictures; the numbers here are ours.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from zfscope.networks.network import Network, watching

NEAR_DEAD = 0.01  # share of the layer's median range; the share of the median RMS below which a filter is called dead
LOW, HIGH = 1 / 8, 1 / 4  # cycles per pixel: waves of more than 8 pixels are low, of fewer than 4 high
GRID = 96  # filters of any size are padded to it, so that a band means the same frequencies for all


class MapRanges(Metric):
    """The largest and the smallest activation of each feature map of a layer, over all images; NaN stays NaN.

    Images that are repeated, as in the padded batches of DDP, change nothing.
    """

    full_state_update = False
    extremes: Tensor

    def __init__(self, maps: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The largest activation and minus the smallest: one tensor with one rule meets the other ranks once.
        self.add_state("extremes", torch.full((2, maps), -torch.inf), dist_reduce_fx="max")

    def update(self, maps: Tensor) -> None:
        """Take in the feature maps of some images, ``(N, C, h, w)`` or ``(N, C)``."""
        if maps.numel():
            axes = [axis for axis in range(maps.ndim) if axis != 1]
            extremes = torch.stack([maps.amax(axes), -maps.amin(axes)]).detach().to(self.extremes)
            self.extremes = torch.maximum(self.extremes, extremes)

    def compute(self) -> Tensor:
        """Largest and smallest activation of each map over all ranks, ``(2, C)`` float32; -inf, inf without images."""
        return self.extremes * self.extremes.new_tensor([[1.0], [-1.0]])


def dead_maps(ranges: Tensor) -> Tensor:
    """Which maps have no activation above 0 in any image, bool ``(C,)``; ``ranges`` as from ``MapRanges``."""
    return ranges[0] <= 0


def near_dead_maps(ranges: Tensor) -> Tensor:
    """Which maps live, but hardly respond to any image, bool ``(C,)``: range below 1 % of the living maps' median.

    A map's range is its largest minus its smallest activation, neither taken below 0. It is small for a map that is
    always about 0, and for one that is always about the same, as of a filter of zeros under a bias. A map that responds
    to one class in a thousand is not nearly dead. ``ranges`` as from ``MapRanges``; the measure is ours.
    """
    largest, smallest = ranges.clamp_min(0).unbind()
    spans = largest - smallest
    living = largest > 0
    return living & (spans < NEAR_DEAD * spans[living].nanmedian()) if living.any() else living


class MapWatch:
    """Hooks on a network's feature maps that note each map's range; ``close`` removes them.

    Watched are ``layers``, by default all that end in an activation: a bare filtering (logits) may be negative without
    being dead. Compiled code runs as ordinary code meanwhile. A layer whose output is no feature maps is passed over.
    ``layers`` are those watched; ``ranges`` holds the ranges by layer, once it has run; nothing is noted while
    ``listening`` is False.
    """

    def __init__(self, network: Network, layers: Sequence[str] | None = None) -> None:
        if layers is None:
            bare = (nn.Linear, nn.Conv2d)
            layers = [layer for layer in network.layers if not isinstance(network.map_module(layer), bare)]
            layers = [layer for layer in layers if layer not in network.channels_last]
        self.layers, self.listening = tuple(layers), True
        self.ranges: dict[str, MapRanges] = {}
        self._hooks = ExitStack()
        self._hooks.enter_context(watching({layer: network.map_module(layer) for layer in layers}, self._note))

    def close(self) -> None:
        """Take the hooks off."""
        self._hooks.close()

    def _note(self, layer: str, maps: Any) -> None:
        if not self.listening or not isinstance(maps, Tensor) or maps.ndim not in (2, 4):
            return
        if layer not in self.ranges:
            self.ranges[layer] = MapRanges(maps.shape[1]).to(maps.device)
        self.ranges[layer].update(maps)


@dataclass(frozen=True)
class FilterFrequencies:
    """Which share of each filter's energy lies where, ``(C,)`` each, 0-1; NaN for a filter of zeros."""

    low: Tensor  # below 1/8 cycles per pixel, the mean (the colour) included
    middle: Tensor  # from 1/8 to 1/4
    high: Tensor  # above 1/4
    beyond_stride: Tensor  # beyond what the layer's stride can carry: the subsampling folds it back as something else


# Of filters of white noise: each band's area. What a filter has in a band is much or little beside this.
NOISE = {"low": math.pi * LOW**2, "middle": math.pi * (HIGH**2 - LOW**2), "high": 1 - math.pi * HIGH**2}


def filter_frequencies(weight: Tensor, stride: int | Sequence[int] = 1) -> FilterFrequencies:
    """Share of each filter's energy in low, middle and high spatial frequencies, and beyond its stride's.

    The energy is that of the 2-D Fourier transform of filters ``(C, C_in, h, w)``, summed over the channels below and
    padded with zeros to 96x96: a common grid, so that a band holds the same frequencies for 7x7 and 11x11 filters. The
    frequency of a wave is counted along its direction, in cycles per input pixel. A stride (of the layer in input
    pixels, or by axis) of s keeps waves of up to ``1 / (2 s)`` cycles along rows and along columns; those beyond alias.

    Source: Zeiler & Fergus (2014), Sec. 4.1, in words. Bands of 4 and 8 pixels a wave are ours.
    """
    if weight.ndim != 4 or not weight.numel():
        raise ValueError(f"weight must be filters (C, C_in, h, w), at least one, but came with {tuple(weight.shape)}")
    strides = (stride, stride) if isinstance(stride, int) else tuple(stride)
    if len(strides) != 2 or min(strides) < 1:
        raise ValueError(f"stride must be 1 or more, for rows and columns, but is {stride}")
    side = GRID * math.ceil(max(weight.shape[2:]) / GRID)
    # Half a cell off zero: so a band's or stride's border falls between two cells, not onto one.
    turned = [torch.exp(-1j * math.pi / side * torch.arange(size, dtype=torch.float64)) for size in weight.shape[2:]]
    filters = weight.detach().cpu().double() * turned[0][:, None] * turned[1]
    energy = torch.fft.fft2(filters, s=(side, side)).abs().square().sum(1)
    along = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    along = torch.minimum(along, 1 - along)
    rows, columns = along[:, None], along[None, :]
    frequency = torch.hypot(rows, columns)
    beyond = (rows > 0.5 / strides[0]) | (columns > 0.5 / strides[1])
    parts = [frequency < LOW, (frequency >= LOW) & (frequency <= HIGH), frequency > HIGH, beyond]
    return FilterFrequencies(*(energy[:, part].sum(1) / energy.sum((1, 2)) for part in parts))


def first_filters(network: Network) -> tuple[str, nn.Conv2d] | None:
    """Name and module of the first conv layer; None if there is none."""
    return next(iter(network.conv_modules.items()), None)


class GridScore(NamedTuple):
    """How unevenly energy lies over the phases of a grid: 0 where evenly; ``chance`` is what no grid would give."""

    score: float
    chance: float


@torch.no_grad()
def grid_score(projections: Tensor, corners: Tensor, period: int) -> GridScore:
    """Whether projections lie on a grid of the image: aliasing of a layer with that stride below them.

    A filter that is applied every ``period`` pixels leaves more energy at some phases (pixel modulo period) than at
    others, the same ones in all projections. So each projection's energy is summed by phase, rows and columns, and
    averaged over projections; the score is the standard deviation over the ``period ** 2`` phases, as a share of their
    mean. ``chance`` is the same if each projection were shifted by a random number of pixels: root mean square, in
    closed form. A Hann window keeps edges of patches from counting. An even checkerboard is not seen here;
    ``beyond_stride`` of the filters tells of it. The measure is ours.

    Projections are ``(P, C, h, w)``, at least two periods high and wide; ``corners`` the left and upper pixel
    ``(x0, y0)`` of each, ``(P, 2)``. NaN, NaN if all projections are zero.
    """
    count, _, height, width = projections.shape
    if corners.shape != (count, 2):
        raise ValueError(f"corners must be (x0, y0) of {count} projections, but is {tuple(corners.shape)}")
    if period < 2 or min(height, width) < 2 * period:
        raise ValueError(
            f"period={period} must be 2 or more, and two of it must fit into projections of {height}x{width} pixels"
        )
    energy = projections.cpu().double().square().sum(1)
    for axis, side in ((1, height), (2, width)):
        window = torch.hann_window(side + 2, periodic=False, dtype=torch.float64)[1:-1]  # without its two zeros
        energy = energy * window.view([-1 if axis == other else 1 for other in range(3)])
    total = energy.sum((1, 2))
    energy = energy[total > 0] / total[total > 0, None, None]
    columns, rows = (
        F.one_hot((corners[total > 0, axis, None].cpu().long() + torch.arange(side)) % period, period).double()
        for axis, side in ((0, width), (1, height))
    )
    phases = torch.einsum("phw,phs,pwt->pst", energy, rows, columns) * period**2  # their mean is 1
    alone = phases.sub(1).square().mean((1, 2))
    return GridScore(
        float(phases.mean(0).sub(1).square().mean().sqrt()),
        float(alone.sum().sqrt() / len(alone)) if len(alone) else math.nan,
    )


@dataclass(frozen=True)
class Diagnosis:
    """What was measured in one network; ``missing`` says why there are no projections.

    Attributes:
        ranges: Largest and smallest activation of each map, ``(2, C)``, by layer.
        first: Name of the first conv layer, with its filters ``(C, C_in, h, w)`` and stride in pixels.
        second: Name of the second layer, if its strongest activations were projected.
        maps: Which of its feature maps, ``(M,)``.
        tiles: Projection of the strongest activation of each, uint8 ``(M, 3, h, w)``, each on its own scale.
        rule: What is said of the rule of the projections: nothing of the deconvnet.
        scored: How many of its maps ``grids`` is of: all that were projected, of which ``tiles`` are the first.
        grids: Score of the projections by period in pixels.
    """

    name: str
    ranges: dict[str, Tensor]
    first: str | None = None
    filters: Tensor | None = None
    stride: int = 1
    frequencies: FilterFrequencies | None = None
    second: str | None = None
    maps: Tensor | None = None
    tiles: Tensor | None = None
    rule: str = ""
    scored: int = 0
    grids: dict[int, GridScore] = field(default_factory=dict)
    missing: str = ""
