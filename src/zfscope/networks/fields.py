"""The receptive field of a unit: computed for a chain of layers, measured with NaN for any other network."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zfscope.networks.finite import broken_tensor
from zfscope.networks.geometry import ReceptiveField
from zfscope.networks.network import Network, evaluating, run_to


def receptive_field(network: Network, layer: str, image_size: int | None = None) -> ReceptiveField:
    """The receptive field of one unit of a layer's feature map (the pooled one where it pools), in pixels.

    Computed for a chain, else measured; ``image_size`` is the height and width of the images, for a network that does
    not know them.

    Source: Zeiler & Fergus (2014), Fig. 3: 11/4 after pool1, 43/16 after pool2, 139/16 at conv5.
    """
    return network.receptive_field(layer, image_size)


@torch.no_grad()
def probe_field(network: Network, layer: str, image_size: int | tuple[int, int, int]) -> ReceptiveField:
    """The receptive field of one unit of any network's layer, measured with NaN, in pixels.

    ``image_size`` is the height and width of images in colour, or the shape ``(C, H, W)`` of others.

    NaN in the columns (or rows) from ``x`` on makes exactly those units NaN that see one of them; a binary search
    over ``x`` finds a unit's edges. Two neighbours in the middle of the map are probed; where the image cuts off what
    they see, the outermost ones, whose inner edges lie farthest from its border. Where height and width differ, the
    box covers both. Where a unit sees the whole image (after global pooling, in dense layers, with a field as large as
    the image) or units are not evenly spaced, the image is the box of every unit. Refused is a layer without maps
    ``(N, C, h, w)`` or ``(N, C)``, or whose maps an ordinary image makes NaN.
    """
    network.check_layer(layer)
    shape = (3, image_size, image_size) if isinstance(image_size, int) else image_size
    clean = network.as_input(torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)))
    whole = ReceptiveField(max(shape[1:]), 0, 0)
    # Fast convolutions by Fourier or Winograd transforms carry NaN farther than the filter reaches.
    with evaluating(network), torch.backends.cudnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
        maps = network.features(clean, layer)
        if not isinstance(maps, Tensor) or maps.ndim not in (2, 4):
            raise ValueError(f"layer {layer!r} has no feature maps (N, C, h, w) or (N, C); choose another layer")
        if maps.isnan().any():
            name = broken_tensor(network)
            cause = f"the network's {name} holds NaN or infinity" if name else "but all weights are finite"
            raise ValueError(f"layer {layer!r} is NaN for an ordinary image: {cause}")
        if maps.ndim == 2:
            return whole
        known: dict[tuple[int, bool], int] = {}
        rows, columns = (
            _probe_axis(lambda images: run_to(network, images, layer), clean, axis, maps.shape[axis], known)
            for axis in (2, 3)
        )
    if rows is None or columns is None or rows.stride != columns.stride:
        return whole
    start, end = min(rows.offset, columns.offset), max(rows.offset + rows.size, columns.offset + columns.size)
    return ReceptiveField(end - start, rows.stride, start)


def _probe_axis(
    run: Callable[[Tensor], Tensor], clean: Tensor, axis: int, units: int, known: dict[tuple[int, bool], int]
) -> ReceptiveField | None:
    """The field along one axis, 2 (rows) or 3 (columns); None where a unit sees all of it or units are uneven.

    ``known`` holds edges from the other axis, which are tried first; those measured here replace them.
    """
    image_size = clean.shape[axis]

    def edge(unit: int, first: bool, guess: int | None = None) -> int:
        known[unit, first] = _edge(run, clean, axis, unit, first, known.get((unit, first), guess))
        return known[unit, first]

    if units == 1:
        start = edge(0, True)
        return ReceptiveField(edge(0, False) - start, 0, start)
    likely_stride = 2 ** round(math.log2(max(1, image_size / units)))
    middle = units // 2 - 1
    for left, right, guesses in [(middle, middle, (None, None)), (units - 2, 0, (0, image_size))]:
        start, end = edge(left, True, guesses[0]), edge(right, False, guesses[1])
        if start == 0 or end == image_size:
            continue
        next_start, next_end = edge(left + 1, True, start + likely_stride), edge(right + 1, False, end + likely_stride)
        if next_end < image_size:
            stride = next_start - start
            if stride < 1 or next_end - end != stride:
                return None
            offset = start - left * stride
            return ReceptiveField(end - right * stride - offset, stride, offset)
    return None


def _edge(run: Callable[[Tensor], Tensor], clean: Tensor, axis: int, unit: int, first: bool, guess: int | None) -> int:
    """The first pixel (``first``), or the one after the last, that a unit in the middle of the other axis sees."""
    image_size = clean.shape[axis]
    pixels = torch.arange(image_size, device=clean.device).view([-1 if axis == other else 1 for other in range(4)])
    low, high = 0, image_size
    guesses = [] if guess is None else [guess, guess + 1 if first else guess - 1]
    while high - low > 1:
        cuts = [x for x in guesses if low < x < high] or [(low + high) // 2]
        guesses = []
        images = [clean.masked_fill(pixels < x if first else pixels >= x, float("nan")) for x in cuts]
        reached = run(torch.cat(images)).isnan().any(1).movedim(axis - 1, -1)
        for x, sees in zip(cuts, reached[:, reached.shape[1] // 2, unit].tolist(), strict=True):
            # The unit sees NaN before x if its first pixel is before x, NaN from x on if its end is after x.
            if sees == first:
                high = min(high, x)
            else:
                low = max(low, x)
    return low if first else high
