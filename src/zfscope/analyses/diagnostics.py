"""Dead maps, frequencies of filters, aliasing: one network, or two side by side.

Source: Zeiler & Fergus (2014), Fig. 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from zfscope.activations import TopTable
from zfscope.analyses.evaluate import part_of
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.data.datamodule import Examples, ImageData
from zfscope.data.transforms import CentreTransform
from zfscope.deconvnet.winners import (
    TopActivationsHook,
    check_projectable,
    layers_to_watch,
    project_winners,
    random_subset,
)
from zfscope.diagnostics import (
    Diagnosis,
    MapWatch,
    dead_maps,
    filter_frequencies,
    filters_of,
    first_filters,
    grid_score,
    near_dead_maps,
)
from zfscope.figures import diagnostics_sheet
from zfscope.images import contrast_limits, to_tiles
from zfscope.networks.chain import ConvNet
from zfscope.networks.checkpoints import load_network, run_config
from zfscope.networks.fields import probe_field, receptive_field
from zfscope.networks.layers import filter_rms
from zfscope.networks.network import Network, evaluating
from zfscope.runs import write_arrays

TOP = 9  # winners of each map whose projections are scored
SHOWN = 24  # maps in the picture


def diagnostics(
    network: Network, data: ImageData, config: AnalyzeConfig, device: torch.device, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write ``figures/diagnostics.png`` and ``arrays.npz``; give dead maps, shares of energy, grid scores, filter RMS.

    With ``analysis.other`` the same of that checkpoint, under ``other/…``, on the same images, each network with its
    own preprocessing. ``arrays.npz`` holds ``ranges/<layer> (2, C)``, ``frequencies/<band> (C,)``, ``maps (M,)`` and
    ``tiles (M, 3, h, w)``.

    Raises:
        ValueError: If the data set has no such part.
        FileNotFoundError: If there is no such checkpoint.
    """
    asked = config.analysis
    images = part_of(data, asked.part)
    networks = {"": (config.checkpoint, network)}
    if asked.other is not None:
        networks["other/"] = (asked.other, load_network(asked.other))
    chosen = (
        range(len(images)) if asked.images is None else random_subset(len(images), asked.images, asked.seed).tolist()
    )
    found, measured, arrays = [], {}, {}
    for prefix, (source, each) in networks.items():
        examples = Examples(images, CentreTransform(each.preprocessing), each.preprocessing.resize)
        loader = DataLoader(Subset(examples, chosen), asked.batch_size, num_workers=data.num_workers)
        found.append(diagnose(each.to(device).eval(), source, loader, asked.maps, asked.seed))
        radius = run_config(source).get("model", {}).get("filter_rms")
        measured[prefix] = scores(found[-1]) | filters_at_radius(each, radius)
        arrays |= {f"{prefix}{name}": part.numpy() for name, part in _arrays(found[-1]).items()}
    sheet = diagnostics_sheet(found)
    write_arrays(folder / "arrays.npz", arrays)
    (folder / "figures").mkdir(exist_ok=True)
    sheet.save(folder / "figures" / "diagnostics.png")
    # One beside the other, as far as both have it.
    names = dict.fromkeys(name for metrics in measured.values() for name in metrics)
    return {prefix + name: metrics[name] for name in names for prefix, metrics in measured.items() if name in metrics}


def diagnose(network: Network, name: str, loader: DataLoader, maps: int, seed: int) -> Diagnosis:
    """Look at one network in one pass over the images, and once more at those that won.

    Args:
        network: On the device to compute on.
        name: What to call it.
        loader: Batches ``(inputs, label, index)``; its data set is a ``Subset`` of data with these indices.
        maps: Feature maps of the second layer that are projected, at most; a random subset.
        seed: Of the subset.

    Returns:
        All that could be found; ``missing`` says why a network could not be projected.
    """
    examples = loader.dataset.dataset
    parts: dict[str, Any] = {"missing": "there is no second layer with feature maps to project"}
    second = []
    try:
        if len(layers_to_watch(network, None)) > 1:
            second = list(
                check_projectable(network, layers_to_watch(network, None)[1:2], examples[loader.dataset.indices[0]][0])
            )
    except ValueError as error:
        parts["missing"] = str(error)
    watch, miner = MapWatch(network), TopActivationsHook(network, second, TOP)
    device = next(network.parameters()).device
    try:
        with evaluating(network), torch.inference_mode():
            for inputs, _, miner.indices in track(loader, f"Looking at {name}", transient=True):
                network(inputs.to(device, memory_format=torch.channels_last))
    finally:
        miner.close()
        watch.close()
    first = first_filters(network)
    if first is not None:
        layer, conv = first
        weight = conv.weight.detach().float().cpu()
        parts |= {"first": layer, "filters": weight, "stride": max(conv.stride)}
        parts["frequencies"] = filter_frequencies(weight, conv.stride)
    if second:
        table = TopTable(*(part.clone().cpu() for part in miner.top.compute()[second[0]]))
        parts |= _projected(network, second[0], table, examples, maps, seed)
    return Diagnosis(name, {layer: metric.compute().cpu() for layer, metric in watch.ranges.items()}, **parts)


def scores(found: Diagnosis) -> dict[str, dict[str, Any]]:
    """The numbers of a diagnosis as metrics; shares of energy are medians over filters."""
    metrics: dict[str, dict[str, Any]] = {}
    for layer, ranges in found.ranges.items():
        for name, which in (("dead_maps", dead_maps(ranges)), ("near_dead_maps", near_dead_maps(ranges))):
            metrics[f"{layer}/{name}"] = {"value": int(which.sum()), "unit": f"of {len(which)}"}
    if found.first is not None:
        shares = {f"{band}_frequency_energy": getattr(found.frequencies, band) for band in ("low", "middle", "high")}
        for name, share in {**shares, "energy_beyond_stride": found.frequencies.beyond_stride}.items():
            metrics[f"{found.first}/{name}"] = {"value": 100 * float(share.nanmedian()), "unit": "%"}
    for period, grid in found.grids.items():
        metrics[f"{found.second}/grid_{period}px"] = {"value": grid.score, "unit": ""}
        metrics[f"{found.second}/grid_{period}px_by_chance"] = {"value": grid.chance, "unit": ""}
    return metrics


def filters_at_radius(network: Network, radius: float | None) -> dict[str, dict[str, Any]]:
    """Largest RMS of each layer's filters; how many are at the radius that training kept them within, if it did.

    ``<layer>/filter_dominance`` is the largest RMS over the median one: how far one filter stands out.
    """
    metrics = {}
    for layer, conv in filters_of(network).items():
        rms = filter_rms(conv.weight.detach().cpu())
        metrics[f"{layer}/largest_filter_rms"] = {"value": float(rms.max()), "unit": ""}
        dominance = float(rms.max() / rms.median())
        metrics[f"{layer}/filter_dominance"] = {"value": dominance, "unit": "times the median"}
        if radius is not None:
            at = int((rms > 0.999 * radius).sum())
            metrics[f"{layer}/filters_at_radius"] = {"value": at, "unit": f"of {len(rms)}"}
    return metrics


def _projected(
    network: Network, layer: str, table: TopTable, examples: Examples, maps: int, seed: int
) -> dict[str, Any]:
    """Tiles of the strongest activations of some maps, and the grid scores of the strongest nine."""
    numbers = random_subset(len(table.values), maps, seed)
    table = TopTable(*(part[numbers] for part in table))

    def read(indices: Sequence[int]) -> Tensor:
        return torch.stack([examples[index][0] for index in indices])

    found = list(project_winners(network, {layer: table}, {layer: numbers}, read))
    if not found:
        return {"missing": f"{layer}: all of {len(numbers)} maps are dead"}
    rows, ranks, projections, boxes = (
        torch.cat([getattr(each, name) for each in found]) for name in ("rows", "ranks", "projections", "boxes")
    )
    strongest = (ranks == 0).nonzero().squeeze(1)
    strongest = strongest[rows[strongest].argsort()][:SHOWN]
    shown = projections[strongest]
    first, side = first_filters(network), projections.shape[-1]
    below, inputs = network.layers[0], examples[0][0].shape[-1]
    chain = isinstance(network, ConvNet)
    field = receptive_field(network, below) if chain else probe_field(network, below, inputs)
    periods = dict.fromkeys([max(first[1].stride) if first else 1, field.stride])
    return {
        "second": layer,
        "maps": numbers[rows[strongest]],
        "tiles": to_tiles(shown, limit=contrast_limits(shown)),
        "grids": {
            period: grid_score(projections, boxes[:, :2], period) for period in periods if 2 <= period <= side // 2
        },
        "missing": "",
    }


def _arrays(found: Diagnosis) -> dict[str, Tensor]:
    arrays = {f"ranges/{layer}": ranges for layer, ranges in found.ranges.items()}
    if found.first is not None:
        arrays |= {f"frequencies/{band}": share for band, share in vars(found.frequencies).items()}
    return arrays if found.second is None else {**arrays, "maps": found.maps, "tiles": found.tiles}
