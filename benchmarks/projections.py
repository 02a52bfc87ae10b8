"""Projections of the top 9 of all feature maps of ZFNet at 224 px: ours against captum, windows against canvases.

    python benchmarks/projections.py [--images 1000] [--rounds 3] [--threads 2]

Captum 0.9's NeuronDeconvolution gets ZFNet as a user writes it, an nn.Sequential with the contrast norm left out, in a
process of its own and in its best batch ("as written"); and once more with its images channels-last and with glibc
keeping freed memory, as our own commands do ("tuned"). A sample of its projections is timed, in turns with ours; all of
ours are. Ratios of medians, as JSON.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from zfscope import build_network
from zfscope.deconvnet.boxes import conv_cells, strongest
from zfscope.deconvnet.chain import ChainDeconvnet, _whole
from zfscope.deconvnet.switches import KeptSwitches
from zfscope.deconvnet.winners import TopActivationsHook, project_winners, top_images
from zfscope.networks.chain import ConvNet
from zfscope.networks.devices import keep_memory

ROOT = Path(__file__).parents[1]

PEERS = ("as_written", "tuned", *(("zennit_crp",) if importlib.util.find_spec("crp") else ()))
NAMES = {"as_written": "captum_as_written", "tuned": "captum_tuned", "zennit_crp": "zennit_crp"}
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
    return images.clamp_(-120, 120)


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def way_down(network: ConvNet, options: argparse.Namespace) -> dict:
    """Milliseconds of one projection from each layer: our way down, our whole canvas, and captum's call."""
    times: dict = {layer: {} for layer in LAYERS}
    for _ in range(options.rounds):
        for layer, ours in our_round(network).items():
            for name, each in ours.items():
                times[layer].setdefault(name, []).append(each)
        for peer in PEERS:
            for layer, batches in peer_round(peer, options).items():
                for batch, each in batches.items():
                    times[layer].setdefault((peer, batch), []).append(each)
    found = {}
    for layer in LAYERS:
        medians = {name: 1e3 * statistics.median(values) for name, values in times[layer].items()}
        window, canvas = multiply_adds(network, layer)
        ratio = medians["canvases"] / medians["windows"]
        found[layer] = {"our_ms": medians["windows"]}
        for peer in PEERS:
            best = min((name for name in medians if name[0] == peer), key=medians.get)
            found[layer] |= {f"{NAMES[peer]}_ms": medians[best], f"{NAMES[peer]}_batch": int(best[1])}
            found[layer][f"{NAMES[peer]}_over_ours"] = medians[best] / medians["windows"]
        found[layer] |= {"canvas_over_window": ratio, "saved_multiply_adds": canvas / window}
        found[layer]["share_of_bound"] = ratio / (canvas / window)
        shown = {name: round(value, 3) for name, value in found[layer].items()}
        print(layer, shown, file=sys.stderr, flush=True)
    return found


@torch.no_grad()
def our_round(network: ConvNet) -> dict:
    """Seconds of one of our projections, by layer, within windows and over whole canvases."""
    trace = network.trace(photographs(16).contiguous(memory_format=torch.channels_last), top="conv5")
    generator = torch.Generator().manual_seed(2)
    found = {}
    for layer, count in zip(LAYERS, (512, 512, 192, 96, 96), strict=True):
        maps = torch.randint(network.spec[layer].maps, (count,), generator=generator)
        sources = torch.arange(count) % len(trace.images)
        positions = strongest(trace.maps[layer], maps, sources)

        def windows(question=(maps, positions), sources=sources, layer=layer):
            ChainDeconvnet(network, trace).project(layer, *question, sources=sources, crop=True)

        def canvases(question=(maps[:16], positions[:16], sources[:16]), layer=layer):
            whole_canvases(network, trace, layer, *question)

        windows(), canvases()
        found[layer] = {"windows": seconds(windows) / count, "canvases": seconds(canvases) / 16}
    return found


def peer_round(peer: str, options: argparse.Namespace) -> dict:
    """Seconds of one projection by captum, by layer and batch, measured in a process of its own."""
    batches = [str(batch) for batch in options.batches]
    command = [sys.executable, "-W", "ignore", __file__, "--threads", str(options.threads), "--peer", peer]
    done = subprocess.run([*command, "--batches", *batches], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def be_peer(options: argparse.Namespace) -> None:
    """Time captum and print what ``peer_round`` reads."""
    network = zfnet()
    peer, modules = as_a_user_writes_it(network)
    peer.eval().requires_grad_(False)
    layout = torch.channels_last if options.peer == "tuned" else torch.contiguous_format
    images = photographs(max(options.batches))
    found: dict = {}
    for layer in LAYERS:
        side = network.sizes.get((layer, "pool")) or network.sizes[layer, "conv"]
        for batch in options.batches:
            generator = torch.Generator().manual_seed(batch)
            maps = torch.randint(network.spec[layer].maps, (batch,), generator=generator)
            positions = torch.randint(side, (batch, 2), generator=generator)
            inputs = images[:batch].contiguous(memory_format=layout)
            ask = crp_call if options.peer == "zennit_crp" else captum_call
            call = ask(peer, modules[layer], inputs, maps, positions, side)
            call()
            found.setdefault(layer, {})[batch] = seconds(call) / batch
    print(json.dumps(found))


def captum_call(peer, module, inputs, maps, positions, side):
    from captum.attr import NeuronDeconvolution

    deconvolution = NeuronDeconvolution(peer, module)
    rows = torch.arange(len(inputs))

    def call():
        deconvolution.attribute(inputs, lambda out: out[rows, maps, positions[:, 0], positions[:, 1]])

    return call


def crp_call(peer, module, inputs, maps, positions, side):
    from crp.attribution import CondAttribution
    from crp.concepts import ChannelConcept
    from zennit.composites import DeconvNet

    attribution = CondAttribution(peer)
    layer = next(name for name, each in peer.named_modules() if each is module)
    inputs = inputs.clone().requires_grad_()

    def call():
        cells = (positions[:, 0] * side + positions[:, 1]).tolist()
        conditions = [{layer: {int(number): [cell]}} for number, cell in zip(maps, cells, strict=True)]
        attribution(
            inputs,
            conditions,
            DeconvNet(),
            mask_map=ChannelConcept.mask_rf,
            start_layer=layer,
            init_rel=lambda out: out,
        )

    return call


@torch.no_grad()
def whole_canvases(network, trace, layer, maps, positions, sources) -> torch.Tensor:
    """Our own way down without windows: every map whole."""
    way = ChainDeconvnet(network, trace)
    values = trace.maps[layer][sources, maps, positions[:, 0], positions[:, 1]]
    cells = conv_cells(trace, layer, maps, positions, sources)
    below = network.layers[: network.layers.index(layer)]
    found = []
    for some in torch.arange(len(maps)).split(4):
        windows, corners = way._seed(layer, values[some], maps[some], cells[some])
        windows = _whole(windows, corners, way._size_below(layer))
        chunks = dict.fromkeys(below, 4)
        found += [pixels for pixels, _ in way.descend(windows, torch.zeros_like(corners), sources[some], below, chunks)]
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
    """Seconds from pixels to the projections of the top 9 of all maps: mining, the way down."""
    start = time.perf_counter()
    kept = KeptSwitches(network, 2e9)
    batches = ((images[indices], None, indices) for indices in torch.arange(len(images)).split(32))
    tables = top_images(network, batches, LAYERS, 9, kept)
    mined = time.perf_counter()
    maps = {name: torch.arange(len(table.values)) for name, table in tables.items()}
    count = 0
    for winners in project_winners(network, tables, maps, lambda wanted: images[wanted], batch_size=16, kept=kept):
        count += len(winners.rows)
    return {"projections": count, "mining_s": mined - start, "projecting_s": time.perf_counter() - mined}


def mining(network: ConvNet, images: torch.Tensor, rounds: int) -> dict:
    """Seconds of a forward pass with and without mining all five layers, interleaved."""
    times = {"without": [], "with": []}

    def run(miner: TopActivationsHook | None) -> None:
        with torch.inference_mode():
            for indices in torch.arange(len(images)).split(32):
                if miner is not None:
                    miner.indices = indices
                network(images[indices].contiguous(memory_format=torch.channels_last))

    for _ in range(rounds):
        times["without"].append(seconds(lambda: run(None)))
        miner = TopActivationsHook(network, LAYERS, 9)
        times["with"].append(seconds(lambda miner=miner: run(miner)))
        miner.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"ratio": medians["with"] / medians["without"], **medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peer in (None, "tuned"):
        keep_memory()
    if options.peer:
        be_peer(options)
        return
    network = zfnet()
    layers = way_down(network, options)
    winners = {layer: network.spec[layer].maps * 9 for layer in LAYERS}
    captum = {
        peer: sum(count * layers[layer][f"{NAMES[peer]}_ms"] / 1e3 for layer, count in winners.items())
        for peer in PEERS
    }
    down = sum(count * layers[layer]["our_ms"] / 1e3 for layer, count in winners.items())
    images = photographs(options.images)
    runs = [end_to_end(network, images) for _ in range(options.rounds)]
    whole = sorted(runs, key=lambda run: run["mining_s"] + run["projecting_s"])[len(runs) // 2]
    ours = whole["mining_s"] + whole["projecting_s"]
    report = {
        "threads": options.threads,
        "layers": layers,
        "captum_s_from_sample": captum,
        "way_down": {"our_s": down, **{f"{NAMES[peer]}_over_ours": each / down for peer, each in captum.items()}},
        "end_to_end": {**whole, **{f"{NAMES[peer]}_over_ours": each / ours for peer, each in captum.items()}},
        "mining": mining(network, images[:640], options.rounds),
    }
    report["ratios"] = {
        f"{name.replace('_', ' ')}, {NAMES[peer].replace('_', ' ')}": [report[name][f"{NAMES[peer]}_over_ours"]]
        for name in ("way_down", "end_to_end")
        for peer in PEERS
    }
    report["costs"] = {
        "mining over the forward pass": [report["mining"]["ratio"]],
        "end to end over a forward pass and the way down": [
            (run["mining_s"] + run["projecting_s"]) / (report["mining"]["without"] * len(images) / 640 + down)
            for run in runs
        ],
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
