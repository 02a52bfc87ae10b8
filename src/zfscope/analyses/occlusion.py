"""What a network says while a grey square slides over images: a panel for each, and where it was right to look.

Source: Zeiler & Fergus (2014), Sec. 4.2 and Fig. 7.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from zfscope.activations import TopTable
from zfscope.analyses.evaluate import check_classes, part_of
from zfscope.analyses.projections import mine
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.data.datamodule import Examples, ImageData
from zfscope.data.imageset import FileImages, ImageSet
from zfscope.data.sources.phantom import Phantom
from zfscope.data.transforms import CentreTransform
from zfscope.deconvnet.winners import OUTSIDE, as_pictures, project_winners, random_subset
from zfscope.figures import occlusion_panel
from zfscope.networks.network import Network
from zfscope.networks.preprocessing import Preprocessing, centre_crop, square
from zfscope.occlusion.positions import hidden, spans
from zfscope.occlusion.sensitivity import Sensitivity, look, projected
from zfscope.runs import write_arrays
from zfscope.schema import printable


def occlusion(
    network: Network, data: ImageData | None, config: AnalyzeConfig, device: torch.device, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write ``figures/occlusion/<image>.png`` and ``arrays.npz``; give the drops, and on the phantom their places.

    ``arrays.npz`` holds ``probability``, ``label`` and ``activation (N, R, C)`` by position; ``indices`` (where the
    images are the data's), ``target``, ``feature_map``, and of the unoccluded images ``unoccluded_probability``,
    ``unoccluded_label`` and ``unoccluded_activation (N,)``.

    Args:
        network: Any network.
        data: May be None where ``config.image`` is given; then the panel has no projections from other images.
        config: With an ``OcclusionAnalysis``.
        device: To compute on.
        folder: To write to.

    Returns:
        Metrics by name: mean and largest drop of the target's probability, in percentage points, and how often another
        class is the most probable one; on the phantom those of ``drop_places`` too.

    Raises:
        ValueError: For a layer, class, part or image that is not there, or a square that cannot be.
        OSError: If ``config.image`` cannot be read.
    """
    asked = config.analysis
    network = network.to(device).eval()
    target = None if asked.target is None else class_number(network, asked.target)
    pool = part_of(data, asked.part) if data is not None else None
    if config.image is not None:
        images: ImageSet = FileImages([Path(config.image).absolute()], np.zeros(1, np.int64), ("",))
        indices, names = [0], [Path(config.image).stem]
    else:
        images = pool
        check_classes(network, images.classes)
        indices = _chosen(images, asked.indices, asked.images, asked.seed)
        names = [str(index) for index in indices]
    examples = Examples(images, CentreTransform(network.preprocessing), network.preprocessing.resize)

    def look_at(index: int) -> Sensitivity:
        inputs, label, _ = examples[index]
        aim = _label(network, inputs.to(device), label) if target is None and images is pool else target
        return look(network, inputs, aim, size=asked.size, stride=asked.stride, fill=asked.fill, layer=asked.layer)

    found = [look_at(index) for index in track(indices, "Covering", transient=True)]
    shown = list(zip(names, indices, found, strict=True))[: asked.shown]
    tiles: list[Tensor | None] = [None] * len(shown)
    others: list[tuple[Tensor, Tensor] | None] = [None] * len(shown)
    try:
        tiles = [projected(network, examples[i][0], each.layer, each.occlusion.feature_map) for _, i, each in shown]
        if asked.top and pool is not None and shown:
            layer, maps = found[0].layer, torch.tensor([each.occlusion.feature_map for *_, each in shown])
            table = mine(network, data.centre_crops(pool, asked.batch_size), [layer], asked.top + 1)[layer]
            itself = [index if images is pool else -1 for _, index, _ in shown]
            pictures = Examples(pool, CentreTransform(network.preprocessing), network.preprocessing.resize)
            others = _from_others(network, layer, table, maps, itself, pictures, asked.top) or others
    except ValueError as error:
        warnings.warn(f"the panels come without projections: {error}", stacklevel=2)

    figures = folder / "figures" / "occlusion"
    figures.mkdir(parents=True, exist_ok=True)
    for (name, index, each), tile, other in zip(shown, tiles, others, strict=True):
        inputs, label, _ = examples[index]
        true = f", {images.classes[int(label)]}" if images is pool and label.ndim == 0 else ""
        picture = as_pictures(network, inputs[None])[0]
        title = images.name(index) + true if images is pool else printable(Path(config.image).name)
        panel = occlusion_panel(picture, each, classes=network.classes, projection=tile, others=other, title=title)
        panel.save(figures / f"{name}.png")
    _write(folder / "arrays.npz", found, indices if images is pool else None)
    metrics = _drops(found)
    if images is pool and isinstance(images, Phantom) and target is None:
        metrics |= _places(images, indices, found, network.preprocessing)
    return metrics


def class_number(network: Network, asked: str | int) -> int:
    """A class by its name, or else by its number.

    Raises:
        ValueError: If there is none; the message offers the nearest name.
    """
    classes, count = network.classes or (), network.num_classes
    if str(asked) in classes:
        return classes.index(str(asked))
    if str(asked).isdecimal() and (count is None or int(asked) < count):
        return int(asked)
    close = difflib.get_close_matches(str(asked), classes, n=1)
    numbers = f"a number from 0 to {count - 1}" if count else "a number"
    way = f"did you mean {close[0]}?" if close else f"give {'a name or ' if classes else ''}{numbers}"
    if not close and 0 < len(classes) <= 30:
        way += f"; the classes are {', '.join(classes)}"
    raise ValueError(f"analysis.target={asked}: the network has no such class; {way}")


def object_mask(images: Phantom, index: int, preprocessing: Preprocessing) -> Tensor:
    """Where the phantom's object is seen in a network's input, ``(crop, crop)`` bool."""
    canvas = square(Image.fromarray(255 * images.mask(index).astype(np.uint8)), preprocessing.resize)
    return centre_crop(torch.from_numpy(np.array(canvas)) >= 128, preprocessing.crop)


def drop_places(found: Sensitivity, mask: Tensor) -> tuple[float, float, bool, float]:
    """How the drop in probability lies to the object.

    Args:
        found: Occlusion maps of an image.
        mask: Where its object is, ``(H, W)`` bool.

    Returns:
        Mean drop with the square on the object, each position weighted by the share of its square that is object; mean
        drop on the background, weighted by the rest; whether the largest drop comes with the square's centre inside
        the mask; and the share of positions whose centre is, which is the last one's chance.
    """
    drop = found.drop.double()
    object_pixels, pixels = hidden(mask, found.size, found.stride)
    on, off = (
        float((drop * weight).sum() / weight.sum().clamp_min(1e-12))
        for weight in (object_pixels / pixels.clamp_min(1), 1 - object_pixels / pixels.clamp_min(1))
    )
    rows, columns = (
        ((first + last) // 2).clamp_max(length - 1)
        for length in mask.shape
        for first, last in [spans(length, found.size, found.stride)]
    )
    inside = mask[rows][:, columns]
    return on, off, bool(inside.flatten()[drop.argmax()]), float(inside.double().mean())


def _chosen(images: ImageSet, indices: Sequence[int] | None, count: int, seed: int) -> list[int]:
    """The images asked for, or a random subset."""
    if indices is None:
        return random_subset(len(images), count, seed).tolist()
    for index in indices:
        if index >= len(images):
            raise ValueError(f"analysis.indices: there is no image {index}; they are numbered 0 to {len(images) - 1}")
    if not indices:
        raise ValueError("analysis.indices names no image; analysis.indices=null chooses some at random")
    return list(dict.fromkeys(indices))


@torch.no_grad()
def _label(network: Network, inputs: Tensor, label: Tensor) -> int:
    """The label; where an image has several, the one that the network thinks most probable."""
    if label.ndim == 0:
        return int(label)
    logits = network(inputs[None])[0].cpu()
    return int(logits.masked_fill(label == 0, -torch.inf).argmax())


def _from_others(
    network: Network,
    layer: str,
    table: TopTable,
    maps: Tensor,
    itself: Sequence[int],
    pictures: Examples,
    top: int,
) -> list[tuple[Tensor, Tensor]]:
    """Projections and patches of each map's strongest activations, without those in the image looked at."""
    ranks = [(table.indices[row] != index).nonzero()[:top, 0] for row, index in zip(maps, itself, strict=True)]
    ranks = torch.stack([each[: min(map(len, ranks))] for each in ranks])
    chosen = TopTable(*(part[maps[:, None], ranks] for part in table))
    found: Tensor | None = None

    def read(indices: Sequence[int]) -> Tensor:
        return torch.stack([pictures[index][0] for index in indices])

    for winners in project_winners(network, {layer: chosen}, {layer: maps}, read):
        tiles, _ = winners.tiles()
        if found is None:
            found = torch.full((2, *ranks.shape, *tiles.shape[1:]), OUTSIDE, dtype=torch.uint8)
        found[0, winners.rows, winners.ranks], found[1, winners.rows, winners.ranks] = tiles, winners.patches
    return [] if found is None else list(zip(*found, strict=True))


def _write(path: Path, found: Sequence[Sensitivity], indices: Sequence[int] | None) -> None:
    names = ("probability", "label", "activation")
    arrays = {name: torch.stack([getattr(each.occlusion, name) for each in found]).numpy() for name in names}
    arrays |= {f"unoccluded_{name}": np.array([getattr(each, name) for each in found]) for name in names}
    arrays["feature_map"] = np.array([each.occlusion.feature_map for each in found])
    arrays["target"] = np.array([each.target for each in found])
    if indices is not None:
        arrays["indices"] = np.array(indices)
    write_arrays(path, arrays)


def _drops(found: Sequence[Sensitivity]) -> dict[str, dict[str, Any]]:
    drops = torch.stack([each.drop for each in found])
    changed = torch.stack([each.occlusion.label != each.label for each in found])
    return {
        "mean_drop": {"value": 100 * float(drops.mean()), "unit": "% points"},
        "largest_drop": {"value": 100 * float(drops.flatten(1).amax(1).mean()), "unit": "% points"},
        "other_class": {"value": 100 * float(changed.double().mean()), "unit": "% of positions"},
    }


def _places(
    images: Phantom, indices: Sequence[int], found: Sequence[Sensitivity], preprocessing: Preprocessing
) -> dict[str, dict[str, Any]]:
    """Of the images that the network classifies correctly, how the drops lie to the objects."""
    right = [(i, each) for i, each in zip(indices, found, strict=True) if each.label == each.target]
    metrics: dict[str, dict[str, Any]] = {"correct": {"value": len(right), "unit": f"of {len(found)} images"}}
    if right:
        places = [drop_places(each, object_mask(images, i, preprocessing)) for i, each in right]
        on, off, inside, chance = np.array(places, dtype=np.float64).T
        unit = f"% of {len(right)} images"
        metrics["drop_larger_on_object"] = {"value": 100 * float((on > off).mean()), "unit": unit}
        metrics["largest_drop_in_mask"] = {"value": 100 * float(inside.mean()), "unit": unit}
        metrics["largest_drop_in_mask_by_chance"] = {"value": 100 * float(chance.mean()), "unit": unit}
    return metrics
