"""The error of a trained network with the centre crop and with ten crops.

Source: Zeiler & Fergus (2014), Sec. 3 and Table 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from zfscope.analyses.spec import AnalyzeConfig
from zfscope.data.datamodule import ImageData
from zfscope.data.imageset import ImageSet
from zfscope.evaluation import error_metrics, predict
from zfscope.networks.network import Network
from zfscope.schema import listed


def evaluate(
    network: Network, data: ImageData, config: AnalyzeConfig, device: torch.device, folder: Path
) -> dict[str, dict[str, Any]]:
    """Errors of one part of the data, in percent, by metric name (``test/top1_error`` …).

    Raises:
        ValueError: If the data set has no such part, or its classes are not the network's, in its order.
    """
    asked = config.analysis
    part = asked.part or ("test" if data.splits.test is not None else "val")
    images = part_of(data, part)
    check_classes(network, images.classes)
    batches = data.canvases(images, asked.batch_size)
    predictions = predict(network, batches, crops=asked.ten_crops, device=device, total=len(batches))
    return {name: {"value": value, "unit": "%"} for name, value in error_metrics(predictions, part).items()}


def part_of(data: ImageData, part: str) -> ImageSet:
    """The training, validation or test images.

    Raises:
        ValueError: If the data set has no such part.
    """
    images = getattr(data.splits, part)
    if images is None:
        raise ValueError(f"analysis.part={part}: this data set has no labelled {part} images; use val")
    return images


def check_classes(network: Network, classes: tuple[str, ...]) -> None:
    """Refuse images whose classes are not the network's, or stand in another order.

    Raises:
        ValueError: Naming what differs.
    """
    if network.num_classes != len(classes):
        raise ValueError(f"the network tells {network.num_classes} classes apart, the data set has {len(classes)}")
    if network.classes is None or network.classes == classes:
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
