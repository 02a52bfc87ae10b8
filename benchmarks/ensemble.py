"""An ensemble of six against its members' network time, and against six evaluations; JPEG files of 400 x 300 px.

    python benchmarks/ensemble.py [--images 512] [--rounds 3] [--threads 1] [--workers 1] [--resize 128] [--crop 112]
        [--views ten one]

Six zfnet_mini of ten classes, each with weights of its own. "alike": all have one preprocessing, as members with one
training set do; "own": each has another mean, so that none shares its views. Network time is that of the forward passes
alone, over the same views of the same images, laid out beforehand. Six evaluations are `predict` six times, each with a
loader of its own, as `analysis=evaluate` does. Decoding goes on beside, in a loader's process: "cpu" are the seconds
that this process computed, which a busy machine changes little, "wall" what a clock says; both hold the start of that
process, some 0.1 s. Ratios of medians of rounds in turns, as JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from projections import ROOT
from torch.utils.data import DataLoader

from zfscope import build_network
from zfscope.data.datamodule import Examples
from zfscope.data.imageset import FileImages
from zfscope.evaluation import Canvases, predict, predict_members
from zfscope.networks.devices import keep_memory
from zfscope.networks.network import Network
from zfscope.networks.preprocessing import Preprocessing, centre_crop, ten_crops

BATCH = 64


def photographs(folder: Path, count: int) -> FileImages:
    """Smooth noise at several scales: about as many bytes as a photograph of that size."""
    random = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        layers = [
            np.asarray(Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).resize((400, 300)), dtype=float)
            for size in ((6, 8, 3), (30, 40, 3), (150, 200, 3))
        ]
        Image.fromarray((0.5 * layers[0] + 0.3 * layers[1] + 0.2 * layers[2]).astype(np.uint8)).save(path, quality=90)
    return FileImages(paths, np.arange(count) % 10, tuple("abcdefghij"))


def seconds(function: Callable[[], object]) -> np.ndarray:
    """What a call takes: computed by this process, and on the clock."""
    start = time.process_time(), time.perf_counter()
    function()
    return np.array([time.process_time() - start[0], time.perf_counter() - start[1]])


def members(resize: int, crop: int, alike: bool) -> list[Network]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", ["model=zfnet_mini"]), resolve=True)
    found = []
    for seed in range(6):
        torch.manual_seed(seed)
        network = build_network(config["model"], 10, crop).eval()
        mean = torch.full((3, resize, resize), 110.0 + (0 if alike else seed))
        network.preprocessing = Preprocessing(resize, crop, mean, torch.full((3, 1, 1), 1 / 60))
        found.append(network)
    return found


def together(networks: list[Network], images: FileImages, crops: bool, workers: int) -> None:
    canvases = Canvases(images, [network.preprocessing.canvas_kind for network in networks])
    predict_members(networks, DataLoader(canvases, BATCH, num_workers=workers), crops=crops)


def apart(networks: list[Network], images: FileImages, crops: bool, workers: int) -> None:
    for network in networks:
        examples = Examples(images, network.preprocessing.normalised_canvas, network.preprocessing.canvas_kind)
        predict(network, DataLoader(examples, BATCH, num_workers=workers), crops=crops)


@torch.inference_mode()
def network_time(networks: list[Network], images: FileImages, crops: bool) -> np.ndarray:
    """Seconds of the forward passes alone, over all images, every member with its own views."""
    total = np.zeros(2)
    for first in range(0, len(images), BATCH):
        indices = range(first, min(first + BATCH, len(images)))
        pictures = [images.read(index, short_side=networks[0].preprocessing.resize) for index in indices]
        for network in networks:
            own = network.preprocessing
            canvases = torch.stack([own.normalise(own.canvas(picture)) for picture in pictures])
            views = ten_crops(canvases, own.crop) if crops else centre_crop(canvases, own.crop)[None]
            views = [view.contiguous(memory_format=torch.channels_last) for view in views]
            total += seconds(lambda network=network, views=views: [network(view) for view in views])
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--resize", type=int, default=128)
    parser.add_argument("--crop", type=int, default=112)
    parser.add_argument("--views", nargs="+", choices=("ten", "one"), default=["ten", "one"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()

    found, costs = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        images = photographs(Path(folder), options.images)
        sets = {kind: members(options.resize, options.crop, kind == "alike") for kind in ("alike", "own")}
        for crops in (views == "ten" for views in options.views):
            for kind, networks in sets.items():
                loading = networks, images, crops, options.workers
                ways: dict[str, Callable[[], np.ndarray]] = {
                    "network": lambda loading=loading: network_time(*loading[:3]),
                    "ensemble": lambda loading=loading: seconds(lambda: together(*loading)),
                    "six_evaluations": lambda loading=loading: seconds(lambda: apart(*loading)),
                }
                rounds = [{name: way() for name, way in ways.items()} for _ in range(options.rounds + 1)][1:]
                row, label = {}, f"{'ten crops' if crops else 'one crop'}, {kind}"
                costs[f"ensemble of six over network time, {label}, CPU"] = [
                    times["ensemble"][0] / times["network"][0] for times in rounds
                ]
                for number, clock in enumerate(("cpu", "wall")):
                    median = {name: statistics.median(times[name][number] for times in rounds) for name in ways}
                    row[clock] = {
                        "ensemble_over_network_time": round(median["ensemble"] / median["network"], 3),
                        "six_evaluations_over_ensemble": round(median["six_evaluations"] / median["ensemble"], 3),
                        "ms_an_image": {name: round(1e3 * value / len(images), 2) for name, value in median.items()},
                    }
                found[label] = row
    print(json.dumps({"costs": costs, **found}, indent=2))


if __name__ == "__main__":
    main()
