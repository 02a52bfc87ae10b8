"""How features evolve, looked up in the networks that a run saved at some epochs.

Source: Zeiler & Fergus (2014), Fig. 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from zfscope.analyses.evaluate import part_of
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.data.datamodule import Examples, ImageData
from zfscope.data.transforms import CentreTransform
from zfscope.deconvnet.winners import layers_to_watch, random_subset
from zfscope.evolution import Evolution, Read, agreement, feature_maps, join, jumps, observe, settled_epoch
from zfscope.figures import evolution_sheet
from zfscope.networks.checkpoints import load_network
from zfscope.networks.network import Network
from zfscope.runs import write_arrays

COMPARED = 64  # images whose feature maps are compared over the epochs


def evolution(
    network: Network, data: ImageData, config: AnalyzeConfig, device: torch.device, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write a strip for each layer and ``arrays.npz`` (see ``Evolution``); give jumps and when each layer settles.

    ``<layer>/jumps`` is the share of maps and epochs at which another image became the strongest. ``<layer>/settled``
    is the epoch from which the layer's maps agree by 0.9 or more with those of the last epoch that was kept, over 64
    images; ``<layer>/unsettled`` is what they lack to full agreement, mean over the time from the first epoch kept to
    the last; ``<layer>/agreement (E,)`` in ``arrays.npz`` is the curve. A layer that hardly learns is settled from the
    start.

    Raises:
        ValueError: For a layer or a part of the data that is not there.
        FileNotFoundError: If the run kept no checkpoints of single epochs.
    """
    asked = config.analysis
    layers = layers_to_watch(network, asked.layers)
    networks = Epochs(config.checkpoint, device)
    images = part_of(data, asked.part)
    examples = Examples(images, CentreTransform(network.preprocessing), network.preprocessing.resize)
    indices = random_subset(len(images), asked.images, asked.seed)
    inputs = torch.stack([examples[index][0] for index in track(indices.tolist(), "Reading", transient=True)])

    def read(wanted: Sequence[int]) -> Tensor:
        return inputs[torch.searchsorted(indices, torch.tensor(wanted))].to(device)

    found = evolve(networks, read, indices, layers, asked.maps, asked.seed, asked.batch_size)
    arrays, metrics = {}, {}
    figures = folder / "figures" / "evolution"
    figures.mkdir(parents=True, exist_ok=True)
    for layer, strip in found.items():
        arrays |= {
            f"{layer}/{name}": part.numpy() if isinstance(part, Tensor) else np.array(part)
            for name, part in vars(strip).items()
        }
        title = f"{layer}, strongest of {len(indices):,} images"
        sheet = evolution_sheet(strip.maps, strip.epochs, strip.tiles, strip.values, strip.indices, title=title)
        sheet.save(figures / f"{layer}.png")
        jumped = jumps(strip.indices, strip.alive)[:, 1:]
        if jumped.numel():
            metrics[f"{layer}/jumps"] = {"value": 100 * float(jumped.double().mean()), "unit": "%"}
    for layer, curve in agreements(networks, read(indices[:COMPARED].tolist()), layers, asked.batch_size).items():
        arrays[f"{layer}/agreement"] = np.array(curve)
        epochs = sorted(networks)
        if len(epochs) > 1 and not np.isnan(curve).any():
            lacking = 100 * np.trapezoid(1 - np.array(curve), epochs) / (epochs[-1] - epochs[0])
            metrics[f"{layer}/settled"] = {"value": settled_epoch(epochs, curve), "unit": f"of {epochs[-1]} epochs"}
            metrics[f"{layer}/unsettled"] = {"value": float(lacking), "unit": "%"}
    write_arrays(folder / "arrays.npz", arrays)
    return metrics


def agreements(
    networks: Mapping[int, Network], inputs: Tensor, layers: Sequence[str], batch_size: int = 32
) -> dict[str, list[float]]:
    """How far each layer's maps are at each epoch what they are at the last (see ``evolution.agreement``).

    Args:
        networks: One network at several epochs.
        inputs: Network inputs ``(N, 3, H, W)``, on the networks' device.
        layers: Names from ``network.layers``.
        batch_size: Images that go forward together.

    Returns:
        By layer, a number for each epoch in ascending order; the last is 1, or NaN where all maps are constant.
    """

    def maps_at(epoch: int) -> dict[str, Tensor]:
        network = networks[epoch]
        parts = [feature_maps(network, batch, layers) for batch in inputs.split(batch_size)]
        return {layer: torch.cat([part[layer].cpu() for part in parts]) for layer in parts[0]}

    *epochs, last = sorted(networks)
    final = maps_at(last)
    curves: dict[str, list[float]] = {layer: [] for layer in final}
    for epoch in track(epochs, "Comparing", transient=True):
        for layer, maps in maps_at(epoch).items():
            curves[layer].append(agreement(maps, final[layer]))
    return {layer: [*curve, agreement(final[layer], final[layer])] for layer, curve in curves.items()}


class Epochs(Mapping[int, Network]):
    """The networks that a run kept in ``epoch_NNN.ckpt``, by epoch; each is loaded when it is asked for.

    Raises:
        FileNotFoundError: If there are none.
    """

    def __init__(self, run: str | Path, device: torch.device) -> None:
        folder = Path(run) / "checkpoints"
        named = [(re.fullmatch(r"epoch_(\d+)\.ckpt", path.name), path) for path in sorted(folder.glob("epoch_*.ckpt"))]
        self._paths = {int(match[1]): path for match, path in named if match}
        self._device = device
        if not self._paths:
            raise FileNotFoundError(
                f"{folder} holds no epoch_NNN.ckpt; give a run folder, trained with checkpoints.epochs=[1,2,5,…]"
            )

    def __getitem__(self, epoch: int) -> Network:
        return load_network(self._paths[epoch]).to(self._device)

    def __iter__(self) -> Iterator[int]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def evolve(
    networks: Mapping[int, Network],
    read: Read,
    indices: Tensor,
    layers: Sequence[str],
    maps: int,
    seed: int,
    batch_size: int = 32,
) -> dict[str, Evolution]:
    """The evolution of each layer, as the callback ``FeatureEvolution`` finds it during training.

    Args:
        networks: One network at several epochs, counted from 1. Each is asked for once, so that a mapping may load
            them when asked.
        read: Gives the network inputs ``(N, 3, H, W)`` of image indices.
        indices: The images among which the strongest is sought, ``(N,)`` int64.
        layers: Names from ``network.layers``.
        maps: Feature maps of each layer, at most; a random subset.
        seed: Of the subset.
        batch_size: Images that go forward together.

    Returns:
        By layer.

    Raises:
        ValueError: If there is no network, image or layer, no such layer, or a layer has no feature maps.
    """
    if not networks:
        raise ValueError("there is no network to look into; give one for each epoch")
    moments = [
        observe(networks[epoch], epoch, read, indices, layers, maps, seed, batch_size)
        for epoch in track(sorted(networks), "Looking", transient=True)
    ]
    return {layer: join([moment[layer] for moment in moments]) for layer in moments[0]}
