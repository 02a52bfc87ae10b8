"""The top activations of all feature maps of all layers, with their projections, streamed to the run folder.

Source: Zeiler & Fergus (2014), Fig. 2; the controls follow Mahendran & Vedaldi (2016) and Adebayo et al. (2018).
"""

import shutil
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zfscope.activations import TopTable
from zfscope.analyses.controls import controls
from zfscope.analyses.question import Metric, Question, Result, at_most, have_maps, readable_inputs, reader
from zfscope.console import counting
from zfscope.deconvnet.choice import rule_for, told
from zfscope.deconvnet.rules import WAY_OUT
from zfscope.deconvnet.sameness import sameness, told_same
from zfscope.deconvnet.switches import KeptSwitches
from zfscope.deconvnet.winners import (
    OUTSIDE,
    Winners,
    check_projectable,
    layers_to_watch,
    project_winners,
    random_subset,
    top_images,
)
from zfscope.figures import projection_sheet
from zfscope.files import WholeFile, map_array
from zfscope.networks.chain import ConvNet

# What each winner has in the arrays: shape and type where no winner of a layer tells them.
PARTS = {
    "patches": ((3, 8, 8), np.dtype(np.uint8)),
    "projections": ((3, 8, 8), np.dtype(np.uint8)),
    "scales": ((), np.dtype(np.float32)),
    "boxes": ((4,), np.dtype(np.int64)),
}


def analyse(question: Question) -> Result:
    """A sheet for each layer, the number of dead maps, how much projections depend on the image, and the controls.

    ``arrays.npz`` holds for each layer ``<layer>/maps (M,)``, ``values``, ``indices (M, k)``, ``positions (M, k, 2)``,
    ``boxes (M, k, 4)``, ``patches`` and ``projections (M, k, 3, h, w)`` as uint8, and ``scales (M, k)``: a projection
    is ``(uint8 - 127.5) / 127.5 * scale``; beyond ``scale`` it is cut off. Of an activation that is not above 0 patch
    and projection are grey, box and scale 0.
    """
    options, network, images = question.options, question.network, question.images
    have_maps(network, options.layers)
    layers_to_watch(network, options.layers)
    at_most(options.top, len(images), "analysis.top")
    examples = question.inputs(images)
    _, image = next(readable_inputs(examples, range(len(images))))
    try:
        layers = check_projectable(network, options.layers, image, options.unpooling, options.rule)
    except ValueError as error:
        raise ValueError(str(error).replace(WAY_OUT, f"{WAY_OUT}: analysis.rule=gradient")) from error
    by_switches = isinstance(network, ConvNet) and options.rule in ("auto", "deconvnet")
    kept = KeptSwitches(network, options.memory_gb * 1e9) if by_switches else None
    tables = top_images(network, question.data.centre_crops(images, options.batch_size), layers, options.top, kept)
    maps = {layer: _rows(table, options.maps, options.seed) for layer, table in tables.items()}
    shown = {layer: TopTable(*(part.cpu()[maps[layer]] for part in table)) for layer, table in tables.items()}
    metrics: dict[str, Metric] = {}
    for layer, table in tables.items():
        dead = int((table.values[:, 0] <= 0).sum())
        metrics[f"{layer}/dead_maps"] = {"value": dead, "unit": f"of {len(table.values)}"}
    arrays = Arrays(question.folder / ".projections.0.tmp", shown, maps)
    try:
        read = reader(examples)
        ways = {"batch_size": options.batch_size, "unpooling": options.unpooling, "rule": options.rule}
        with counting("Projecting", sum(int((table.values > 0).sum()) for table in shown.values())) as count:
            for winners in project_winners(network, shown, maps, read, kept=kept, **ways):
                arrays.put(winners)
                count(len(winners.rows))
        drawn = {rule_for(network, layer, image[None], options.rule, options.unpooling) for layer in shown}
        if network.has_switches and options.controls and drawn == {"deconvnet"}:
            correlations = controls(network, shown, maps, read, options)
            metrics |= {name: {"value": value, "unit": "r"} for name, value in correlations.items()}
        alike = {}
        for layer, table in shown.items():
            parts = (torch.from_numpy(arrays.get(layer, name)) for name in ("projections", "boxes"))
            alike[layer] = sameness(*parts, table.indices, image.shape[-2:], options.seed)
            if alike[layer] is not None:
                metrics[f"{layer}/between_images_correlation"] = {"value": alike[layer], "unit": "r"}
    except BaseException:
        arrays.close()
        raise

    def sheet(layer: str) -> Image.Image:
        title = f"{layer}, {len(images):,} images"
        title += told(network, layer, image[None], options.rule, options.unpooling)
        title += told_same(network, layer, alike[layer], tuple(image.shape))
        return projection_sheet(
            maps[layer],
            *(torch.from_numpy(arrays.get(layer, name)) for name in ("patches", "projections")),
            shown[layer].values,
            title=title,
        )

    # Drawn when saved: two layers' tiles at a time would be half a gigabyte.
    return Result(metrics, arrays, {f"projections/{layer}": partial(sheet, layer) for layer in shown})


class Arrays:
    """What ``arrays.npz`` will hold, filled in any order without being held in memory; ``scratch`` holds it by then."""

    def __init__(self, scratch: Path, tables: Mapping[str, TopTable], maps: Mapping[str, Tensor]) -> None:
        self.tables, self.maps = tables, maps
        self._scratch = scratch
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._files: dict[tuple[str, str], Path] = {}

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

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _open(self, layer: str, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
        # Mapped anew at each call: pages of a mapping that stays count as this process's memory.
        if (layer, name) in self._files:
            return np.lib.format.open_memmap(self._files[layer, name], mode="r+")
        places = tuple(self.tables[layer].values.shape)
        path = self._files[layer, name] = self._scratch / f"{len(self._files)}.npy"
        array = map_array(path, dtype, (*places, *shape))
        array[...] = OUTSIDE if dtype == np.uint8 else 0
        return array

    def write(self, file: WholeFile) -> None:
        """Save all as one ``.npz``."""
        for layer in self.tables:
            for name in PARTS:
                self.get(layer, name)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for (layer, name), part in self._files.items():
                archive.write(part, f"{layer}/{name}.npy")
            for layer, table in self.tables.items():
                small = {"maps": self.maps[layer], "values": table.values, "indices": table.indices}
                for name, values in {**small, "positions": table.positions}.items():
                    with archive.open(f"{layer}/{name}.npy", "w") as entry:
                        np.lib.format.write_array(entry, values.numpy(), allow_pickle=False)


def _rows(table: TopTable, most: int | None, seed: int) -> Tensor:
    count = len(table.values)
    return torch.arange(count) if most is None else random_subset(count, most, seed)
