"""What a network says while a grey square slides over images: a panel for each, and where it was right to look.

Source: Zeiler & Fergus (2014), Sec. 4.2 and Fig. 7.
"""

import difflib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zfscope.activations import TopTable
from zfscope.analyses.question import Metric, Question, Result, at_most, reader, some_inputs
from zfscope.analyses.strongest import most_probable, strongest_maps
from zfscope.console import progress
from zfscope.data.datamodule import Examples
from zfscope.data.imageset import FileImages, ImageSet
from zfscope.data.sources.phantom import Phantom
from zfscope.deconvnet.choice import Choice, told
from zfscope.deconvnet.rules import WAY_OUT
from zfscope.deconvnet.winners import OUTSIDE, as_pictures, project_winners, top_images
from zfscope.evaluation import check_classes
from zfscope.figures import occlusion_panel
from zfscope.figures.fonts import one_line
from zfscope.networks.network import Network
from zfscope.networks.preprocessing import Preprocessing, centre_crop
from zfscope.occlusion.positions import hidden, spans
from zfscope.occlusion.sensitivity import Sensitivity, look, projected
from zfscope.schema import printable


def analyse(question: Question) -> Result:
    """A panel for each image, the drops, and on the phantom their places.

    ``arrays.npz`` holds ``probability``, ``label`` and ``activation (N, R, C)`` by position; ``indices`` (where the
    images are the data's), ``target``, ``feature_map``, and of the unoccluded images ``unoccluded_probability``,
    ``unoccluded_label`` and ``unoccluded_activation (N,)``.

    Metrics are the mean and largest drop of the target's probability, in percentage points, and how often another class
    is the most probable one; on the phantom those of ``drop_places`` too. Of the user's own image the most probable
    classes are told, and its strongest maps are projected; without data the panel has no projections from other images.
    With ``analysis.random_weights`` also ``mean_drop_random_weights`` …: same squares, same target, random weights.
    """
    options, network, own = question.options, question.network, question.image
    network.check_head()
    target = None if options.target is None else class_number(network, options.target)
    pool = question.images if question.data is not None else None
    if own is not None:
        images: ImageSet = FileImages([Path(own).absolute()], np.zeros(1, np.int64), ("",))
        indices, names = [0], [Path(own).stem]
    else:
        images = pool
        check_classes(network, images.classes)
        indices = _chosen(question.inputs(images), options.indices, options.images, options.seed)
        names = [str(index) for index in indices]
    examples = question.inputs(images)

    networks = question.networks

    def look_at(index: int) -> dict[str, Sensitivity]:
        inputs, label, _ = examples[index]
        aim = _label(network, inputs.to(network.device), label) if target is None and images is pool else target
        found: dict[str, Sensitivity] = {}
        for way, model in networks.items():
            aim = found[""].target if found else aim
            found[way] = look(
                model, inputs, aim, size=options.size, stride=options.stride, fill=options.fill, layer=options.layer
            )
        return found

    found = [look_at(index) for index in progress(indices, "Covering images")]
    maps = [ways[""] for ways in found]
    shown = list(zip(names, indices, maps, strict=True))[: options.shown]
    tiles: list[Tensor | None] = [None] * len(shown)
    others: list[tuple[Tensor, Tensor] | None] = [None] * len(shown)
    try:
        tiles = [
            projected(network, examples[index][0], image.layer, image.occlusion.feature_map, options.rule)
            for _, index, image in shown
        ]
        if options.top and pool is not None and shown:
            layer, numbers = maps[0].layer, torch.tensor([image.occlusion.feature_map for *_, image in shown])
            batches = question.data.centre_crops(pool, options.batch_size)
            at_most(options.top, len(pool), "analysis.top")
            table = top_images(network, batches, [layer], options.top + 1)[layer]
            itself = [index if images is pool else -1 for _, index, _ in shown]
            read = reader(question.inputs(pool))
            chosen = network, layer, table, numbers, itself, read, options.top, options.rule
            others = projections_from_others(*chosen) or others
    except ValueError as error:
        cause = str(error).replace(WAY_OUT, f"{WAY_OUT}: analysis.rule=gradient")
        warnings.warn(f"the panels come without projections: {cause}", stacklevel=2)

    figures = {}
    for (name, index, image), tile, other in zip(shown, tiles, others, strict=True):
        inputs, label, _ = examples[index]
        true = f", {one_line(images.classes[int(label)])}" if images is pool and label.ndim == 0 else ""
        picture = as_pictures(network, inputs[None])[0]
        title = images.key(index) + true if images is pool else printable(Path(own).name)
        if tile is not None:
            title += told(network, image.layer, inputs[None], options.rule)
        figures[f"occlusion/{name}"] = occlusion_panel(
            picture, image, classes=network.classes, projection=tile, others=other, title=title
        )
    metrics = {
        f"{name}{way}": metric for way in networks for name, metric in _drops([ways[way] for ways in found]).items()
    }
    if images is pool and isinstance(images, Phantom) and target is None:
        metrics |= _places(images, indices, maps, network.preprocessing)
    notes = []
    if own is not None:
        inputs, shown_name = examples[0][0], printable(Path(own).name)
        notes.append(f"{shown_name}: {most_probable(network, inputs)}")
        sheets = strongest_maps(network, inputs, shown_name, options.rule)
        figures |= {f"strongest/{layer}": sheet for layer, sheet in sheets.items()}
    return Result(metrics, _arrays(maps, indices if images is pool else None), figures, notes=notes)


def class_number(network: Network, target: str) -> int:
    """A class by its name, or else by its number; refused with the nearest name."""
    classes, count = network.classes or (), network.num_classes
    if target in classes:
        return classes.index(target)
    if target.isdecimal() and (count is None or int(target) < count):
        return int(target)
    close = difflib.get_close_matches(target, classes, n=1)
    numbers = f"a number from 0 to {count - 1}" if count else "a number"
    way = f"did you mean {printable(close[0])}?" if close else f"give {'a name or ' if classes else ''}{numbers}"
    if not close and 0 < len(classes) <= 30:
        way += f"; the classes are {', '.join(map(printable, classes))}"
    raise ValueError(f"analysis.target={target}: the network has no such class; {way}")


def object_mask(images: Phantom, index: int, preprocessing: Preprocessing) -> Tensor:
    """Where the phantom's object is seen in a network's input, ``(crop, crop)`` bool."""
    grey = np.repeat(255 * images.mask(index).astype(np.uint8)[..., None], 3, axis=2)
    canvas = preprocessing.canvas_kind.draw(grey)[..., 0]
    return centre_crop(torch.from_numpy(np.array(canvas)) >= 128, preprocessing.crop)


def drop_places(maps: Sensitivity, mask: Tensor) -> tuple[float, float, bool, float]:
    """How the drop in probability lies to the object, whose ``mask`` is ``(H, W)`` bool.

    Returns:
        Mean drop with the square on the object, each position weighted by the share of its square that is object; mean
        drop on the background, weighted by the rest; whether the largest drop comes with the square's centre inside
        the mask; and the share of positions whose centre is, which is the last one's chance.
    """
    drop = maps.drop.double()
    object_pixels, pixels = hidden(mask, maps.size, maps.stride)
    on, off = (
        float((drop * weight).sum() / weight.sum().clamp_min(1e-12))
        for weight in (object_pixels / pixels.clamp_min(1), 1 - object_pixels / pixels.clamp_min(1))
    )
    rows, columns = (
        ((first + last) // 2).clamp_max(length - 1)
        for length in mask.shape
        for first, last in [spans(length, maps.size, maps.stride)]
    )
    inside = mask[rows][:, columns]
    return on, off, bool(inside.flatten()[drop.argmax()]), float(inside.double().mean())


def _chosen(examples: Examples, indices: Sequence[int] | None, count: int, seed: int) -> list[int]:
    """The images that ``indices`` names, or a random subset of those that can be read."""
    size = len(examples)
    if indices is None:
        return some_inputs(examples, at_most(count, size, "analysis.images"), seed)[0].tolist()
    for index in indices:
        if index >= size:
            raise ValueError(f"analysis.indices: there is no image {index}; they are numbered 0 to {size - 1}")
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


def projections_from_others(
    network: Network,
    layer: str,
    table: TopTable,
    maps: Tensor,
    itself: Sequence[int],
    read: Callable[[Sequence[int]], Tensor],
    top: int,
    rule: Choice = "auto",
) -> list[tuple[Tensor, Tensor]]:
    """Projections and patches of each map's strongest activations, without those in the image looked at."""
    ranks = [(table.indices[row] != index).nonzero()[:top, 0] for row, index in zip(maps, itself, strict=True)]
    ranks = torch.stack([own[: min(map(len, ranks))] for own in ranks])
    table = TopTable(*(part[maps[:, None], ranks] for part in table))
    pairs: Tensor | None = None
    for winners in project_winners(network, {layer: table}, {layer: maps}, read, rule=rule):
        tiles, _ = winners.tiles()
        if pairs is None:
            pairs = torch.full((2, *ranks.shape, *tiles.shape[1:]), OUTSIDE, dtype=torch.uint8)
        pairs[0, winners.rows, winners.ranks], pairs[1, winners.rows, winners.ranks] = tiles, winners.patches
    return [] if pairs is None else list(zip(*pairs, strict=True))


def _arrays(maps: Sequence[Sensitivity], indices: Sequence[int] | None) -> dict[str, np.ndarray]:
    names = ("probability", "label", "activation")
    arrays = {name: torch.stack([getattr(image.occlusion, name) for image in maps]).numpy() for name in names}
    arrays |= {f"unoccluded_{name}": np.array([getattr(image, name) for image in maps]) for name in names}
    arrays["feature_map"] = np.array([image.occlusion.feature_map for image in maps])
    arrays["target"] = np.array([image.target for image in maps])
    return arrays if indices is None else {**arrays, "indices": np.array(indices)}


def _drops(maps: Sequence[Sensitivity]) -> dict[str, Metric]:
    drops = torch.stack([image.drop for image in maps])
    changed = torch.stack([image.occlusion.label != image.label for image in maps])
    return {
        "mean_drop": {"value": 100 * float(drops.mean()), "unit": "% points"},
        "largest_drop": {"value": 100 * float(drops.flatten(1).amax(1).mean()), "unit": "% points"},
        "other_class": {"value": 100 * float(changed.double().mean()), "unit": "% of positions"},
    }


def _places(
    images: Phantom, indices: Sequence[int], maps: Sequence[Sensitivity], preprocessing: Preprocessing
) -> dict[str, Metric]:
    """Of the images that the network classifies correctly, how the drops lie to the objects."""
    right = [(index, image) for index, image in zip(indices, maps, strict=True) if image.label == image.target]
    metrics: dict[str, Metric] = {"correct": {"value": len(right), "unit": f"of {len(maps)} images"}}
    if right:
        places = [drop_places(image, object_mask(images, index, preprocessing)) for index, image in right]
        on, off, inside, chance = np.array(places, dtype=np.float64).T
        unit = f"% of {len(right)} images"
        metrics["drop_larger_on_object"] = {"value": 100 * float((on > off).mean()), "unit": unit}
        metrics["largest_drop_in_mask"] = {"value": 100 * float(inside.mean()), "unit": unit}
        metrics["largest_drop_in_mask_by_chance"] = {"value": 100 * float(chance.mean()), "unit": unit}
    return metrics
