"""Optimisers, and how their rate goes over a training.

Source: Zeiler & Fergus (2014), Sec. 3: SGD, momentum 0.9; Krizhevsky et al. (2012): weight decay. All else is ours.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from timm.optim.muon import Muon
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from zfscope.training.spec import OptimConfig


def optimizer_of(parameters: Iterable[nn.Parameter], optim: OptimConfig) -> torch.optim.Optimizer:
    """SGD, AdamW or Muon with the rate, momentum and decay of ``optim``.

    Muon is for the filters of conv layers but for the first's, which are no maps of features to features; all other
    weights go by AdamW at the same rate. Without a second conv layer there is nothing for it to do: ValueError. Three
    steps of Newton-Schulz: five bring also the fading momentum of a map that has died to full size, and push it on.

    Source: Jordan et al. (2024), Muon, as timm has it, its steps scaled to those of AdamW (Liu et al. 2025).
    """
    if optim.name == "muon":
        weights = list(parameters)
        filters = _by_muon(weights)
        if not filters:
            raise ValueError("optim.name=muon is for networks of two conv layers or more; use optim.name=adamw")
        chosen = {id(weight) for weight in filters}
        others = {"params": [weight for weight in weights if id(weight) not in chosen], "use_fallback": True}
        more = {"momentum": optim.momentum, "nesterov": optim.nesterov, "weight_decay": optim.weight_decay}
        return Muon([{"params": filters}, others], optim.lr, ns_steps=3, **more)
    if optim.name == "adamw":
        return torch.optim.AdamW(parameters, optim.lr, weight_decay=optim.weight_decay)
    return torch.optim.SGD(
        parameters, optim.lr, optim.momentum, nesterov=optim.nesterov, weight_decay=optim.weight_decay
    )


@torch.no_grad()
def revive_(network: nn.Module, rate: float) -> None:
    """Raise the bias of each map of a conv layer that no image of a step has activated; its gradient is exactly 0.

    Such a map has no gradient that would bring it back. ``rate`` is what its bias gains, before the optimiser's step.
    Where the loss itself has none, its images being learned to the last digit, nothing is known of any map.
    """
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    learns = gradients[-1].any() if gradients else False  # of the classes; a tensor, since asking a GPU waits for it
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None and layer.bias.grad is not None:
            layer.bias += rate * ((layer.bias.grad == 0) & learns)


def share_by_muon(network: nn.Module) -> float:
    """Of all weights, the share that Muon moves, 0-1."""
    weights = list(network.parameters())
    return sum(weight.numel() for weight in _by_muon(weights)) / max(1, sum(weight.numel() for weight in weights))


def _by_muon(weights: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    return [weight for weight in weights if weight.ndim == 4][1:]


def warn_of_decay(optim: OptimConfig) -> None:
    """Tell where the decay leaves weights no time to grow: one that suits AdamW and Muon is far too much for SGD."""
    memory = 1 - optim.momentum if optim.name == "sgd" else 1.0
    share = optim.lr * optim.weight_decay / max(memory, 1e-9)
    if share > 0.01:
        warnings.warn(
            f"optim.weight_decay={optim.weight_decay:g} takes {100 * share:.2g} % off all weights at each step of "
            f"optim.name={optim.name}, optim.lr={optim.lr:g}; with sgd 5e-4 is usual, with adamw 0.05",
            stacklevel=2,
        )


def retune(
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    before: Mapping[str, Any],
    optim: OptimConfig,
    recorded: Mapping[str, Any] | None = None,
) -> None:
    """Let a resumed run have its own values where they differ from those ``before``: the checkpoint's are restored.

    ``before`` was recorded, and is compared with what is ``recorded`` now.
    """
    now = optim.model_dump()
    told = recorded or now
    changed = {key for key in ("lr", "momentum", "nesterov", "weight_decay") if before.get(key, told[key]) != told[key]}
    for group in optimizer.param_groups:
        group.update({key: now[key] for key in changed if key in group})
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.factor, scheduler.patience = optim.schedule.factor, optim.schedule.patience
        scheduler.min_lrs = [optim.schedule.min_lr for _ in scheduler.min_lrs]
    elif scheduler is not None:
        scheduler.base_lrs = [optim.lr for _ in scheduler.base_lrs]
        for group, share in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = optim.lr, optim.lr * share(scheduler.last_epoch)


def cosine_share(step: int, steps: int, warmup: float, final: float) -> float:
    """Share of the rate at a step: linear from 0 over ``warmup`` steps, then half a cosine down to ``final``."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    share = min(1.0, (step - warmup) / max(1.0, steps - warmup))
    return final + (1 - final) * 0.5 * (1 + float(np.cos(np.pi * share)))
