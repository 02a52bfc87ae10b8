"""One training: seed -> build -> fit -> evaluate, in a run folder."""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, WeightAveraging

from zfscope.callbacks import FilterRenorm
from zfscope.callbacks.loggers import run_logger
from zfscope.console import console, network_table, results_table
from zfscope.data.datamodule import ImageData, open_data
from zfscope.data.order import check_batch_size
from zfscope.data.quarantine import counts
from zfscope.data.splits import Splits
from zfscope.evaluation import error_metrics, predict
from zfscope.files import write_text
from zfscope.networks.build import build_network
from zfscope.networks.checkpoints import check_same_data, load_network, recorded_preprocessing, start_from
from zfscope.networks.devices import keep_memory
from zfscope.networks.network import count_parameters
from zfscope.report.conditions import stand_in
from zfscope.report.paper import numbers_of
from zfscope.report.readings import TRAINING, Run
from zfscope.runs import environment, read_results, write_results
from zfscope.schema import about
from zfscope.secrets import is_from_environment
from zfscope.training.averaging import CurrentUntilAveraged
from zfscope.training.callbacks import check_monitors, configured_callbacks
from zfscope.training.checkpointing import (
    BestCheckpoint,
    CheckpointFiles,
    EpochCheckpoints,
    LastCheckpoint,
    announce_room,
    find_resumable,
)
from zfscope.training.classifier import Classifier, metric_names
from zfscope.training.identity import check_batches, check_environment, end_of, training_identity
from zfscope.training.images import examine, note_unreadable, recall_sizes, sizes_of_unread, telling_how_to_go_on
from zfscope.training.optimisers import warn_of_decay
from zfscope.training.progress import build_progress, why_stopped
from zfscope.training.ranks import ranks_together
from zfscope.training.spec import FIXED_KEYS, TrainConfig
from zfscope.training.trainer import check_trainer, environment_plugins, synchronise_batch_norm, trainer_keywords


def train(
    config: TrainConfig,
    folder: Path,
    overrides: Sequence[str] = (),
    group: str | None = None,
    accepted: Callable[[], None] | None = None,
) -> float:
    """Build everything that the config names, fit, evaluate.

    ``overrides`` are what was typed, for the run's name and its results; runs of one sweep share a ``group`` in W&B,
    where the config names none;
    ``accepted`` is called when nothing was refused, before the first step.
    Returns the best validation error in percent; NaN where none was measured.
    """
    quiet_lightning()
    ranks = check_trainer(config)
    paper = numbers_of(config.paper)
    keep_memory()
    lightning.seed_everything(config.seed, workers=True, verbose=False)

    recorded = config.recorded()
    splits = open_data(config.data)
    check_batch_size(config.data.batch_size, len(splits.train))
    check_monitors(config, metric_names(len(splits.train.classes), splits.train.labels.ndim == 2))
    torch.manual_seed(config.seed)
    network = build_network(config.model, len(splits.train.classes), config.data.crop)
    network.classes = splits.train.classes
    if config.weights and not config.resume:  # refused before the images are measured, which may take long
        with about("weights", config.weights):
            fresh = start_from(network, config.weights, config.weights_file)
        console.print(
            f"weights from {config.weights_file or config.weights}"
            + (f", but {', '.join(fresh)} start fresh" if fresh else "")
        )
    last, checkpoint = None, None
    if config.resume:
        with about("resume", config.resume):
            last, checkpoint = find_resumable(Path(config.resume))
            recall_sizes(splits, checkpoint)
        if config.weights:  # they may be gone: all that they brought is in the checkpoint
            network.preprocessing = recorded_preprocessing(checkpoint, last)
    fingerprint = splits.train.fingerprint
    if checkpoint is not None:
        check_same_data(checkpoint, last, fingerprint)
        check_batches(checkpoint, last)
    identity = identity_of(config, splits, checkpoint, last)
    if checkpoint is not None and has_finished(config, folder, checkpoint):
        steps = f"{folder} has finished after {checkpoint['global_step']} steps"
        console.print(f"{steps}; with a later end it goes on: trainer.max_epochs=…", markup=False, soft_wrap=True)
        return float("nan")
    statistics, contents = examine(splits, config.data, folder, checkpoint, last)
    del checkpoint
    if network.preprocessing is None:
        network.preprocessing = statistics.preprocessing(
            config.data.crop, config.model.input_scale, config.data.resizer
        )
    if ranks > 1:
        synchronise_batch_norm(network, config)
    data = ImageData(splits, config.data, network.preprocessing, config.seed, statistics)
    classifier = Classifier(
        network,
        config.optim,
        seed=config.seed,
        config=recorded,
        model=config.model.model_dump() | ({"name": recorded["model"]["name"]} if config.model.name_is_free else {}),
        data=fingerprint,
        identity=identity,
        contents={part: torch.from_numpy(contents[part]) for part in ("train", "val")},
        unread=sizes_of_unread(splits),
        multilabel=splits.train.labels.ndim == 2,
    )
    console.print(network_table(network.summary(), count_parameters(network), network.image_size))
    warn_of_decay(config.optim)
    if not config.trainer.model_dump().get("fast_dev_run"):
        announce_room(config, network, folder)

    best = BestCheckpoint(folder / "checkpoints", classifier.monitor)
    # Without its logger first: what the Trainer refuses shall leave no half-made run behind.
    trainer = lightning.Trainer(
        **trainer_keywords(config),
        callbacks=build_callbacks(config, best, folder),
        logger=False,
        enable_progress_bar=sys.stdout.isatty(),
        plugins=[CheckpointFiles(), *environment_plugins(config)],
        default_root_dir=folder,
    )
    for callback in trainer.callbacks:  # likewise what was typed for a picture that cannot be drawn
        if hasattr(callback, "refuse"):
            callback.refuse(classifier, torch.zeros(3, config.data.crop, config.data.crop))
    named = recorded["name"] or run_name(overrides, config)
    options = config.logger.model_dump() | ({"name": "none"} if trainer.fast_dev_run else {})
    tags = [*recorded["tags"], *overrides]
    labels = {"name": named, "group": recorded["group"] or group, "tags": tags, "config": recorded}
    with telling_how_to_go_on(folder), ranks_together(trainer), run_logger(options, folder, **labels) as logger:
        trainer.loggers = [logger] if logger else []
        if accepted is not None:
            accepted()
        note_unreadable(splits, classifier.contents, config.data.check, folder if trainer.is_global_zero else None)
        since = time.monotonic()
        trainer.fit(classifier, data, ckpt_path=last, weights_only=True)
        seconds = time.monotonic() - since + classifier.seconds_before
        if trainer.is_global_zero and (reason := why_stopped(trainer)):
            console.print(reason, markup=False, highlight=False, soft_wrap=True)
        if trainer.is_global_zero and (profile := trainer.profiler.summary()):
            write_text(folder / "profile.txt", profile)
            console.print(profile, markup=False, highlight=False, soft_wrap=True)
        evaluated = config.evaluate.checkpoint if best.best_model_score is not None else "last"
        metrics = final_metrics(config, folder, trainer, best, data, paper, evaluated)
        if trainer.is_global_zero and trainer.fast_dev_run:
            write_results(folder, {}, {"overrides": list(overrides)})
        elif trainer.is_global_zero:
            conditions = {
                "overrides": list(overrides),
                "data": config.data.name,
                "images": {part: len(images) for part, images in splits.parts.items()},
                "quarantined": counts(splits),
                "seed": config.seed,
                "epochs": trainer.current_epoch,
                "map_sizes": network.map_sizes,
                "parameters": count_parameters(network),
                "seconds": round(seconds, 1),  # of training with its validations and pictures
                "identity": identity,
                "environment": environment(trainer.strategy.root_device, trainer.precision),
            }
            if config.evaluate.enabled:
                conditions["evaluated"] = evaluated
            if paper:
                conditions["stand_in"] = stand_in(Run(str(folder), TRAINING, metrics, conditions), config.paper)
            write_results(folder, metrics, conditions)
            console.print(results_table(metrics, str(folder), conditions.get("stand_in")))
            tested = f", test/… of {evaluated}.ckpt" if any(name.startswith("test/") for name in metrics) else ""
            best_one = ", val/… of the best one" if best.best_model_score is not None else ""
            console.print(f"train/… is of the last epoch{best_one}{tested}", highlight=False)
            console.print(f"saved in {folder}", markup=False, highlight=False, soft_wrap=True)
            for logger_of_run in trainer.loggers:
                final = {f"final/{name}": metric["value"] for name, metric in metrics.items()}
                final["final/parameters"] = conditions["parameters"]
                logger_of_run.log_metrics(final, step=trainer.global_step)
                logger_of_run.save()
    return float(best.best_model_score) if best.best_model_score is not None else float("nan")


def has_finished(config: TrainConfig, folder: Path, checkpoint: Mapping[str, Any]) -> bool:
    """Whether a run has its results and, by this config, no more to do."""
    if (read_results(folder) or {}).get("state") != "finished":
        return False
    earlier = checkpoint.get("zfscope", {}).get("config", {})
    end = end_of(config.recorded())
    if earlier and end_of(earlier) == end and not any(map(is_from_environment, end.values())):
        return True
    most_epochs, most_steps = config.trainer.max_epochs, config.trainer.max_steps
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    reached = most_epochs not in (None, -1) and epochs >= most_epochs
    return reached or (most_steps != -1 and checkpoint["global_step"] >= most_steps)


def identity_of(
    config: TrainConfig, splits: Splits, checkpoint: Mapping[str, Any] | None, last: Path | None
) -> dict[str, Any]:
    """The identity of a training, with a leg for each time that it was resumed with other values.

    As ``training_identity`` returns it, with ``legs``: ``{"step": 600, "changed": {"optim.lr": [0.1, 0.01]}}`` each.
    ``checkpoint`` was read from ``last``. Refused are values that cannot change within a run.
    """
    images = {"image_fingerprint": splits.train.fingerprint, "val_fingerprint": splits.val.fingerprint}
    if checkpoint is None:
        return {**training_identity(config.model_dump(), **images, texts=config.texts), "legs": []}
    state = checkpoint["zfscope"]
    for key in ("weights", "weights_file"):
        if (now := config.recorded()[key]) != (before := state["config"].get(key)):
            raise ValueError(
                f"{key}={now or 'null'}: a run that goes on has weights of its own (this one began with "
                f"{key}={before or 'null'}); leave it out, or start a new run with it, without resume"
            )
    earlier = state.get("identity") or {**training_identity(state["config"], **images), "legs": []}
    legs, old = list(earlier["legs"]), earlier["facts"]
    identity = partial(training_identity, config.model_dump(), **images, start=old.get("weights"))
    new = identity(texts=config.texts)["facts"]
    check_environment(earlier, new, identity()["facts"])
    keys = sorted(key for key in old.keys() | new.keys() if not key.startswith("legs"))
    changed = {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}
    refused = {key: values for key, values in changed.items() if key in old and FIXED_KEYS.fullmatch(key)}
    if (seed := state["config"].get("seed", config.seed)) != config.seed:
        refused["seed"] = [seed, config.seed]
    for key, (before, now) in refused.items():
        raise ValueError(
            f"{key}={now}: this run has {before}, and that cannot change in its middle; "
            f"start a new run with weights={last}"
        )
    if changed:
        legs.append({"step": int(checkpoint["global_step"]), "changed": changed})
    return {**identity(legs=legs, texts=config.texts), "legs": legs}


def final_metrics(
    config: TrainConfig,
    folder: Path,
    trainer: lightning.Trainer,
    best: BestCheckpoint,
    data: ImageData,
    paper: Mapping[str, float],
    evaluated: str,
) -> dict[str, Any]:
    """Errors of training, of validation at the best epoch, and on the held-out images.

    The last ones are of the checkpoint that ``evaluated`` names, ``best`` or ``last``.
    """
    if trainer.fast_dev_run or not trainer.is_global_zero:
        return {}
    values = dict(trainer.lightning_module.train_errors)
    values |= {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/top")}
    if best.best_model_score is not None:
        values[best.monitor] = float(best.best_model_score)
    if config.evaluate.enabled:
        if evaluated != config.evaluate.checkpoint:
            console.print(f"no validation has run: the errors are those of the last step, {trainer.global_step}")
        part, images = ("test", data.splits.test) if data.splits.test is not None else ("val", data.splits.val)
        batches = data.canvases(images, data.images_at_a_time)
        predictions = predict(
            load_network(folder if evaluated == "best" else folder / evaluated),
            batches,
            crops=config.evaluate.ten_crops,
            device=trainer.strategy.root_device,
        )
        values.update(error_metrics(predictions, part))
    return {
        name: {"value": value, "unit": "%" if not name.endswith("loss") else "nats", "paper": paper.get(name)}
        for name, value in values.items()
    }


def build_callbacks(config: TrainConfig, best: BestCheckpoint, folder: Path) -> list[Callback]:
    """Renormalisation first, so that averages see it; pictures before averages step back after a validation."""
    callbacks: list[Callback] = [build_progress()]
    if config.model.filter_rms is not None:
        callbacks.append(FilterRenorm(config.model.filter_rms))
    callbacks += configured_callbacks(config.callbacks, folder)
    if config.optim.ema is not None:
        callbacks.append(EMAWeightAveraging(decay=config.optim.ema.decay))
    callbacks += [best, EpochCheckpoints(folder / "checkpoints", config.checkpoints.epochs)]
    callbacks.append(LastCheckpoint(folder / "checkpoints", config.checkpoints.every_n_steps))
    followers = [CurrentUntilAveraged(callback) for callback in callbacks if isinstance(callback, WeightAveraging)]
    return [*followers, *callbacks]


def quiet_lightning() -> None:
    """Switch off Lightning's hints about devices and products of its maker, which are no news to anyone."""
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    hints = (
        "does not have many workers|exists and is not empty|LeafSpec|the logging interval|dataloader is not resumable"
        "|recommended to use `self.log.*sync_dist"  # ours are the same on all ranks, or synchronised
        "|The `srun` command is available"  # where Slurm is, a run of one process needs none
    )
    warnings.filterwarnings("ignore", message=f".*({hints}).*")


def run_name(overrides: Sequence[str], config: TrainConfig) -> str:
    """A run's name in W&B: its overrides, or what it trains on what."""
    telling = [override for override in overrides if not override.startswith(("hydra.", "logger"))]
    model, data = (config.recorded()[group]["name"] for group in ("model", "data"))
    return " ".join(telling) or f"{model} {data}"
