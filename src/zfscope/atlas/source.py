"""The images of an atlas, whatever they are kept in, and which of them get a page."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zfscope.deconvnet.winners import random_order


@dataclass(frozen=True)
class Source:
    """Images as a network's inputs, by their numbers from 0."""

    read: Callable[[Sequence[int]], Tensor]  # network inputs (N, C, H, W) of some numbers
    batches: Callable[[int], Iterable[Sequence[Tensor]]]  # all (inputs, label, number), so many at a time
    labels: Sequence[tuple[int, ...]]  # of each image; empty where it has none
    classes: Sequence[str]  # what the labels are called
    name: Callable[[int], str]  # of an image
    example: Tensor  # one that can be read, (C, H, W)
    title: str  # what the images are, as "2,000 test images of phantom"

    def __len__(self) -> int:
        return len(self.labels)


def tensor_source(images: Tensor, labels: Sequence[int] | None, classes: Sequence[str] | None) -> Source:
    """Images ``(N, C, H, W)`` in memory; ``classes`` default to their numbers."""
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must be network inputs (N, C, H, W), but came as {tuple(images.shape)}")
    numbers = None if labels is None else [int(label) for label in labels]
    if numbers is not None and len(numbers) != len(images):
        raise ValueError(f"labels must be one for each of {len(images)} images, but are {len(numbers)}")
    if numbers is not None and min(numbers) < 0:
        raise ValueError(f"labels must be 0 or more, but the least is {min(numbers)}")
    count = max(numbers, default=-1) + 1 if numbers is not None else 0
    names = [f"class {number}" for number in range(count)] if classes is None else list(map(str, classes))
    if len(names) < count:
        raise ValueError(f"classes names {len(names)}, but the largest label is {count - 1}")

    def batches(size: int) -> Iterable[Sequence[Tensor]]:
        order = torch.arange(len(images))
        return list(zip(images.split(size), order.split(size), order.split(size), strict=True))

    return Source(
        read=lambda chosen: images[torch.as_tensor(list(chosen))],
        batches=batches,
        labels=[()] * len(images) if numbers is None else [(number,) for number in numbers],
        classes=names,
        name=lambda index: f"image {index}",
        example=images[0],
        title=f"{len(images):,} images",
    )


def over_classes(labels: Sequence[tuple[int, ...]], seed: int) -> list[int]:
    """All images, one of each class in turn, at random within a class; of several labels the first one counts."""
    waiting: dict[int, list[int]] = {}
    for index in random_order(len(labels), seed).tolist():
        waiting.setdefault(labels[index][0] if labels[index] else -1, []).append(index)
    longest = max(map(len, waiting.values()), default=0)
    return [waiting[key][turn] for turn in range(longest) for key in sorted(waiting) if turn < len(waiting[key])]
