"""How good each layer's features are: a linear SVM and a softmax on them, on another data set.

Source: Zeiler & Fergus (2014), Sec. 5.3 and Table 7.
"""

from itertools import product

import numpy as np
import torch

from zfscope.analyses.question import Question, Result, over_folds, percent
from zfscope.console import counting
from zfscope.figures import probes_figure
from zfscope.networks.network import Network
from zfscope.networks.ranks import end_passes
from zfscope.protocols.features import feature_tables, standardised
from zfscope.protocols.linear_classifiers import choose_c, fit_softmax, fit_svm, mean_class_accuracy
from zfscope.protocols.transfer import Target, draw_fold, labels_of, used_by
from zfscope.report.paper import TABLE_7

SIZES = {"caltech256": 60}  # training images per class: Table 7
FITS = {"svm": fit_svm, "softmax": fit_softmax}


def analyse(question: Question) -> Result:
    """``<classifier>/<layer>/accuracy`` for each layer.

    Accuracies are means over folds of the mean accuracy per class, in percent; C is chosen for each fold, layer and
    classifier on a part of the fold's training images, features are centred and scaled by training images alone.
    With ``analysis.random_weights`` also ``<classifier>/<layer>/accuracy_random_weights``, of the same architecture
    with random weights, one draw for all folds.

    ``arrays.npz`` holds ``layers (L,)`` and, by classifier, ``(L, folds)``.
    """
    options, network, data = question.options, question.network, question.data
    layers = options.layers or layers_to_probe(network)
    for layer in layers:
        network.check_layer(layer)
    target = Target.of(question.checked_splits())
    if target.images.labels.ndim != 1:
        raise ValueError("analysis=probes needs images with one label each; analysis=transfer takes several")
    classes, size = target.images.classes, options.images_per_class or SIZES.get(data.config.name, 30)
    folds = [draw_fold(target, size, options.test_images, fold=n, seed=options.seed) for n in range(options.folds)]
    used = used_by(folds)
    networks = question.networks
    tables = {
        way: feature_tables(model, data, target.images.subset(used), layers, options.batch_size, question.device)
        for way, model in networks.items()
    }
    end_passes()
    scores = {name + way: np.zeros((len(layers), len(folds))) for way in networks for name in options.classifiers}
    with counting("Linear classifiers", sum(map(np.size, scores.values()))) as count:
        for way, (row, layer) in product(networks, enumerate(layers)):
            read = standardised(tables[way][layer], len(folds[0].train), options.memory_gb * 1e9)
            for column, fold in enumerate(folds):
                train, test = read(np.searchsorted(used, fold.train), np.searchsorted(used, fold.test))
                labels = labels_of(target, fold, options.seed, options.shuffle_labels)
                truth = torch.from_numpy(target.images.labels[fold.test])
                for name in options.classifiers:
                    classifier = choose_c(train, torch.from_numpy(labels), len(classes), FITS[name])
                    scores[name + way][row, column] = mean_class_accuracy(
                        classifier(test).argmax(1), truth, len(classes)
                    )
                    count()
    chance = 100 / len(classes)
    title = f"{question.title} to {data.config.title}, {size} images of each of {len(classes)} classes"
    figure = probes_figure(layers, scores, chance=chance, title=title)
    paper = TABLE_7.get((data.config.name, size), {})
    metrics = {
        f"{name}/{layer}/accuracy{way}": over_folds(values, paper=None if way else paper.get((name, layer)))
        for way, name in product(networks, options.classifiers)
        for layer, values in zip(layers, scores[name + way], strict=True)
    } | {"chance": percent(chance)}
    return Result(metrics, {"layers": np.array(layers), **scores}, {"probes": figure})


def layers_to_probe(network: Network) -> tuple[str, ...]:
    """All layers with feature maps and the one below the classes: 1 to 5 and 7 of ZFNet, as in Table 7."""
    below = network.layers_below_classes
    return tuple(layer for layer in below if layer in network.layers_with_maps or layer == below[-1])
