"""What an analysis is asked, and what it answers: the one shape of all of them.

Every module of this room has one function ``analyse(question) -> result``; ``run.py`` makes the question, and saves,
logs and prints the result.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zfscope.analyses.fresh import Recipe, fresh_network
from zfscope.analyses.members import Member
from zfscope.analyses.spec import Analysis
from zfscope.console import progress
from zfscope.data.datamodule import Examples, ImageData, open_data
from zfscope.data.imageset import ImageSet
from zfscope.data.quarantine import check_images, collecting, quarantines
from zfscope.data.reading import UnreadableImage
from zfscope.data.splits import Splits
from zfscope.deconvnet.winners import random_order
from zfscope.files import WholeFile
from zfscope.networks.network import Network
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.ranks import by_first
from zfscope.report.public import RANDOM

Metric = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What an analysis is asked."""

    options: Analysis  # of this analysis, checked
    device: torch.device  # to compute on
    folder: Path  # the run folder, for arrays that do not fit in memory
    checkpoint: str | tuple[str, ...] | None = None  # as typed
    network: Network | None = None  # in eval mode and on the device; None for several, or none
    members: Sequence[Member] = ()  # the networks of an ensemble
    run: Mapping[str, Any] = field(default_factory=dict)  # config of the network's training; empty for public weights
    data: ImageData | None = None  # the images; None where only ``image`` or a CSV is looked at
    image: str | None = None  # a file of the user's own
    recipe: Recipe | None = None  # what is trained from scratch; None where nothing is

    @property
    def images(self) -> ImageSet:
        """The part of the data that ``analysis.part`` names; where it names none the test images, else validation."""
        return getattr(self.data.splits, self.part)

    @property
    def part(self) -> str:
        """The name of that part."""
        part = self.options.part or ("test" if self.data.splits.test is not None else "val")
        if getattr(self.data.splits, part) is None:
            raise ValueError(f"analysis.part={part}: this data set has no labelled {part} images; use val")
        return part

    @property
    def networks(self) -> dict[str, Network]:
        """The network by the end of its numbers' names, ``""``; with ``analysis.random_weights`` also the control.

        That one has the same architecture and random weights, drawn by ``analysis.seed``.
        """
        networks = {"": self.network}
        if self.options.random_weights:
            networks[RANDOM] = fresh_network(self.checkpoint, self.run, self.network, self.options.seed)
        return networks

    @property
    def title(self) -> str:
        """The last two parts of the checkpoint's path: enough to know a run of a sweep by."""
        return "/".join(Path(str(self.checkpoint)).parts[-2:])

    @property
    def other_views(self) -> dict[str, Any]:
        """Of training from scratch, the values of ``data.augment`` that are not those of the recipe's own training."""
        if self.recipe is None:
            return {}
        own = self.recipe.augment.model_dump()
        return {name: value for name, value in self.data.config.augment.model_dump().items() if value != own[name]}

    def data_for(self, preprocessing: Preprocessing) -> ImageData:
        """The same images for a network of another size, opened anew: some sets are reduced when they are opened."""
        if preprocessing.resize == self.data.config.resize:
            return ImageData(self.data.splits, self.data.config, preprocessing)
        sizes = {"resize": preprocessing.resize, "crop": preprocessing.crop}
        config = self.data.config.model_copy(update=sizes)
        return ImageData(open_data(config), config, preprocessing)

    def checked_splits(self, data: ImageData | None = None) -> Splits:
        """All parts of the data; what cannot be read is known and left out: folds are drawn from the others.

        Of processes that share passes the first one looks, and tells the others.
        """
        data = data or self.data
        parts = quarantines(data.splits)

        def unreadable() -> dict[str, dict[bytes, str]]:
            check_images(data.splits, data.config.cache, data.config.resize, data.num_workers)
            return {part: quarantine.causes for part, quarantine in parts.items()}

        if data.config.check:
            with collecting(data.splits):
                for part, causes in by_first(unreadable).items():
                    parts[part].causes.update(causes)
        return data.splits

    def inputs(
        self, images: ImageSet, transform: Callable[..., Tensor] | None = None, network: Network | None = None
    ) -> Examples:
        """Images as a network's inputs (or as ``transform`` makes them), one at a time: ``(inputs, label, index)``."""
        preprocessing = (network or self.network).preprocessing
        return Examples(images, transform or preprocessing, preprocessing.canvas_kind)


class Writable(Protocol):
    """Arrays that are kept in files until they are saved."""

    def write(self, file: WholeFile) -> None:
        """Save them as one ``.npz``."""

    def close(self) -> None:
        """Remove the files."""


@dataclass(frozen=True)
class Result:
    """What an analysis answers.

    Metrics are ``{"value": …, "unit": …}`` by name, with ``paper``, ``spread`` and ``interval`` where there are any;
    figures, by path below ``figures/`` without ending, a picture or what draws it when it is saved.
    """

    metrics: Mapping[str, Metric]
    arrays: Mapping[str, np.ndarray] | Writable | None = None  # what ``arrays.npz`` will hold
    figures: Mapping[str, Image.Image | Callable[[], Image.Image]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # further files by name: tables and pages
    folders: Mapping[str, Path] = field(default_factory=dict)  # written beside; when saved they move in, by name
    notes: Sequence[str] = ()  # lines to print below the numbers
    conditions: Mapping[str, Any] = field(default_factory=dict)  # under which it was found, beside the usual ones


def have_maps(network: Network, layers: Sequence[str] | None) -> None:
    """Refuse layers that were named and have no feature maps."""
    for layer in layers or ():
        if layer not in network.layers_with_maps:
            what = f"{layer} is dense" if layer in network.layers else f"no layer {layer!r}"
            known = ", ".join(network.layers_with_maps)
            raise ValueError(f"analysis.layers: {what}; the layers with feature maps are {known}")


def at_most(wanted: int, count: int, key: str) -> int:
    """As many images as an option wants, or all with a warning where there are fewer."""
    if wanted > count:
        warnings.warn(f"{key}={wanted}, but there are {count} images: all of them are taken", stacklevel=3)
    return min(wanted, count)


def reader(examples: Examples) -> Callable[[Sequence[int]], Tensor]:
    """Gives the network inputs ``(N, 3, H, W)`` of image indices."""
    return lambda indices: torch.stack([examples[index][0] for index in indices])


def readable_inputs(examples: Examples, indices: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
    """Index and network input ``(3, H, W)`` of these images, one by one, without those that cannot be read."""
    for index in indices:
        try:
            inputs = examples[index][0]
        except UnreadableImage as error:
            examples.images.leave_out(index, error)
        else:
            yield index, inputs


def some_inputs(examples: Examples, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A random subset of the images: indices in order ``(count,)`` and network inputs ``(count, 3, H, W)``.

    Others take the place of images that cannot be read.
    """
    readable = readable_inputs(examples, random_order(len(examples), seed).tolist())
    chosen = sorted(progress(itertools.islice(readable, count), "Reading", count), key=lambda pair: pair[0])
    return torch.tensor([index for index, _ in chosen]), torch.stack([inputs for _, inputs in chosen])


def percent(value: float, **more: Any) -> Metric:
    """A metric in percent."""
    return {"value": float(value), "unit": "%", **more}


def over_folds(values: np.ndarray, **more: Any) -> Metric:
    """A metric in percent: mean and standard deviation over folds, and the folds."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return percent(np.mean(values), spread=spread, values=values.tolist(), **more)
