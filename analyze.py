"""Ask a trained network a question: compose -> validate -> load -> one analysis -> save (python analyze.py --help)."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from train import CONF, REFUSALS, console, refuse, run_command
from zfscope.analyses.evaluate import evaluate
from zfscope.analyses.evolution import evolution
from zfscope.analyses.projections import projections
from zfscope.checkpoints import load_network, run_config
from zfscope.config import AnalyzeConfig, DataConfig, check
from zfscope.data.datamodule import ImageData, open_data
from zfscope.runs import Busy, lock, remove_unused, write_results
from zfscope.tables import results_table

ANALYSES = {"evaluate": evaluate, "projections": projections, "evolution": evolution}


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
    given = {name: value for name, value in config.data.items() if value is not None}
    preprocessing = network.preprocessing
    sizes = {"resize": preprocessing.resize, "crop": preprocessing.crop} if preprocessing else {}
    data_config = check(DataConfig, {**run.get("data", {}), **sizes, **given, "batch_size": 1}, "data")
    data = ImageData(open_data(data_config), data_config, preprocessing)
    found = ANALYSES[config.analysis.name](network, data, config, device, folder)
    paper = run.get("paper", {})
    metrics = {name: {**metric, "paper": paper.get(name)} for name, metric in found.items()}
    conditions = {"checkpoint": str(config.checkpoint), "data": data_config.name, **config.analysis.model_dump()}
    write_results(folder, metrics, conditions)
    console.print(results_table(metrics, str(config.checkpoint)))
    console.print(f"saved in {folder}", markup=False)


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
