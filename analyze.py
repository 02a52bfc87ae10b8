"""Ask a trained network a question: compose -> validate -> load -> one analysis -> save (python analyze.py --help)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from train import CONF, REFUSALS, console, refuse, run_command
from zfscope.analyses.correspondence import correspondence
from zfscope.analyses.diagnostics import diagnostics
from zfscope.analyses.ensemble import Member, ensemble, open_members
from zfscope.analyses.evaluate import evaluate
from zfscope.analyses.evolution import evolution
from zfscope.analyses.invariance import invariance
from zfscope.analyses.ledger import ledger
from zfscope.analyses.occlusion import occlusion
from zfscope.analyses.overlap import overlap
from zfscope.analyses.probes import probes
from zfscope.analyses.projections import projections
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.analyses.transfer import transfer
from zfscope.console import results_table
from zfscope.data.datamodule import ImageData, open_data
from zfscope.data.spec import DataConfig
from zfscope.networks.checkpoints import load_network, run_config
from zfscope.networks.network import Network
from zfscope.networks.preprocessing import Preprocessing
from zfscope.runs import RunFolderLocked, lock, remove_unused, write_results
from zfscope.schema import check

ANALYSES = {
    "evaluate": evaluate,
    "projections": projections,
    "evolution": evolution,
    "occlusion": occlusion,
    "invariance": invariance,
    "correspondence": correspondence,
    "diagnostics": diagnostics,
    "ensemble": ensemble,
    "transfer": transfer,
    "probes": probes,
    "overlap": overlap,
    "ledger": ledger,
}


@hydra.main(version_base="1.3", config_path=CONF, config_name="analyze")
def main(values: DictConfig) -> None:
    """One analysis."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        config = check(AnalyzeConfig, OmegaConf.to_container(values, resolve=True, throw_on_missing=True))
        with lock(folder):
            analyze(config, folder)
    except REFUSALS as error:
        if not isinstance(error, RunFolderLocked):
            remove_unused(folder)
        refuse(error)


def analyze(config: AnalyzeConfig, folder: Path) -> None:
    """Load what is asked about and its data, run the analysis, save and print what it found."""
    device = find_device(config.device)
    subject, run, preprocessing = find_subject(config)
    data = find_data(config, run.get("data", {}), preprocessing)
    found = ANALYSES[config.analysis.name](subject, data, config, device, folder)
    paper = run.get("paper", {})
    metrics = {name: {"paper": paper.get(name), **metric} for name, metric in found.items()}
    conditions = conditions_of(config, run, data)
    write_results(folder, metrics, conditions)
    shown = {name: metric for name, metric in metrics.items() if metric["value"] is not None}
    title = config.analysis.name if config.checkpoint is None else str(config.checkpoint)
    console.print(results_table(shown, title))
    console.print(f"saved in {folder}", markup=False)


def find_subject(
    config: AnalyzeConfig,
) -> tuple[Network | list[Member] | None, dict[str, Any], Preprocessing | None]:
    """What is asked about: a network, members of an ensemble, or none; with its run's config and preprocessing."""
    if config.checkpoint is None:
        return None, {}, None
    if config.analysis.name == "ensemble":
        members = open_members(config.checkpoint, config.analysis.partial)
        largest = max(members, key=lambda member: member.network.preprocessing.resize)
        return members, dict(members[0].config), largest.network.preprocessing  # data may be read at that size
    network = load_network(config.checkpoint)
    return network, run_config(config.checkpoint), network.preprocessing


def conditions_of(config: AnalyzeConfig, run: Mapping[str, Any], data: ImageData | None) -> dict[str, Any]:
    """Under which the numbers were found: the checkpoint with its run's seed and epochs, the data, the analysis."""
    given = config.checkpoint
    conditions = {
        "checkpoint": given if given is None or isinstance(given, str) else list(given),
        "data": data.config.name if data else None,
        **(narrowed(data.config.model_dump()) if data else {}),
        "run": {
            "seed": run.get("seed"),
            "epochs": run.get("optim", {}).get("epochs"),
            "model": run.get("model", {}).get("name"),
            "data": run.get("data", {}).get("name"),
            **narrowed(run.get("data", {})),
            "stem": stem_of(run.get("model", {})),
            "filter_rms": run.get("model", {}).get("filter_rms"),
        }
        if run
        else None,
    }
    own = {"image": config.image} if config.image else {}
    return conditions | own | config.analysis.model_dump(exclude={"images", "indices"} if own else None)


def narrowed(data: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a data set smaller than its name says: classes, cells, left-out images."""
    return {key: data[key] for key in ("classes", "cells", "exclude") if data.get(key) is not None}


def stem_of(model: Mapping[str, Any]) -> str | None:
    """The first layer's filters, such as ``7x7/2``; None where the paper's layers are not there."""
    first = model.get("conv1")
    return None if first is None else "{0}x{0}/{1}".format(first["kernel_size"], first["stride"])


def find_data(config: AnalyzeConfig, known: Mapping[str, Any], preprocessing: Preprocessing | None) -> ImageData | None:
    """The run's data, changed by the command line; with images of one's own None where there are none.

    Another data set than the run's starts from its own defaults: the run's classes or splits say nothing about it.
    """
    if config.analysis.name == "ledger":
        return None
    own = config.image or getattr(config.analysis, "boxes", None)
    given = {name: value for name, value in config.data.items() if value is not None}
    if given.get("name", known.get("name")) != known.get("name"):
        known = {name: known[name] for name in ("cache", "num_workers") if name in known}
    sizes = {"resize": preprocessing.resize, "crop": preprocessing.crop} if preprocessing else {}
    try:
        data_config = check(DataConfig, {**known, **sizes, **given, "batch_size": 1}, "data")
        return ImageData(open_data(data_config), data_config, preprocessing)
    except (ValueError, OSError, ImportError) as error:
        if own is None or given:
            raise
        console.print(f"only {own} is looked at: {error}", markup=False)
        return None


def find_device(name: str) -> torch.device:
    """The device of that name, the first accelerator there is for ``auto``; refuses one that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = name.partition(":")[0]
    if kind == "auto":
        return torch.device(next(each for each, available in there.items() if available))
    if not there[kind]:
        raise ValueError(f"device={name}: this machine has none; use device=auto or device=cpu")
    return torch.device(name)


if __name__ == "__main__":
    sys.exit(run_command(main, "analyze"))
