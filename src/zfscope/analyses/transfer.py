"""How well what a network learned serves another data set: frozen features and a new softmax, against from scratch.

Source: Zeiler & Fergus (2014), Sec. 5.2, Tables 4 to 6 and Fig. 9.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision

from zfscope.analyses.fresh import architecture, count_parameters_of, fresh_network, named
from zfscope.analyses.question import Question, Result, over_folds, percent
from zfscope.console import console, counting
from zfscope.data.datamodule import Examples, ImageData
from zfscope.data.imageset import ImageSet
from zfscope.data.loader import Loader
from zfscope.data.statistics import statistics_of
from zfscope.data.transforms import TrainTransform
from zfscope.evaluation import predict
from zfscope.figures import transfer_figure
from zfscope.invariance import low_and_high
from zfscope.networks.preprocessing import CanvasKind
from zfscope.networks.public import is_zoo_name
from zfscope.networks.ranks import end_passes
from zfscope.protocols.features import FeatureTable, feature_tables, standardised
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
from zfscope.training.classifier import shared_targets

SIZES = {"caltech101": (15, 30)}  # training images per class: Table 4
MEMORY = 2e9  # bytes, for wide features
MORE_SIZES = (6, 15, 30, 45, 60)  # Fig. 9 and Table 5


@dataclass(frozen=True)
class Way:
    """A way of learning."""

    learn: Callable[[Fold, np.ndarray], Tensor]  # class probabilities ``(n, K)`` of a fold's test images
    about: Mapping[str, Any]  # under which conditions, for results.json
    folds: int | None = None  # how many folds learn so; None for all


def analyse(question: Question) -> Result:
    """Mean per-class accuracy by training images per class.

    ``pretrained/<n>/accuracy``, ``scratch/<n>/accuracy`` and ``random_weights/<n>/accuracy`` are means over folds in
    percent, their spread the standard deviation, ``values`` the folds; ``gain/<n>/accuracy`` is pretrained minus
    scratch within each fold. Where images have several labels (PASCAL VOC) there is one fold, all training images, and
    ``<way>/average_precision/<class>``.

    The conditions hold ``ways``: what learned and how, by way; ``target_images``, a digest of all that folds are drawn
    from; and ``same_folds``: by images per class a digest of each fold, equal where runs learned from the same images.

    ``arrays.npz`` holds ``images_per_class (S,)`` and for each way ``(S, folds)``, 0-100.
    """
    options, data_name = question.options, question.data.config.name
    layer = options.layer or low_and_high(question.network)[1]
    question.network.check_layer(layer)
    target = Target.of(question.checked_splits())
    if target.images.labels.ndim == 2:
        return _average_precisions(question, target, layer)

    sizes = tuple(sorted(set(options.images_per_class or SIZES.get(data_name, MORE_SIZES))))
    folds = {
        size: [draw_fold(target, size, options.test_images, fold=n, seed=options.seed) for n in range(options.folds)]
        for size in sizes
    }
    every = [fold for size in sizes for fold in folds[size]]
    ways, accuracy = ways_of(question, target, layer, every), {}
    for name, way in ways.items():
        drawn = [fold for size in sizes for fold in folds[size][: way.folds]]
        scores = []
        with counting(f"Learning, {name.replace('_', ' ')}", len(drawn)) as count:
            for fold in drawn:
                predicted = way.learn(fold, labels_of(target, fold, options.seed, options.shuffle_labels)).argmax(1)
                truth = torch.from_numpy(target.images.labels[fold.test])
                scores.append(mean_class_accuracy(predicted, truth, len(target.images.classes)))
                count()
        accuracy[name] = np.reshape(scores, (len(sizes), -1))

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
    conditions = {
        "ways": {name: dict(way.about) for name, way in ways.items()},
        "target_images": target.images.origin[:16],
        "same_folds": {str(size): [target.digest(fold) for fold in folds[size]] for size in sizes},
    }
    if "scratch" in ways:
        steps = {str(size): steps_of(question, len(folds[size][0].train)) for size in sizes}
        conditions["ways"]["scratch"]["steps"] = steps
    arrays = {"images_per_class": np.array(sizes), **accuracy}
    return Result(metrics, arrays, {"transfer": figure}, conditions=conditions)


def ways_of(question: Question, target: Target, layer: str, folds: Sequence[Fold]) -> dict[str, Way]:
    """The ways of learning that are compared; what training from scratch refuses comes before any feature is made."""
    scratch = {"scratch": from_scratch(question, target)} if question.recipe is not None else {}
    networks, options = {"pretrained": question.network}, question.options
    if options.random_weights:
        random = fresh_network(question.checkpoint, question.run, question.network, options.seed)
        networks["random_weights"] = random
    images, data, device = target.images.subset(used_by(folds)), question.data, question.device
    tables = {
        name: feature_tables(network, data, images, [layer], options.batch_size, device)[layer]
        for name, network in networks.items()
    }
    end_passes()
    ways = {name: frozen(question, target, layer, table, folds) for name, table in tables.items()}
    return ways | scratch


def frozen(question: Question, target: Target, layer: str, table: FeatureTable, folds: Sequence[Fold]) -> Way:
    """A new softmax on the frozen features of one layer; its C is chosen within a fold's training images."""
    used, image_size, classes = used_by(folds), question.network.image_size, len(target.images.classes)
    read = standardised(table, len(folds[-1].train), MEMORY)

    def learn(fold: Fold, labels: np.ndarray) -> Tensor:
        train, test = read(*(np.searchsorted(used, part) for part in (fold.train, fold.test)))
        classifier = choose_c(train, shared_targets(torch.from_numpy(labels)), classes, fit_softmax)
        return classifier(test).softmax(1)

    source = question.checkpoint
    about = {
        "network": source if is_zoo_name(source) else question.run["model"].get("name"),
        "layer": layer,
        "parameters": count_parameters_of(architecture(source, question.run), classes, image_size),
        "image_size": image_size,
        "optimiser": "logistic regression",
    }
    return Way(learn, about)


def from_scratch(question: Question, target: Target) -> Way:
    """The network of the recipe with fresh weights, trained by its optimiser on views of ``data.augment``.

    A network or views that cannot be made are refused here, before any is trained. Its images come in its own size.
    """
    options, recipe, augment = question.options, question.recipe, question.data.config.augment
    preprocessing, classes = recipe.preprocessing, len(target.images.classes)
    parameters = count_parameters_of(recipe.model, classes, preprocessing.crop)
    views = partial(TrainTransform, preprocessing, augment, options.seed)
    views(np.zeros((3, 3)))
    if question.other_views:
        told = ", ".join(f"{name}={value}" for name, value in question.other_views.items())
        console.print(f"from scratch with data.augment: {told}, unlike the network's own training", markup=False)
    data = question.data_for(preprocessing)
    own = target if data.splits is question.data.splits else Target.of(question.checked_splits(data))

    def learn(fold: Fold, labels: np.ndarray) -> Tensor:
        images = own.images.subset(fold.train)
        colours = colours_of(images, data) if augment.pca_colour else None
        images.labels = labels
        seed = seed_of(fold, options.seed)
        torch.manual_seed(seed)
        fresh = recipe.build(classes)
        examples = Examples(images, views(colours), preprocessing.canvas_kind)
        train_from_scratch(
            fresh,
            lambda batches: Loader(examples, batch_sampler=batches, num_workers=data.num_workers),
            len(images),
            recipe.optim,
            batch_size=min(recipe.batch_size, len(images)),
            steps=steps_of(question, len(images)),
            seed=seed,
            filter_rms=recipe.model.get("filter_rms"),
            device=question.device,
        )
        batches = data.centre_crops(own.images.subset(fold.test), options.batch_size)
        return predict(fresh, batches, crops=False, device=question.device).probabilities["centre"]

    about = {
        "network": recipe.name,
        "recipe": named(recipe.source),
        "parameters": parameters,
        "image_size": preprocessing.crop,
        "optimiser": recipe.optim.name,
        "lr": recipe.optim.lr,
        "weight_decay": recipe.optim.weight_decay,
        "batch_size": recipe.batch_size,
    }
    return Way(learn, about, options.scratch_folds)


def steps_of(question: Question, count: int) -> int:
    """Updates of the weights from scratch on ``count`` images."""
    recipe = question.recipe
    epoch = count // min(recipe.batch_size, count)
    return question.options.scratch_steps or max(LEAST_STEPS, recipe.optim.epochs * epoch)


def colours_of(images: ImageSet, data: ImageData) -> np.ndarray:
    """How the colours of a fold's training images vary, ``(3, 3)``, for ``data.augment.pca_colour``."""
    kind = CanvasKind(data.preprocessing.resize, resizer=data.preprocessing.resizer)
    return statistics_of(images, kind, data.config.cache, num_workers=data.num_workers).colour_directions()


def _average_precisions(question: Question, target: Target, layer: str) -> Result:
    """PASCAL VOC: all training images, one fold; average precision of each class's softmax (Table 6)."""
    fold = Fold(np.flatnonzero(~target.held_out), np.flatnonzero(target.held_out))
    options = question.options
    truth, classes = torch.from_numpy(target.images.labels[fold.test]).long(), target.images.classes
    metrics, ways = {}, ways_of(question, target, layer, [fold])
    for name, way in ways.items():
        predicted = way.learn(fold, labels_of(target, fold, options.seed, options.shuffle_labels))
        scores = 100 * multilabel_average_precision(predicted, truth, len(classes), average="none")
        paper = TABLE_6 if name == "pretrained" and question.data.config.name == "voc2012" else {}
        for label, score in zip(classes, scores.tolist(), strict=True):
            metrics[f"{name}/average_precision/{label}"] = percent(score, paper=paper.get(label))
        metrics[f"{name}/mean_average_precision"] = percent(scores.nanmean(), paper=paper.get("mean"))
    return Result(metrics, conditions={"ways": {name: dict(way.about) for name, way in ways.items()}})
