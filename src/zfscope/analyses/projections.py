"""The top activations of all feature maps of all layers, with their projections, streamed to the run folder.

Source: Zeiler & Fergus (2014), Fig. 2; the controls follow Mahendran & Vedaldi (2016) and Adebayo et al. (2018).
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress, track
from torch import Tensor

from zfscope.activations import TopTable
from zfscope.analyses.evaluate import part_of
from zfscope.analyses.spec import AnalyzeConfig, ProjectionsAnalysis
from zfscope.data.datamodule import Examples, ImageData
from zfscope.data.transforms import CentreTransform
from zfscope.deconvnet.controls import control_correlations
from zfscope.deconvnet.winners import (
    OUTSIDE,
    TopActivationsHook,
    Winners,
    check_projectable,
    layers_to_watch,
    project_winners,
    random_subset,
)
from zfscope.figures import projection_sheet
from zfscope.networks.chain import ConvNet
from zfscope.networks.network import Network, evaluating, run_to
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig

# What each winner has in the arrays: shape and type where no winner of a layer tells them.
PARTS = {
    "patches": ((3, 8, 8), np.dtype(np.uint8)),
    "projections": ((3, 8, 8), np.dtype(np.uint8)),
    "scales": ((), np.dtype(np.float32)),
    "boxes": ((4,), np.dtype(np.int64)),
}


def projections(
    network: Network, data: ImageData, config: AnalyzeConfig, device: torch.device, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write ``arrays.npz`` and a sheet for each layer; give the number of dead maps and the controls.

    ``arrays.npz`` holds for each layer ``<layer>/maps (M,)``, ``values``, ``indices (M, k)``, ``positions (M, k, 2)``,
    ``boxes (M, k, 4)``, ``patches`` and ``projections (M, k, 3, h, w)`` as uint8, and ``scales (M, k)``: a projection
    is ``(uint8 - 127.5) / 127.5 * scale``; beyond ``scale`` it is cut off. Of an activation that is not above 0 patch
    and projection are grey, box and scale 0.

    Raises:
        ValueError: For a layer or a part of the data that is not there, a dense layer, a network that cannot be
            projected.
    """
    asked = config.analysis
    network = network.to(device).eval()
    there = layers_to_watch(network, None)
    for layer in layers_to_watch(network, asked.layers):
        if layer not in there:
            raise ValueError(f"analysis.layers: {layer} is dense; the layers with feature maps are {', '.join(there)}")
    images = part_of(data, asked.part)
    examples = Examples(images, CentreTransform(network.preprocessing), network.preprocessing.resize)
    layers = check_projectable(network, asked.layers, examples[0][0], asked.unpooling)
    tables = mine(network, data.centre_crops(images, asked.batch_size), layers, asked.top)
    maps = {layer: _rows(table, asked.maps, asked.seed) for layer, table in tables.items()}
    chosen = {layer: TopTable(*(part.cpu()[maps[layer]] for part in table)) for layer, table in tables.items()}
    winning = len(torch.cat([table.indices[table.indices >= 0] for table in chosen.values()]).unique())
    with Arrays(folder / "arrays.npz", chosen, maps) as arrays, Progress(transient=True) as progress:
        task = progress.add_task("Projecting", total=winning)

        def read(indices: Sequence[int]) -> Tensor:
            progress.advance(task, len(indices))
            return torch.stack([examples[index][0] for index in indices])

        for winners in project_winners(
            network, chosen, maps, read, batch_size=asked.batch_size, unpooling=asked.unpooling
        ):
            arrays.put(winners)
        figures = folder / "figures" / "projections"
        figures.mkdir(parents=True, exist_ok=True)
        for layer, table in progress.track(chosen.items(), description="Drawing"):
            title = f"{layer}, {len(images):,} images"
            projection_sheet(
                maps[layer],
                # Held nowhere else: two layers' tiles at a time would be half a gigabyte.
                *(torch.from_numpy(arrays.get(layer, name)) for name in ("patches", "projections")),
                table.values,
                title=title,
            ).save(figures / f"{layer}.png")
        metrics = {}
        for layer, table in tables.items():
            dead = int((table.values[:, 0] <= 0).sum())
            metrics[f"{layer}/dead_maps"] = {"value": dead, "unit": f"of {len(table.values)}"}
        if isinstance(network, ConvNet) and asked.controls:
            found = controls(network, chosen, maps, read, asked)
            metrics |= {name: {"value": value, "unit": "r"} for name, value in found.items()}
    return metrics


def mine(network: Network, batches: Iterable[Sequence[Tensor]], layers: Sequence[str], k: int) -> dict[str, TopTable]:
    """The top ``k`` images of every feature map in one pass over ``(inputs, label, index)``; nothing else is kept."""
    device = next(network.parameters()).device
    miner = TopActivationsHook(network, layers, k)
    try:
        with evaluating(network), torch.inference_mode():
            for inputs, _, miner.indices in track(batches, description="Mining", transient=True):
                inputs = inputs.to(device, memory_format=torch.channels_last)
                if isinstance(network, ConvNet):
                    run_to(network, inputs, max(layers, key=network.layers.index))
                else:
                    network(inputs)
    finally:
        miner.close()
    if miner.top is None:
        raise ValueError(f"none of the layers {', '.join(layers)} gives feature maps (N, C, h, w); name others")
    return {layer: TopTable(*(part.clone().cpu() for part in table)) for layer, table in miner.top.compute().items()}


def controls(
    network: ConvNet,
    tables: Mapping[str, TopTable],
    maps: Mapping[str, Tensor],
    read: Callable[[Sequence[int]], Tensor],
    asked: ProjectionsAnalysis,
) -> dict[str, float]:
    """Mean correlation of true projections with those of another map and of random weights, by layer.

    Over ``asked.controls`` winners of each layer, drawn at random; see ``deconvnet.control_correlations``.
    """
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(asked.seed)
    convs = {name: spec for name, spec in network.spec.items() if isinstance(spec, ConvLayer)}
    with torch.random.fork_rng(devices=[]):
        # Filters of its own, but nothing above them: the dense layers are most of a network's memory.
        layers = {**convs, network.layers[-1]: DenseLayer()}
        randomised = ConvNet(layers, num_classes=1, image_size=network.image_size)
        torch.manual_seed(asked.seed)
        randomised.initialise(InitConfig(scheme="he"))
    randomised.to(next(network.parameters()))
    found = {}
    for layer, table in tables.items():
        if layer not in convs:
            continue
        rows, ranks = ((table.indices >= 0) & (table.values > 0)).nonzero(as_tuple=True)
        drawn = torch.randperm(len(rows), generator=generator)[: asked.controls]
        if not len(drawn):
            continue
        pieces = []
        for row, rank in zip(*(each[drawn].split(asked.batch_size) for each in (rows, ranks)), strict=True):
            images, sources = table.indices[row, rank].unique(return_inverse=True)
            with evaluating(network), torch.no_grad():
                trace = network.trace(read(images.tolist()).to(device), top=layer)
            positions = table.positions[row, rank]
            pieces.append(
                control_correlations(network, trace, layer, maps[layer][row], positions, sources, randomised, generator)
            )
        for name in pieces[0]:
            found[f"{layer}/{name}_correlation"] = float(torch.cat([piece[name] for piece in pieces]).nanmean())
    return found


class Arrays:
    """``arrays.npz``, filled in any order without holding it in memory; written beside its place, then renamed.

    Args:
        path: Where it shall lie.
        tables: Of the layers.
        maps: The feature map of each row, by layer.
    """

    def __init__(self, path: Path, tables: Mapping[str, TopTable], maps: Mapping[str, Tensor]) -> None:
        self.path, self.tables, self.maps = path, tables, maps
        self._scratch = path.with_suffix(".tmp")
        self._files: dict[tuple[str, str], Path] = {}

    def __enter__(self) -> Arrays:
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self

    def put(self, winners: Winners) -> None:
        """Set the places of some winners."""
        tiles, scales = winners.tiles()
        parts = {"patches": winners.patches, "projections": tiles, "scales": scales, "boxes": winners.boxes}
        for name, part in parts.items():
            array = self._open(winners.layer, name, tuple(part.shape[1:]), part.numpy().dtype)
            array[winners.rows.numpy(), winners.ranks.numpy()] = part.numpy()

    def get(self, layer: str, name: str) -> np.ndarray:
        """An array of a layer; of a layer without any winner small empty tiles."""
        return self._open(layer, name, *PARTS[name])

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self._write()
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _open(self, layer: str, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
        # Mapped anew at each call: pages of a mapping that stays count as this process's memory.
        if (layer, name) in self._files:
            return np.lib.format.open_memmap(self._files[layer, name], mode="r+")
        places = tuple(self.tables[layer].values.shape)
        path = self._files[layer, name] = self._scratch / f"{len(self._files)}.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(*places, *shape))
        array[...] = OUTSIDE if dtype == np.uint8 else 0
        return array

    def _write(self) -> None:
        for layer in self.tables:
            for name in PARTS:
                self.get(layer, name)
        whole = self._scratch / "arrays.npz"
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
            for (layer, name), path in self._files.items():
                file.write(path, f"{layer}/{name}.npy")
            for layer, table in self.tables.items():
                small = {"maps": self.maps[layer], "values": table.values, "indices": table.indices}
                for name, values in {**small, "positions": table.positions}.items():
                    with file.open(f"{layer}/{name}.npy", "w") as entry:
                        np.lib.format.write_array(entry, values.numpy(), allow_pickle=False)
        os.replace(whole, self.path)


def _rows(table: TopTable, most: int | None, seed: int) -> Tensor:
    count = len(table.values)
    return torch.arange(count) if most is None else random_subset(count, most, seed)
