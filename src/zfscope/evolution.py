"""How the strongest activations of some feature maps change while a network trains, and when its layers settle.

Source: Zeiler & Fergus (2014), Fig. 4.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zfscope.activations import TopActivations, TopTable
from zfscope.deconvnet.choice import Choice
from zfscope.deconvnet.winners import OUTSIDE, project_winners, random_subset
from zfscope.networks.network import Network, evaluating

Read = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True)
class Evolution:
    """The strongest activation of each of ``M`` feature maps of a layer at ``E`` epochs, projected.

    A map is dead at an epoch if its strongest activation is not above 0: its tile is grey, scale and box are 0. Where
    there is no activation (all NaN) values are -inf, indices and positions -1.

    Attributes:
        maps: Numbers of the feature maps, ``(M,)``.
        epochs: Counted from 1, ascending.
        tiles: Projections, uint8 ``(M, E, 3, h, w)``, each on its own scale, 0 mid grey.
        scales: The magnitudes that are black or white, ``(M, E)``.
        values: The activations, ``(M, E)`` float64; their images ``indices (M, E)`` and ``positions (M, E, 2)``.
        boxes: What the tiles show of the image, ``(M, E, 4)`` half-open ``(x0, y0, x1, y1)``, pixels.
    """

    maps: Tensor
    epochs: list[int]
    tiles: Tensor
    scales: Tensor
    values: Tensor
    indices: Tensor
    positions: Tensor
    boxes: Tensor

    @property
    def alive(self) -> Tensor:
        """Which maps have something to show at which epoch, ``(M, E)``."""
        return (self.values > 0) & (self.indices >= 0)

    def before(self, epoch: int) -> "Evolution":
        """The part of it before an epoch."""
        columns = [column for column, epoch_shown in enumerate(self.epochs) if epoch_shown < epoch]
        parts = {name: part[:, columns] for name, part in vars(self).items() if name not in ("maps", "epochs")}
        return Evolution(self.maps, self.epochs[: len(columns)], **parts)


@torch.no_grad()
def observe(
    network: Network,
    epoch: int,
    read: Read,
    indices: Tensor,
    layers: Sequence[str],
    maps: int,
    seed: int,
    batch_size: int = 32,
    rule: Choice = "auto",
) -> dict[str, Evolution]:
    """Strongest activations of some feature maps over some images at one epoch, projected: one ``Evolution`` a layer.

    The weights are taken as they are; nothing is drawn from the global random generators. ``read`` gives the network
    inputs ``(N, 3, H, W)`` of image indices; the images, ``indices (N,)``, and the maps of each layer (a random subset
    of at most ``maps`` by ``seed``) are the same at all epochs, which count from 1. ``rule`` is that of ``project``.
    Refused are no images, no layer, and a layer without feature maps.

    Source: Zeiler & Fergus (2014), Fig. 4, there over all training examples. The subsets are our choice.
    """
    if not len(indices) or not layers:
        raise ValueError("give one image or more, and one layer or more, to find the strongest activations in")

    def read_inputs(indices: Sequence[int]) -> Tensor:
        return network.as_input(read(indices))

    chosen: dict[str, Tensor] = {}
    top: TopActivations | None = None
    for batch in indices.cpu().split(batch_size):
        outputs = feature_maps(network, read(batch.tolist()), layers)
        for layer in layers:
            if layer not in outputs:
                raise ValueError(f"layer {layer!r} has no feature maps (N, C, h, w) or (N, C); choose another layer")
        if top is None:
            chosen = {layer: random_subset(output.shape[1], maps, seed) for layer, output in outputs.items()}
            # On the CPU, which has float64, and for this process alone: other ranks are not here to meet.
            top = TopActivations({layer: len(subset) for layer, subset in chosen.items()}, k=1, sync_on_compute=False)
        top.update({layer: output[:, chosen[layer].to(output.device)] for layer, output in outputs.items()}, batch)

    tables: dict[str, TopTable] = {} if top is None else top.compute()
    tiles: dict[str, Tensor] = {}
    scales = {layer: torch.zeros(len(subset)) for layer, subset in chosen.items()}
    boxes = {layer: torch.zeros(len(subset), 4, dtype=torch.int64) for layer, subset in chosen.items()}
    living = {layer: table for layer, table in tables.items() if (table.values > 0).any()}
    projected = (
        project_winners(network, living, chosen, read_inputs, batch_size=batch_size, rule=rule) if living else ()
    )
    for winners in projected:
        layer, rows = winners.layer, winners.rows
        shown, limits = winners.tiles()
        blank = torch.full((len(chosen[layer]), *shown.shape[1:]), OUTSIDE, dtype=torch.uint8)
        tiles.setdefault(layer, blank)[rows] = shown
        scales[layer][rows] = limits.flatten().to(scales[layer])
        boxes[layer][rows] = winners.boxes.cpu()
    return {
        layer: Evolution(
            chosen[layer],
            [epoch],
            tiles.get(layer, torch.full((len(chosen[layer]), 3, 1, 1), OUTSIDE, dtype=torch.uint8))[:, None],
            scales[layer][:, None],
            tables[layer].values,
            tables[layer].indices,
            tables[layer].positions,
            boxes[layer][:, None],
        )
        for layer in chosen
    }


def join(parts: Sequence[Evolution]) -> Evolution:
    """One layer's evolution from parts of it, in the order of their epochs."""
    parts = sorted((part for part in parts if part.epochs), key=lambda part: part.epochs)
    epochs = [epoch for part in parts for epoch in part.epochs]
    if not parts or epochs != sorted(set(epochs)):
        raise ValueError(f"an evolution is joined from parts that follow each other, but their epochs are {epochs}")
    if any(not torch.equal(part.maps, parts[0].maps) for part in parts):
        raise ValueError(f"the parts of an evolution show different maps: {[part.maps.tolist() for part in parts]}")
    # The size of a tile is unknown where all maps were dead.
    sizes = {tuple(part.tiles.shape[2:]) for part in parts if part.alive.any()}
    if len(sizes) > 1:
        raise ValueError(f"the parts of an evolution have tiles of different sizes, {sorted(sizes)}; give one size")
    size = sizes.pop() if sizes else parts[0].tiles.shape[2:]
    joined = {
        name: torch.cat([getattr(part, name) for part in parts], dim=1)
        for name in ("scales", "values", "indices", "positions", "boxes")
    }
    tiles = [
        part.tiles if part.alive.any() else part.tiles.new_full((*part.values.shape, *size), OUTSIDE) for part in parts
    ]
    return Evolution(parts[0].maps, epochs, torch.cat(tiles, dim=1), **joined)


def jumps(indices: Tensor, alive: Tensor | None = None) -> Tensor:
    """Where the strongest image is another than at the last epoch at which the map was alive, ``(M, E)`` bool.

    ``indices (M, E)`` are the images of the strongest activations, -1 where there is none; maps are ``alive`` where
    there is an image and, if it says so, at that epoch, ``(M, E)``.

    Source: Zeiler & Fergus (2014), Fig. 4: sudden jumps come from a change of the strongest image.
    """
    alive = indices >= 0 if alive is None else alive & (indices >= 0)
    columns = torch.arange(indices.shape[1]).expand_as(indices)
    latest = torch.where(alive.cpu(), columns, -1).cummax(dim=1).values
    previous = torch.nn.functional.pad(latest[:, :-1], (1, 0), value=-1).to(indices.device)
    return alive & (previous >= 0) & (indices != indices.gather(1, previous.clamp_min(0)))


def agreement(maps: Tensor, final: Tensor) -> float:
    """How far feature maps are what they become: their correlation with the final ones, mean over maps, at most 1.

    Both are ``(N, C, h, w)`` or ``(N, C)``, of the same images. A map that is constant at the end does not count; one
    that is constant now agrees by 0. NaN if all are constant at the end. The measure is ours.
    """
    if maps.shape != final.shape:
        raise ValueError(
            f"maps {tuple(maps.shape)} and final {tuple(final.shape)} must be the same maps of the same images"
        )
    now, end = (tensor.transpose(0, 1).flatten(1).cpu().double() for tensor in (maps, final))
    now, end = (tensor - tensor.mean(1, keepdim=True) for tensor in (now, end))
    # What rounding leaves of a constant is no variation.
    alive, moving = (part.norm(dim=1) > 1e-9 * whole.norm() for part, whole in ((end, final), (now, maps)))
    correlation = torch.nn.functional.cosine_similarity(now, end, dim=1, eps=0).where(moving, 0.0)
    return float(correlation[alive].mean())


def settled_epoch(epochs: Sequence[int], agreements: Sequence[float], level: float = 0.9) -> float:
    """The epoch from which a layer stays what it becomes: its agreement is ``level`` or more from there on.

    ``agreements`` are one for each of the ascending epochs, the last 1 (see ``agreement``); between two it is taken as
    a straight line. ``level`` is our choice: 0.9, four fifths of the variance. The first epoch if the agreement was
    never below; NaN if one is NaN.
    """
    below = [index for index, value in enumerate(agreements) if not value >= level]
    if not below:
        return float(epochs[0])
    last = below[-1]
    if last + 1 == len(epochs) or any(value != value for value in agreements):
        return float("nan")
    rise = (level - agreements[last]) / (agreements[last + 1] - agreements[last])
    return epochs[last] + rise * (epochs[last + 1] - epochs[last])


@torch.no_grad()
def feature_maps(network: Network, images: Tensor, layers: Sequence[str]) -> Mapping[str, Tensor]:
    """Feature maps of layers in eval mode; a layer whose output is no ``(N, C, h, w)`` or ``(N, C)`` is left out."""
    for layer in layers:
        network.check_layer(layer)
    images = network.as_input(images)
    with evaluating(network):
        outputs = network.trace(images, top=max(layers, key=network.layers.index)).maps
    return {
        layer: output
        for layer in layers
        if isinstance(output := outputs.get(layer), Tensor) and output.ndim in (2, 4) and len(output) == len(images)
    }
