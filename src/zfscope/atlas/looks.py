"""The pages of single images: a square slides over them, and their strongest maps are projected."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zfscope.activations import TopTable
from zfscope.atlas.content import Layers, Options
from zfscope.atlas.page import rounded, write_data
from zfscope.atlas.source import Source
from zfscope.atlas.sprites import shrunk, tile_size, write_sheet
from zfscope.console import progress
from zfscope.deconvnet.boxes import strongest
from zfscope.deconvnet.winners import as_pictures, project_winners
from zfscope.networks.network import Network, evaluating
from zfscope.occlusion.passes import logits_of
from zfscope.occlusion.sensitivity import look
from zfscope.schema import printable

MAPS = 8  # the strongest maps of each layer on an image's page
SHOWN = 320  # pixels of the image's longer side
CLASSES = 5


@torch.no_grad()
def write_looks(
    network: Network,
    source: Source,
    found: Layers,
    folder: Path,
    pages: Sequence[int],
    same_classes: bool,
    options: Options,
) -> list[str]:
    """Write picture, data and sheet of each image that has a page; returns the names of the classes it answers with.

    ``same_classes`` says whether labels are the network's classes: then the square's effect on the label is told, else
    that on the most probable class.
    """
    (folder / "sprites" / "pages").mkdir(parents=True, exist_ok=True)
    tables, maps = _strongest(network, source, list(found.tables), pages)
    tiles: dict[int, dict[str, np.ndarray]] = {index: {} for index in pages}
    shapes: dict[str, Any] = {}
    if pages:
        ways = {"batch_size": options.batch_size, "rule": options.rule}
        for winners in project_winners(network, tables, maps, source.read, **ways):
            height, width = winners.patches.shape[2:]
            shapes[winners.layer] = size = tile_size(width, height)
            pair = np.stack([shrunk(winners.tiles()[0], size), shrunk(winners.patches, size)], 1)
            for row, tile in zip(winners.rows.tolist(), pair, strict=True):
                page = pages[row // MAPS]
                shape = (MAPS, 2, size.height, size.width, 3)
                tiles[page].setdefault(winners.layer, np.full(shape, 127, np.uint8))[row % MAPS] = tile
    classes = network.classes or (source.classes if same_classes else ())
    has_head = network.num_classes != 0
    for number, index in enumerate(progress(pages, "Covering images")):
        content: dict[str, Any] = {"layers": {}, "answers": [], "occlusion": None}
        inputs = source.read([index])
        picture = as_pictures(network, inputs)
        size = tile_size(picture.shape[3], picture.shape[2], SHOWN)
        write_sheet(
            folder / "sprites" / "pages" / f"{index}.webp", shrunk(picture, size), 1, lossless=False, quality=85
        )
        content |= {"width": size.width, "height": size.height}
        for layer, pair in tiles[index].items():
            table, rows = tables[layer], slice(number * MAPS, (number + 1) * MAPS)
            won = [rank for rank, value in enumerate(table.values[rows, 0].tolist()) if value > 0]
            place = list(found.tables).index(layer)
            sheet = pair[won].swapaxes(0, 1).reshape(-1, *pair.shape[2:])
            name = f"{index}-{place}.webp"
            write_sheet(folder / "sprites" / "pages" / name, sheet, len(won), lossless=shapes[layer].is_sharp)
            content["layers"][place] = {
                "maps": maps[layer][rows][won].tolist(),
                "values": [rounded(value) for value in table.values[rows, 0][won].tolist()],
            }
        if has_head:
            try:
                content |= _answers(network, inputs[0], source.labels[index] if same_classes else ())
            except ValueError as error:
                warnings.warn(f"the pages come without occlusion maps: {error}", stacklevel=2)
                has_head = False
        write_data(folder, f"image-{index}", content)
    return [printable(name) for name in classes]


def _strongest(
    network: Network, source: Source, layers: Sequence[str], pages: Sequence[int]
) -> tuple[dict[str, TopTable], dict[str, Tensor]]:
    """The strongest maps of each page's image, `MAPS` rows for each: tables for `project_winners`, and which maps."""
    parts: dict[str, list[tuple[Tensor, ...]]] = {layer: [] for layer in layers}
    for index in pages:
        with evaluating(network):
            trace = network.trace(network.as_input(source.read([index])), top=max(layers, key=network.layers.index))
        for layer in layers:
            feature_maps = trace.maps[layer].float()
            peaks = feature_maps[0].flatten(1).amax(1) if feature_maps.ndim == 4 else feature_maps[0]
            values, numbers = (part[:MAPS].cpu() for part in torch.nan_to_num(peaks).sort(descending=True, stable=True))
            positions = strongest(feature_maps, numbers, torch.zeros(len(numbers), dtype=torch.int64))
            values, numbers = F.pad(values, (0, MAPS - len(values))), F.pad(numbers, (0, MAPS - len(numbers)))
            positions = F.pad(positions, (0, 0, 0, MAPS - len(positions)))
            parts[layer].append((values[:, None].double(), torch.full((MAPS, 1), index), positions[:, None], numbers))
    joined = {layer: [torch.cat(part) for part in zip(*rows, strict=True)] for layer, rows in parts.items() if rows}
    return {layer: TopTable(*rows[:3]) for layer, rows in joined.items()}, {
        layer: rows[3] for layer, rows in joined.items()
    }


def _answers(network: Network, inputs: Tensor, labels: Sequence[int]) -> dict[str, Any]:
    """The most probable classes, and what a square that slides over the image does to the target's probability."""
    with evaluating(network):
        logits = logits_of(network.trace(network.as_input(inputs[None])))[0].float()
    shares = F.softmax(logits, 0).cpu()
    target = max(labels, key=lambda label: float(shares[label])) if labels else int(shares.argmax())
    seen = look(network, inputs, target)
    best = shares.argsort(descending=True)[:CLASSES].tolist()
    occlusion = {
        "target": target,
        "layer": printable(seen.layer),
        "map": seen.occlusion.feature_map,
        "whole": rounded(seen.probability),
        "size": seen.size,
        "stride": seen.stride,
        "probability": [[rounded(value) for value in row] for row in seen.occlusion.probability.tolist()],
        "label": seen.occlusion.label.tolist(),
    }
    return {"answers": [[label, rounded(float(shares[label]))] for label in best], "occlusion": occlusion}
