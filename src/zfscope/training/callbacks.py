"""Callbacks by their names in the config: made, and refused where they could not work."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import torch
from lightning.pytorch.callbacks import Callback
from pydantic import TypeAdapter, ValidationError

from zfscope.schema import nearest
from zfscope.training.spec import TrainConfig

# Of Lightning: they go by a metric, ``monitor``, at the end of an epoch where this keyword says so.
WATCHING = {"EarlyStopping": "check_on_train_epoch_end", "ModelCheckpoint": "save_on_train_epoch_end"}


def configured_callbacks(config: Mapping[str, Mapping[str, Any] | None], folder: str | Path = "") -> list[Callback]:
    """The callbacks of a config, by key; null leaves one out. Lightning's ``dirpath`` lies in the run's ``folder``.

    Raises:
        ValueError: For a class that is not there, and for missing, unknown or impossible arguments.
    """
    return [_made(key, options, folder) for key, options in config.items() if options is not None]


def check_monitors(config: TrainConfig, metrics: Sequence[str]) -> None:
    """Refuse a callback that goes by a metric that a training with these ``metrics`` has not, or not yet when it looks.

    Validations give ``val/…``, steps ``train/loss``, ends of epochs all others; of a panel only its folder is checked.
    """
    targets = [(options or {}).get("_target_") for options in config.callbacks.values()]
    panels = ("diagnostics/",) if "zfscope.callbacks.Diagnostics" in targets else ()
    panels += ("filter_renorm/", "filter_rms/") if config.model.filter_rms is not None else ()
    every = config.trainer.check_val_every_n_epoch
    interval = config.trainer.model_dump().get("val_check_interval") or 1.0
    for key, options in config.callbacks.items():
        name = str((options or {}).get("_target_")).removeprefix("lightning.pytorch.callbacks.")
        monitor = str((options or {}).get("monitor"))
        if name not in WATCHING or options.get("monitor") is None or not options.get("strict", True):
            continue
        place = f"callbacks.{key}.monitor={monitor}"
        if monitor not in metrics and not monitor.startswith(panels):
            raise ValueError(f"{place}: there is no such metric; {nearest(monitor, metrics)}")
        at_ends = options.get(WATCHING[name])
        at_ends = (interval == 1.0 and every == 1) if at_ends is None else at_ends
        if at_ends and monitor.startswith("val/") and every != 1 and name == "EarlyStopping":
            raise ValueError(f"{place} is not measured every epoch; leave out callbacks.{key}.{WATCHING[name]}")
        if not at_ends and not monitor.startswith("val/") and monitor != "train/loss" and interval != 1.0:
            raise ValueError(f"{place} is known at ends of epochs alone; give callbacks.{key}.{WATCHING[name]}=true")


def _made(key: str, options: Mapping[str, Any], folder: str | Path) -> Callback:
    module, _, name = options["_target_"].rpartition(".")
    arguments = deepcopy({argument: value for argument, value in options.items() if argument != "_target_"})
    kind = getattr(importlib.import_module(module), name, None)
    if kind is None:
        raise ValueError(f"{module} has no {name}; mend callbacks.{key}._target_")
    parameters = inspect.signature(kind).parameters.values()
    # Lightning hands further keywords to torch, which refuses them only when the training has begun.
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters) and not module.startswith("lightning.")
    named = {one.name: one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    for argument in arguments:
        if argument not in named and not takes_all:
            raise ValueError(f"callbacks.{key}.{argument}: {name} has no such argument; {nearest(argument, [*named])}")
    for argument, parameter in named.items():
        if argument in arguments and module.startswith("lightning."):
            _check_type(f"callbacks.{key}.{argument}", arguments[argument], parameter.annotation)
        if parameter.default is parameter.empty and argument not in arguments:
            raise ValueError(f"callbacks.{key}.{argument} is missing; {name} needs it")
    if module.startswith("lightning.") and arguments.get("dirpath") is not None:
        arguments["dirpath"] = str(Path(folder, arguments["dirpath"]))
    try:
        if module.startswith("lightning."):
            torch.empty(0, device=arguments.get("device"))  # of averages: whether it is there
        return kind(**arguments)
    except Exception as error:
        says = str(error) if str(error).startswith(f"{name}: ") else f"{name} does not take these arguments: {error}"
        raise ValueError(f"callbacks.{key}: {says}") from error


def _check_type(key: str, value: Any, annotation: Any) -> None:
    """Refuse a text for a number and the like, which Lightning would take."""
    if not {*(get_args(annotation) or [annotation])} <= {int, float, bool, str, NoneType}:
        return
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        told = error.errors(include_url=False)[0]["msg"]
        raise ValueError(f"{key}={value!r}: {told[0].lower()}{told[1:]}") from None
