"""What a training says to Lightning's Trainer, checked before any work."""

import os
from contextlib import suppress
from typing import Any

import lightning
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment

from zfscope.networks.devices import has_device, trainer_device
from zfscope.training.callbacks import configured_callbacks
from zfscope.training.spec import TARGETS, TrainConfig


def trainer_keywords(config: TrainConfig) -> dict[str, Any]:
    """What the config says to ``lightning.Trainer``."""
    return {**trainer_device(config.device), **config.trainer.keywords()}


def check_trainer(config: TrainConfig) -> None:
    """Refuse, before any work, a keyword or value that Lightning's Trainer does not take, or that this project sets."""
    quiet = {"logger": False, "enable_progress_bar": False, "plugins": environment_plugins(config)}
    known = {key: options for key, options in config.callbacks.items() if options and options["_target_"] in TARGETS}
    callbacks = configured_callbacks(known)  # trusted ones of others are made once, for the training
    check_accelerator(config)
    try:
        trainer = lightning.Trainer(**trainer_keywords(config), **quiet, callbacks=callbacks)
    except Exception as error:  # Lightning refuses with a dozen kinds
        name, cause = refused_keyword(config, **quiet, callbacks=callbacks), str(error).partition("\n")[0]
        if name is not None:
            raise ValueError(f"trainer.{name}={trainer_keywords(config)[name]}: {cause}") from error
        raise ValueError(f"lightning.Trainer does not take these values: {cause}; look at trainer.…") from error
    targets = [options["_target_"] for options in config.callbacks.values() if options is not None]
    if trainer.limit_val_batches == 0 and "lightning.pytorch.callbacks.EarlyStopping" in targets:
        raise ValueError("trainer.limit_val_batches=0 leaves EarlyStopping no validation to go by; remove one of them")


def refused_keyword(config: TrainConfig, **others: Any) -> str | None:
    """The keyword without which Lightning's Trainer takes all the rest; None where there is no such one."""
    keywords = trainer_keywords(config)
    for name in keywords:
        with suppress(Exception):
            lightning.Trainer(**{other: value for other, value in keywords.items() if other != name}, **others)
            return name
    return None


def check_accelerator(config: TrainConfig) -> None:
    """Refuse a kind of device that this machine has not, before Lightning does, which names neither key nor way out."""
    name = config.trainer.accelerator
    kinds = {"gpu": ("cuda", "mps"), "cuda": ("cuda",), "mps": ("mps",), "tpu": ("tpu",)}.get(name)
    if kinds is None or any(has_device(kind) for kind in kinds):
        return
    # A run that is resumed has no groups any more.
    way = "trainer.accelerator=cpu trainer.devices=1" if config.resume else "trainer=default device=cpu"
    what = "TPUs are not supported" if name == "tpu" else "torch finds no GPU on this machine"
    raise ValueError(f"trainer.accelerator={name}: {what}; train on the CPU with {way}")


def environment_plugins(config: TrainConfig) -> list[ClusterEnvironment]:
    """For one process within a larger Slurm allocation: Lightning would take it for one task of many.

    Raises:
        ValueError: If srun started several tasks of a training of one device.
    """
    trainer = config.trainer
    alone = trainer.devices in (None, 1, "1") and trainer.num_nodes == 1
    if not alone or int(os.environ.get("SLURM_NTASKS", "1")) == 1:
        return []
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise ValueError(
            "srun started several tasks of a training on one device; use srun --ntasks=1, or say "
            "trainer.devices=… trainer.num_nodes=… trainer.strategy=ddp"
        )
    return [LightningEnvironment()]
