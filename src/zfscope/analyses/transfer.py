"""How well what a network learned serves another data set: frozen features and a new softmax, against from scratch.

Source: Zeiler & Fergus (2014), Sec. 5.2, Tables 4 to 6 and Fig. 9.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision

from zfscope.analyses.question import Metric, Question, Result, over_folds, percent
from zfscope.console import console, counting
from zfscope.data.datamodule import Examples, ImageData
from zfscope.data.imageset import ImageSet
from zfscope.data.loader import Loader
from zfscope.data.statistics import statistics_of
from zfscope.data.transforms import TrainTransform
from zfscope.evaluation import predict
from zfscope.figures import transfer_figure
from zfscope.invariance import low_and_high
from zfscope.networks.build import build_network
from zfscope.networks.public import is_zoo_name, zoo_config
from zfscope.protocols.features import feature_tables, standardised
from zfscope.protocols.linear_classifiers import choose_c, fit_softmax, mean_class_accuracy
from zfscope.protocols.transfer import (
    LEAST_STEPS,
    Fold,
    Target,
    draw_fold,
    labels_of,
    seed_of,
    train_from_scratch,
    used_by,
)
from zfscope.report.paper import TABLE_4, TABLE_5, TABLE_6
from zfscope.schema import check
from zfscope.training.classifier import shared_targets
from zfscope.training.spec import OptimConfig

SIZES = {"caltech101": (15, 30)}  # training images per class: Table 4
MEMORY = 2e9  # bytes, for wide features
MORE_SIZES = (6, 15, 30, 45, 60)  # Fig. 9 and Table 5

# Class probabilities ``(n, K)`` of a fold's test images, by a way of learning.
Way = Callable[[Fold, np.ndarray], Tensor]


def analyse(question: Question) -> Result:
    """Mean per-class accuracy by training images per class.

    ``pretrained/<n>/accuracy`` and ``scratch/<n>/accuracy`` are means over folds in percent, their spread the standard
    deviation, ``values`` the folds; ``gain/<n>/accuracy`` is the difference within each fold. Where images have several
    labels (PASCAL VOC) there is one fold, all training images, and ``<way>/average_precision/<class>``.

    ``arrays.npz`` holds ``images_per_class (S,)``, ``pretrained (S, folds)`` and ``scratch (S, folds)``, 0-100.
    """
    options, data_name = question.options, question.data.config.name
    layer = options.layer or low_and_high(question.network)[1]
    question.network.check_layer(layer)
    target = Target.of(question.checked_splits())
    if target.images.labels.ndim == 2:
        return Result(_average_precisions(question, target, layer))

    sizes = tuple(sorted(set(options.images_per_class or SIZES.get(data_name, MORE_SIZES))))
    folds = {
        size: [draw_fold(target, size, options.test_images, fold=n, seed=options.seed) for n in range(options.folds)]
        for size in sizes
    }
    every = [fold for size in sizes for fold in folds[size]]
    accuracy = {}
    for way, learn in ways_of(question, target, layer, every).items():
        most = options.scratch_folds if way == "scratch" else None
        drawn = [fold for size in sizes for fold in folds[size][:most]]
        scores = []
        with counting(f"Learning, {way}", len(drawn)) as count:
            for fold in drawn:
                predicted = learn(fold, labels_of(target, fold, options.seed, options.shuffle_labels)).argmax(1)
                truth = torch.from_numpy(target.images.labels[fold.test])
                scores.append(mean_class_accuracy(predicted, truth, len(target.images.classes)))
                count()
        accuracy[way] = np.reshape(scores, (len(sizes), -1))

    chance = 100 / len(target.images.classes)
    title = f"{question.title} to {question.data.config.title}, {len(target.images.classes)} classes"
    figure = transfer_figure(sizes, accuracy, chance=chance, title=title)
    paper = {"caltech101": TABLE_4, "caltech256": TABLE_5}.get(data_name, {})
    metrics = {
        f"{way}/{size}/accuracy": over_folds(values, paper=paper.get(way, {}).get(size))
        for way, rows in accuracy.items()
        for size, values in zip(sizes, rows, strict=True)
    }
    for size, before, after in zip(sizes, accuracy.get("scratch", ()), accuracy["pretrained"], strict=False):
        metrics[f"gain/{size}/accuracy"] = over_folds(after[: len(before)] - before)
    metrics["chance"] = percent(chance)
    return Result(metrics, {"images_per_class": np.array(sizes), **accuracy}, {"transfer": figure})


def ways_of(question: Question, target: Target, layer: str, folds: Sequence[Fold]) -> dict[str, Way]:
    """The ways of learning that are compared; what training from scratch refuses comes before any feature is made."""
    scratch = {"scratch": from_scratch(question, target)} if question.options.scratch else {}
    return {"pretrained": frozen(question, target, layer, folds)} | scratch


def frozen(question: Question, target: Target, layer: str, folds: Sequence[Fold]) -> Way:
    """A new softmax on the frozen features of one layer; its C is chosen within a fold's training images."""
    used = used_by(folds)
    images, batch_size = target.images.subset(used), question.options.batch_size
    table = feature_tables(question.network, question.data, images, [layer], batch_size, question.device)[layer]
    read = standardised(table, len(folds[-1].train), MEMORY)

    def learn(fold: Fold, labels: np.ndarray) -> Tensor:
        train, test = read(*(np.searchsorted(used, part) for part in (fold.train, fold.test)))
        targets = shared_targets(torch.from_numpy(labels))
        classifier = choose_c(train, targets, len(target.images.classes), fit_softmax)
        return classifier(test).softmax(1)

    return learn


def from_scratch(question: Question, target: Target) -> Way:
    """The checkpoint's architecture with fresh weights, trained by its run's optimiser on views of ``data.augment``.

    A network or views that cannot be made are refused here, before any is trained.
    """
    options, network, data, run = question.options, question.network, question.data, question.run
    source, augment = question.checkpoint, question.data.config.augment
    model = zoo_config(source) if is_zoo_name(source) else run["model"]
    optim = check(OptimConfig, run.get("optim", {}), "optim")
    with torch.device("meta"):
        build_network(model, len(target.images.classes), network.image_size)
    views = partial(TrainTransform, network.preprocessing, augment, options.seed)
    views(np.zeros((3, 3)))
    if question.other_views:
        told = ", ".join(f"{name}={value}" for name, value in question.other_views.items())
        console.print(f"from scratch with data.augment: {told}, unlike the checkpoint's own training", markup=False)

    def learn(fold: Fold, labels: np.ndarray) -> Tensor:
        images = target.images.subset(fold.train)
        colours = colours_of(images, data) if augment.pca_colour else None
        images.labels = labels
        batch_size = min(run.get("data", {}).get("batch_size", 128), len(images))
        seed = seed_of(fold, options.seed)
        torch.manual_seed(seed)
        fresh = build_network(model, len(images.classes), network.image_size)
        fresh.preprocessing = network.preprocessing
        examples = Examples(images, views(colours), network.preprocessing.resize)
        train_from_scratch(
            fresh,
            lambda batches: Loader(examples, batch_sampler=batches, num_workers=data.num_workers),
            len(images),
            optim,
            batch_size=batch_size,
            steps=options.scratch_steps or max(LEAST_STEPS, optim.epochs * (len(images) // batch_size)),
            seed=seed,
            filter_rms=model.get("filter_rms"),
            device=question.device,
        )
        batches = data.centre_crops(target.images.subset(fold.test), options.batch_size)
        return predict(fresh, batches, crops=False, device=question.device).probabilities["centre"]

    return learn


def colours_of(images: ImageSet, data: ImageData) -> np.ndarray:
    """How the colours of a fold's training images vary, ``(3, 3)``, for ``data.augment.pca_colour``."""
    measured = statistics_of(images, data.preprocessing.resize, data.config.cache, num_workers=data.num_workers)
    return measured.colour_directions()


def _average_precisions(question: Question, target: Target, layer: str) -> dict[str, Metric]:
    """PASCAL VOC: all training images, one fold; average precision of each class's softmax (Table 6)."""
    fold = Fold(np.flatnonzero(~target.held_out), np.flatnonzero(target.held_out))
    options = question.options
    truth, classes = torch.from_numpy(target.images.labels[fold.test]).long(), target.images.classes
    metrics = {}
    for way, learn in ways_of(question, target, layer, [fold]).items():
        predicted = learn(fold, labels_of(target, fold, options.seed, options.shuffle_labels))
        scores = 100 * multilabel_average_precision(predicted, truth, len(classes), average="none")
        paper = TABLE_6 if way == "pretrained" and question.data.config.name == "voc2012" else {}
        for name, score in zip(classes, scores.tolist(), strict=True):
            metrics[f"{way}/average_precision/{name}"] = percent(score, paper=paper.get(name))
        metrics[f"{way}/mean_average_precision"] = percent(scores.nanmean(), paper=paper.get("mean"))
    return metrics
