"""What a training says to Lightning's Trainer, checked before any work."""

import os
import warnings
from contextlib import suppress
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from zfscope.console import console
from zfscope.data.datamodule import accumulated_batches
from zfscope.data.order import share_of
from zfscope.networks.devices import has_device, trainer_device
from zfscope.networks.ranks import started_by_torchrun
from zfscope.training.callbacks import configured_callbacks
from zfscope.training.identity import has_synchronised_batch_norm
from zfscope.training.spec import TARGETS, TrainConfig


def trainer_keywords(config: TrainConfig) -> dict[str, Any]:
    """What the config says to ``lightning.Trainer``, whose way to synchronise batch norm would spoil timm's layers."""
    keywords = {**trainer_device(config.device), **config.trainer.keywords()}
    return {name: value for name, value in keywords.items() if name != "sync_batchnorm"}


def check_trainer(config: TrainConfig) -> int:
    """Refuse, before any work, a keyword or value that Lightning's Trainer does not take, or that this project sets.

    Returns the number of ranks.
    """
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
    ranks = trainer.num_devices * trainer.num_nodes
    share_of(config.data.batch_size, ranks, accumulated_batches(trainer))
    gpus = torch.cuda.device_count()
    if gpus > 1 and ranks == 1 and config.device == "auto" and config.trainer.devices is None:
        console.print(f"training on one of {gpus} GPUs; trainer=gpus takes all of them", highlight=False)
    return ranks


def synchronise_batch_norm(network: nn.Module, config: TrainConfig) -> None:
    """Let batch norm see the images of all ranks in training; ``trainer.sync_batchnorm=false`` leaves each its own.

    torch does that on GPUs alone.
    """
    if has_synchronised_batch_norm(config.model_dump()):
        convert_sync_batchnorm(network)
    elif any(isinstance(layer, _BatchNorm) for layer in network.modules()):
        warnings.warn("batch norm sees the images of its own rank alone, in each", stacklevel=2)


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
        ValueError: If srun or torchrun started several processes of a training on one device.
    """
    trainer = config.trainer
    alone = trainer.devices in (None, 1, "1") and trainer.num_nodes == 1
    if alone and (started := started_by_torchrun()) > 1:
        raise ValueError(
            f"torchrun started {started} processes of a training on one device; say trainer.devices={started} "
            "trainer.strategy=ddp, or start it with python alone"
        )
    if not alone or int(os.environ.get("SLURM_NTASKS", "1")) == 1:
        return []
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise ValueError(
            "srun started several tasks of a training on one device; use srun --ntasks=1, or say "
            "trainer.devices=… trainer.num_nodes=… trainer.strategy=ddp"
        )
    return [LightningEnvironment()]
