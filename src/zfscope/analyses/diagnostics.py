"""Dead maps, frequencies of filters, aliasing: one network, or two side by side.

Source: Zeiler & Fergus (2014), Fig. 6.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from zfscope.activations import TopTable
from zfscope.analyses.members import check_prepares
from zfscope.analyses.question import Metric, Question, Result, at_most, percent, readable_inputs, reader
from zfscope.console import progress
from zfscope.data.datamodule import Examples
from zfscope.data.loader import Loader
from zfscope.deconvnet.choice import told
from zfscope.deconvnet.winners import TopActivationsHook, check_projectable, project_winners, random_subset
from zfscope.diagnostics import (
    Diagnosis,
    MapWatch,
    dead_maps,
    filter_frequencies,
    first_filters,
    grid_score,
    near_dead_maps,
)
from zfscope.figures import diagnostics_sheet
from zfscope.images import contrast_limits, to_tiles
from zfscope.networks.checkpoints import load_network, run_config
from zfscope.networks.layers import filter_rms
from zfscope.networks.network import Network, evaluating
from zfscope.schema import about

TOP = 9  # winners of each map whose projections are scored
SHOWN = 24  # maps in the picture


def analyse(question: Question) -> Result:
    """Dead maps, shares of energy, grid scores, RMS of filters.

    With ``analysis.other`` the same of that checkpoint, under ``other/…``, on the same images, each network with its
    own preprocessing. ``arrays.npz`` holds ``ranges/<layer> (2, C)``, ``frequencies/<band> (C,)``, ``maps (M,)`` and
    ``tiles (M, 3, h, w)``.
    """
    options, images = question.options, question.images
    networks = {"": (question.checkpoint, question.network)}
    if options.other is not None:
        with about("analysis.other", options.other):
            networks["other/"] = (options.other, load_network(options.other).to(question.device))
            check_prepares(networks["other/"][1], options.other)
    count = len(images) if options.images is None else at_most(options.images, len(images), "analysis.images")
    subset = random_subset(len(images), count, options.seed).tolist()
    diagnoses, measured, arrays = [], {}, {}
    for prefix, (source, network) in networks.items():
        examples = question.inputs(images, network=network)
        loader = Loader(Subset(examples, subset), options.batch_size, num_workers=question.data.num_workers)
        diagnosis = diagnose(network, source, loader, options.maps, options.seed)
        diagnoses.append(diagnosis)
        radius = run_config(source).get("model", {}).get("filter_rms")
        measured[prefix] = scores(diagnosis) | filters_at_radius(network, radius)
        arrays |= {f"{prefix}{name}": part.numpy() for name, part in _arrays(diagnosis).items()}
    # One beside the other, as far as both have it.
    names = dict.fromkeys(name for metrics in measured.values() for name in metrics)
    metrics = {prefix + name: own[name] for name in names for prefix, own in measured.items() if name in own}
    return Result(metrics, arrays, {"diagnostics": diagnostics_sheet(diagnoses)})


def diagnose(network: Network, name: str, loader: DataLoader, maps: int, seed: int) -> Diagnosis:
    """Look at one network in one pass over the images, and once more at those that won.

    ``loader`` gives batches ``(inputs, label, index)``; its data set is a ``Subset`` of data with these indices. At
    most ``maps`` feature maps of the second layer, a random subset, are projected; ``missing`` says why none could be.
    """
    examples = loader.dataset.dataset
    parts: dict[str, Any] = {"missing": "there is no second layer with feature maps to project"}
    second = []
    try:
        if len(network.layers_with_maps) > 1:
            _, image = next(readable_inputs(examples, loader.dataset.indices))
            second = list(check_projectable(network, network.layers_with_maps[1:2], image))
            parts["rule"] = told(network, second[0], image[None])
    except ValueError as error:
        parts["missing"] = str(error)
    watch, top = MapWatch(network), TopActivationsHook(network, second, TOP)
    try:
        with evaluating(network), torch.inference_mode():
            for inputs, _, top.indices in progress(loader, f"Looking at {name}"):
                network(inputs.to(network.device, memory_format=torch.channels_last))
    finally:
        top.close()
        watch.close()
    first = first_filters(network)
    if first is not None:
        layer, conv = first
        weight = conv.weight.detach().float().cpu()
        parts |= {"first": layer, "filters": weight, "stride": max(conv.stride)}
        parts["frequencies"] = filter_frequencies(weight, conv.stride)
    if second:
        table = TopTable(*(part.clone().cpu() for part in top.top.compute()[second[0]]))
        parts |= _projected(network, second[0], table, examples, maps, seed)
    return Diagnosis(name, {layer: metric.compute().cpu() for layer, metric in watch.ranges.items()}, **parts)


def scores(diagnosis: Diagnosis) -> dict[str, Metric]:
    """The numbers of a diagnosis as metrics; shares of energy are medians over filters."""
    metrics: dict[str, Metric] = {}
    for layer, ranges in diagnosis.ranges.items():
        for name, which in (("dead_maps", dead_maps(ranges)), ("near_dead_maps", near_dead_maps(ranges))):
            metrics[f"{layer}/{name}"] = {"value": int(which.sum()), "unit": f"of {len(which)}"}
    if diagnosis.first is not None:
        shares = {
            f"{band}_frequency_energy": getattr(diagnosis.frequencies, band) for band in ("low", "middle", "high")
        }
        for name, share in {**shares, "energy_beyond_stride": diagnosis.frequencies.beyond_stride}.items():
            metrics[f"{diagnosis.first}/{name}"] = percent(100 * share.nanmedian())
    for period, grid in diagnosis.grids.items():
        metrics[f"{diagnosis.second}/grid_{period}px"] = {"value": grid.score, "unit": ""}
        metrics[f"{diagnosis.second}/grid_{period}px_by_chance"] = {"value": grid.chance, "unit": ""}
    return metrics


def filters_at_radius(network: Network, radius: float | None) -> dict[str, Metric]:
    """Largest RMS of each layer's filters; how many are at the radius that training kept them within, if it did.

    ``<layer>/filter_dominance`` is the largest RMS over the median one: how far one filter stands out.
    """
    metrics = {}
    for layer, conv in network.conv_modules.items():
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
    winners = project_winners(network, {layer: table}, {layer: numbers}, reader(examples))
    batches = list(progress(winners, f"Projecting {layer}"))
    if not batches:
        return {"missing": f"{layer}: all of {len(numbers)} maps are dead"}
    rows, ranks, projections, boxes = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("rows", "ranks", "projections", "boxes")
    )
    strongest = (ranks == 0).nonzero().squeeze(1)
    strongest = strongest[rows[strongest].argsort()][:SHOWN]
    shown = projections[strongest]
    first, side = first_filters(network), projections.shape[-1]
    field = network.receptive_field(network.layers[0], side)
    periods = dict.fromkeys([max(first[1].stride) if first else 1, field.stride])
    return {
        "second": layer,
        "maps": numbers[rows[strongest]],
        "tiles": to_tiles(shown, limit=contrast_limits(shown)),
        "scored": len(rows.unique()),
        "grids": {
            period: grid_score(projections, boxes[:, :2], period) for period in periods if 2 <= period <= side // 2
        },
        "missing": "",
    }


def _arrays(diagnosis: Diagnosis) -> dict[str, Tensor]:
    arrays = {f"ranges/{layer}": ranges for layer, ranges in diagnosis.ranges.items()}
    if diagnosis.first is not None:
        arrays |= {f"frequencies/{band}": share for band, share in vars(diagnosis.frequencies).items()}
    return arrays if diagnosis.second is None else {**arrays, "maps": diagnosis.maps, "tiles": diagnosis.tiles}
