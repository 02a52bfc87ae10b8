"""How far features move, and whether the class stays, when images are shifted, scaled and turned.

Source: Zeiler & Fergus (2014), Fig. 5.
"""

from itertools import product

import numpy as np
import torch
from torch import Tensor

from zfscope.analyses.question import Metric, Question, Result, at_most, some_inputs
from zfscope.deconvnet.winners import as_pictures
from zfscope.evaluation import check_classes
from zfscope.figures import invariance_figure
from zfscope.figures.fonts import one_line
from zfscope.invariance import KINDS, Invariance, compare, default_amounts, low_and_high, moved
from zfscope.networks.public import is_zoo_name

NEAR = 20  # degrees: rotations within which a photograph still looks upright


def analyse(question: Question) -> Result:
    """The mean of each curve, and where the high one is lower.

    The pictures move on their whole canvas, the mean subtracted, and are cropped then. ``arrays.npz`` holds ``indices``
    and ``labels (N,)``, ``shown (S,)``, ``norms/<layer> (N,)``, ``another/<layer>`` and, for each kind,
    ``<kind>/amounts (A,)``, ``<kind>/<layer> (N, A)``, the distances as they are, and ``<kind>/probability (N, A)``.

    Metrics are taken over all amounts that change an image, ``rotation_within_20`` over those of at most 20 degrees
    either way: the mean distance at each layer, the share of amounts at which the mean curve of the high layer lies
    below that of the low one (``curve_below``), the share of pairs of an image and an amount where it does
    (``images_below``), and the mean probability. A network without a head gives none, nor does a public one whose
    number of classes is not the data set's. With ``analysis.random_weights`` the distances, their arrays and metrics
    also of the same architecture with random weights: ``translation/conv1_random_weights`` …
    """
    options, network, images = question.options, question.network, question.images
    layers = low_and_high(network) if options.layers is None else options.layers
    for layer in layers:
        network.check_layer(layer)
    networks = question.networks
    # A public network knows other classes than most data sets: distances need none, and there is no probability.
    others = is_zoo_name(str(question.checkpoint)) and network.num_classes != len(images.classes)
    told = network.num_classes != 0 and not others
    if told:
        check_classes(network, images.classes)
    if images.labels.ndim != 1:
        raise ValueError("analysis=invariance needs images with one true label each; these have several")
    examples = question.inputs(images, network.preprocessing.normalised_canvas)
    indices, canvases = some_inputs(examples, at_most(options.images, len(images), "analysis.images"), options.seed)
    labels = torch.from_numpy(images.labels[indices.numpy()])
    side, known = network.preprocessing.crop, labels if told else None
    curves_of = {
        way: [
            compare(
                model,
                canvases,
                None if way else known,
                kind,
                default_amounts(kind, side),
                layers,
                batch_size=options.batch_size,
            )
            for kind in KINDS
        ]
        for way, model in networks.items()
    }
    curves = curves_of[""]

    shown = of_different_classes(labels, options.shown)
    arrays = {"indices": indices.numpy(), "labels": labels.numpy(), "shown": shown.numpy()}
    tiles = {}
    for curve in curves:
        kind = curve.kind
        arrays |= {f"{kind}/amounts": curve.amounts.numpy()}
        arrays |= {f"{kind}/probability": curve.probability.numpy()} if known is not None else {}
        amounts = curve.amounts[torch.linspace(0, len(curve.amounts) - 1, 5).long()]
        pictures = [as_pictures(network, moved(canvases[shown], kind, amount, side)) for amount in amounts.tolist()]
        tiles[kind] = amounts, torch.stack(pictures, 1)
    for way, layer in product(curves_of, layers):
        arrays |= {f"{curve.kind}/{layer}{way}": curve.distances[layer].numpy() for curve in curves_of[way]}
        arrays[f"another/{layer}{way}"] = np.array(curves_of[way][0].another[layer])
        arrays[f"norms/{layer}{way}"] = curves_of[way][0].norms[layer].numpy()
    names = [one_line(images.classes[labels[number]]) for number in shown.tolist()]
    title = f"{question.title}: {len(indices):,} images of {question.part}"
    figure = invariance_figure(curves, tiles, shown, names, title=title)
    metrics = {}
    for way, its in curves_of.items():
        for curve in its:
            metrics |= _metrics(curve, curve.kind, curve.changed, layers, way)
        rotation = its[KINDS.index("rotation")]
        near = rotation.changed & (rotation.turn <= NEAR)
        metrics |= _metrics(rotation, f"rotation_within_{NEAR}", near, layers, way)
    return Result(metrics, arrays, {"invariance": figure})


def _metrics(curve: Invariance, name: str, amounts: Tensor, layers: tuple[str, str], way: str) -> dict[str, Metric]:
    low, high = (curve.relative(layer)[:, amounts] for layer in layers)
    curve_below, images_below = high.mean(0) < low.mean(0), high < low
    metrics = {
        f"{name}/{layers[0]}{way}": {"value": float(low.mean()), "unit": "of the distance to another image"},
        f"{name}/{layers[1]}{way}": {"value": float(high.mean()), "unit": "of the distance to another image"},
        f"{name}/curve_below{way}": {"value": 100 * float(curve_below.double().mean()), "unit": "%"},
        f"{name}/images_below{way}": {"value": 100 * float(images_below.double().mean()), "unit": "%"},
    }
    if curve.probability is not None:
        probability = float(curve.probability[:, amounts].mean())
        metrics[f"{name}/probability"] = {"value": probability, "unit": "of the true label"}
    return metrics


def of_different_classes(labels: Tensor, most: int) -> Tensor:
    """Positions of the first image of each class, then of the others, at most so many; in order."""
    first = np.sort(np.unique(labels.numpy(), return_index=True)[1])
    others = np.setdiff1d(np.arange(len(labels)), first)
    return torch.from_numpy(np.sort(np.concatenate([first, others])[:most]))
