"""What a training set looks like on average: mean image, spread, and how its colours vary.

Computed once from the contents of the training images, kept in the cache folder, then with every checkpoint.
Source: Zeiler & Fergus (2014), Sec. 3 (per-pixel mean); Krizhevsky et al. (2012), Sec. 4.1 (PCA of RGB).
"""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zfscope.console import progress
from zfscope.data.contents import content_hashes, evenly_spread
from zfscope.data.imageset import FileImages, ImageSet
from zfscope.data.loader import Loader
from zfscope.data.quarantine import note_decoded
from zfscope.data.transforms import Examples
from zfscope.files import replacing
from zfscope.networks.checkpoints import read_checkpoint
from zfscope.networks.preprocessing import CanvasKind, Preprocessing, as_tensor
from zfscope.schema import printable


@dataclass(frozen=True)
class Statistics:
    """Mean and spread of a training set."""

    mean: Tensor  # mean image, ``(3, resize, resize)`` float32, grey levels 0-255
    std: float  # root mean square deviation from it over all pixels and channels, in grey levels
    covariance: Tensor  # of the colours red, green, blue on a scale 0-1, ``(3, 3)``, over all pixels

    def preprocessing(self, crop: int, input_scale: float | str, resizer: str = "pil") -> Preprocessing:
        """Subtract the mean image and scale; ``"unit"`` gives inputs of unit variance, 1.0 grey levels."""
        scale = 1.0 / max(self.std, 1e-6) if input_scale == "unit" else float(input_scale)
        return Preprocessing(self.mean.shape[-1], crop, self.mean, torch.full((3, 1, 1), scale), resizer=resizer)

    def colour_directions(self) -> np.ndarray:
        """PCA of the colours: columns are eigenvectors times eigenvalues, ``(3, 3)``, for values 0-255.

        Source: Krizhevsky et al. (2012), Sec. 4.1. Computed on values 0-1 and then scaled by 255; on
        grey levels themselves it would shift colours by hundreds.
        """
        values, vectors = np.linalg.eigh(self.covariance.double().numpy())
        return (255.0 * vectors * values).astype(np.float32)


def statistics_of(
    images: ImageSet,
    kind: CanvasKind,
    cache: str | Path,
    *,
    most: int | None = None,
    num_workers: int = 0,
    contents: np.ndarray | None = None,
) -> Statistics:
    """Statistics of the training images on square canvases of a ``kind``, from the cache where they are known.

    Only ``most`` images are read, spread evenly; None reads all. They are known of images with the same ``contents``,
    as `content_hashes` returns them; None asks it. What is damaged in the cache is measured anew, with a warning.
    Images that cannot be read, and are left out, are in no number.
    """
    indices = evenly_spread(len(images), most)
    contents = content_hashes(images, cache, most) if contents is None else contents
    digest = hashlib.sha256(contents[indices].tobytes()).hexdigest()
    resizer = "" if kind.resizer == "pil" else f"_{kind.resizer}"
    path = Path(cache) / f"statistics_{digest[:16]}_{kind.side}{resizer}_{len(indices)}.pt"
    if path.exists():
        try:
            return Statistics(**read_checkpoint(path))
        except (ValueError, TypeError):  # checksums that differ, or other keys
            warnings.warn(f"{printable(path)} is damaged; the mean image is measured anew", stacklevel=2)
    statistics, read = _measure(images, kind, indices, num_workers)
    if isinstance(images, FileImages):
        note_decoded(contents[indices[read]], cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save(vars(statistics), file)
    return statistics


def _measure(
    images: ImageSet, kind: CanvasKind, indices: np.ndarray, num_workers: int
) -> tuple[Statistics, np.ndarray]:
    """The statistics of these images, and the positions in ``indices`` of those that could be read."""
    canvases = Examples(images.subset(indices), as_tensor, kind)
    loader = Loader(canvases, batch_size=32, num_workers=num_workers)
    # Sums of grey levels and of their products are whole numbers, so that these are exact in any order.
    total = torch.zeros(3, kind.side, kind.side, dtype=torch.float64)
    products = torch.zeros(3, 3, dtype=torch.float64)
    read = []
    for batch, _, positions in progress(loader, "Mean image of the training set"):
        read.append(positions.numpy())
        values = batch.float()  # in single precision whole numbers are exact up to 2**24
        total += values.sum(0)
        colours = values.permute(0, 2, 3, 1).reshape(-1, 3).double()
        products += colours.T @ colours
    read = np.concatenate([np.empty(0, int), *read])
    count = max(1, len(read))
    mean = total / count
    products /= count * kind.side**2
    variance = (products.trace() / 3 - (mean**2).mean()).clamp(min=0)
    colour_mean = mean.flatten(1).mean(1)
    covariance = (products - torch.outer(colour_mean, colour_mean)) / 255**2
    return Statistics(mean.float(), float(variance.sqrt()), covariance.float()), read
