"""Occlusion maps at 224 px, float32: ours against captum's Occlusion, and windows against full passes of our own.

    python benchmarks/occlusion.py [--rounds 3] [--threads 2] [--without vgg16]

Captum 0.9 gets ZFNet as a user writes it, an nn.Sequential with nn.LocalResponseNorm, perturbations_per_eval=64, in a
process of its own ("as written"); and once more with weights and images channels-last and glibc keeping freed memory,
as our own commands do ("tuned"). At 50 px / stride 4 a sixteenth of its positions is timed, those at stride 16. The
full passes are our network's, channels-last, in the best of several batches. Ratios of medians of rounds in turns, as
JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from projections import photographs, seconds, zfnet
from torch import nn

from zfscope import build_network
from zfscope.networks.chain import ConvNet
from zfscope.networks.devices import keep_memory
from zfscope.occlusion.maps import occlude
from zfscope.occlusion.passes import FullPasses

SQUARES = ((48, 16), (16, 16), (50, 4))
PEERS = ("as_written", "tuned")
BATCHES = (8, 16, 32, 64)


def positions(size: int, stride: int) -> int:
    return len(starts(size, stride)) ** 2


def starts(size: int, stride: int) -> range:
    return range(0, -(-(224 - size) // stride) * stride + 1, stride)


def vgg16() -> ConvNet:
    torch.manual_seed(0)
    return build_network({"source": "torchvision", "name": "vgg16"}, 1000, 224).eval().requires_grad_(False)


def as_a_user_writes_it(network: ConvNet) -> nn.Sequential:
    """The same weights in a flat nn.Sequential with PyTorch's own norm."""
    parts = []
    for name in network.layers:
        if name == "fc6":
            parts.append(nn.Flatten())
        for part, module in getattr(network, name).named_children():
            parts.append(nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0) if part == "norm" else module)
    return nn.Sequential(*parts).eval()


def windows(network: ConvNet, layer: str, size: int, stride: int) -> float:
    """Seconds of a position, by ``occlude``."""
    image = photographs(1)[0]
    return seconds(lambda: occlude(network, image, 0, size=size, stride=stride, layer=layer)) / positions(size, stride)


@torch.no_grad()
def full_passes(network: ConvNet, layer: str, size: int, batch_size: int, count: int) -> float:
    """Seconds of a position, by all of the network for each."""
    passes = FullPasses(network, photographs(1)[0], torch.zeros(()), size, layer)
    passes.watch(0, None)
    passes.batch_size = batch_size
    across = [starts(size, 16)] * 2
    done = 0

    def go() -> None:
        nonlocal done
        for where, _, _ in passes.run(across):
            done += len(where)
            if done >= count:
                return

    return seconds(go) / done


def captum(peer: str, threads: int) -> dict:
    """Seconds of a position by captum, by size of the square, measured in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--threads", str(threads), "--peer", peer]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def be_captum(peer: str) -> None:
    from captum.attr import Occlusion

    model, image = as_a_user_writes_it(zfnet()), photographs(1)
    if peer == "tuned":
        model, image = (each.to(memory_format=torch.channels_last) for each in (model, image))
    with torch.no_grad():
        model(image.repeat(64, 1, 1, 1))
        found = {}
        for size, _ in SQUARES:
            shapes = {"sliding_window_shapes": (3, size, size), "strides": (3, 16, 16)}

            def call(shapes=shapes) -> None:
                Occlusion(model).attribute(image, **shapes, baselines=0, target=0, perturbations_per_eval=64)

            found[size] = seconds(call) / positions(size, 16)
    print(json.dumps(found))


def be_measured(which: str, size: int, stride: int) -> None:
    """Print the peak memory, in MiB, of a process that does nothing else."""
    network, layer = (vgg16(), "conv5_3") if which == "vgg16" else (zfnet(), "conv5")
    occlude(network, photographs(1)[0], 0, size=size, stride=stride, layer=layer)
    # Not ru_maxrss, which begins with what the process that started this one held.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 1024)


def peak(which: str, size: int, stride: int, threads: int) -> float:
    command = [sys.executable, __file__, "--threads", str(threads), "--measure", which, str(size), str(stride)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without", nargs="*", choices=("vgg16", "memory", "captum"), default=[])
    parser.add_argument("--peer", choices=PEERS)
    parser.add_argument("--measure", nargs=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        be_measured(options.measure[0], *map(int, options.measure[1:]))
        return
    if options.peer != "as_written":
        keep_memory()
    if options.peer:
        be_captum(options.peer)
        return

    times: dict = {}

    def note(key, value: float) -> None:
        times.setdefault(key, []).append(value)

    network = zfnet()
    windows(network, "conv5", 48, 16)
    for _ in range(options.rounds):
        for size, stride in SQUARES:
            note(("ours", size, stride), windows(network, "conv5", size, stride))
        for batch in BATCHES:
            note(("full", batch), full_passes(network, "conv5", 48, batch, 128))
        for peer in PEERS if "captum" not in options.without else ():
            for size, value in captum(peer, options.threads).items():
                note((peer, int(size)), value)
    if "vgg16" not in options.without:
        network = vgg16()
        for _ in range(options.rounds):
            note(("vgg16 ours",), windows(network, "conv5_3", 16, 4))
            for batch in BATCHES:
                note(("vgg16 full", batch), full_passes(network, "conv5_3", 16, batch, 64))
    median = {key: statistics.median(values) for key, values in times.items()}

    def best(name: str) -> float:
        return min(value for key, value in median.items() if key[0] == name)

    found: dict = {}
    for size, stride in SQUARES:
        ours = median["ours", size, stride]
        row = {"ours_ms": 1e3 * ours, "full_passes_over_ours": best("full") / ours}
        row |= {f"captum_{peer}_over_ours": median[peer, size] / ours for peer in PEERS if (peer, size) in median}
        found[f"zfnet {size} px / {stride}"] = row
    if "vgg16" not in options.without:
        ours = median["vgg16 ours",]
        found["vgg16 16 px / 4"] = {"ours_ms": 1e3 * ours, "full_passes_over_ours": best("vgg16 full") / ours}
    found["ratios"] = {
        f"occlusion maps, {case}, {name.removesuffix('_over_ours').replace('_', ' ')}": [value]
        for case, row in found.items()
        for name, value in row.items()
        if name.endswith("_over_ours")
    }
    if "memory" not in options.without:
        for which, size, stride in (("zfnet", 48, 16), ("zfnet", 48, 2), ("zfnet", 16, 1), ("vgg16", 16, 4)):
            found[f"peak MiB, {which} {size} px / {stride}"] = peak(which, size, stride, options.threads)
    found["rounds_ms"] = {" ".join(map(str, key)): [round(1e3 * v, 2) for v in values] for key, values in times.items()}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
