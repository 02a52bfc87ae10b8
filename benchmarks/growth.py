"""How times grow: a training step with batch, image size, maps and ranks; mining and projections with images.

    python benchmarks/growth.py [--rounds 5] [--threads 2]

zfnet_mini, float32. To each series a power law is fitted: an exponent of 1 means twice the time for twice as much.
Ranks are processes of one thread each that share a batch by gloo. Medians of rounds in turns, as JSON.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from projections import ROOT, photographs, seconds
from step import ours
from torch import distributed, multiprocessing, nn
from torch.nn import functional as F

from zfscope import build_network
from zfscope.deconvnet.switches import KeptSwitches
from zfscope.deconvnet.winners import project_winners, top_images
from zfscope.networks.chain import ConvNet
from zfscope.networks.devices import keep_memory

BATCH, SIDE = 32, 112
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")


def network_of(side: int = SIDE, times: float = 1.0) -> ConvNet:
    """zfnet_mini for images of ``side`` px, with so many times as many maps."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        model = OmegaConf.to_container(compose("train", []), resolve=True)["model"]
    for name in LAYERS:
        model[name]["maps"] = int(model[name]["maps"] * times)
    torch.manual_seed(0)
    return build_network(model, 10, side)


def images_of(count: int, side: int) -> torch.Tensor:
    return F.interpolate(photographs(count), (side, side), mode="bilinear", antialias=True) / 60


def step_of(batch: int = BATCH, side: int = SIDE, times: float = 1.0) -> Callable[[], object]:
    step, images = ours(network_of(side, times), "float32"), images_of(batch, side)
    labels = torch.arange(batch) % 10
    return lambda: step(images, labels)


def mining_of(count: int) -> Callable[[], object]:
    """From images to the projections of the top 9 of all maps."""
    network, images = network_of().eval().requires_grad_(False), images_of(count, SIDE)

    def whole() -> None:
        batches = [(images[some], torch.zeros(len(some)), some) for some in torch.arange(count).split(BATCH)]
        kept = KeptSwitches(network, 2e9)
        tables = top_images(network, batches, LAYERS, 9, kept)
        maps = {name: torch.arange(len(table.values)) for name, table in tables.items()}
        for _ in project_winners(network, tables, maps, lambda wanted: images[wanted], batch_size=16, kept=kept):
            pass

    return whole


def on_ranks(ranks: int, rounds: int) -> list[float]:
    """Seconds of a step that so many processes share."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(_one_rank, (ranks, rounds, folder), nprocs=ranks, start_method="spawn")
        return json.loads(Path(folder, "seconds").read_text(encoding="utf-8"))


def _one_rank(rank: int, ranks: int, rounds: int, folder: str) -> None:
    torch.set_num_threads(1)
    keep_memory()
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks)
    network = nn.parallel.DistributedDataParallel(network_of().to(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images = images_of(BATCH // ranks, SIDE).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), torch.arange(len(images)) % 10).backward()
        optimizer.step()

    step()
    times = [seconds(step) for _ in range(4 * rounds)]
    if rank == 0:
        Path(folder, "seconds").write_text(json.dumps(times), encoding="utf-8")
    distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    series: dict[str, dict[float, Callable[[], object]]] = {
        "training step, images in the batch": {batch: step_of(batch) for batch in (8, 16, 32, 64, 128)},
        "training step, side of the images in px": {side: step_of(side=side) for side in (80, 112, 160, 224)},
        "training step, times as many maps": {times: step_of(times=times) for times in (0.5, 1, 2, 4)},
        "top 9 of all maps and their projections, images": {count: mining_of(count) for count in (250, 500, 1000)},
    }
    times: dict[str, dict[float, list[float]]] = {name: {x: [] for x in ways} for name, ways in series.items()}
    for number in range(options.rounds + 1):
        for name, ways in series.items():
            for x, run in ways.items():
                took = seconds(run)
                if number:  # the first warms up
                    times[name][x].append(took)
    times["training step of one thread each, ranks"] = {
        ranks: on_ranks(ranks, options.rounds) for ranks in range(1, options.threads + 1)
    }
    growth = {}
    for name, found in times.items():
        medians = {x: statistics.median(values) for x, values in found.items()}
        exponent = np.polyfit(*np.log([[*medians], [*medians.values()]]), 1)[0] if len(medians) > 1 else None
        growth[name] = {"x": [*medians], "seconds": [*medians.values()], "exponent": exponent}
    print(json.dumps({"growth": growth}, indent=2))


if __name__ == "__main__":
    main()
