"""What an atlas shows, collected in one pass over the images and one over those that won, and written as it comes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zfscope.activations import TopTable
from zfscope.atlas.page import address_of, rounded, write_data
from zfscope.atlas.source import Source
from zfscope.atlas.sprites import ACROSS, WinnerTiles, shrunk, tile_size, write_sheet
from zfscope.console import counting
from zfscope.deconvnet.choice import Choice, rule_for
from zfscope.deconvnet.switches import KeptSwitches
from zfscope.deconvnet.winners import as_pictures, check_projectable, project_winners, top_images
from zfscope.networks.chain import ConvNet
from zfscope.networks.network import Network, evaluating
from zfscope.schema import printable

PAIRS = 64  # maps of a layer in one sheet of its overview
THUMBS, THUMB = 100, 64  # small images in a sheet, and their longer side in pixels


@dataclass(frozen=True)
class Options:
    """How an atlas is made."""

    layers: Sequence[str] | None = None
    top: int = 9
    rule: Choice = "auto"
    batch_size: int = 16
    memory_gb: float = 2.0
    seed: int = 0


@dataclass
class Layers:
    """The winners of all maps, written; what the other pages refer to."""

    tables: dict[str, TopTable]
    addresses: dict[str, str]
    wins: dict[int, list[tuple[int, int, int]]]  # by image: layer, map, rank
    shapes: dict[str, tuple[int, ...]]  # of a layer's maps, without the number of images
    overview: list[dict[str, Any]] = field(default_factory=list)
    small: dict[int, np.ndarray] = field(default_factory=dict)  # by image: its tile, made when it was projected

    @property
    def dead(self) -> dict[str, int]:
        """How many maps of each layer no image activates."""
        return {layer: int((table.values[:, 0] <= 0).sum()) for layer, table in self.tables.items()}


def write_layers(network: Network, source: Source, folder: Path, options: Options) -> Layers:
    """Find and project the winners of all maps, and write their sheets and data."""
    image = source.example
    layers = check_projectable(network, options.layers, image, rule=options.rule)
    by_switches = isinstance(network, ConvNet) and options.rule in ("auto", "deconvnet")
    kept = KeptSwitches(network, options.memory_gb * 1e9) if by_switches else None
    tables = top_images(network, source.batches(options.batch_size), layers, options.top, kept)
    tables = {layer: TopTable(*(part.cpu() for part in tables[layer])) for layer in layers}
    maps = {layer: torch.arange(len(table.values)) for layer, table in tables.items()}
    shapes = map_shapes(network, image, layers)
    found = Layers(tables, {}, {}, shapes)
    for layer in tables:
        found.addresses[layer] = address_of(layer, found.addresses.values())
    tiles = {
        layer: WinnerTiles(folder / f".{number}.tiles", *table.values.shape)
        for number, (layer, table) in enumerate(tables.items())
    }

    def read(indices: Sequence[int]) -> Tensor:
        images = source.read(indices)
        found.small |= dict(zip(indices, small_tiles(network, images), strict=True))
        return images

    try:
        with counting("Projecting", sum(int((table.values > 0).sum()) for table in tables.values())) as count:
            ways = {"batch_size": options.batch_size, "rule": options.rule, "kept": kept}
            for winners in project_winners(network, tables, maps, read, **ways):
                tiles[winners.layer].put(winners)
                count(len(winners.rows))
        with counting("Writing", sum(map(len, maps.values()))) as count:
            for number, layer in enumerate(tables):
                found.overview.append(_write_layer(found, number, layer, tiles[layer], source, folder, count))
                found.overview[-1] |= _described(network, layer, image, shapes[layer], options.rule)
    finally:
        for held in tiles.values():
            held.close()
    return found


def map_shapes(network: Network, image: Tensor, layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shape of one image's feature maps in each layer."""
    top = max(layers, key=network.layers.index)
    with torch.no_grad(), evaluating(network):
        trace = network.trace(network.as_input(image[None]), top=top)
    return {layer: tuple(trace.maps[layer].shape[1:]) for layer in layers}


def _write_layer(
    found: Layers, number: int, layer: str, tiles: WinnerTiles, source: Source, folder: Path, count: Any
) -> dict[str, Any]:
    """A sheet for each map, those of the overview, and the layer's data; what the front page says of it."""
    table, address = found.tables[layer], found.addresses[layer]
    place = folder / "sprites" / f"{number}-{address}"
    place.mkdir(parents=True)
    size, maps = tiles.size, []
    pairs: list[np.ndarray] = []
    for row in range(len(table.values)):
        pictures = tiles.of(row)
        won = int((table.values[row] > 0).sum())
        if won:
            sheet = pictures[:, :won].reshape(2 * won, *pictures.shape[2:])
            write_sheet(place / f"{row}.webp", sheet, min(ACROSS, won), lossless=size.is_sharp)
        pairs.append(pictures[:, 0])
        if len(pairs) == PAIRS or row == len(table.values) - 1:
            sheet = np.concatenate(pairs)
            write_sheet(place / f"all-{row // PAIRS}.webp", sheet, 16, lossless=size.is_sharp)
            pairs = []
        indices = table.indices[row, :won].tolist()
        for rank, index in enumerate(indices):
            found.wins.setdefault(index, []).append((number, row, rank))
        values = [rounded(value) for value in table.values[row, :won].tolist()]
        maps.append({"values": values, "images": indices, "boxes": tiles.boxes[row, :won].tolist()})
        maps[-1] |= classes_of(indices, source)
        count()
    strength = np.argsort(-table.values[:, 0].numpy(), kind="stable")
    write_data(folder, f"layer-{number}", {"maps": maps})
    return {
        "name": printable(layer),
        "address": address,
        "place": place.relative_to(folder).as_posix(),
        "count": len(maps),
        "dead": found.dead[layer],
        "strongest": strength[:12].tolist(),
        "tile": {"width": size.width, "height": size.height, "scale": size.scale, "sharp": size.is_sharp},
    }


def classes_of(indices: Sequence[int], source: Source) -> dict[str, Any]:
    """How many of a map's winners each class has, most first, and the share of the most frequent one."""
    counted = Counter(label for index in indices for label in source.labels[index])
    most = max(counted.values(), default=0)
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return {"classes": ordered, "selectivity": rounded(most / len(indices)) if indices else 0}


def _described(network: Network, layer: str, image: Tensor, shape: tuple[int, ...], rule: Choice) -> dict[str, Any]:
    """Sizes of a layer's maps, what one of its units sees, and the rule that projects it."""
    size = tuple(image.shape)
    unit, pooled = network.field_below_pool(layer, size), network.receptive_field(layer, size)
    texts = {row[0]: row[1] for row in network.summary()}
    return {
        "height": shape[1] if len(shape) > 1 else 1,
        "width": shape[2] if len(shape) > 2 else 1,
        "filters": texts.get(layer, ""),
        "field": unit.size,
        "stride": unit.stride,
        "pooled": [pooled.size, pooled.stride] if pooled.size != unit.size else None,
        "rule": rule_for(network, layer, image[None], rule),
    }


def write_images(network: Network, source: Source, found: Layers, folder: Path, more: Sequence[int]) -> dict[str, Any]:
    """Write sheets of small images, of winners and ``more``, and what they won; returns how these are laid out."""
    chosen = sorted({*found.wins, *more})
    place = folder / "sprites" / "images"
    place.mkdir(parents=True, exist_ok=True)
    for index in {*chosen} - found.small.keys():
        found.small[index] = small_tiles(network, source.read([index]))[0]
    for sheet, start in enumerate(range(0, len(chosen), THUMBS)):
        tiles = np.stack([found.small[index] for index in chosen[start : start + THUMBS]])
        write_sheet(place / f"{sheet}.webp", tiles, 10, lossless=False, quality=75)
    listed = [
        {"index": index, "name": printable(source.name(index)), "labels": list(source.labels[index])}
        | {"wins": found.wins.get(index, [])}
        for index in chosen
    ]
    write_data(folder, "images", listed)
    height, width = source.example.shape[1:]
    size = tile_size(width, height, THUMB)
    shape = {"sheet": THUMBS, "across": 10, "width": size.width, "height": size.height}
    return shape | {"imageWidth": width, "imageHeight": height}


def small_tiles(network: Network, images: Tensor) -> np.ndarray:
    """Network inputs ``(N, C, H, W)`` as small pictures ``(N, height, width, 3)`` uint8."""
    return shrunk(as_pictures(network, images), tile_size(images.shape[3], images.shape[2], THUMB))


def write_classes(source: Source, found: Layers, folder: Path, most: int = 8) -> None:
    """By class and layer, the maps that its images win most often; its images."""
    content: list[dict[str, Any]] = [{"name": printable(name), "maps": {}, "images": []} for name in source.classes]
    for index, wins in sorted(found.wins.items()):
        for label in source.labels[index]:
            content[label]["images"].append(index)
            for layer, row, _ in wins:
                counts: Counter[int] = content[label]["maps"].setdefault(layer, Counter())
                counts[row] += 1
    for one in content:
        one["maps"] = {
            layer: sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
            for layer, counts in sorted(one["maps"].items())
        }
    totals = Counter(label for labels in source.labels for label in labels)
    for label, one in enumerate(content):
        one["total"] = totals[label]
    write_data(folder, "classes", content)


def sizes_by_kind(folder: Path) -> Mapping[str, int]:
    """Bytes of the pictures, of the data and of the page with its style and scripts."""
    kinds = {"sprites": 0, "data": 0, "page": 0}
    for path in folder.rglob("*"):
        if path.is_file():
            part = path.relative_to(folder).parts[0]
            kinds[part if part in kinds else "page"] += path.stat().st_size
    return kinds
