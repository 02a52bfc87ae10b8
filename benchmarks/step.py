"""Training steps of ZFNet at 224 px against the plain network, with the share of the machine's peak; and their losses.

    python benchmarks/step.py [--batch 32] [--rounds 5] [--threads 2] [--losses]

The plain network has the same weights in an nn.Sequential with nn.LocalResponseNorm, as a user writes it, and
torch.optim.SGD; it runs in a process of its own ("as written"), and in ours, where glibc keeps freed memory ("tuned").
A step is forward, backward and update. The peak is the best rate of large matrix products in the same format, in the
same rounds. Ratios of rounds in turns, as JSON.

With ``--losses`` zfnet_mini trains on the phantom instead: how far the losses of 20 steps lie from the plain network's,
in float64 and in float32, beside those of the plain network itself in another memory format; and how far the mean of
the last 20 of 200 steps in bfloat16 lies from the plain network's in float32, relative.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from itertools import islice

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from projections import ROOT, photographs, seconds, zfnet
from torch import nn
from torch.nn import functional as F

from zfscope import build_network
from zfscope.data.datamodule import open_data
from zfscope.data.loader import Loader
from zfscope.data.order import TrainBatches
from zfscope.data.spec import DataConfig
from zfscope.data.statistics import statistics_of
from zfscope.data.transforms import Examples, TrainTransform
from zfscope.networks.chain import ConvNet
from zfscope.networks.devices import keep_memory
from zfscope.networks.layers import ContrastNorm
from zfscope.networks.preprocessing import CanvasKind
from zfscope.schema import check
from zfscope.training.optimisers import optimizer_of
from zfscope.training.spec import OptimConfig

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


def plain(network: ConvNet) -> nn.Sequential:
    """The same weights, copied, in a flat nn.Sequential."""
    parts: list[nn.Module] = []
    for name in network.layers:
        if name == "fc6":
            parts.append(nn.Flatten())
        for module in getattr(network, name).children():
            if isinstance(module, ContrastNorm):
                module = nn.LocalResponseNorm(module.size, module.alpha, module.beta, module.k)
            parts.append(module)
    return deepcopy(nn.Sequential(*parts))


def training_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, layout: torch.memory_format, form: str
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """One step on a batch; returns its loss."""
    network.to(memory_format=layout).train()

    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=form == "bfloat16"):
            logits = network(images.contiguous(memory_format=layout))
        loss = F.cross_entropy(logits.float() if form == "bfloat16" else logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def ours(network: ConvNet, form: str) -> Callable:
    network.requires_grad_(True)
    optimizer = optimizer_of(network.parameters(), check(OptimConfig, SGD | {"name": "sgd"}))
    return training_step(network, optimizer, torch.channels_last, form)


def theirs(network: ConvNet, form: str, layout: torch.memory_format = torch.contiguous_format) -> Callable:
    twin = plain(network).requires_grad_(True)
    return training_step(twin, torch.optim.SGD(twin.parameters(), **SGD), layout, form)


def plain_channels_last(network: ConvNet, form: str) -> Callable:
    return theirs(network, form, torch.channels_last)


def peak(form: str, side: int = 2048) -> float:
    """Floating-point operations a second of a matrix product."""
    one, other = (torch.randn(side, side, dtype=FORMATS[form]) for _ in range(2))
    one @ other
    return 2 * side**3 / min(seconds(lambda: one @ other) for _ in range(10))


def operations(network: ConvNet, batch: int) -> float:
    """Floating-point operations of a step's convolutions and dense layers: the images need no gradient."""
    total = 0
    for place, name in enumerate(network.layers):
        weight = next(module.weight for module in getattr(network, name).children() if hasattr(module, "weight"))
        cells = network.sizes[name, "conv"] ** 2 if (name, "conv") in network.sizes else 1
        total += (3 if place else 2) * 2 * batch * cells * weight.numel()
    return total


def be_as_written(options: argparse.Namespace) -> None:
    """Time the plain network in this process and print the seconds of a step, by format."""
    network, (images, labels) = zfnet(), batch_of(options.batch)
    found = {}
    for form in FORMATS:
        step = theirs(network, form)
        step(images, labels)
        found[form] = min(seconds(lambda step=step: step(images, labels)) for _ in range(2))
    print(json.dumps(found))


def batch_of(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return photographs(count), torch.randint(1000, (count,), generator=torch.Generator().manual_seed(3))


def speed(options: argparse.Namespace) -> dict:
    network, (images, labels) = zfnet(), batch_of(options.batch)
    flops = operations(network, options.batch)
    steps = {(who.__name__, form): who(zfnet(), form) for who in (ours, theirs) for form in FORMATS}
    times: dict[tuple, list[float]] = {}
    for number in range(options.rounds + 1):
        found = {key: seconds(lambda step=step: step(images, labels)) for key, step in steps.items()}
        command = [sys.executable, "-W", "ignore", __file__, "--threads", str(options.threads), "--as-written"]
        done = subprocess.run([*command, "--batch", str(options.batch)], check=True, capture_output=True, text=True)
        found |= {("as_written", form): each for form, each in json.loads(done.stdout).items()}
        found |= {("peak", form): peak(form) for form in FORMATS}
        if number:  # the first warms up
            for key, each in found.items():
                times.setdefault(key, []).append(each)
    ratios = {}
    for form in FORMATS:
        own = times["ours", form]
        for peer, name in (("theirs", "tuned"), ("as_written", "as written")):
            ratios[f"step in {form}, plain network {name}"] = [
                other / each for other, each in zip(times[peer, form], own, strict=True)
            ]
        ratios[f"step in {form}, share of the peak"] = [
            flops / each / most for each, most in zip(own, times["peak", form], strict=True)
        ]
    return {
        "ratios": ratios,
        "peak_gflops": {form: round(statistics.median(times["peak", form]) / 1e9) for form in FORMATS},
        "ms": {f"{who} {form}": round(1e3 * statistics.median(each), 1) for (who, form), each in times.items()},
    }


def losses() -> dict:
    """How far speed moves the losses of a training of zfnet_mini on the phantom."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", []), resolve=True)
    data = check(DataConfig, config["data"])
    splits = open_data(data)
    statistics_ = statistics_of(splits.train, CanvasKind(data.resize), data.cache, most=1000)
    preprocessing = statistics_.preprocessing(data.crop, config["model"]["input_scale"])
    views = TrainTransform(preprocessing, data.augment, 0)

    def train(who: Callable, form: str, steps: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
        torch.manual_seed(0)
        network = build_network(config["model"], len(splits.train.classes), data.crop).to(kind)
        step, found = who(network, form), []
        order = TrainBatches(len(splits.train), data.batch_size, 0, lambda: len(found))
        loader = Loader(Examples(splits.train, views, preprocessing.canvas_kind), batch_sampler=order)
        while len(found) < steps:
            for images, labels, _ in islice(loader, steps - len(found)):
                torch.manual_seed(len(found))  # of dropout
                found.append(step(images.to(kind), labels))
        return torch.stack(found).double()

    def apart(who: Callable, kind: torch.dtype) -> float:
        return float((train(who, "float32", 20, kind) - train(theirs, "float32", 20, kind)).abs().max())

    theirs_200, ours_200 = train(theirs, "float32", 200), train(ours, "bfloat16", 200)
    last, own = theirs_200[-20:].mean(), ours_200[-20:].mean()
    return {
        "largest difference of 20 losses": {
            "float64": apart(ours, torch.float64),
            "float32": apart(ours, torch.float32),
            "float32, the plain network channels-last": apart(plain_channels_last, torch.float32),
        },
        "difference of the last of 200 losses, bfloat16": float((own - last).abs() / last),
        "first and last loss": [round(float(theirs_200[0]), 4), round(float(last), 4)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--losses", action="store_true")
    parser.add_argument("--as-written", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.as_written:
        be_as_written(options)
        return
    keep_memory()
    print(json.dumps(losses() if options.losses else speed(options), indent=2))


if __name__ == "__main__":
    main()
