"""Correspondence: does hiding the same part change the features of different images in the same way?

If a network knows that a nose is a nose, hiding the nose raises and lowers the same features in every face. The signs
of the changes are compared between images; random places are the control. Two masks at one place change the same cells
of a feature map whatever they hide, so of all random places those that are the same in all images are the hardest
control.

Source: Zeiler & Fergus (2014), Sec. 4.3, Fig. 8 and Table 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zfscope.console import progress
from zfscope.networks.finite import check_finite
from zfscope.networks.hooked import as_network
from zfscope.networks.network import Network, evaluating

# Of an image's largest feature in the layer. Rounding in float64 stays a thousand times below, a true change above.
ROUNDING = 1e-9


@dataclass(frozen=True)
class SignChanges:
    """What masking did to the features of one layer."""

    # Share of dimensions whose changes differ in sign, for each mask of the set and each pair of images,
    # (K, N (N - 1) / 2). Its mean over pairs is the paper's Delta.
    pairs: Tensor
    changed: Tensor  # share of dimensions that changed at all, (K, N)

    @property
    def delta(self) -> Tensor:
        """The mean feature sign change of each mask, ``(K,)``: over ordered pairs of images and dimensions."""
        return self.pairs.mean(-1)


def sign_change(errors: Tensor) -> Tensor:
    """The normalised Hamming distance between the signs of each two images' changes.

    ``errors`` are features of the original minus those of the masked image, ``(…, N, D)``, finite, of two images or
    more. Share of the ``D`` dimensions that differ, 0-1, for the pairs (0, 1), (0, 2), …, ``(…, N (N - 1) / 2)``; in
    either order a pair has the same. ``sign(0) = 0`` differs from both signs.

    Source: Zeiler & Fergus (2014), Sec. 4.3: Delta = sum over i != j of H(sign e_i, sign e_j). What the printed numbers
    are the mean and +- of, the paper does not say; we take mean and standard deviation over pairs.
    """
    if errors.ndim < 2 or errors.shape[-2] < 2 or not errors.shape[-1]:
        raise ValueError(f"errors must be (…, N, D) of 2 images or more, but are {tuple(errors.shape)}")
    if not bool(errors.isfinite().all()):
        raise ValueError("errors hold NaN or infinity: the network's features are not finite")
    signs = errors.sign()
    same = torch.zeros((), dtype=torch.float64, device=errors.device)
    for sign in (-1, 0, 1):
        having = (signs == sign).double()  # counts stay exact
        same = same + having @ having.mT
    first, second = torch.triu_indices(errors.shape[-2], errors.shape[-2], 1, device=errors.device)
    return 1 - same[..., first, second] / errors.shape[-1]


def feature_errors(original: Tensor, masked: Tensor) -> Tensor:
    """Original minus masked features, ``(…, N, D)``, where the difference is more than rounding; else 0.

    Units that the mask cannot reach must not vote, and the same sum in another order may differ in the last bit.
    """
    errors = original - masked
    return errors.masked_fill(errors.abs() <= ROUNDING * original.abs().amax(-1, keepdim=True), 0)


def occluded(images: Tensor, boxes: Tensor, fill: float = 0.0) -> Tensor:
    """Copies of network inputs ``(N, 3, H, W)`` with a box of each set to ``fill`` (0 is the mean grey).

    Boxes are half-open ``(x0, y0, x1, y1)`` in pixels, ``(…, N, 4)``; what overhangs is cut off. ``(…, N, 3, H, W)``.
    """
    if images.ndim != 4 or boxes.shape[-2:] != (len(images), 4):
        raise ValueError(
            f"boxes must be (…, N, 4) for images (N, 3, H, W), but are {tuple(boxes.shape)} for {tuple(images.shape)}"
        )
    x0, y0, x1, y1 = boxes.to(images.device)[..., None, None, None, :].unbind(-1)
    rows = torch.arange(images.shape[2], device=images.device)[:, None]
    columns = torch.arange(images.shape[3], device=images.device)
    return images.masked_fill((y0 <= rows) & (rows < y1) & (x0 <= columns) & (columns < x1), fill)


def random_boxes(
    boxes: Tensor,
    draws: int,
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    around: Tensor | None = None,
    together: bool = False,
) -> Tensor:
    """Boxes of the same sizes as ``boxes (N, 4)`` at random places inside the images, ``(draws, N, 4)`` int64.

    ``size`` is the height and width of the images in pixels. Places are uniform, or such that the middles lie in the
    boxes ``around (N, 4)``, pushed inside the image. With ``together`` one place is drawn for all images; boxes of
    other sizes have theirs at the same share of their room.
    """
    extent = boxes[:, 2:] - boxes[:, :2]
    room = torch.tensor([size[1], size[0]]) - extent
    if bool((room < 0).any()):
        raise ValueError(f"a box is larger than the images of {size[0]}x{size[1]} pixels; give boxes inside them")
    shares = torch.rand(draws, 1 if together else len(boxes), 2, generator=generator, dtype=torch.float64)
    if around is None:
        corners = (shares * (room + 1)).long()
    else:
        low, high = around[:, :2], around[:, 2:]
        corners = (low + shares * (high - low) - extent / 2).round().long()
    corners = torch.minimum(corners.clamp_min(0), room)
    return torch.cat([corners, corners + extent], dim=-1)


@torch.no_grad()
def correspond(
    network: nn.Module, images: Tensor, boxes: Tensor, layers: Sequence[str], *, fill: float = 0.0, batch_size: int = 32
) -> dict[str, SignChanges]:
    """Mask images and compare how their features change; by layer, on the CPU.

    Everything is computed in float64, so that what the mask cannot reach is told from what it changes a little. Images
    are two or more network inputs ``(N, 3, H, W)``, boxes sets of masks ``(K, N, 4)``, one for each image (see
    ``occluded``); of a module that is no ``Network``, ``layers`` are paths of submodules. Refused are a layer that
    gives no tensor with a row for each image, a box that hides nothing, weights and images that hold NaN or infinity.
    """
    network = as_network(network, layers)
    corners = boxes.clamp_min(0).minimum(torch.tensor(images.shape[-1:-3:-1] * 2))
    if bool((corners[..., 2:] <= corners[..., :2]).any()):
        raise ValueError("a box is empty or outside its image; what hides nothing would count as perfect agreement")
    check_finite(network, images)
    changes: dict[str, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    with evaluating(network), in_float64(network):
        images = network.as_input(images)
        original = _features(network, images, layers, batch_size)
        for sets in progress(boxes.split(max(1, batch_size // len(images))), "masks"):
            masked = _features(network, occluded(images, sets, fill).flatten(0, 1), layers, batch_size)
            for layer in layers:
                errors = feature_errors(original[layer], masked[layer].unflatten(0, sets.shape[:2]))
                changes[layer].append((sign_change(errors).cpu(), (errors != 0).double().mean(-1).cpu()))
    return {layer: SignChanges(*map(torch.cat, zip(*parts, strict=True))) for layer, parts in changes.items()}


@contextmanager
def in_float64(module: nn.Module) -> Iterator[None]:
    """Parameters and buffers in float64 inside; afterwards, also after an exception, as they were."""
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    originals = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.double()
        yield
    finally:
        for tensor, data in zip(tensors, originals, strict=True):
            tensor.data = data


def layers_to_compare(network: Network) -> tuple[str, ...]:
    """The last layer with feature maps and the layer below the classes': conv5 and fc7 (Table 1)."""
    return tuple(dict.fromkeys([*network.layers_with_maps[-1:], *network.layers_below_classes[-1:]]))


def _features(network: Network, images: Tensor, layers: Sequence[str], batch_size: int) -> Mapping[str, Tensor]:
    """Flattened features of some layers, ``(N, D)`` each."""
    features: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for batch in images.split(batch_size):
        maps = network.trace(batch).maps
        for layer in layers:
            if not isinstance(maps.get(layer), Tensor) or maps[layer].shape[:1] != batch.shape[:1]:
                raise ValueError(f"layer {layer!r} gives no features (N, …) of its images; name other layers")
            features[layer].append(maps[layer].flatten(1))
    return {layer: torch.cat(parts) for layer, parts in features.items()}
