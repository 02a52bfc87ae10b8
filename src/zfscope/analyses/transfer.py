"""How well what a network learned serves another data set: frozen features and a new softmax, against from scratch.

Source: Zeiler & Fergus (2014), Sec. 5.2, Tables 4 to 6 and Fig. 9.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multilabel_average_precision

from zfscope.analyses.question import Metric, Question, Result, over_folds, percent
from zfscope.console import progress
from zfscope.data.datamodule import Examples
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
    target = Target.of(question.data.splits)
    if target.images.labels.ndim == 2:
        return Result(_average_precisions(question, target, layer))

    sizes = tuple(sorted(set(options.images_per_class or SIZES.get(data_name, MORE_SIZES))))
    folds = {
        size: [draw_fold(target, size, options.test_images, fold=n, seed=options.seed) for n in range(options.folds)]
        for size in sizes
    }
    every = [fold for size in sizes for fold in folds[size]]
    ways = {"pretrained": frozen(question, target, layer, every)}
    if options.scratch:
        ways["scratch"] = from_scratch(question, target)
    accuracy = {}
    for way, learn in ways.items():
        most = options.scratch_folds if way == "scratch" else None
        drawn = [(size, fold) for size in sizes for fold in folds[size][:most]]
        scores = [
            mean_class_accuracy(
                learn(fold, labels_of(target, fold, options.seed, options.shuffle_labels)).argmax(1),
                torch.from_numpy(target.images.labels[fold.test]),
                len(target.images.classes),
            )
            for _, fold in progress(drawn, f"Learning, {way}")
        ]
        accuracy[way] = np.reshape(scores, (len(sizes), -1))

    chance = 100 / len(target.images.classes)
    title = f"{question.title} to {data_name}, {len(target.images.classes)} classes"
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
    """The checkpoint's architecture with fresh weights, trained by its run's optimiser on its run's views."""
    options, network, data, run = question.options, question.network, question.data, question.run
    source = question.checkpoint
    model = zoo_config(source) if is_zoo_name(source) else run["model"]
    optim = check(OptimConfig, run.get("optim", {}), "optim")
    transform = TrainTransform(network.preprocessing, data.config.augment, options.seed)

    def learn(fold: Fold, labels: np.ndarray) -> Tensor:
        images = target.images.subset(fold.train)
        images.labels = labels
        batch_size = min(run.get("data", {}).get("batch_size", 128), len(images))
        seed = seed_of(fold, options.seed)
        torch.manual_seed(seed)
        fresh = build_network(model, len(images.classes), network.image_size)
        fresh.preprocessing = network.preprocessing
        examples = Examples(images, transform, network.preprocessing.resize)
        train_from_scratch(
            fresh,
            lambda batches: DataLoader(examples, batch_sampler=batches, num_workers=data.num_workers),
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


def _average_precisions(question: Question, target: Target, layer: str) -> dict[str, Metric]:
    """PASCAL VOC: all training images, one fold; average precision of each class's softmax (Table 6)."""
    fold = Fold(np.flatnonzero(~target.held_out), np.flatnonzero(target.held_out))
    ways = {"pretrained": frozen(question, target, layer, [fold])}
    options = question.options
    if options.scratch:
        ways["scratch"] = from_scratch(question, target)
    truth, classes = torch.from_numpy(target.images.labels[fold.test]).long(), target.images.classes
    metrics = {}
    for way, learn in ways.items():
        predicted = learn(fold, labels_of(target, fold, options.seed, options.shuffle_labels))
        scores = 100 * multilabel_average_precision(predicted, truth, len(classes), average="none")
        paper = TABLE_6 if way == "pretrained" and question.data.config.name == "voc2012" else {}
        for name, score in zip(classes, scores.tolist(), strict=True):
            metrics[f"{way}/average_precision/{name}"] = percent(score, paper=paper.get(name))
        metrics[f"{way}/mean_average_precision"] = percent(scores.nanmean(), paper=paper.get("mean"))
    return metrics
