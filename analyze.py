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
from zfscope.analyses.evaluate import evaluate
from zfscope.analyses.evolution import evolution
from zfscope.analyses.invariance import invariance
from zfscope.analyses.occlusion import occlusion
from zfscope.analyses.projections import projections
from zfscope.checkpoints import load_network, run_config
from zfscope.config import AnalyzeConfig, DataConfig, check
from zfscope.data.datamodule import ImageData, open_data
from zfscope.preprocessing import Preprocessing
from zfscope.runs import Busy, lock, remove_unused, write_results
from zfscope.tables import results_table

ANALYSES = {
    "evaluate": evaluate,
    "projections": projections,
    "evolution": evolution,
    "occlusion": occlusion,
    "invariance": invariance,
    "correspondence": correspondence,
    "diagnostics": diagnostics,
}


@hydra.main(version_base="1.3", config_path=CONF, config_name="analyze")
def main(values: DictConfig) -> None:
    """One analysis of one checkpoint."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        config = check(AnalyzeConfig, OmegaConf.to_container(values, resolve=True, throw_on_missing=True))
        with lock(folder):
            analyze(config, folder)
    except REFUSALS as error:
        if not isinstance(error, Busy):
            remove_unused(folder)
        refuse(error)


def analyze(config: AnalyzeConfig, folder: Path) -> None:
    """Load the network and its data, run the analysis, save and print what it found."""
    device = find_device(config.device)
    network = load_network(config.checkpoint)
    run = run_config(config.checkpoint)
    data = find_data(config, run.get("data", {}), network.preprocessing)
    found = ANALYSES[config.analysis.name](network, data, config, device, folder)
    paper = run.get("paper", {})
    metrics = {name: {"paper": paper.get(name), **metric} for name, metric in found.items()}
    conditions = {"checkpoint": str(config.checkpoint), "data": data.config.name if data else None}
    own = {"image": config.image} if config.image else {}
    conditions |= own | config.analysis.model_dump(exclude={"images", "indices"} if own else None)
    write_results(folder, metrics, conditions)
    console.print(results_table(metrics, str(config.checkpoint)))
    console.print(f"saved in {folder}", markup=False)


def find_data(config: AnalyzeConfig, known: Mapping[str, Any], preprocessing: Preprocessing) -> ImageData | None:
    """The run's data, changed by the command line; with images of one's own None where there are none."""
    own = config.image or getattr(config.analysis, "boxes", None)
    given = {name: value for name, value in config.data.items() if value is not None}
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
