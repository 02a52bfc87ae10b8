"""How good each layer's features are: a linear SVM and a softmax on them, on another data set.

Source: Zeiler & Fergus (2014), Sec. 5.3 and Table 7.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from zfscope.analyses.spec import AnalyzeConfig
from zfscope.analyses.transfer import labels_of, over_folds, reader, short_name, tables_of
from zfscope.data.datamodule import ImageData
from zfscope.figures import probes_figure
from zfscope.networks.chain import ConvNet
from zfscope.networks.network import Network
from zfscope.networks.spec import ConvLayer
from zfscope.protocols.linear_classifiers import choose_c, fit_softmax, fit_svm, mean_class_accuracy
from zfscope.protocols.transfer import Target, draw_fold, used_by
from zfscope.report.paper import TABLE_7
from zfscope.runs import write_arrays

SIZES = {"caltech256": 60}  # training images per class: Table 7
FITS = {"svm": fit_svm, "softmax": fit_softmax}


def probes(
    network: Network, data: ImageData, config: AnalyzeConfig, device: torch.device, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write ``figures/probes.png`` and ``arrays.npz``; give ``<classifier>/<layer>/accuracy``.

    Accuracies are means over folds of the mean accuracy per class, in percent; C is chosen for each fold, layer and
    classifier on a part of the fold's training images, features are centred and scaled by training images alone.
    ``arrays.npz`` holds ``layers (L,)`` and, by classifier, ``(L, folds)``.

    Raises:
        ValueError: For a layer that is not there, images with several labels, fewer images in a class than asked for.
    """
    asked = config.analysis
    layers = asked.layers or layers_to_probe(network)
    for layer in layers:
        network.check_layer(layer)
    target = Target.of(data.splits)
    if target.images.labels.ndim != 1:
        raise ValueError("analysis=probes needs images with one label each; analysis=transfer takes several")
    classes, size = target.images.classes, asked.images_per_class or SIZES.get(data.config.name, 30)
    folds = [draw_fold(target, size, asked.test_images, fold=n, seed=asked.seed) for n in range(asked.folds)]
    used = used_by(folds)
    tables = tables_of(network, data, target.images.subset(used), layers, asked.batch_size, device)
    scores = {name: np.zeros((len(layers), len(folds))) for name in asked.classifiers}
    for row, layer in enumerate(track(layers, "Linear classifiers", transient=True)):
        read = reader(tables[layer], len(folds[0].train), asked.memory_gb * 1e9)
        for column, fold in enumerate(folds):
            train, test = read(np.searchsorted(used, fold.train), np.searchsorted(used, fold.test))
            labels, truth = labels_of(target, fold, asked), torch.from_numpy(target.images.labels[fold.test])
            for name in asked.classifiers:
                classifier = choose_c(train, torch.from_numpy(labels), len(classes), FITS[name])
                scores[name][row, column] = mean_class_accuracy(classifier(test).argmax(1), truth, len(classes))
    chance = 100 / len(classes)
    title = f"{short_name(config.checkpoint)} to {data.config.name}, {size} images of each of {len(classes)} classes"
    (folder / "figures").mkdir(exist_ok=True)
    probes_figure(layers, scores, chance=chance, title=title).save(folder / "figures" / "probes.png")
    write_arrays(folder / "arrays.npz", {"layers": np.array(layers), **scores})
    paper = TABLE_7.get((data.config.name, size), {})
    return {
        f"{name}/{layer}/accuracy": over_folds(values, paper=paper.get((name, layer)))
        for name, rows in scores.items()
        for layer, values in zip(layers, rows, strict=True)
    } | {"chance": {"value": chance, "unit": "%"}}


def layers_to_probe(network: Network) -> tuple[str, ...]:
    """All layers with feature maps and the one below the classes: 1 to 5 and 7 of ZFNet, as in Table 7."""
    below = [layer for layer in network.layers if not f".{network.classifier_prefix}".endswith(f".{layer}.")]
    if isinstance(network, ConvNet):
        below = [layer for layer in below if isinstance(network.spec[layer], ConvLayer) or layer == below[-1]]
    return tuple(below)
