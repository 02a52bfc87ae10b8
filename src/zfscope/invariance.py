"""How far an image's features move when the image is shifted, scaled or turned, and whether its class stays.

Source: Zeiler & Fergus (2014), Sec. 4.1 and Fig. 5.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zfscope.console import counting
from zfscope.networks.finite import check_finite, check_result
from zfscope.networks.hooked import as_network
from zfscope.networks.network import Network, evaluating
from zfscope.networks.preprocessing import centre_crop

KINDS = ("translation", "scale", "rotation")


@dataclass(frozen=True)
class Invariance:
    """What one kind of transformation does to ``N`` images, by ``A`` amounts.

    ``kind`` is ``translation``, ``scale`` or ``rotation``; all parts by layer but amounts and probability.
    """

    kind: str
    amounts: Tensor  # pixels of the network's input, factors or degrees, (A,) float64
    distances: dict[str, Tensor]  # Euclidean, between features of the original and of the transformed image, (N, A)
    another: dict[str, float]  # mean distance between the features of two different originals, over all pairs
    norms: dict[str, Tensor]  # length of each original's features, (N,)
    probability: Tensor | None  # of the true label, 0 to 1, (N, A); None where there are no labels

    def relative(self, layer: str) -> Tensor:
        """The distances of a layer as shares of that to another image, ``(N, A)``: at 1 nothing of the image is left.

        Layers differ in their number and scale of features, and in how much all images share there. So the unit is what
        the layer itself calls a difference.

        Source: our choice; the paper's axes show distances whose normalisation it does not tell.
        """
        return self.distances[layer] / self.another[layer]

    @property
    def changed(self) -> Tensor:
        """Which amounts do anything to an image, ``(A,)`` bool."""
        return self.turn != 0 if self.kind == "rotation" else self.amounts != (1 if self.kind == "scale" else 0)

    @property
    def turn(self) -> Tensor:
        """Of rotations, how far they turn the shorter way round, 0 to 180 degrees, ``(A,)``."""
        return ((self.amounts + 180) % 360 - 180).abs()


def moved(images: Tensor, kind: str, amount: float, size: int | None = None) -> Tensor:
    """Images shifted, scaled or turned about the centre, by one bilinear resampling (no antialiasing).

    What comes in from outside is 0, the mean grey of a network's input. Of whole canvases and a ``size``, pictures move
    before they are cropped, so less grey comes in. Where pixels fall upon pixels (whole shifts, quarter turns) the
    values stay exactly what they were; unmoved, it is ``centre_crop``.

    Args:
        images: ``(N, C, H, W)``, values around 0.
        kind: ``translation``: down by ``amount`` pixels (up where negative); ``scale``: enlarged ``amount`` times;
            ``rotation``: by ``amount`` degrees, counter-clockwise.
        amount: See ``kind``.
        size: Side of the middle that is kept, in pixels; default: all.

    Source: Zeiler & Fergus (2014), Fig. 5. Resampling and what comes in are our choice.
    """
    if kind not in KINDS:
        raise ValueError(f"no transformation {kind!r}; those are {', '.join(KINDS)}")
    if not math.isfinite(amount) or (kind == "scale" and amount <= 0):
        allowed = "finite and above 0" if kind == "scale" else "finite"
        raise ValueError(f"the amount of a {kind} must be {allowed}, but it is {amount}")
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be floats (N, C, H, W), but they are {images.dtype} {tuple(images.shape)}")
    whole = tuple(images.shape[2:])
    kept = whole if size is None else (size, size)
    if not all(1 <= part <= side for part, side in zip(kept, whole, strict=True)):
        raise ValueError(f"size={size} must lie between 1 and the images' {whole[0]}x{whole[1]} px")
    middle = [(side - 1) / 2 for side in kept]
    down, right = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float64) - centre for side, centre in zip(kept, middle, strict=True)),
        indexing="ij",
    )
    # For each pixel of the result where it came from: the inverse of the transformation.
    if kind == "translation":
        down = down - amount
    elif kind == "scale":
        down, right = down / amount, right / amount
    else:
        cos, sin = math.cos(math.radians(amount)), math.sin(math.radians(amount))
        down, right = cos * down + sin * right, cos * right - sin * down
    # The crop's corner as torchvision's CenterCrop rounds it. Positions that are whole but for float64's rounding
    # become whole: a pixel shall not get 1e-14 of its neighbour.
    rows, columns = (
        (place + centre + round((side - part) / 2)).round(decimals=9)
        for place, centre, side, part in zip((down, right), middle, whole, kept, strict=True)
    )
    return _sample(images, rows, columns)


def default_amounts(kind: str, side: int) -> Tensor:
    """The paper's ranges for inputs of ``side`` pixels, ``(A,)`` float64.

    Translation by at most 60/224 of the side either way, in 25 steps of whole pixels, scale 1 to 1.8 in 17, rotation
    0 to 350 degrees in 36.

    Source: Zeiler & Fergus (2014), Fig. 5. The steps are our choice: bilinear resampling between pixels would blur, and
    low layers would see the blur.
    """
    if kind == "translation":
        farthest = 60 / 224 * side
        pixels: Tensor = torch.linspace(-farthest, farthest, 25, dtype=torch.float64).round().unique()
        return pixels
    if kind == "scale":
        return torch.linspace(1, 1.8, 17, dtype=torch.float64)
    if kind == "rotation":
        return torch.arange(0, 360, 10, dtype=torch.float64)
    raise ValueError(f"no transformation {kind!r}; those are {', '.join(KINDS)}")


def low_and_high(network: Network) -> tuple[str, str]:
    """The first layer and the one below the classes' layer: conv1 and fc7, as in Fig. 5."""
    below = network.layers_below_classes
    if len(below) < 2:
        raise ValueError(f"name a low and a high layer; the layers are {', '.join(network.layers)}")
    return below[0], below[-1]


@torch.no_grad()
def compare(
    network: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    kind: str,
    amounts: Sequence[float] | Tensor,
    layers: Sequence[str],
    *,
    batch_size: int = 32,
) -> Invariance:
    """Compare the features of images before and after a transformation, and the probability of the true label.

    Images are two or more network inputs, or normalised canvases that are cropped after they were moved, ``(N, 3, H,
    W)``; labels their true classes, ``(N,)`` int64, or None where the network has no head; ``kind`` and ``amounts`` as
    for ``moved``, in pixels of the network's input; of a module that is no ``Network``, ``layers`` are paths of
    submodules. The features of all originals are held in memory. Results lie on the CPU, in the order of images and
    amounts; an amount that leaves the image as it is gives exactly 0. Refused are weights, images and results that hold
    NaN or infinity.

    Source: Zeiler & Fergus (2014), Fig. 5.
    """
    amounts = torch.as_tensor(amounts, dtype=torch.float64).cpu()
    if len(images) < 2 or not amounts.numel() or not layers:
        raise ValueError("give two images or more, one amount or more, and one layer or more")
    if labels is not None and (labels.shape != (len(images),) or labels.is_floating_point()):
        raise ValueError(f"labels must be ({len(images)},) integers, but they are {labels.dtype} {tuple(labels.shape)}")
    network = as_network(network, layers)
    for amount in amounts.tolist():  # all of them before the first forward pass
        moved(images[:0], kind, amount, network.image_size)
    check_finite(network, images)
    originals: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    distances: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    probability, classes_of = [], labels.cpu().split(batch_size) if labels is not None else itertools.repeat(None)

    def look(pictures: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        # Original and moved images in one layout and in batches of one size: equal pixels give equal bits.
        trace = network.trace(network.as_input(pictures).contiguous(memory_format=torch.channels_last))
        return {layer: _features(layer, trace.maps[layer], len(pictures)) for layer in layers}, trace.logits

    with evaluating(network), counting(kind.capitalize(), -(-len(images) // batch_size) * len(amounts)) as count:
        for pictures, classes in zip(images.split(batch_size), classes_of, strict=False):
            before, _ = look(pictures if network.image_size is None else centre_crop(pictures, network.image_size))
            columns: dict[str, list[Tensor]] = {layer: [] for layer in layers}
            right = []
            for amount in amounts.tolist():
                after, logits = look(moved(pictures, kind, amount, network.image_size))
                for layer in layers:
                    columns[layer].append((after[layer] - before[layer]).norm(dim=1).cpu())
                if classes is not None:
                    right.append(_probability(logits, classes))
                count()
            for layer in layers:
                originals[layer].append(before[layer].cpu())
                distances[layer].append(torch.stack(columns[layer], 1))
            probability += [torch.stack(right, 1)] if right else []
    moves = {layer: torch.cat(parts) for layer, parts in distances.items()}
    for values in (*moves.values(), *probability):
        check_result(values, network, "the distances and probabilities")
    features = {layer: torch.cat(parts) for layer, parts in originals.items()}
    another = {layer: float(F.pdist(vectors).mean()) for layer, vectors in features.items()}
    for layer, distance in another.items():
        if distance == 0:
            raise ValueError(f"layer {layer!r} gives the same features for all images; there is no distance to compare")
    return Invariance(
        kind,
        amounts,
        moves,
        another,
        {layer: vectors.norm(dim=1) for layer, vectors in features.items()},
        torch.cat(probability) if probability else None,
    )


def _sample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear values of images ``(N, C, H, W)`` at positions ``(h, w)`` in pixels; 0 beyond one pixel outside."""
    height, width = images.shape[2:]
    rows, columns = rows.clamp(-1, height), columns.clamp(-1, width)
    top, left = rows.floor().clamp_max(height - 1), columns.floor().clamp_max(width - 1)
    below, right = (rows - top).to(images), (columns - left).to(images)
    top, left = (place.long().to(images.device) + 1 for place in (top, left))
    padded = F.pad(images, (1, 1, 1, 1))
    upper = padded[:, :, top, left] * (1 - right) + padded[:, :, top, left + 1] * right
    lower = padded[:, :, top + 1, left] * (1 - right) + padded[:, :, top + 1, left + 1] * right
    return upper * (1 - below) + lower * below


def _features(layer: str, maps: Tensor, count: int) -> Tensor:
    if not isinstance(maps, Tensor) or len(maps) != count:
        raise ValueError(f"layer {layer!r} gives no tensor with a row for each image; choose another layer")
    return maps.flatten(1).float() if maps.dtype in (torch.float16, torch.bfloat16) else maps.flatten(1)


def _probability(logits: Tensor | None, labels: Tensor) -> Tensor:
    if logits is None:
        raise ValueError("labels need a network that gives logits (N, classes); give none")
    logits = logits.cpu()
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise ValueError(
            f"labels lie between {labels.min()} and {labels.max()}, the network's between 0 and {logits.shape[1] - 1}"
        )
    return logits.float().softmax(1).gather(1, labels[:, None]).squeeze(1)
