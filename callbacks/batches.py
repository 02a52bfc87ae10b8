"""Images, labels and indices in the items of a data set and in a loader's batches, for callbacks that need them.

``image_of`` and ``label_of`` of a callback say where they are: a key of a mapping, a place in a tuple, or a function of
an item or batch. Without them a tuple has the image first and the label second, and a mapping has them under one of the
usual names below.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, IterableDataset, SequentialSampler

from zfscope.activations import TopTable
from zfscope.data.reading import UnreadableImage
from zfscope.schema import listed

Part = str | int | Callable[[Any], Any] | None
IMAGE_KEYS = ("image", "images", "img", "imgs", "pixel_values", "x", "input", "inputs")
LABEL_KEYS = ("label", "labels", "target", "targets", "y")
INDEX_KEYS = ("index", "indices", "idx")


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


def validation_set(trainer: Trainer) -> Any:
    """The data set of the first validation loader, read by index; refused where it cannot be."""
    dataset = readable_dataset(first_loader(trainer.val_dataloaders))
    if dataset is None:
        raise ValueError(
            "pictures of single validation images need a validation data set with dataset[index] and a length"
        )
    return dataset


def read_item(dataset: Any, index: int) -> Any:
    """An item of a data set; the random numbers that reading draws are put back."""
    with isolate_rng():
        return dataset[index]


def readable_items(dataset: Any, indices: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """Items of a data set with their indices, one by one, without images that cannot be read."""
    for index in indices:
        try:
            item = read_item(dataset, index)
        except UnreadableImage:  # its loader tells
            continue
        yield index, item


def image_of(item: Any, part: Part = None) -> Tensor:
    """A copy of the image or images of an item or batch, so that a module that writes into it changes no data.

    Raises:
        ValueError: If ``part`` is not there, or there is no image under a usual name, or it is no tensor.
    """
    return _image_in(item, part).detach().clone()


def label_of(item: Any, part: Part = None) -> int | None:
    """The class of a data set's item, where it is a whole number.

    Raises:
        ValueError: If ``part`` is not there.
    """
    label = _part(item, part, 1, LABEL_KEYS, "label_of")
    if isinstance(label, Tensor):
        whole = label.numel() == 1 and not label.is_floating_point() and label.dtype != torch.bool
        return int(label) if whole else None
    return int(label) if isinstance(label, Integral) and not isinstance(label, bool) else None


def classes_of(dataset: Any) -> tuple[str, ...] | None:
    """The class names of a data set, as torchvision's have them, or of the one that it is a part of."""
    while dataset is not None:
        classes = getattr(dataset, "classes", None)
        if isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes) and classes:
            return tuple(classes)
        parts = getattr(dataset, "datasets", None)
        dataset = parts[0] if isinstance(parts, list | tuple) and parts else getattr(dataset, "dataset", None)
    return None


def order_of(loader: Any) -> list[list[int]] | None:
    """The indices of all batches of this rank, where asking for them again gives the same; else None."""
    batches = getattr(loader, "batch_sampler", None)
    if type(batches) is not BatchSampler:
        return None
    fixed = SequentialSampler | DistributedSampler | range | list | tuple
    return list(batches) if isinstance(batches.sampler, fixed) else None


def names_its_index(item: Any, index: int) -> bool:
    """Whether an item of a data set holds its own index, as ``(image, label, index)`` does."""
    named = _part(item, None, 2, INDEX_KEYS, "index")
    is_number = isinstance(named, int) or (isinstance(named, Tensor) and named.numel() == 1)
    return is_number and int(named) == index


def indices_of(order: Sequence[Sequence[int]] | None, batch: Any, batch_idx: int, part: Part = None) -> Tensor:
    """Index in the data set of each image of a batch; ``part`` says where its images are.

    ``order`` holds the indices of each batch, as ``order_of`` gives them; None where the batch's third part says them.
    """
    images = _image_in(batch, part)
    if order is not None and len(order[batch_idx]) == len(images):
        return torch.tensor(order[batch_idx], device=images.device)
    third = _part(batch, None, 2, INDEX_KEYS, "index")
    if isinstance(third, Tensor) and third.shape == images.shape[:1] and not third.is_floating_point():
        return third
    raise ValueError(
        f"Projections: which are the {len(images)} images of validation batch {batch_idx}? Its loader does not tell; "
        "give batches (images, labels, indices)"
    )


class KeptImages:
    """The images of a pass that hold a place among the winners: for loaders that do not say which images they give.

    Images are numbered as they come, from 0. ``read`` gives those that were kept, as they came.
    """

    def __init__(self) -> None:
        self._count = 0
        self._batch: tuple[Tensor, Tensor] | None = None
        self._images: dict[int, Tensor] = {}

    def number(self, images: Tensor) -> Tensor:
        """Take in a batch ``(N, C, H, W)``, which must not change any more; returns the numbers of its images."""
        numbers = torch.arange(self._count, self._count + len(images))
        self._count += len(images)
        self._batch = numbers, images
        return numbers.to(images.device)

    def keep(self, tables: Mapping[str, TopTable]) -> None:
        """Let go of images that won nowhere; without tables, none has lost yet."""
        if self._batch is None:
            return
        numbers, images = self._batch
        self._batch = None
        new = dict(zip(numbers.tolist(), images, strict=True))
        winning = {int(n) for table in tables.values() for n in table.indices.unique()}
        keys = winning if tables else {*self._images, *new}
        self._images = {n: image for n, image in self._images.items() if n in keys}
        self._images |= {n: image.to("cpu", copy=True) for n, image in new.items() if n in keys}  # not the whole batch

    def read(self, numbers: Sequence[int]) -> Tensor:
        """The images of some numbers, ``(N, C, H, W)`` on the CPU."""
        return torch.stack([self._images[int(number)] for number in numbers])


def _image_in(item: Any, part: Part) -> Tensor:
    image = _part(item, part, 0, IMAGE_KEYS, "image_of", alone=True)
    if not hasattr(image, "__array__"):
        keys = f" with the keys {listed(map(str, image))}" if isinstance(image, Mapping) else ""
        raise ValueError(
            f"pictures need data (image, ...) with the image as a tensor, but got {type(image).__name__}{keys}; "
            "image_of=… says where the image is: a key, a place, or a function"
        )
    return torch.as_tensor(image)


def _part(item: Any, part: Part, place: int, keys: Sequence[str], option: str, alone: bool = False) -> Any:
    """What ``part`` names in an item or batch; else what is at its ``place``, or the first of a mapping's ``keys``.

    None where there is nothing; with ``alone`` an item that is no tuple, and a mapping without the keys, as a whole.
    """
    if callable(part):
        try:
            return part(item)
        except Exception as error:
            raise ValueError(f"{option} failed on an item of the data: {type(error).__name__}: {error}") from error
    if part is not None:
        try:
            return item[part]
        except (KeyError, IndexError, TypeError):
            known = f"the keys are {listed(map(str, item))}" if isinstance(item, Mapping) else f"it is {_kind(item)}"
            raise ValueError(f"{option}={part!r} is not in an item of the data; {known}") from None
    if isinstance(item, Mapping):
        return next((item[key] for key in keys if key in item), item if alone else None)
    if isinstance(item, list | tuple) and item:
        if isinstance(item[0], Mapping) and place > 0 and len(item) <= place:
            return _part(item[0], None, place, keys, option)
        inner = item[place] if len(item) > place else None
        return _part(inner, None, 0, keys, option, alone=True) if isinstance(inner, Mapping) else inner
    return item if alone else None


def _kind(item: Any) -> str:
    return f"{type(item).__name__} of {len(item)}" if isinstance(item, list | tuple) else f"a {type(item).__name__}"
