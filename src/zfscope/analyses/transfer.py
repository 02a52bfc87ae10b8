"""How well what a network learned serves another data set: frozen features and a new softmax, against from scratch.

Source: Zeiler & Fergus (2014), Sec. 5.2, Tables 4 to 6 and Fig. 9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multilabel_average_precision

from zfscope.analyses.spec import AnalyzeConfig
from zfscope.data.datamodule import Examples, ImageData
from zfscope.data.imageset import ImageSet
from zfscope.data.transforms import TrainTransform
from zfscope.evaluation import predict
from zfscope.figures import transfer_figure
from zfscope.invariance import low_and_high
from zfscope.networks.build import build_network
from zfscope.networks.checkpoints import run_config
from zfscope.networks.network import Network
from zfscope.networks.public import is_zoo_name, zoo_config
from zfscope.protocols.features import FeatureTable, extract
from zfscope.protocols.linear_classifiers import (
    choose_c,
    fit_softmax,
    gram_features,
    mean_class_accuracy,
    standardise,
    standardise_gram,
)
from zfscope.protocols.transfer import LEAST_STEPS, Fold, Target, draw_fold, shuffled, train_from_scratch, used_by
from zfscope.report.paper import TABLE_4, TABLE_5, TABLE_6
from zfscope.runs import write_arrays
from zfscope.schema import check
from zfscope.training.classifier import shared_targets
from zfscope.training.spec import OptimConfig

SIZES = {"caltech101": (15, 30)}  # training images per class: Table 4
MEMORY = 2e9  # bytes, for wide features
MORE_SIZES = (6, 15, 30, 45, 60)  # Fig. 9 and Table 5

# Class probabilities ``(n, K)`` of a fold's test images, by a way of learning.
Way = Callable[[Fold, np.ndarray], Tensor]


def transfer(
    network: Network, data: ImageData, config: AnalyzeConfig, device: torch.device, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write ``figures/transfer.png`` and ``arrays.npz``; give mean per-class accuracy by training images per class.

    ``pretrained/<n>/accuracy`` and ``scratch/<n>/accuracy`` are means over folds in percent, their spread the standard
    deviation, ``values`` the folds; ``gain/<n>/accuracy`` is the difference within each fold. Where images have several
    labels (PASCAL VOC) there is one fold, all training images, and ``<way>/average_precision/<class>``.

    ``arrays.npz`` holds ``images_per_class (S,)``, ``pretrained (S, folds)`` and ``scratch (S, folds)``, 0-100.

    Raises:
        ValueError: For a layer that is not there, or fewer images in a class than asked for.
    """
    asked = config.analysis
    layer = asked.layer or low_and_high(network)[1]
    network.check_layer(layer)
    target = Target.of(data.splits)
    if target.images.labels.ndim == 2:
        return _average_precisions(network, data, target, layer, config, device)

    sizes = tuple(sorted(set(asked.images_per_class or SIZES.get(data.config.name, MORE_SIZES))))
    folds = {
        size: [draw_fold(target, size, asked.test_images, fold=n, seed=asked.seed) for n in range(asked.folds)]
        for size in sizes
    }
    every = [fold for size in sizes for fold in folds[size]]
    ways = {"pretrained": frozen(network, data, target, layer, every, config, device)}
    if asked.scratch:
        ways["scratch"] = from_scratch(network, data, target, config, device)
    found = {}
    for way, learn in ways.items():
        most = asked.scratch_folds if way == "scratch" else None
        chosen = [(size, fold) for size in sizes for fold in folds[size][:most]]
        scores = [
            mean_class_accuracy(
                learn(fold, labels_of(target, fold, asked)).argmax(1),
                torch.from_numpy(target.images.labels[fold.test]),
                len(target.images.classes),
            )
            for _, fold in track(chosen, f"Learning, {way}", transient=True)
        ]
        found[way] = np.reshape(scores, (len(sizes), -1))

    chance = 100 / len(target.images.classes)
    title = f"{short_name(config.checkpoint)} to {data.config.name}, {len(target.images.classes)} classes"
    (folder / "figures").mkdir(exist_ok=True)
    transfer_figure(sizes, found, chance=chance, title=title).save(folder / "figures" / "transfer.png")
    write_arrays(folder / "arrays.npz", {"images_per_class": np.array(sizes), **found})
    paper = {"caltech101": TABLE_4, "caltech256": TABLE_5}.get(data.config.name, {})
    metrics = {
        f"{way}/{size}/accuracy": over_folds(values, paper=paper.get(way, {}).get(size))
        for way, rows in found.items()
        for size, values in zip(sizes, rows, strict=True)
    }
    for size, before, after in zip(sizes, found.get("scratch", ()), found["pretrained"], strict=False):
        metrics[f"gain/{size}/accuracy"] = over_folds(after[: len(before)] - before)
    return metrics | {"chance": {"value": chance, "unit": "%"}}


def frozen(
    network: Network,
    data: ImageData,
    target: Target,
    layer: str,
    folds: Sequence[Fold],
    config: AnalyzeConfig,
    device: torch.device,
) -> Way:
    """A new softmax on the frozen features of one layer; its C is chosen within a fold's training images."""
    used = used_by(folds)
    table = tables_of(network, data, target.images.subset(used), [layer], config.analysis.batch_size, device)[layer]

    read = reader(table, len(folds[-1].train), MEMORY)

    def learn(fold: Fold, labels: np.ndarray) -> Tensor:
        train, test = read(*(np.searchsorted(used, part) for part in (fold.train, fold.test)))
        targets = shared_targets(torch.from_numpy(labels))
        classifier = choose_c(train, targets, len(target.images.classes), fit_softmax)
        return classifier(test).softmax(1)

    return learn


def from_scratch(network: Network, data: ImageData, target: Target, config: AnalyzeConfig, device: torch.device) -> Way:
    """The checkpoint's architecture with fresh weights, trained by its run's optimiser on its run's views."""
    asked, source = config.analysis, config.checkpoint
    run = run_config(source)
    model = zoo_config(source) if is_zoo_name(source) else run["model"]
    optim = check(OptimConfig, run.get("optim", {}), "optim")
    transform = TrainTransform(network.preprocessing, data.config.augment, asked.seed)

    def learn(fold: Fold, labels: np.ndarray) -> Tensor:
        images = target.images.subset(fold.train)
        images.labels = labels
        batch_size = min(run.get("data", {}).get("batch_size", 128), len(images))
        seed = seed_of(fold, asked)
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
            steps=asked.scratch_steps or max(LEAST_STEPS, optim.epochs * (len(images) // batch_size)),
            seed=seed,
            filter_rms=model.get("filter_rms"),
            device=device,
        )
        batches = data.centre_crops(target.images.subset(fold.test), asked.batch_size)
        return predict(fresh, batches, crops=False, device=device, total=len(batches)).probabilities["centre"]

    return learn


def tables_of(
    network: Network, data: ImageData, images: ImageSet, layers: Sequence[str], batch_size: int, device: torch.device
) -> dict[str, FeatureTable]:
    """The features of these images at some layers, centre crops, from the cache where they are known."""
    batches = data.centre_crops(images, batch_size)
    return extract(network, batches, layers, images.fingerprint, data.config.cache, device)


def reader(table: FeatureTable, count: int, memory: float) -> Callable[[np.ndarray, np.ndarray], tuple[Tensor, Tensor]]:
    """Standardised features of a fold's training and test images, given as rows of the table.

    Features wider than the ``count`` training images are replaced by ones that have the same inner products and are as
    many as those images: to a linear classifier they are the same, and the wide ones stay in their file.
    """
    if table.width <= count:
        return lambda train, test: standardise(table.rows(train), table.rows(test))
    products = table.gram(memory)

    def read(train: np.ndarray, test: np.ndarray) -> tuple[Tensor, Tensor]:
        columns = products[:, train]
        return gram_features(*standardise_gram(columns[train], columns[test]))

    return read


def labels_of(target: Target, fold: Fold, asked: Any) -> np.ndarray:
    """The labels that a fold trains on: its own, or as a control the same dealt out anew."""
    labels = target.images.labels[fold.train]
    return shuffled(labels, seed_of(fold, asked)) if asked.shuffle_labels else labels


def seed_of(fold: Fold, asked: Any) -> int:
    """A seed of this fold's own."""
    return int(np.random.SeedSequence((asked.seed, fold.number)).generate_state(1)[0])


def short_name(checkpoint: str) -> str:
    """The last two parts of a path: enough to know a run of a sweep by."""
    return "/".join(Path(checkpoint).parts[-2:])


def over_folds(values: np.ndarray, **more: Any) -> dict[str, Any]:
    """A metric in percent: mean and standard deviation over folds, and the folds."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"value": float(np.mean(values)), "unit": "%", "spread": spread, "values": values.tolist(), **more}


def _average_precisions(
    network: Network, data: ImageData, target: Target, layer: str, config: AnalyzeConfig, device: torch.device
) -> dict[str, dict[str, Any]]:
    """PASCAL VOC: all training images, one fold; average precision of each class's softmax (Table 6)."""
    fold = Fold(np.flatnonzero(~target.held_out), np.flatnonzero(target.held_out))
    ways = {"pretrained": frozen(network, data, target, layer, [fold], config, device)}
    if config.analysis.scratch:
        ways["scratch"] = from_scratch(network, data, target, config, device)
    truth, classes = torch.from_numpy(target.images.labels[fold.test]).long(), target.images.classes
    metrics = {}
    for way, learn in ways.items():
        predicted = learn(fold, labels_of(target, fold, config.analysis))
        scores = 100 * multilabel_average_precision(predicted, truth, len(classes), average="none")
        paper = TABLE_6 if way == "pretrained" and data.config.name == "voc2012" else {}
        for name, score in zip(classes, scores.tolist(), strict=True):
            metrics[f"{way}/average_precision/{name}"] = {"value": score, "unit": "%", "paper": paper.get(name)}
        metrics[f"{way}/mean_average_precision"] = {
            "value": float(scores.nanmean()),
            "unit": "%",
            "paper": paper.get("mean"),
        }
    return metrics
