"""Which images a loader's batches hold, and single images of its data set, for callbacks that read some once more."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, IterableDataset, SequentialSampler


def first_loader(loaders: Any) -> Any:
    """The first of a Trainer's loaders, which may be one, or nested lists and dicts of them."""
    while isinstance(loaders, list | tuple | dict) and loaders:
        loaders = next(iter(loaders.values())) if isinstance(loaders, dict) else loaders[0]
    return loaders


def readable_dataset(loader: Any) -> Any | None:
    """A loader's data set if its images can be read by index, else None."""
    dataset = getattr(loader, "dataset", None)
    readable = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return dataset if readable and not isinstance(dataset, IterableDataset) and len(dataset) else None


def validation_loader(trainer: Trainer) -> Any:
    """The first validation loader; its data set is read by index, and refused where it cannot be."""
    loader = first_loader(trainer.val_dataloaders)
    if readable_dataset(loader) is None:
        raise ValueError(
            "pictures of single validation images need a validation data set with dataset[index] and a length"
        )
    return loader


def image_of(item: Any) -> Tensor:
    """The image or images of an item or batch: its first part, or all of it; refused if that is no tensor."""
    image = item[0] if isinstance(item, list | tuple) and len(item) else item
    if not hasattr(image, "__array__"):
        raise ValueError(
            f"pictures need validation data (image, ...) with the image as a tensor, but got {type(image).__name__}"
        )
    return torch.as_tensor(image)


def label_of(item: Any) -> int | None:
    """The class of a data set's item: its second part, where that is a whole number."""
    label = item[1] if isinstance(item, list | tuple) and len(item) > 1 else None
    if isinstance(label, Tensor):
        whole = label.numel() == 1 and not label.is_floating_point() and label.dtype != torch.bool
        return int(label) if whole else None
    return int(label) if isinstance(label, Integral) and not isinstance(label, bool) else None


def order_of(loader: Any) -> list[list[int]] | None:
    """The indices of all batches of this rank, where asking for them again gives the same; else None."""
    batches = getattr(loader, "batch_sampler", None)
    if type(batches) is not BatchSampler:
        return None
    fixed = SequentialSampler | DistributedSampler | range | list | tuple
    return list(batches) if isinstance(batches.sampler, fixed) else None


def indices_of(order: Sequence[Sequence[int]] | None, batch: Any, batch_idx: int) -> Tensor:
    """Index in the data set of each image of a batch.

    ``order`` holds the indices of each batch, as ``order_of`` gives them; None where the batch's third part says them.
    """
    images = image_of(batch)
    if order is not None and len(order[batch_idx]) == len(images):
        return torch.tensor(order[batch_idx], device=images.device)
    third = batch[2] if isinstance(batch, list | tuple) and len(batch) > 2 else None
    if isinstance(third, Tensor) and third.shape == images.shape[:1] and not third.is_floating_point():
        return third
    raise ValueError(
        f"Projections: which are the {len(images)} images of validation batch {batch_idx}? Its loader does not tell; "
        "give batches (images, labels, indices)"
    )
