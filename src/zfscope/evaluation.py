"""The error of networks, alone and averaged: one crop or ten, over any number of images, in one pass.

Source: Zeiler & Fergus (2014), Sec. 3 (ten crops) and Table 2 (ensembles); Krizhevsky et al. (2012): softmax averaged
over crops and networks.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_f1_score, multilabel_average_precision

from zfscope.console import progress
from zfscope.data.imageset import ImageSet
from zfscope.data.loader import ImageItems
from zfscope.networks.finite import check_finite, check_result
from zfscope.networks.imagenet import same_classes
from zfscope.networks.network import Network
from zfscope.networks.preprocessing import CanvasKind, centre_crop, ten_crops
from zfscope.networks.ranks import end_passes, shared
from zfscope.schema import listed

VALUES = 2**24  # averages of subsets are held at a time: 128 MB


@dataclass(frozen=True)
class Predictions:
    """Class probabilities of images, in the order of their positions in the data set; without those left out of it."""

    probabilities: dict[str, Tensor]  # softmax, (N, classes), by kind of crops: "centre" and perhaps "ten_crops"
    labels: Tensor  # (N,) int64, or (N, classes) of 0 and 1 where an image may have several labels


class Canvases(ImageItems):
    """Images on the canvases of several networks, each read once: ``({kind: (side, side, 3) uint8}, label, index)``.

    A ``kind`` says how an image comes onto its canvas, as ``Preprocessing.canvas_kind`` has it.

    A JPEG is decoded for the largest side. A network with a smaller one can so see slightly other pixels than in its
    own evaluation, where the decoder halves a file of twice its side or more; of smaller files it sees the same.
    """

    def __init__(self, images: ImageSet, kinds: Iterable[CanvasKind]) -> None:
        self.images, self.kinds = images, sorted(set(kinds))
        self.labels = torch.from_numpy(images.labels)

    def __getitem__(self, index: int) -> tuple[dict[CanvasKind, Tensor], Tensor, int]:
        pixels = self.images.pixels(index, short_side=self.kinds[-1].side)
        canvases = {kind: torch.from_numpy(np.array(kind.draw(pixels))) for kind in self.kinds}
        return canvases, self.labels[index], index


def predict(
    network: Network,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    crops: bool = True,
    device: torch.device | str = "cpu",
) -> Predictions:
    """Class probabilities with the centre crop and, in the same pass, averaged over ten.

    The network is put into eval mode on ``device``. Batches are ``(canvases (N, 3, resize, resize), labels,
    positions)`` of normalised canvases; ``crops`` adds ten crops. Weights that hold NaN or infinity are refused.
    """
    return _predict([network], batches, lambda canvases: [(canvases.to(device), [0])], crops, device)[0]


def predict_members(
    networks: Sequence[Network],
    batches: Iterable[tuple[Mapping[CanvasKind, Tensor], Tensor, Tensor]],
    *,
    crops: bool = True,
    device: torch.device | str = "cpu",
) -> list[Predictions]:
    """What ``predict`` gives for each of several networks, in one pass over images that are read once.

    As there; ``batches`` are those of ``Canvases`` of the networks' kinds. Networks of the same preprocessing
    share their crops. ``device`` holds all networks.
    """
    groups: list[list[int]] = []
    for number, network in enumerate(networks):
        group = next((group for group in groups if _same_inputs(networks[group[0]], network)), None)
        if group is None:
            groups.append([number])
        else:
            group.append(number)

    def prepared(canvases: Mapping[CanvasKind, Tensor]) -> Iterable[tuple[Tensor, list[int]]]:
        for group in groups:
            preprocessing = networks[group[0]].checked_preprocessing()
            levels = canvases[preprocessing.canvas_kind].to(device).permute(0, 3, 1, 2)
            yield preprocessing.normalise(levels if crops else centre_crop(levels, preprocessing.crop)), group

    return _predict(networks, batches, prepared, crops, device)


def average(members: Sequence[Predictions]) -> Predictions:
    """The ensemble: softmax averaged over its members, which predicted the same images.

    Source: Zeiler & Fergus (2014), Table 2, which does not say how; so did Krizhevsky et al. (2012).
    """
    kinds = members[0].probabilities
    means = {kind: _mean([member.probabilities[kind] for member in members]) for kind in kinds}
    return Predictions(means, members[0].labels)


def subsets(count: int, size: int, most: int = 1000, seed: int = 0) -> list[tuple[int, ...]]:
    """All choices of ``size`` out of ``count`` members; a seeded sample of ``most`` where there are more of them."""
    if math.comb(count, size) <= most:
        return list(itertools.combinations(range(count), size))
    random = np.random.default_rng((seed, size))
    samples: set[tuple[int, ...]] = set()
    while len(samples) < most:
        samples.add(tuple(sorted(random.choice(count, size, replace=False).tolist())))
    return sorted(samples)


def subset_errors(
    members: Sequence[Tensor], labels: Tensor, chosen: Sequence[tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The error of each subset of an ensemble's members, from what the members predicted.

    ``members`` are the probabilities of each, ``(N, classes)``, ``chosen`` S subsets, each the positions of its
    members. Percent, ``(S,)``, by name as in ``error_table`` (without F1).
    """
    if labels.ndim == 2:
        tables = [error_table(_mean([members[number] for number in subset]), labels) for subset in chosen]
        return {"mean_average_precision": np.array([table["mean_average_precision"] for table in tables])}
    classes = members[0].shape[1]
    weights = torch.zeros(len(chosen), len(members), dtype=torch.float64)
    for row, subset in enumerate(chosen):
        weights[row, list(subset)] = 1
    errors = {"top1_error": 1} | ({"top5_error": 5} if classes >= 6 else {})
    wrong = {name: torch.zeros(len(chosen), dtype=torch.long) for name in errors}
    images = max(1, VALUES // (len(chosen) * classes))
    for first in progress(range(0, len(labels), images), "Errors of subsets"):
        part = torch.stack([member[first : first + images] for member in members]).double()
        sums = (weights @ part.flatten(1)).unflatten(1, part.shape[1:])
        ranks = label_ranks((sums / weights.sum(1)[:, None, None]).float(), labels[first : first + images])
        for name, k in errors.items():
            wrong[name] += (ranks >= k).sum(1)
    return {name: (100.0 * count.double() / len(labels)).numpy() for name, count in wrong.items()}


def gain_interval(before: Tensor, after: Tensor, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of how far one error lies below another on the same images, by bootstrap over images.

    ``before`` and ``after`` say which of the N images each gets wrong, bool. Each of the seeded ``draws`` takes N of
    the N images, with both answers. Returns the 2.5th and 97.5th percentile, in percent of the images.
    """
    difference = (before.long() - after.long()).numpy()
    # An image counts by its difference, one of three: N draws of images are one draw of how often each comes.
    counts = np.array([(difference == value).sum() for value in (-1, 0, 1)])
    drawn = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=draws)
    low, high = np.quantile(100.0 * (drawn[:, 2] - drawn[:, 0]) / counts.sum(), (0.025, 0.975))
    return float(low), float(high)


def check_classes(network: Network, classes: tuple[str, ...]) -> None:
    """Refuse images whose classes are not the network's, or stand in another order."""
    network.check_head()
    if network.num_classes != len(classes):
        raise ValueError(
            f"the network tells {network.num_classes} classes apart, the data set has {len(classes)}; "
            "give the data set that it was trained on"
        )
    if network.classes is None or same_classes(network.classes, classes):
        return
    if set(network.classes) == set(classes):
        first = next(i for i, (own, other) in enumerate(zip(network.classes, classes, strict=True)) if own != other)
        raise ValueError(
            f"the classes come in another order: number {first} is {network.classes[first]!r} for the network, "
            f"{classes[first]!r} in the data set; use the folder names it was trained with"
        )
    missing, new = set(network.classes) - set(classes), set(classes) - set(network.classes)
    raise ValueError(
        f"the data set's classes are not the network's: it lacks {listed(sorted(missing))}, "
        f"it adds {listed(sorted(new))}"
    )


def error_metrics(predictions: Predictions, part: str) -> dict[str, float]:
    """``part/top1_error`` … of the centre crop and ``part/top1_error_ten_crops`` …, in percent."""
    suffixes = {"centre": "", "ten_crops": "_ten_crops"}
    return {
        f"{part}/{name}{suffixes[kind]}": value
        for kind, probabilities in predictions.probabilities.items()
        for name, value in error_table(probabilities, predictions.labels).items()
    }


def error_table(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Errors and scores of probabilities ``(N, classes)``, in percent.

    For labels ``(N,)`` int64 ``top1_error``, ``macro_f1`` and, from six classes up, ``top5_error``; for labels
    ``(N, classes)`` of 0 and 1 ``mean_average_precision``.
    """
    if labels.ndim == 2:
        score = multilabel_average_precision(probabilities, labels.long(), labels.shape[1], average="macro")
        return {"mean_average_precision": 100.0 * float(score)}
    classes = probabilities.shape[1]
    table = {"top1_error": top_error(probabilities, labels, 1)}
    if classes >= 6:
        table["top5_error"] = top_error(probabilities, labels, 5)
    table["macro_f1"] = 100.0 * float(multiclass_f1_score(probabilities, labels, classes, average="macro"))
    return table


def top_error(probabilities: Tensor, labels: Tensor, k: int) -> float:
    """Share of images, in percent, whose label is not among the ``k`` most probable; ties go to the lower class."""
    return 100.0 * float((label_ranks(probabilities, labels) >= k).double().mean())


def label_ranks(probabilities: Tensor, labels: Tensor) -> Tensor:
    """How many classes go before an image's label: 0 where it is the most probable; ties go to the lower class.

    Probabilities are ``(…, N, classes)``, labels ``(N,)`` int64, ranks ``(…, N)`` int64: behind all classes where a
    probability is NaN, so that such a network is never right.
    """
    places = labels[:, None].expand(*probabilities.shape[:-1], 1)
    own = probabilities.gather(-1, places)
    higher = ~(probabilities <= own)  # also where one of them is NaN
    level = (probabilities == own) & (torch.arange(probabilities.shape[-1], device=labels.device) < labels[:, None])
    return (higher | level).sum(-1)


@torch.inference_mode()
def _predict(
    networks: Sequence[Network],
    batches: Iterable[tuple[Any, Tensor, Tensor]],
    prepared: Callable[[Any], Iterable[tuple[Tensor, list[int]]]],
    crops: bool,
    device: torch.device | str,
) -> list[Predictions]:
    """``prepared`` normalises a batch's canvases, and says of each result which networks see it."""
    for network in networks:
        check_finite(network)
    networks, sides = [network.to(device).eval() for network in networks], [_side(network) for network in networks]
    kinds = ("centre", "ten_crops") if crops else ("centre",)
    parts: list[dict[str, list[Tensor]]] = [{kind: [] for kind in kinds} for _ in networks]
    labels: list[Tensor] = []
    positions: list[Tensor] = []

    def outcome(given: tuple[Any, Tensor, Tensor]) -> tuple[list[list[Tensor]], Tensor, Tensor]:
        batch, label, position = given
        found: list[list[Tensor]] = [[] for _ in networks]
        for canvases, numbers in prepared(batch):
            side = sides[numbers[0]]
            views = ten_crops(canvases, side) if crops else [centre_crop(canvases, side)]
            # Channels last: half a CPU's time.
            views = [view.contiguous(memory_format=torch.channels_last) for view in views]
            for number in numbers:
                shares = torch.stack([F.softmax(networks[number](view).float(), dim=1) for view in views])
                check_result(shares, networks[number], "the probabilities of an image")
                centre = shares[4 if crops else 0].cpu()  # the fifth of ten is the centre
                found[number] = [centre, shares.mean(0).cpu()] if crops else [centre]
        return found, label, position

    for found, label, position in shared(progress(batches, "Evaluating"), outcome, batches):
        for own, values in zip(parts, found, strict=True):
            for kind, value in zip(kinds, values, strict=True):
                own[kind].append(value)
        labels.append(label)
        positions.append(position)
    end_passes()
    order, classes = torch.cat(positions).argsort(), torch.cat(labels)
    return [Predictions({kind: torch.cat(own[kind])[order] for kind in kinds}, classes[order]) for own in parts]


def _mean(probabilities: Sequence[Tensor]) -> Tensor:
    """The average; summed in float64, so that equal tensors give exactly themselves."""
    return (sum((member.double() for member in probabilities), torch.zeros(())) / len(probabilities)).float()


def _side(network: Network) -> int:
    if network.image_size is None:
        raise ValueError("this network does not say how large its input is; set its image_size, in pixels")
    return network.image_size


def _same_inputs(one: Network, other: Network) -> bool:
    """Whether two networks make the same crops of an image."""
    states = one.checked_preprocessing(), other.checked_preprocessing()
    if one.image_size != other.image_size or states[0].canvas_kind != states[1].canvas_kind:
        return False
    return all(torch.equal(*(getattr(state, name) for state in states)) for name in ("mean", "scale"))
