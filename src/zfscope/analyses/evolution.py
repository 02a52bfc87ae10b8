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
from zfscope.checkpoints import load_network
from zfscope.config import AnalyzeConfig
from zfscope.data.datamodule import Examples, ImageData
from zfscope.data.transforms import CentreTransform
from zfscope.evolution import Evolution, Read, join, jumps, observe
from zfscope.figures import evolution_sheet
from zfscope.networks import Network
from zfscope.runs import write_arrays
from zfscope.winners import choose_maps, layers_to_watch


def evolution(
    network: Network, data: ImageData, config: AnalyzeConfig, device: torch.device, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write a strip for each layer and ``arrays.npz`` (see ``Evolution``); give the share of jumps at each layer.

    Raises:
        ValueError: For a layer or a part of the data that is not there.
        FileNotFoundError: If the run kept no checkpoints of single epochs.
    """
    asked = config.analysis
    layers = layers_to_watch(network, asked.layers)
    networks = Epochs(config.checkpoint, device)
    images = part_of(data, asked.part)
    examples = Examples(images, CentreTransform(network.preprocessing), network.preprocessing.resize)
    indices = choose_maps(len(images), asked.images, asked.seed)
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
    write_arrays(folder / "arrays.npz", arrays)
    return metrics


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
