"""Features of many images at several layers: computed once, kept in files, read in pieces that fit into memory.

conv1 of ZFNet has 290,400 values an image: 8,000 images are 9 GB. A table therefore lies in a file, cut into blocks of
columns, so that the products of all pairs of images (the Gram matrix) need one block at a time.
Source: Zeiler & Fergus (2014), Sec. 5.2 and 5.3 use such features; files and blocks are our choice.
"""

import hashlib
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zfscope.console import progress
from zfscope.data.contents import contents_digest
from zfscope.data.datamodule import ImageData
from zfscope.data.imageset import ImageSet
from zfscope.files import check_writable, checksum, replacing, write_text
from zfscope.networks.network import Network, evaluating
from zfscope.networks.ranks import by_first, is_first, shared
from zfscope.protocols.linear_classifiers import gram_features, standardise, standardise_gram
from zfscope.schema import listed, printable

BLOCK = 4096  # columns of a block
PIXELS = "pixels"  # in place of a layer: the network's inputs themselves


@dataclass(frozen=True)
class FeatureTable:
    """The features of N images at one layer, float32, in a file."""

    path: Path  # blocks of columns one behind the other, each ``(N, width)``; the last one may be narrower
    count: int  # number of images N
    width: int  # number of features D

    def rows(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The features of some images, ``(len(indices), D)``."""
        indices = torch.as_tensor(indices).numpy()
        features = np.empty((len(indices), self.width), dtype=np.float32)
        for first, block in self.blocks():
            features[:, first : first + block.shape[1]] = block[indices]
        return torch.from_numpy(features)

    def gram(self, memory: float) -> Tensor:
        """Inner products of all pairs of images, ``(N, N)`` float32, within about ``memory`` bytes besides."""
        most = max(1, int(memory / 4 / max(self.count, 1)))  # columns, or rows of the result, that fit
        columns, rows = max(1, most // 2), max(1, most // 2)
        products = torch.zeros(self.count, self.count)
        for _, block in progress(self.blocks(), "Inner products", -(-self.width // BLOCK)):
            for start in range(0, block.shape[1], columns):
                part = torch.from_numpy(block[:, start : start + columns].copy())
                for top in range(0, self.count, rows):
                    products[top : top + rows].addmm_(part[top : top + rows], part.T)
        return products

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The features of all images in blocks of columns ``(N, width)``, each with the number of its first column."""
        for first in range(0, self.width, BLOCK):
            shape = (self.count, min(BLOCK, self.width - first))
            yield first, np.memmap(self.path, np.float32, "r", 4 * self.count * first, shape)


def extract(
    network: Network,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    layers: Sequence[str],
    images: str,
    cache: str | Path,
    device: torch.device | str = "cpu",
) -> dict[str, FeatureTable]:
    """Features of all images at some layers, in one pass; from the cache where the same network saw the same images.

    Batches are network inputs ``(n, 3, H, W)``, labels, and positions that count up from 0; ``images`` is a
    digest of these images in this order; ``cache`` a folder for files of 4 bytes a feature. A feature is a value
    of a layer's feature map. Refused are an unknown layer and features that do not fit on the disk.

    Of processes that share passes the first one has the cache, and says which features are missing; the others get None
    for the tables that were written.
    """
    for layer in layers:
        network.check_layer(layer)
    known, cache = fingerprint(network), Path(cache)
    targets = {layer: cache / f"features_{known[:12]}_{images[:12]}_{layer.replace('/', '_')}.f32" for layer in layers}
    tables = by_first(lambda: {layer: _known(path) for layer, path in targets.items()})
    missing = [layer for layer, table in tables.items() if table is None]
    if missing:
        tables |= write_tables(network.to(device), batches, {layer: targets[layer] for layer in missing}, device)
    return {layer: tables[layer] for layer in layers}


def feature_tables(
    network: Network, data: ImageData, images: ImageSet, layers: Sequence[str], batch_size: int, device: torch.device
) -> dict[str, FeatureTable]:
    """The features of these images at some layers, centre crops, from the cache where they are known."""
    batches = data.centre_crops(images, batch_size)
    digest = by_first(lambda: contents_digest(images, data.config.cache))
    return extract(network, batches, layers, digest, data.config.cache, device)


def standardised(
    table: FeatureTable, count: int, memory: float
) -> Callable[[np.ndarray, np.ndarray], tuple[Tensor, Tensor]]:
    """Standardised features of a fold's training and test images, given as rows of the table.

    Features wider than the ``count`` training images are replaced by ones that have the same inner products and are as
    many as those images: to a linear classifier they are the same, and the wide ones stay in their file.
    """
    if table.width <= count:
        return lambda train, test: standardise(table.rows(train), table.rows(test))
    products = table.gram(memory)

    def read(train: np.ndarray, test: np.ndarray) -> tuple[Tensor, Tensor]:
        columns = products[:, train]
        return gram_features(*standardise_gram(columns[train], columns[test]))

    return read


def fingerprint(network: Network) -> str:
    """Hex digest of all that a network's features follow from: its layers, its weights, how it prepares images."""
    digest = hashlib.sha256(repr([(type(part).__name__, str(part)) for part in network.modules()]).encode())
    tensors = dict(network.state_dict())
    if network.preprocessing is not None:
        state = network.preprocessing.state()
        digest.update(repr((state["resize"], state["crop"])).encode())
        ways = state["interpolation"], state["crop_mode"]
        if ways != ("bilinear", "square"):  # the only ones that tables from before know
            digest.update(repr(ways).encode())
        tensors |= {"mean": state["mean"], "scale": state["scale"]}
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _known(path: Path) -> FeatureTable | None:
    """The table in a file, None if there is none or, with a warning, if it is damaged."""
    try:
        count, width, expected = path.with_suffix(".txt").read_text(encoding="utf-8").split()
        if checksum(path) == expected:
            return FeatureTable(path, int(count), int(width))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        pass
    warnings.warn(f"{printable(path)} is damaged; its features are computed anew", stacklevel=2)
    return None


@torch.inference_mode()
def write_tables(
    network: Network,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    targets: Mapping[str, Path],
    device: torch.device,
    key: str = "data.cache",
) -> dict[str, FeatureTable]:
    """Compute and write beside the targets, then rename; the number of images and features stands beside each.

    Targets are files by layer, or by ``PIXELS``, all in the folder that ``key`` names in messages. Processes may share
    the pass: the first one writes and returns the tables, the others return none.
    """
    count, seen = len(batches.dataset), 0  # a DataLoader's
    files, widths = {}, {}

    def rows(batch: tuple[Tensor, Tensor, Tensor]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        inputs, _, positions = batch
        trace = network.trace(inputs.to(device, memory_format=torch.channels_last))
        maps = {PIXELS: trace.images, **trace.maps}
        return positions.numpy(), {layer: _rows(layer, maps.get(layer), len(inputs)) for layer in targets}

    with ExitStack() as written, evaluating(network):
        for positions, values in shared(progress(batches, f"Features of {listed(targets)}"), rows, batches):
            seen += len(positions)
            if not files:
                widths = {layer: part.shape[1] for layer, part in values.items()}
                _check_room(next(iter(targets.values())).parent, 4 * count * sum(widths.values()), key)
                files = {layer: written.enter_context(replacing(path)) for layer, path in targets.items()}
                for layer, file in files.items():
                    file.reserve(4 * count * widths[layer])
            for layer, part in values.items():
                for first in range(0, widths[layer], BLOCK):
                    block = np.ascontiguousarray(part[:, first : first + BLOCK])
                    files[layer].seek(4 * (count * first + int(positions[0]) * block.shape[1]))
                    files[layer].write(block)
        if not is_first():
            return {}
        if seen < count:
            raise ValueError(f"{count - seen} of {count} images cannot be read and have no features; leave them out")
    for layer, path in targets.items():
        write_text(path.with_suffix(".txt"), f"{count} {widths[layer]} {checksum(path)}\n")
    return {layer: FeatureTable(path, count, widths[layer]) for layer, path in targets.items()}


def _rows(layer: str, maps: Any, count: int) -> np.ndarray:
    """A layer's features, a row for each image, ``(N, D)`` float32."""
    if not isinstance(maps, Tensor) or len(maps) != count:
        raise ValueError(f"layer {layer!r} gives no tensor with a row for each image; choose other layers")
    return maps.flatten(1).float().cpu().numpy()


def _check_room(folder: Path, needed: int, key: str) -> None:
    check_writable(folder, key)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the features take {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB left; give {key}=DIR, "
            "fewer layers or fewer images"
        )
