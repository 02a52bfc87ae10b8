"""The error of a network: one crop or ten, over any number of images, in one pass.

Source: Zeiler & Fergus (2014), Sec. 3 (ten crops); Krizhevsky et al. (2012): softmax averaged over crops.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_f1_score, multilabel_average_precision

from zfscope.networks import Network
from zfscope.preprocessing import centre_crop, ten_crops


@dataclass(frozen=True)
class Predictions:
    """Class probabilities of images, in the order of their positions in the data set.

    Attributes:
        probabilities: Softmax, ``(N, classes)``, by kind of crops: "centre" and, if asked for, "ten_crops".
        labels: ``(N,)`` int64, or ``(N, classes)`` of 0 and 1 where an image may have several labels.
    """

    probabilities: dict[str, Tensor]
    labels: Tensor


@torch.inference_mode()
def predict(
    network: Network,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    crops: bool = True,
    device: torch.device | str = "cpu",
    total: int | None = None,
) -> Predictions:
    """Class probabilities with the centre crop and, in the same pass, averaged over ten.

    Args:
        network: Is put into eval mode.
        batches: ``(canvases (N, 3, resize, resize), labels, positions)`` of normalised canvases.
        crops: Whether to add ten crops.
        device: Where to compute.
        total: Number of batches, for the progress bar.
    """
    network = network.to(device).eval()
    found: dict[str, list[Tensor]] = {"centre": [], **({"ten_crops": []} if crops else {})}
    labels, positions = [], []
    side = network.image_size
    for canvases, label, position in track(batches, description="Evaluating", total=total, transient=True):
        canvases = canvases.to(device)
        if crops:
            views = ten_crops(canvases, side)
            probabilities = torch.stack([F.softmax(network(view).float(), dim=1) for view in views])
            found["ten_crops"].append(probabilities.mean(0).cpu())
            found["centre"].append(probabilities[4].cpu())  # the fifth of ten crops is the centre
        else:
            found["centre"].append(F.softmax(network(centre_crop(canvases, side)).float(), dim=1).cpu())
        labels.append(label)
        positions.append(position)
    order = torch.cat(positions).argsort()
    return Predictions({kind: torch.cat(parts)[order] for kind, parts in found.items()}, torch.cat(labels)[order])


def error_metrics(predictions: Predictions, part: str) -> dict[str, float]:
    """``part/top1_error`` … of the centre crop and ``part/top1_error_ten_crops`` …, in percent."""
    suffixes = {"centre": "", "ten_crops": "_ten_crops"}
    return {
        f"{part}/{name}{suffixes[kind]}": value
        for kind, probabilities in predictions.probabilities.items()
        for name, value in error_table(probabilities, predictions.labels).items()
    }


def error_table(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Errors and scores of one set of predictions, in percent.

    Args:
        probabilities: ``(N, classes)``.
        labels: ``(N,)`` int64, or ``(N, classes)`` of 0 and 1.

    Returns:
        ``top1_error``, ``macro_f1`` and, from six classes up, ``top5_error``; for several labels per
        image ``mean_average_precision``.
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
    # A stable descending sort settles ties in one way on every machine; topk does not promise that.
    best = probabilities.argsort(dim=1, descending=True, stable=True)[:, :k]
    return 100.0 * float((best != labels[:, None]).all(dim=1).double().mean())
