"""Train a network: compose -> validate -> seed -> build -> fit -> evaluate (python train.py --help)."""

from __future__ import annotations

import ctypes
import importlib
import inspect
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import hydra
import lightning
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from zfscope.callbacks import FilterRenorm
from zfscope.callbacks.loggers import build_logger, finish
from zfscope.console import map_sizes_of, network_table, parameters_of, results_table, sweep_table
from zfscope.data.datamodule import ImageData, open_data, workers_for
from zfscope.data.statistics import statistics_of
from zfscope.evaluation import error_metrics, predict
from zfscope.networks.build import build_network
from zfscope.networks.checkpoints import check_same_data, find_checkpoint, load_network, start_from
from zfscope.runs import RunFolderLocked, identity, lock, read_results, remove_unused, write_results
from zfscope.schema import check, nearest
from zfscope.training.checkpointing import BestCheckpoint, CheckpointFiles, EpochCheckpoints, LastCheckpoint
from zfscope.training.classifier import Classifier
from zfscope.training.progress import build_progress
from zfscope.training.spec import TrainConfig, check_targets

# What a person can mend: told in one line, without a traceback (HYDRA_FULL_ERROR=1 shows it).
REFUSALS = (
    *(ValueError, TypeError, OSError, ImportError),
    *(HydraException, OmegaConfBaseException, MisconfigurationException),
)
# Keywords of the Trainer that this project sets itself.
OURS = ("callbacks", "logger", "plugins", "default_root_dir", "enable_progress_bar", "enable_checkpointing")
CONF = str(Path(__file__).parent / "conf")
SHOW_ALL = os.environ.get("HYDRA_FULL_ERROR") == "1"
console = Console()
# Lightning's hints about devices and products of its maker are no news to anyone.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings(
    "ignore", message=".*(does not have many workers|exists and is not empty|LeafSpec|the logging interval).*"
)


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def main(values: DictConfig) -> float:
    """One run; in a sweep a failure is this job's alone and stands in its results."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    overrides = OmegaConf.to_container(job.overrides.task, resolve=False)  # as typed: ${oc.env:…} may hold a secret
    in_sweep = job.mode == RunMode.MULTIRUN
    try:
        config = check(TrainConfig, OmegaConf.to_container(values, resolve=True))
        if in_sweep and config.trainer.model_dump().get("strategy") == "ddp":
            raise ValueError("DDP starts the whole sweep anew on each rank; use +trainer.strategy=ddp_spawn in sweeps")
        group = config.group or (Path(job.sweep.dir).name if in_sweep else None)
        with lock(folder) if rank_zero_only.rank == 0 else nullcontext():  # DDP's other ranks share its folder
            return train(config, folder, overrides, group)
    except Exception as error:
        if not in_sweep:
            if not isinstance(error, REFUSALS):
                raise
            if not isinstance(error, RunFolderLocked):
                remove_unused(folder)
            refuse(error)
        cause = one_line(error)
        console.print(f"job {job.job.num} failed: {cause}", style="red", markup=False)
        write_results(folder, {}, {"overrides": overrides}, state="failed", cause=cause)
        return float("nan")


def train(config: TrainConfig, folder: Path, overrides: Sequence[str], group: str | None) -> float:
    """Build everything that the config names, fit, evaluate; returns the best validation error in percent."""
    check_targets(config.callbacks, config.trust)
    check_trainer(config)
    keep_memory()
    lightning.seed_everything(config.seed, workers=True, verbose=False)

    splits = open_data(config.data)
    workers = workers_for(splits.train, config.data)
    statistics = statistics_of(
        splits.train, config.data.resize, config.data.cache, most=config.data.mean_images, num_workers=workers
    )
    torch.manual_seed(config.seed)  # measuring a data set draws numbers, reading what was measured does not
    network = build_network(config.model, len(splits.train.classes), config.data.crop)
    network.classes = splits.train.classes
    network.preprocessing = statistics.preprocessing(config.data.crop, config.model.input_scale)
    if config.weights:
        fresh = start_from(network, config.weights)
        console.print(f"weights from {config.weights}" + (f", but {', '.join(fresh)} start fresh" if fresh else ""))
    data = ImageData(splits, config.data, network.preprocessing, config.seed, statistics)
    classifier = Classifier(
        network,
        config.optim,
        seed=config.seed,
        config=config.model_dump(),
        data=splits.train.fingerprint,
        multilabel=splits.train.labels.ndim == 2,
    )
    last = None
    if config.resume:
        last = find_checkpoint(folder / "last")
        check_same_data(last, splits.train.fingerprint)
        kept = [each for each in overrides if override_key(each) != "resume"]
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(kept))
    console.print(network_table(network))

    best = BestCheckpoint(folder / "checkpoints", classifier.monitor)
    # Without its logger first: what the Trainer refuses shall leave no half-made run behind.
    trainer = lightning.Trainer(
        **{**device_options(config.device), **config.trainer.model_dump(exclude_unset=True)},
        callbacks=build_callbacks(config, best, folder),
        logger=False,
        enable_progress_bar=sys.stdout.isatty(),
        plugins=[CheckpointFiles()],
        default_root_dir=folder,
    )
    logger = build_logger(
        config.logger.name if not trainer.fast_dev_run else "none",
        folder,
        name=config.name or run_name(overrides, config),
        group=group,
        tags=[*config.tags, *overrides],
        config=config.model_dump(),
        mode=config.logger.mode,
        project=config.logger.project,
        run_id=identity(folder),
        entity=config.logger.entity,
        log_model=config.logger.log_model,
    )
    trainer.loggers = [logger] if logger else []
    code, since = 1, time.monotonic()
    try:
        trainer.fit(classifier, data, ckpt_path=last, weights_only=True)
        seconds = time.monotonic() - since
        metrics = measured(config, folder, trainer, best, data)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            conditions = {
                "overrides": list(overrides),
                "data": config.data.name,
                "images": {part: len(images) for part, images in splits.parts.items()},
                "seed": config.seed,
                "epochs": trainer.current_epoch,
                "map_sizes": map_sizes_of(network),
                "parameters": parameters_of(network),
                "seconds": round(seconds, 1),  # of training with its validations and pictures
            }
            write_results(folder, metrics, conditions)
            console.print(results_table(metrics, str(folder)))
            for each in trainer.loggers:
                each.log_metrics({f"final/{name}": metric["value"] for name, metric in metrics.items()})
        code = 0
    finally:
        line = finish(logger, code)
        if line:
            console.print(line, soft_wrap=True, markup=False)
    return float(best.best_model_score) if best.best_model_score is not None else float("nan")


def measured(
    config: TrainConfig, folder: Path, trainer: lightning.Trainer, best: BestCheckpoint, data: ImageData
) -> dict[str, Any]:
    """Errors of training, of validation at the best epoch, and of the best checkpoint on the held-out images."""
    if trainer.fast_dev_run or not trainer.is_global_zero:
        return {}
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/top")}
    if best.best_model_score is not None:
        found[best.monitor] = float(best.best_model_score)
    if config.evaluate.enabled:
        part, images = ("test", data.splits.test) if data.splits.test is not None else ("val", data.splits.val)
        batches = data.canvases(images, config.data.batch_size)
        predictions = predict(
            load_network(folder / "last" if config.evaluate.checkpoint == "last" else folder),
            batches,
            crops=config.evaluate.ten_crops,
            device=trainer.strategy.root_device,
            total=len(batches),
        )
        found.update(error_metrics(predictions, part))
    return {
        name: {"value": value, "unit": "%" if not name.endswith("loss") else "nats", "paper": config.paper.get(name)}
        for name, value in found.items()
    }


def build_callbacks(config: TrainConfig, best: BestCheckpoint, folder: Path) -> list[Callback]:
    """Renormalisation first, so that averages see it; pictures before averages step back after a validation."""
    callbacks: list[Callback] = [build_progress()]
    if config.model.filter_rms is not None:
        callbacks.append(FilterRenorm(config.model.filter_rms))
    for options in config.callbacks.values():
        if options is not None:
            options = dict(options)
            module, _, name = options.pop("_target_").rpartition(".")
            found = getattr(importlib.import_module(module), name, None)
            if found is None:
                raise ValueError(f"{module} has no {name}; mend the callback's _target_")
            callbacks.append(found(**options))
    if config.optim.ema is not None:
        callbacks.append(EMAWeightAveraging(decay=config.optim.ema.decay))
    last = LastCheckpoint(folder / "checkpoints", config.checkpoints.every_n_steps)
    return [*callbacks, best, EpochCheckpoints(folder / "checkpoints", config.checkpoints.epochs), last]


def keep_memory() -> None:
    """Let glibc keep freed blocks instead of handing each back to the kernel.

    On a CPU every step allocates the same large maps anew; clearing fresh pages for them took a quarter to a
    third of a step of zfnet_mini. Other C libraries have no mallopt and go on as they are.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**28)


def check_trainer(config: TrainConfig) -> None:
    """Refuse a keyword that Lightning's Trainer has not, or that this project sets itself."""
    known = [name for name in inspect.signature(lightning.Trainer.__init__).parameters if name != "self"]
    for name in config.trainer.model_dump(exclude_unset=True):
        if name in OURS:
            raise ValueError(f"trainer.{name} is set by this project; see conf/callbacks, conf/logger, hydra.run.dir")
        if name not in known:
            raise ValueError(f"trainer.{name}: lightning.Trainer has no such keyword; {nearest(name, known)}")


def device_options(device: str) -> dict[str, Any]:
    """``device=auto|cpu|mps|cuda|cuda:1`` as the Trainer's accelerator and devices; conf/trainer may say otherwise."""
    kind, _, number = device.partition(":")
    return {"accelerator": kind, "devices": [int(number)] if number else 1}


def run_name(overrides: Sequence[str], config: TrainConfig) -> str:
    """A run's name in W&B: its overrides, or what it trains on what."""
    named = [override for override in overrides if not override.startswith(("hydra.", "resume=", "logger"))]
    return " ".join(named) or f"{config.model.name} {config.data.name}"


def resumed(arguments: Sequence[str]) -> list[str]:
    """``resume=RUN``: the overrides that RUN was started with, the new ones, and RUN as the run folder."""
    runs = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
    if not runs or runs[-1] == "null":
        return list(arguments)
    folder = Path(runs[-1])
    stored = folder / ".hydra" / "overrides.yaml"
    if not stored.is_file():
        raise FileNotFoundError(f"resume={folder}: no run there ({stored} is missing); give the folder of a run")
    new = {override_key(argument) for argument in arguments}
    kept = [each for each in yaml.safe_load(stored.read_text()) if override_key(each) not in new]
    # Hydra would note the new overrides before they are checked; train() does, after.
    return [*kept, *arguments, f'hydra.run.dir="{folder}"', "hydra.output_subdir=null"]


def override_key(override: str) -> str:
    """The key of ``key=value``, ``+key=value`` or ``~key``."""
    return override.lstrip("+~").partition("=")[0]


def one_line(error: BaseException) -> str:
    """An error as one line; what a loader's process raised is found at the end of its report."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught ") and len(lines) > 1:
        return lines[-1].partition(": ")[2] or lines[-1]
    if isinstance(error, HydraException | OmegaConfBaseException):
        return " ".join(lines)
    return lines[0]


def refuse(error: Exception) -> NoReturn:
    """Tell in one line what a person can mend, and leave with exit code 2; HYDRA_FULL_ERROR=1 shows all."""
    if SHOW_ALL:
        raise error
    print(f"{Path(sys.argv[0]).name}: {one_line(error)}", file=sys.stderr)
    sys.exit(2)


def run_command(job: Callable[[], Any], config_name: str) -> Any:
    """Call a Hydra job; what Hydra refuses to compose becomes one line, with the nearest name."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing a page and leaving with 1
    try:
        return job()
    except REFUSALS as error:
        unknown = re.search(r"Could not override '([^']+)'", str(error))
        refuse(ValueError(unknown_key(unknown[1], config_name)) if unknown and not SHOW_ALL else error)


def unknown_key(key: str, config_name: str) -> str:
    """What to tell about an override of a key that is not there: the nearest one that is."""
    overrides = [each for each in sys.argv[1:] if "=" in each and override_key(each) != key]
    with initialize_config_dir(CONF, version_base="1.3"):
        try:
            node: Any = compose(config_name, [each for each in overrides if not each.startswith("hydra.")])
        except HydraException:  # another mistake beside this one, or a sweep's comma
            node = compose(config_name)
    *path, last = key.split(".")
    while path and isinstance(node, DictConfig) and path[0] in node:
        node = node[path.pop(0)]
    last = path[0] if path else last
    known = [str(name) for name in node] if isinstance(node, DictConfig) else []
    way_out = "; a further keyword of the Trainer is written +trainer.NAME=…" if key.startswith("trainer.") else ""
    return f"{key}: there is no key {last!r}; {nearest(last, known)}{way_out}"


def run_training() -> int:
    """The command: resume or sweep as the arguments say; a sweep ends with a table, and with 1 if a job failed."""
    sys.argv[1:] = resumed(sys.argv[1:])
    sweep = None
    if {"-m", "--multirun"} & set(sys.argv[1:]):
        given = [argument.partition("=")[2] for argument in sys.argv if override_key(argument) == "hydra.sweep.dir"]
        sweep = Path(given[-1] if given else f"outputs/sweeps/{datetime.now():%Y-%m-%d_%H-%M-%S}")
        if not given:
            sys.argv.append(f"hydra.sweep.dir={sweep}")
    for name in [each.partition("=")[2] for each in sys.argv if override_key(each) == "experiment"]:
        file = Path(CONF, "experiment", f"{name}.yaml")
        if file.is_file() and "# python analyze.py" in file.read_text():
            raise ValueError(f"experiment={name} asks a trained network: python analyze.py experiment={name} …")
    resuming = any(override_key(each) == "resume" for each in sys.argv)
    for folder in [each.partition("=")[2] for each in sys.argv if override_key(each) == "hydra.run.dir"]:
        if (Path(folder) / "checkpoints").exists() and not resuming:
            raise ValueError(f"hydra.run.dir={folder} holds a run; go on with resume={folder}, or choose another")
    main()
    if sweep is None or not sweep.is_dir():
        return 0
    folders = sorted((entry for entry in sweep.iterdir() if entry.name.isdigit()), key=lambda entry: int(entry.name))
    jobs = [read_results(folder) or {} for folder in folders]
    console.print(sweep_table(jobs))
    return int(any(job.get("state") != "finished" for job in jobs))


if __name__ == "__main__":
    sys.exit(run_command(run_training, "train"))
