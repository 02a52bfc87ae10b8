"""How far features move, and whether the class stays, when images are shifted, scaled and turned.

Source: Zeiler & Fergus (2014), Fig. 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from zfscope.analyses.evaluate import check_classes, part_of
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.data.datamodule import Examples, ImageData
from zfscope.data.transforms import CanvasTransform
from zfscope.deconvnet.winners import as_pictures, random_subset
from zfscope.figures import invariance_figure
from zfscope.invariance import KINDS, Invariance, compare, default_amounts, low_and_high, moved
from zfscope.networks.network import Network
from zfscope.runs import write_arrays

NEAR = 20  # degrees: rotations within which a photograph still looks upright


def invariance(
    network: Network, data: ImageData, config: AnalyzeConfig, device: torch.device, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write ``figures/invariance.png`` and ``arrays.npz``; give the mean of each curve and where the high one is lower.

    The pictures move on their whole canvas, the mean subtracted, and are cropped then. ``arrays.npz`` holds ``indices``
    and ``labels (N,)``, ``shown (S,)``, ``norms/<layer> (N,)``, ``another/<layer>`` and, for each kind,
    ``<kind>/amounts (A,)``, ``<kind>/<layer> (N, A)``, the distances as they are, and ``<kind>/probability (N, A)``.

    Metrics are taken over all amounts that change an image, ``rotation_within_20`` over those of at most 20 degrees
    either way: the mean distance at each layer, the share of amounts at which the mean curve of the high layer lies
    below that of the low one (``curve_below``), the share of pairs of an image and an amount where it does
    (``images_below``), and the mean probability.

    Raises:
        ValueError: For an unknown layer, a part of the data that is not there, classes that are
            not the network's, images with several labels.
    """
    asked = config.analysis
    layers = low_and_high(network) if asked.layers is None else asked.layers
    for layer in layers:
        network.check_layer(layer)
    images = part_of(data, asked.part)
    check_classes(network, images.classes)
    if images.labels.ndim != 1:
        raise ValueError("analysis=invariance needs images with one true label each; these have several")
    network = network.to(device)
    examples = Examples(images, CanvasTransform(network.preprocessing), network.preprocessing.resize)
    indices = random_subset(len(images), asked.images, asked.seed)
    canvases = torch.stack([examples[index][0] for index in track(indices.tolist(), "Reading", transient=True)])
    labels = torch.from_numpy(images.labels[indices.numpy()])
    side = network.preprocessing.crop
    found = [
        compare(network, canvases, labels, kind, default_amounts(kind, side), layers, batch_size=asked.batch_size)
        for kind in track(KINDS, "Looking", transient=True)
    ]

    shown = _of_different_classes(labels, asked.shown)
    arrays = {"indices": indices.numpy(), "labels": labels.numpy(), "shown": shown.numpy()}
    tiles = {}
    for each in found:
        arrays |= {f"{each.kind}/amounts": each.amounts.numpy(), f"{each.kind}/probability": each.probability.numpy()}
        arrays |= {f"{each.kind}/{layer}": distances.numpy() for layer, distances in each.distances.items()}
        amounts = each.amounts[torch.linspace(0, len(each.amounts) - 1, 5).long()]
        inputs = [moved(canvases[shown], each.kind, amount, side) for amount in amounts.tolist()]
        pictures = [as_pictures(network, each) for each in inputs]
        tiles[each.kind] = amounts, torch.stack(pictures, 1)
    for layer in layers:
        arrays[f"another/{layer}"] = np.array(found[0].another[layer])
        arrays[f"norms/{layer}"] = found[0].norms[layer].numpy()
    names = [images.classes[labels[number]] for number in shown.tolist()]
    title = f"{config.checkpoint}: {len(indices):,} images of {asked.part}"
    figure = invariance_figure(found, tiles, shown, names, title=title)
    write_arrays(folder / "arrays.npz", arrays)
    (folder / "figures").mkdir(exist_ok=True)
    figure.save(folder / "figures" / "invariance.png")
    metrics = {}
    for each in found:
        metrics |= _metrics(each, each.kind, each.changed, layers)
    rotation = found[KINDS.index("rotation")]
    near = rotation.changed & (rotation.turn <= NEAR)
    return metrics | _metrics(rotation, f"rotation_within_{NEAR}", near, layers)


def _metrics(found: Invariance, name: str, chosen: Tensor, layers: tuple[str, str]) -> dict[str, dict[str, Any]]:
    low, high = (found.relative(layer)[:, chosen] for layer in layers)
    curve_below, images_below = high.mean(0) < low.mean(0), high < low
    return {
        f"{name}/{layers[0]}": {"value": float(low.mean()), "unit": "of the distance to another image"},
        f"{name}/{layers[1]}": {"value": float(high.mean()), "unit": "of the distance to another image"},
        f"{name}/curve_below": {"value": 100 * float(curve_below.double().mean()), "unit": "%"},
        f"{name}/images_below": {"value": 100 * float(images_below.double().mean()), "unit": "%"},
        f"{name}/probability": {"value": float(found.probability[:, chosen].mean()), "unit": "of the true label"},
    }


def _of_different_classes(labels: Tensor, most: int) -> Tensor:
    """Positions of the first image of each class, then of the others, at most so many; in order."""
    first = np.sort(np.unique(labels.numpy(), return_index=True)[1])
    others = np.setdiff1d(np.arange(len(labels)), first)
    return torch.from_numpy(np.sort(np.concatenate([first, others])[:most]))
