"""Images of one set that also stand in another, found by normalised correlation of small grey thumbnails.

Two copies of a photograph correlate almost fully however they were resized or recompressed; two photographs of one
subject do not, once the coarse light and shade that most images share is damped. Sets whose images are all alike
(solar cells, shirts) need more than a threshold: a copy must also stand out from the other images that resemble it.

Source: Zeiler & Fergus (2014), Sec. 5.2, "normalized correlation"; how they prepared images is not told. Thumbnails,
filter, threshold and the second condition are our choice, made by measurement (docs/overlap.md).
"""

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zfscope.console import progress
from zfscope.data.imageset import ImageSet
from zfscope.data.loader import ImageItems, Loader
from zfscope.files import map_array

SIDE = 32  # pixels of a thumbnail
CUTOFF = 16.0  # half waves across the thumbnail; finer detail is what resizing and recompression change
RANK = 4  # of the image that a copy must stand out from: three copies of an image may be in a set
EXACT = 4e-4  # 1 - correlation of any two copies that are the same but for rounding, however many there are
_BATCH, BLOCK_ROWS = 256, 1024  # images that are decoded, and compared, at a time


@dataclass(frozen=True)
class Overlap:
    """The closest pairs of two sets, up to three for each image; sorted, the most alike first."""

    pairs: np.ndarray  # positions in the first and in the second set, (P, 2) int64
    correlation: np.ndarray  # of each pair, (P,) float32, -1 to 1
    # How many times nearer (in 1 - correlation) each pair is than either image is to its fourth most alike, (P,), >= 1
    nearer: np.ndarray
    same: np.ndarray  # whether a pair counts as copies of one image, (P,) bool
    blank: tuple[int, int]  # number of images of one grey in each set; they correlate with nothing


def find_overlap(
    first: ImageSet,
    second: ImageSet,
    *,
    threshold: float = 0.9,
    margin: float = 4.0,
    mirrored: bool = False,
    memory_gb: float = 1.0,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    scratch: str | Path | None = None,
) -> Overlap:
    """Compare every image of one set with every image of another.

    Each image is read once. Descriptions of the smaller set are held in memory, or in a file of the folder ``scratch``
    where they are too many; those of the larger one pass by in blocks. Memory is bounded by ``memory_gb`` and about 100
    bytes for each image. Two images are copies of one if they correlate by ``threshold`` (0-1) or more and are
    ``margin`` times nearer to each other, in 1 - correlation, than either is to its fourth most alike in the other set;
    1 leaves the threshold alone. With ``mirrored`` the mirror image of a copy counts too. Refused is a set without
    images.

    Source: Zeiler & Fergus (2014), Sec. 5.2; the margin is ours.
    """
    if not len(first) or not len(second):
        raise ValueError("one of the two sets has no images, so they have none in common; give two that have some")
    held, streamed = sorted((first, second), key=len)
    held_bytes, room = 4 * len(held) * description_size(), memory_gb * 1e9
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".overlap.", suffix=".0.tmp") as folder:
        fits = held_bytes <= room / 2
        shape = (len(held), description_size())
        # From the disk all descriptions come anew for each block, so that blocks must be large then.
        rows = BLOCK_ROWS if fits else max(BLOCK_ROWS, int(room / 4 / (4 * description_size())))
        file = Path(folder, "descriptions.npy")
        others = np.empty(shape, np.float32) if fits else map_array(file, np.dtype(np.float32), shape)
        start = 0
        for block in _descriptions(held, "Images of the smaller set", num_workers, BLOCK_ROWS):
            others[start : start + len(block)] = block.numpy()
            start += len(block)
        blocks = _descriptions(streamed, "Images of the larger set", num_workers, rows)
        columns = max(BLOCK_ROWS // 4, int(room / 4 / (3 * 4 * BLOCK_ROWS)))
        overlap = correlate(
            blocks, others, threshold=threshold, margin=margin, mirrored=mirrored, columns=columns, device=device
        )
    if held is second:
        return overlap
    order = np.lexsort((overlap.pairs[:, 0], overlap.pairs[:, 1], -overlap.correlation))
    parts = (overlap.correlation[order], overlap.nearer[order], overlap.same[order])
    return Overlap(overlap.pairs[order][:, ::-1], *parts, overlap.blank[::-1])


def correlate(
    blocks: Iterable[Tensor],
    others: np.ndarray,
    *,
    threshold: float = 0.9,
    margin: float = 4.0,
    mirrored: bool = False,
    columns: int = 8192,
    device: torch.device | str = "cpu",
) -> Overlap:
    """Compare described images, block by block, with others; the size of blocks changes nothing.

    ``blocks`` holds descriptions of the first set, each ``(B, D)`` float32 (see ``describe``), ``others`` those
    of the second, ``(M, D)`` float32, in memory or memory-mapped, of which ``columns`` are compared at a time.
    ``threshold``, ``margin`` and ``mirrored`` as in ``find_overlap``.
    """
    flips = _flips().to(device)
    nearest_others = torch.zeros(len(others), RANK)  # how alike the fourth is; where there are fewer, not at all
    values, indices, blank, count = [], [], 0, 0
    for block in blocks:
        best = torch.zeros(len(block), RANK), torch.full((len(block), RANK), -1)
        blank += int((block == 0).all(1).sum())
        count += len(block)
        for left in range(0, len(others), columns):
            tile = torch.from_numpy(np.asarray(others[left : left + columns])).to(device)
            for top in range(0, len(block), BLOCK_ROWS):
                part = block[top : top + BLOCK_ROWS].to(device)
                alike = part @ tile.T
                if mirrored:
                    alike = torch.maximum(alike, (part * flips) @ tile.T)
                keep_pairs(best[0][top : top + BLOCK_ROWS], alike, best[1][top : top + BLOCK_ROWS], left)
                keep_pairs(nearest_others[left : left + columns], alike.T)
        values.append(best[0])
        indices.append(best[1])
    values, indices = torch.cat(values).numpy(), torch.cat(indices).numpy()
    rows, ranks = np.nonzero(indices[:, : RANK - 1] >= 0)
    partners, correlation = indices[rows, ranks], np.minimum(values[rows, ranks], 1)
    fourth = np.maximum(values[rows, RANK - 1], nearest_others[partners, RANK - 1].numpy())
    distance = 1 - correlation
    nearer = np.maximum(1 - fourth, distance) / np.maximum(distance, np.finfo(np.float32).eps)
    same = (correlation >= threshold) & ((nearer >= margin) | (distance <= EXACT))
    order = np.lexsort((partners, rows, -correlation))
    pairs = np.stack([rows, partners], axis=1)[order]
    blank_others = sum(int((others[k : k + columns] == 0).all(1).sum()) for k in range(0, len(others), columns))
    return Overlap(pairs, correlation[order], nearer[order], same[order], (blank, blank_others))


def thumbnail(image: Image.Image) -> np.ndarray:
    """The whole image in grey levels 0-255, reduced to ``(32, 32)`` float32, whatever its shape.

    Not the middle square: that of a mirrored or resized copy may lie a pixel aside, and its aspect may have changed.
    """
    grey = image.convert("L").convert("F")  # rounding the reduced image would drown the little that a dark one shows
    return np.array(grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def describe(thumbnails: Tensor) -> Tensor:
    """Describe thumbnails such that the scalar product of two is the normalised correlation of the filtered images.

    The filter raises amplitudes in proportion to frequency, which evens out a photograph's spectrum, and lets them
    fall beyond ``CUTOFF``. It works on the discrete cosine transform, where no border is seen.

    ``thumbnails`` are grey levels ``(N, 32, 32)``, descriptions ``(N, D)`` float32 of unit length; 0 for an image that
    differs by less than half a grey level from one grey.

    Source: the paper correlates; the filter f exp(-(f / f0)^4) is that of Olshausen & Field (1997), its f0 ours.
    """
    cosines = _cosines().to(thumbnails.device)
    waves = cosines @ thumbnails.float() @ cosines.T
    filtered = (waves.flatten(1) * _weights().to(waves))[:, _used()]
    varied = thumbnails.flatten(1).amax(1) - thumbnails.flatten(1).amin(1) >= 0.5
    return filtered / filtered.norm(dim=1, keepdim=True).clamp_min(1e-12) * varied[:, None]


def mirror(descriptions: Tensor) -> Tensor:
    """What ``describe`` gives for the mirror images: cosines that are odd from left to right change their sign."""
    return descriptions * _flips().to(descriptions)


def description_size() -> int:
    """Numbers in a description, D."""
    return int(_used().sum())


class _Thumbnails(ImageItems):
    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return thumbnail(self.images.read(index, short_side=4 * SIDE)), index

    def nothing(self) -> tuple[Tensor, Tensor]:
        return torch.empty(0, SIDE, SIDE), torch.empty(0, dtype=torch.int64)


def _descriptions(images: ImageSet, title: str, num_workers: int, rows: int) -> Iterator[Tensor]:
    """Descriptions of all images in order, in blocks of about so many rows; 0 for an image that cannot be read."""
    loader = Loader(_Thumbnails(images), batch_size=_BATCH, num_workers=num_workers, keeps_empty=True)
    waiting: list[Tensor] = []
    for number, (thumbnails, indices) in enumerate(progress(loader, title)):
        first = number * _BATCH
        descriptions = torch.zeros(min(_BATCH, len(images) - first), description_size())
        descriptions[indices - first] = describe(thumbnails)
        waiting.append(descriptions)
        if sum(map(len, waiting)) >= rows:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def keep_pairs(best: Tensor, alike: Tensor, indices: Tensor | None = None, offset: int = 0) -> None:
    """Update in place the largest values of each row, ``(B, RANK)``, and where they were, by new ones, ``(B, M)``."""
    rows = (alike.amax(1).cpu() > best[:, -1]).nonzero().squeeze(1)  # after the first tiles, few
    if not len(rows):
        return
    new, where = alike[rows.to(alike.device)].topk(min(RANK, alike.shape[1]), dim=1)
    merged, order = torch.cat([best[rows], new.cpu()], dim=1).sort(dim=1, descending=True, stable=True)
    best[rows] = merged[:, :RANK]
    if indices is not None:
        indices[rows] = torch.cat([indices[rows], where.cpu() + offset], dim=1).gather(1, order[:, :RANK])


def _cosines() -> Tensor:
    """The orthonormal discrete cosine transform (DCT-II), ``(32, 32)``: one row for each frequency."""
    frequency, place = torch.arange(SIDE)[:, None].double(), torch.arange(SIDE)[None].double()
    waves = torch.cos(math.pi * frequency * (2 * place + 1) / (2 * SIDE)) * math.sqrt(2 / SIDE)
    waves[0] /= math.sqrt(2)
    return waves.float()


def _weights() -> Tensor:
    """What the filter makes of each pair of frequencies, ``(32 * 32,)``, 0-1."""
    frequency = torch.arange(SIDE).float()
    radius = torch.hypot(frequency[:, None], frequency[None]).flatten()
    weights = radius * torch.exp(-((radius / CUTOFF) ** 4))
    return weights / weights.max()


def _used() -> Tensor:
    """Which frequencies are not filtered out, ``(32 * 32,)`` bool."""
    return _weights() > 0.01


def _flips() -> Tensor:
    """The sign of each number of a description in the mirror image, ``(D,)``."""
    return torch.where(torch.arange(SIDE) % 2 == 0, 1.0, -1.0).repeat(SIDE)[_used()]
