"""Projections of the top 9 of all feature maps of ZFNet at 224 px: ours against captum, and windows against canvases.

    python benchmarks/projections.py [--images 1000] [--rounds 3] [--threads 2]

Captum 0.9's NeuronDeconvolution gets ZFNet as a user writes it, an nn.Sequential with the contrast norm left out, in
the batch and memory format that serve it best; a sample of its projections is timed, interleaved with ours. Ratios of
medians, as JSON.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from captum.attr import NeuronDeconvolution
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from zfscope import build_network
from zfscope.deconvnet import _WayDown, _whole, project_trace
from zfscope.networks import ConvNet
from zfscope.winners import Miner, project_winners

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from train import keep_memory  # noqa: E402

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")


def zfnet() -> ConvNet:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", ["model=zfnet", "model.init.scheme=he"]), resolve=True)
    torch.manual_seed(0)
    return build_network(config["model"], 1000, 224).eval().requires_grad_(False)


def as_a_user_writes_it(network: ConvNet) -> tuple[nn.Sequential, dict[str, nn.Module]]:
    """The same weights in a flat nn.Sequential without contrast norm, and the module of each feature map."""
    parts, maps = [], {}
    for name in network.layers:
        if name == "fc6":
            parts.append(nn.Flatten())
        for part, module in getattr(network, name).named_children():
            if part in ("norm", "dropout"):
                continue
            parts.append(nn.ReLU() if part == "relu" else module)
            maps[name] = parts[-1]
    return nn.Sequential(*parts), maps


def photographs(count: int) -> torch.Tensor:
    """Smooth random images with edges: sums of blurred noise, network inputs of about +-100."""
    generator = torch.Generator().manual_seed(1)
    images = torch.zeros(count, 3, 224, 224)
    for side in (7, 14, 28, 56, 112):
        noise = torch.randn(count, 3, side, side, generator=generator)
        images += nn.functional.interpolate(noise, (224, 224), mode="bilinear") * 60
    return images.clamp(-120, 120)


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def way_down(network: ConvNet, peer, modules, rounds: int, batches: tuple[int, ...]) -> dict:
    """Time of one projection from each layer: our way down, our whole canvas, and captum's call."""
    images = photographs(16)
    trace = network.trace(images, top="conv5")
    generator = torch.Generator().manual_seed(2)
    found = {}
    for layer in LAYERS:
        count = {"conv1": 512, "conv2": 512, "conv3": 192, "conv4": 96, "conv5": 64}[layer]
        maps = torch.randint(network.spec[layer].maps, (count,), generator=generator)
        sources = torch.arange(count) % len(images)
        chosen = trace.maps[layer][sources, maps].flatten(1).argmax(1)
        width = trace.maps[layer].shape[3]
        positions = torch.stack([chosen // width, chosen % width], 1)

        def windows(layer=layer, maps=maps, positions=positions, sources=sources):
            project_trace(network, trace, layer, maps, positions, sources=sources, crop=True)

        def canvases(layer=layer, maps=maps, positions=positions, sources=sources):
            whole_canvases(network, trace, layer, maps[:16], positions[:16], sources[:16])

        peers = {}
        for batch in batches:
            for name, layout in (("plain", torch.contiguous_format), ("channels_last", torch.channels_last)):
                inputs = images[torch.arange(batch) % len(images)].contiguous(memory_format=layout)
                places = maps[torch.arange(batch) % count], positions[torch.arange(batch) % count]
                peers[f"batch {batch}, {name}"] = batch, captum_call(peer, modules[layer], inputs, *places)
        times = {"windows": [], "canvases": [], **{name: [] for name in peers}}
        with torch.no_grad():
            windows(), canvases()
        for each in peers.values():
            each[1]()
        for _ in range(rounds):
            times["windows"].append(seconds(windows) / count)
            times["canvases"].append(seconds(canvases) / 16)
            for name, (batch, call) in peers.items():
                times[name].append(seconds(call) / batch)
        medians = {name: statistics.median(values) for name, values in times.items()}
        best = min(peers, key=medians.get)
        macs_window, macs_canvas = multiply_adds(network, layer)
        found[layer] = {
            "our_ms": 1e3 * medians["windows"],
            "captum_ms": 1e3 * medians[best],
            "captum_best": best,
            "captum_over_ours": medians[best] / medians["windows"],
            "canvas_over_window": medians["canvases"] / medians["windows"],
            "saved_multiply_adds": macs_canvas / macs_window,
            "share_of_bound": medians["canvases"] / medians["windows"] / (macs_canvas / macs_window),
        }
        print(
            layer, {key: round(value, 3) if isinstance(value, float) else value for key, value in found[layer].items()}
        )
    return found


def captum_call(peer, module, inputs, maps, positions):
    deconvolution = NeuronDeconvolution(peer, module)
    rows = torch.arange(len(inputs))

    def call():
        deconvolution.attribute(inputs, lambda out: out[rows, maps, positions[:, 0], positions[:, 1]])

    return call


@torch.no_grad()
def whole_canvases(network, trace, layer, maps, positions, sources) -> torch.Tensor:
    """Our own way down without windows: every map whole."""
    values = trace.maps[layer][sources, maps, positions[:, 0], positions[:, 1]]
    cells = positions
    if layer in trace.switches:
        flat = trace.switches[layer][sources, maps, positions[:, 0], positions[:, 1]]
        size = network.sizes[layer, "conv"]
        cells = torch.stack([flat // size, flat % size], 1)
    way = _WayDown(network, trace, layer, "sum")
    found = []
    for some in torch.arange(len(maps)).split(4):
        windows, corners = way.seed(values[some], maps[some], cells[some])
        windows = _whole(windows, corners, way._size_below(layer))
        found += [pixels for pixels, _ in way.descend(windows, torch.zeros_like(corners), sources[some], way.below)]
    return torch.cat(found).permute(0, 3, 1, 2)


def multiply_adds(network: ConvNet, layer: str) -> tuple[int, int]:
    """Of one projection, within its windows and over whole canvases."""
    names = network.layers[: network.layers.index(layer) + 1]
    window = canvas = 0
    side, first = 1, True
    for name in reversed(names):
        conv, spec = getattr(network, name).conv, network.spec[name]
        if not first and spec.pool is not None:
            side = (side - 1) * spec.pool.stride + spec.pool.kernel_size
        per_cell = conv.weight[0].numel() * (1 if first else conv.out_channels)
        window += side**2 * per_cell
        canvas += (1 if first else network.sizes[name, "conv"] ** 2) * per_cell
        side, first = (side - 1) * conv.stride[0] + conv.kernel_size[0], False
    return window, canvas


def end_to_end(network: ConvNet, images: torch.Tensor) -> dict:
    """Seconds from pixels to the projections of the top 9 of all maps: mining, winners' traces, the way down."""
    start = time.perf_counter()
    miner = Miner(network, LAYERS, 9)
    with torch.inference_mode():
        for indices in torch.arange(len(images)).split(32):
            miner.indices = indices
            _conv_forward(network, images[indices])
    miner.close()
    tables = {name: type(table)(*(part.clone() for part in table)) for name, table in miner.top.compute().items()}
    mined = time.perf_counter()
    maps = {name: torch.arange(len(table.values)) for name, table in tables.items()}
    count = 0
    for winners in project_winners(network, tables, maps, lambda wanted: images[wanted], batch_size=16):
        count += len(winners.rows)
    return {"projections": count, "mining_s": mined - start, "projecting_s": time.perf_counter() - mined}


def _conv_forward(network: ConvNet, images: torch.Tensor) -> torch.Tensor:
    for name in LAYERS:
        images = getattr(network, name)(images)
    return images


def mining(network: ConvNet, images: torch.Tensor, rounds: int) -> dict:
    """Seconds of a forward pass with and without mining all five layers, interleaved."""
    times = {"without": [], "with": []}

    def run(miner: Miner | None) -> None:
        with torch.inference_mode():
            for indices in torch.arange(len(images)).split(32):
                if miner is not None:
                    miner.indices = indices
                network(images[indices])

    for _ in range(rounds):
        times["without"].append(seconds(lambda: run(None)))
        miner = Miner(network, LAYERS, 9)
        times["with"].append(seconds(lambda miner=miner: run(miner)))
        miner.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"ratio": medians["with"] / medians["without"], **medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    network = zfnet()
    peer, modules = as_a_user_writes_it(network)
    peer.eval().requires_grad_(False)
    layers = way_down(network, peer, modules, options.rounds, tuple(options.batches))
    winners = {layer: network.spec[layer].maps * 9 for layer in LAYERS}
    captum_seconds = sum(count * layers[layer]["captum_ms"] / 1e3 for layer, count in winners.items())
    our_seconds = sum(count * layers[layer]["our_ms"] / 1e3 for layer, count in winners.items())
    images = photographs(options.images)
    whole = end_to_end(network, images)
    ours = whole["mining_s"] + whole["projecting_s"]
    report = {
        "threads": options.threads,
        "layers": layers,
        "way_down": {"captum_over_ours": captum_seconds / our_seconds},
        "end_to_end": {**whole, "captum_s_from_sample": captum_seconds, "captum_over_ours": captum_seconds / ours},
        "mining": mining(network, images[:256], options.rounds),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
