"""The parts of a data set, and how they are carved out of one whole."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from zfscope.data.imageset import ImageSet


@dataclass(frozen=True)
class Splits:
    """The parts of a data set, all with the same classes; ``test`` is None where no labels are public.

    ``carved`` says that the data set itself knows no parts: they were carved out of one whole, and may be anew.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet | None = None
    carved: bool = False

    @property
    def parts(self) -> dict[str, ImageSet]:
        """The parts by name, without those that are None."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: images for name, images in named.items() if images is not None}

    def map(self, change: Callable[[ImageSet], ImageSet]) -> Self:
        """The same parts, every one changed by a function."""
        return replace(self, **{name: change(images) for name, images in self.parts.items()})

    def __post_init__(self):
        for part in ("val", "test"):
            images = getattr(self, part)
            if images is not None and images.classes != self.train.classes:
                raise ValueError(f"train and {part} have different classes: {self.train.classes} and {images.classes}")


def stratified_split(strata: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the images that stay, and of the fraction that is carved out of every stratum, sorted int64.

    ``strata`` are ``(N,)`` integers, usually the labels. Of the whole the fraction (0 or more, below 1) is carved to
    the nearest image, of each stratum to within one; above 0, at least one image of a stratum of two or more is carved,
    and at least one always stays. ``seed``, 0 to 2^32 - 1, fixes the result on every machine.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the fraction of images to carve out must be at least 0 and below 1, but is {fraction}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"the seed of a split must be in 0..4294967295, but is {seed}")
    _, strata, counts = np.unique(np.asarray(strata), return_inverse=True, return_counts=True)
    shares = fraction * counts
    carve = np.floor(shares).astype(int)
    missing = round(shares.sum()) - carve.sum()  # those lost to rounding down go to the largest remainders
    carve[np.argsort(carve - shares, kind="stable")[:missing]] += 1
    carve = np.clip(carve, np.minimum(counts - 1, 1 if fraction else 0), counts - 1)
    # RandomState, because numpy promises never to change its stream; default_rng has no such promise.
    random = np.random.RandomState(seed)
    carved = np.zeros(len(strata), dtype=bool)
    for stratum, count in enumerate(carve):
        carved[random.permutation(np.flatnonzero(strata == stratum))[:count]] = True
    return np.flatnonzero(~carved), np.flatnonzero(carved)
