"""Whether hiding one part changes features alike in all images, against hiding random places.

Source: Zeiler & Fergus (2014), Sec. 4.3, Fig. 8 and Table 1. How many random masks there were and where, the paper does
not say; all of that is our choice.
"""

from itertools import product
from pathlib import Path

import numpy as np
import torch

from zfscope.analyses.question import Metric, Question, Result, percent
from zfscope.console import counting
from zfscope.correspondence import SignChanges, correspond, layers_to_compare, occluded, random_boxes
from zfscope.data.parts import COLUMNS, PartImages, aligned_faces, read_parts
from zfscope.data.sources.phantom import Phantom
from zfscope.deconvnet.winners import as_pictures, layers_to_watch
from zfscope.figures import correspondence_sheet
from zfscope.report.paper import TABLES

# Table 1, in percent; five dogs, ZFNet.
PAPER = {
    layer: {part: round(100 * TABLES[0].value(part, layer), 1) for part in TABLES[0].rows}
    for layer in TABLES[0].columns
}
CONTROLS = ("random", "on_object", "same_place")
SHOWN = 5  # images on the sheet, as in Fig. 8


def analyse(question: Question) -> Result:
    """Delta in percent by part and layer.

    ``<part>/<layer>`` is Delta, its spread the standard deviation over pairs of images. ``random/<layer>`` is the mean
    over random masks of all parts' sizes, each image's anywhere; ``on_object/<layer>`` over those on the object (their
    middles within the box that holds all parts); ``same_place/<layer>`` over those at one place in all images. Their
    spread and 95 % interval are over masks. ``<part>/<layer>/random_above`` … is the share of the masks of that part's
    own sizes whose Delta is larger: 97.5 % and more is below the 95 % interval. ``<part>/<layer>/changed`` is the share
    of dimensions that hiding the part changes at all. ``misalignment``: see ``PartImages``. With
    ``analysis.random_weights`` there is also ``<layer>_random_weights`` for each layer, of the same architecture with
    random weights, under the same masks.

    ``arrays.npz`` holds ``images (N,)``, ``parts (P,)``, ``boxes (P, N, 4)``, ``random_boxes (P, masks, N, 4)`` …, and
    for each layer ``<layer>/pairs (P, pairs)``, ``<layer>/changed (P,)``, ``<layer>/random (P, masks)`` … and
    ``<layer>/random_changed (P,)`` …; shares 0-1.
    """
    options, network = question.options, question.network
    layers = layers_to_compare(network) if options.layers is None else layers_to_watch(network, options.layers)
    examples = _examples(question)
    # float64 is unknown to Apple's GPUs, and rounding must not make signs.
    device = "cpu" if question.device.type == "mps" else question.device
    networks = {way: model.to(device) for way, model in question.networks.items()}

    size, generator = examples.inputs.shape[2:], torch.Generator().manual_seed(options.seed)
    masks = {}
    for part, boxes in examples.boxes.items():
        masks[part, "part"] = boxes[None]
        masks[part, "random"] = random_boxes(boxes, options.masks, size, generator)
        masks[part, "on_object"] = random_boxes(boxes, options.masks, size, generator, around=examples.objects())
        masks[part, "same_place"] = random_boxes(boxes, options.masks, size, generator, together=True)
    changes: dict[tuple[str, str], dict[str, SignChanges]] = {key: {} for key in masks}
    with counting("Hiding", len(networks) * len(masks)) as count:
        for (way, model), (key, boxes) in product(networks.items(), masks.items()):
            found = correspond(model, examples.inputs, boxes, layers, batch_size=options.batch_size)
            changes[key] |= {layer + way: change for layer, change in found.items()}
            count()
    compared = tuple(layer + way for way in networks for layer in layers)

    parts = tuple(examples.boxes)
    arrays = {"images": np.array(examples.names), "parts": np.array(parts)}
    arrays["boxes"] = torch.stack(list(examples.boxes.values())).numpy()
    for kind in CONTROLS:
        arrays[f"{kind}_boxes"] = torch.stack([masks[part, kind] for part in parts]).numpy()
    for layer in compared:
        arrays[f"{layer}/pairs"] = np.stack([changes[part, "part"][layer].pairs[0] for part in parts])
        arrays[f"{layer}/changed"] = np.array([float(changes[part, "part"][layer].changed.mean()) for part in parts])
        for kind in CONTROLS:
            controls = [changes[part, kind][layer] for part in parts]
            arrays[f"{layer}/{kind}"] = np.stack([control.delta for control in controls])
            arrays[f"{layer}/{kind}_changed"] = np.array([float(control.changed.mean()) for control in controls])

    hidden = [*examples.boxes.values(), masks[parts[0], "random"][0]]
    shown = [examples.inputs, *(occluded(examples.inputs, boxes) for boxes in hidden)]
    deltas = {
        layer: {kind: torch.from_numpy(arrays[f"{layer}/{kind}"]) for kind in CONTROLS}
        | {"part": torch.from_numpy(arrays[f"{layer}/pairs"]).mean(1)}
        for layer in layers
    }
    pictures = torch.stack([as_pictures(network, inputs[:SHOWN]) for inputs in shown], dim=1)
    title = f"{question.title}: do the same features change in all {len(examples.names)} images?"
    sheet = correspondence_sheet(pictures, parts, deltas, title=title)
    return Result(_metrics(parts, compared, arrays, examples), arrays, {"correspondence": sheet})


def _examples(question: Question) -> PartImages:
    options, preprocessing = question.options, question.network.preprocessing
    if options.boxes is not None:
        if not Path(options.boxes).is_file():
            raise FileNotFoundError(f"analysis.boxes={options.boxes}: there is no such file")
        return read_parts(options.boxes, preprocessing)
    # Of the whole data set first: which of its parts is asked about matters only where it is the phantom.
    if question.data is None or not isinstance(question.data.splits.train, Phantom):
        raise ValueError(
            "analysis=correspondence: where the parts of these images are is not known; give their boxes with "
            f"analysis.boxes=FILE.csv ({','.join(COLUMNS)}), or look at the phantom's faces with data=phantom"
        )
    return aligned_faces(question.images, preprocessing, options.images)


def _metrics(
    parts: tuple[str, ...], layers: tuple[str, ...], arrays: dict[str, np.ndarray], examples: PartImages
) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for layer in layers:
        pairs, paper = arrays[f"{layer}/pairs"], PAPER.get(layer, {})
        for part, values in zip(parts, pairs, strict=True):
            metrics[f"{part}/{layer}"] = _metric(values.mean(), spread=values.std(), paper=paper.get(part))
        for kind in CONTROLS:
            draws = arrays[f"{layer}/{kind}"]
            interval = [100 * bound for bound in np.quantile(draws, (0.025, 0.975)).tolist()]
            metrics[f"{kind}/{layer}"] = _metric(draws.mean(), spread=draws.std(), paper=paper.get(kind))
            metrics[f"{kind}/{layer}"]["interval"] = interval
        for kind in CONTROLS:
            for part, draws, delta in zip(parts, arrays[f"{layer}/{kind}"], pairs.mean(1), strict=True):
                metrics[f"{part}/{layer}/{kind}_above"] = _metric((draws > delta).mean())
        for part, share in zip(parts, arrays[f"{layer}/changed"], strict=True):
            metrics[f"{part}/{layer}/changed"] = _metric(share)
    metrics["misalignment"] = {"value": examples.misalignment(), "unit": "px"}
    return metrics


def _metric(share: float, **more: float | None) -> Metric:
    """A share as a metric in percent, its spread too; the paper's number is in percent already."""
    if "spread" in more:
        more["spread"] = 100 * float(more["spread"])
    return percent(100 * share, **more)
