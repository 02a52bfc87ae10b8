"""How features evolve, looked up in the networks that a run saved at some epochs.

Source: Zeiler & Fergus (2014), Fig. 4.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zfscope.analyses.question import Question, Result, at_most, percent, some_inputs
from zfscope.console import progress
from zfscope.deconvnet.choice import told
from zfscope.deconvnet.rules import WAY_OUT
from zfscope.deconvnet.winners import layers_to_watch
from zfscope.evolution import Evolution, agreement, feature_maps, join, jumps, observe, settled_epoch
from zfscope.figures import evolution_sheet
from zfscope.networks.checkpoints import load_network
from zfscope.networks.network import Network

COMPARED = 64  # images whose feature maps are compared over the epochs


def analyse(question: Question) -> Result:
    """A strip for each layer (see ``Evolution``), its jumps, and when the layer settles.

    ``<layer>/jumps`` is the share of maps and epochs at which another image became the strongest. ``<layer>/settled``
    is the epoch from which the layer's maps agree by 0.9 or more with those of the last epoch that was kept, over 64
    images; ``<layer>/unsettled`` is what they lack to full agreement, mean over the time from the first epoch kept to
    the last; ``<layer>/agreement (E,)`` in ``arrays.npz`` is the curve. A layer that hardly learns is settled from the
    start.
    """
    options, images = question.options, question.images
    layers = layers_to_watch(question.network, options.layers)
    networks = Epochs(question.checkpoint, question.device)
    examples = question.inputs(images)
    indices, inputs = some_inputs(examples, at_most(options.images, len(images), "analysis.images"), options.seed)

    def read(numbers: Sequence[int]) -> Tensor:
        return inputs[torch.searchsorted(indices, torch.tensor(numbers))].to(question.device)

    try:
        ways = options.maps, options.seed, options.batch_size, options.rule
        strips = evolve(networks, read, indices, layers, *ways)
    except ValueError as error:
        raise ValueError(str(error).replace(WAY_OUT, f"{WAY_OUT}: analysis.rule=gradient")) from error
    arrays, metrics, figures = {}, {}, {}
    for layer, strip in strips.items():
        arrays |= {
            f"{layer}/{name}": part.numpy() if isinstance(part, Tensor) else np.array(part)
            for name, part in vars(strip).items()
        }
        title = f"{layer}, strongest of {len(indices):,} images"
        title += told(question.network, layer, inputs[:1], options.rule)
        sheet = evolution_sheet(strip.maps, strip.epochs, strip.tiles, strip.values, strip.indices, title=title)
        figures[f"evolution/{layer}"] = sheet
        jumped = jumps(strip.indices, strip.alive)[:, 1:]
        if jumped.numel():
            metrics[f"{layer}/jumps"] = percent(100 * jumped.double().mean())
    for layer, curve in agreements(networks, read(indices[:COMPARED].tolist()), layers, options.batch_size).items():
        arrays[f"{layer}/agreement"] = np.array(curve)
        epochs = sorted(networks)
        if len(epochs) > 1 and not np.isnan(curve).any():
            lacking = 100 * np.trapezoid(1 - np.array(curve), epochs) / (epochs[-1] - epochs[0])
            metrics[f"{layer}/settled"] = {"value": settled_epoch(epochs, curve), "unit": f"of {epochs[-1]} epochs"}
            metrics[f"{layer}/unsettled"] = percent(lacking)
    return Result(metrics, arrays, figures)


def agreements(
    networks: Mapping[int, Network], inputs: Tensor, layers: Sequence[str], batch_size: int = 32
) -> dict[str, list[float]]:
    """How far each layer's maps are at each epoch what they are at the last (see ``evolution.agreement``).

    By layer, a number for each epoch in ascending order; the last is 1, or NaN where all maps are constant. ``inputs``
    are network inputs ``(N, 3, H, W)`` on the networks' device.
    """

    def maps_at(epoch: int) -> dict[str, Tensor]:
        network = networks[epoch]
        parts = [feature_maps(network, batch, layers) for batch in inputs.split(batch_size)]
        return {layer: torch.cat([part[layer].cpu() for part in parts]) for layer in parts[0]}

    *epochs, last = sorted(networks)
    final = maps_at(last)
    curves: dict[str, list[float]] = {layer: [] for layer in final}
    for epoch in progress(epochs, "Comparing epochs"):
        for layer, maps in maps_at(epoch).items():
            curves[layer].append(agreement(maps, final[layer]))
    return {layer: [*curve, agreement(final[layer], final[layer])] for layer, curve in curves.items()}


class Epochs(Mapping[int, Network]):
    """The networks that a run kept in ``epoch_NNN.ckpt``, by epoch; each is loaded when it is needed."""

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


def evolve(networks: Mapping[int, Network], *question: Any, **options: Any) -> dict[str, Evolution]:
    """The evolution of each layer over networks by epoch, each of which is loaded once; the rest as for ``observe``."""
    if not networks:
        raise ValueError("there is no network to look into; give one for each epoch")
    epochs = progress(sorted(networks), "Projecting epochs")
    moments = [observe(networks[epoch], epoch, *question, **options) for epoch in epochs]
    return {layer: join([moment[layer] for moment in moments]) for layer in moments[0]}
