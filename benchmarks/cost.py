"""CPU seconds of trainings, predicted from counted work and measured pieces, beside what they then take.

    OMP_NUM_THREADS=1 python benchmarks/cost.py [--sweep benchmarks/cost_sweep.yaml]

The work of a training is counted from its config: multiply-adds of the first convolution and of all others, cells of
the maps, steps, images that are read, panels that are drawn, crops that are evaluated. What a unit of work takes is
measured here: steps and forward passes of the networks in ``NETWORKS`` in this process, before, between and after the
trainings; and the short trainings of ``TRAININGS``, which are none of the sweep. Least squares without negative values.

Then each training of the sweep runs once, ``train.py`` in a process of its own with one thread and no logger, and its
CPU seconds (with those of its children) stand beside the predicted ones. As JSON. docs/scale.md has the figures.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import numpy as np
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy.optimize import nnls
from torch.nn import functional as F

from zfscope import build_network
from zfscope.data.datamodule import open_data
from zfscope.data.loader import Loader
from zfscope.data.order import TrainBatches
from zfscope.data.transforms import Examples, TrainTransform
from zfscope.evaluation import predict
from zfscope.networks.chain import ConvNet
from zfscope.networks.devices import keep_memory
from zfscope.networks.preprocessing import CanvasKind, Preprocessing
from zfscope.schema import check
from zfscope.training.optimisers import optimizer_of
from zfscope.training.spec import TrainConfig

ROOT = Path(__file__).parents[1]
# The canvases' mean is measured on few images, and anew by each run: a cache would hide it from later ones.
SAME = ("logger=none", "device=cpu", "data.mean_images=500")
QUIET = ("callbacks=none", "evaluate.enabled=false")
BRIEF = ("trainer.limit_train_batches=2", "trainer.limit_val_batches=1")
PIECE_SECONDS = 0.35  # of each measured piece
# Networks whose steps are measured in this process.
NETWORKS = (
    (),
    ("data.batch_size=96",),
    ("model.conv1.kernel_size=5", "model.conv1.stride=3", "model.conv1.maps=40"),
    ("model.conv1.kernel_size=11", "data.crop=120"),
    ("model=zfnet_mini_wide", "data.crop=80"),
    ("model.conv3=null", "model.conv4=null", "data.batch_size=64"),
    ("model.conv1.maps=48", "model.conv2.maps=96", "model.conv2.kernel_size=3"),
    ("model.conv1.maps=16", "model.conv5=null", "model.fc6.units=1024", "data.batch_size=16"),
    ("data.crop=72", "data.batch_size=8"),
)
START = (*QUIET, *BRIEF, "trainer.max_epochs=1")
MORE_EPOCHS = (*QUIET, *BRIEF, "trainer.max_epochs=7")
# What a step costs in the whole program.
TRAININGS = (
    (*QUIET, "trainer.max_epochs=1"),
    (*QUIET, "trainer.max_epochs=1", "data.crop=64", "data.batch_size=8", "trainer.limit_train_batches=500"),
    (*QUIET, "trainer.max_epochs=2", "model.conv1.maps=48", "data.batch_size=64", "trainer.limit_train_batches=40"),
)
# What pictures cost: a panel, and to watch the validation for the strongest activations and dead maps.
PICTURED = (
    (QUIET[1], *BRIEF, "trainer.max_epochs=2"),
    (QUIET[1], BRIEF[0], "trainer.max_epochs=2"),
    (QUIET[1], BRIEF[0], "trainer.max_epochs=3", "model.conv3=null", "model.conv4=null", "data.crop=80"),
)
VIEWS = 10  # of an image, in the evaluation by ten crops


@dataclass(frozen=True)
class Work:
    """What a network has to do for one image, and what does not depend on the images."""

    first: int  # multiply-adds of the first convolution
    inner: int  # multiply-adds of all others, dense layers included
    cells: int  # values of the maps above each convolution
    normed: int  # values that the contrast norm takes
    layers: int
    weights: int
    muon: int  # operations of Muon's three steps of Newton-Schulz

    @property
    def multiply_adds(self) -> int:
        """Of one forward pass."""
        return self.first + self.inner

    @property
    def operations(self) -> int:
        """Floating-point operations of a training step for one image: the images themselves need no gradient."""
        return 4 * self.first + 6 * self.inner


def work_of(network: ConvNet) -> Work:
    """Counted from the layers and their map sizes."""
    adds, cells, normed, muon = [], 0, 0, 0
    for name in network.layers:
        parts = dict(getattr(network, name).named_children())
        weight = next(module.weight for module in parts.values() if hasattr(module, "weight"))
        side = network.sizes.get((name, "conv"), 1)
        adds.append(side**2 * weight.numel())
        cells += side**2 * len(weight)
        if "norm" in parts:
            pooled_first = list(parts).index("norm") > list(parts).index("pool") if "pool" in parts else False
            normed += len(weight) * network.sizes[name, "pool" if pooled_first else "conv"] ** 2
        if weight.ndim == 4 and len(adds) > 1:
            low, high = sorted((len(weight), weight[0].numel()))
            muon += 3 * (4 * low**2 * high + 2 * low**3)
    weights = sum(weight.numel() for weight in network.parameters())
    return Work(adds[0], sum(adds[1:]), cells, normed, len(network.layers), weights, muon)


def config_of(overrides: Sequence[str]) -> TrainConfig:
    """The checked config of a training, typed as for ``train.py``: any keyword of Lightning's Trainer too."""
    overrides = [f"++{override}" if override.startswith("trainer.") else override for override in overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return check(TrainConfig, OmegaConf.to_container(compose("train", overrides), resolve=True))


def network_of(config: TrainConfig, classes: int, device: str = "cpu") -> ConvNet:
    with torch.device(device):
        return build_network(config.model, classes, config.data.crop)


# Work by what it costs: columns of the least squares.
def step_work(work: Work, images: int) -> list[float]:
    """Forward and backward of one step."""
    return [images * 4 * work.first, images * 6 * work.inner, images * work.cells, images * work.normed, work.layers]


def pass_work(work: Work, images: int) -> list[float]:
    """One forward pass."""
    return [images * 2 * work.first, images * 2 * work.inner, images * work.cells, images * work.normed, work.layers]


def update_work(work: Work) -> list[float]:
    """One step of Muon, with AdamW for the rest."""
    return [work.weights, work.muon, work.layers]


def fit(rows: Iterable[Sequence[float]], seconds: Iterable[float]) -> list[float]:
    """What a unit of each column takes: least squares of relative errors, nothing below 0."""
    seconds = np.array([*seconds])
    table = np.array([*rows], dtype=float) / seconds[:, None]
    scale = np.maximum(table.max(0), 1e-30)
    return (nnls(table / scale, np.ones(len(table)))[0] / scale).tolist()


def seconds_of(piece: Callable[[], Any]) -> float:
    """CPU seconds of a piece, the mean over about ``PIECE_SECONDS``, after one that warms up."""
    piece()
    count, since = 0, time.process_time()
    while (took := time.process_time() - since) < PIECE_SECONDS or count < 2:
        piece()
        count += 1
    return took / count


def peak(side: int = 1024) -> float:
    """Floating-point operations a second of a matrix product."""
    one, other = torch.randn(2, side, side)
    return 2 * side**3 / seconds_of(lambda: one @ other)


def measured_pieces() -> dict[str, Any]:
    """Steps, passes and updates of ``NETWORKS``, readings, and an evaluation: seconds of each, with their work."""
    rows: dict[str, list] = {"step": [], "pass": [], "update": []}
    for overrides in NETWORKS:
        config = config_of(overrides)
        torch.manual_seed(0)
        network = network_of(config, 10).to(memory_format=torch.channels_last).train()
        work, count = work_of(network), config.data.batch_size
        images, labels = torch.randn(count, 3, *[config.data.crop] * 2), torch.randint(10, (count,))
        optimizer = optimizer_of(network.parameters(), config.optim)

        def step(network=network, images=images, labels=labels) -> None:
            network.zero_grad()
            logits = network(images.contiguous(memory_format=torch.channels_last))
            F.cross_entropy(logits, labels, label_smoothing=0.1).backward()

        rows["step"].append((step_work(work, count), seconds_of(step)))
        rows["update"].append((update_work(work), seconds_of(optimizer.step)))
        network.eval()

        def forward(network=network, images=images) -> None:
            with torch.no_grad():
                network(images.contiguous(memory_format=torch.channels_last))

        rows["pass"].append((pass_work(work, count), seconds_of(forward)))
    units = {name: fit(*zip(*found, strict=True)) for name, found in rows.items()}
    return {**units, **readings(units["pass"]), "peak": peak()}


def readings(unit_of_pass: Sequence[float]) -> dict[str, Any]:
    """Seconds of images read for training (by crop), validation and evaluation, and of a pixel of ten crops."""
    config = config_of(["model.conv1.maps=8", f"data.cache={ROOT}/data_cache"])  # drawn here, where it is not yet
    images = open_data(config.data).train.subset(range(512))
    found: dict[str, Any] = {"view": []}
    for crop in (64, 120):
        preprocessing = Preprocessing(128, crop, torch.full((3, 128, 128), 110.0), torch.full((3, 1, 1), 1 / 60))
        views, kind = TrainTransform(preprocessing, config.data.augment, 0), CanvasKind(128)
        batches = Loader(
            Examples(images, views, kind), batch_sampler=TrainBatches(512, 32, 0, lambda: 0), num_workers=0
        )
        found["view"].append(([1, crop**2], seconds_of(lambda batches=batches: list(batches)) / 512))
    found["view"] = fit(*zip(*found["view"], strict=True))
    middle = Loader(Examples(images, preprocessing, kind), batch_size=32)
    found["middle"] = seconds_of(lambda: list(middle)) / 512
    batches = list(Loader(Examples(images.subset(range(64)), preprocessing.normalised_canvas, kind), batch_size=32))
    whole = Loader(Examples(images, preprocessing.normalised_canvas, kind), batch_size=32)
    found["canvas"] = seconds_of(lambda: list(whole)) / 512
    network = network_of(config, 10)
    network.preprocessing, network.classes = Preprocessing(128, 112, preprocessing.mean, preprocessing.scale), None
    took = seconds_of(lambda: predict(network, batches)) - 2 * VIEWS * np.dot(
        unit_of_pass, pass_work(work_of(network), 32)
    )
    found["crop_pixel"] = max(0.0, float(took)) / (64 * VIEWS * 112**2)
    return found


@dataclass(frozen=True)
class Amounts:
    """How often a training does what."""

    epochs: int
    steps: int  # of all epochs
    batch: int
    validated: int  # images of a validation
    tested: int  # images of the evaluation
    crops: int  # of each of them
    panels: int  # drawn by all epochs
    traced: int  # images that pictures send through the network, by all epochs
    watched: int  # images of all validations whose maps are searched for the strongest activations


def amounts_of(config: TrainConfig, network: ConvNet) -> Amounts:
    """Counted from the config: what its data set holds, and what its callbacks draw by default."""
    splits, batch, trainer = open_data(config.data), config.data.batch_size, config.trainer.model_dump()
    steps, validated = len(splits.train) // batch, len(splits.val)
    if (most := trainer.get("limit_train_batches")) is not None:
        steps = min(steps, most)
    if (most := trainer.get("limit_val_batches")) is not None:
        validated = min(validated, most * batch)
    epochs, panels, traced = trainer["max_epochs"], 0, 0
    filtering, drawn = len(network.layers_with_maps), config.callbacks
    for epoch in range(1, epochs + 1):
        if "filter_images" in drawn:
            panels += 1
        if "projections" in drawn:
            panels += filtering
            traced += drawn["projections"]["maps"] * drawn["projections"]["top"] * filtering
        if "feature_evolution" in drawn and epoch in drawn["feature_evolution"]["epochs"]:
            panels += filtering
            traced += drawn["feature_evolution"]["images"] + drawn["feature_evolution"]["maps"] * filtering
        if "occlusion_maps" in drawn:
            panels += drawn["occlusion_maps"]["images"]
            traced += drawn["occlusion_maps"]["images"] * 12**2  # positions of the square: 48 of 224 px, every 16
    evaluate = config.evaluate
    tested = len(splits.test) if evaluate.enabled else 0
    crops, watched = VIEWS if evaluate.ten_crops else 1, epochs * validated * ("projections" in drawn)
    return Amounts(epochs, epochs * steps, batch, validated, tested, crops, panels, traced, watched)


def predicted(overrides: Sequence[str], units: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of a training by what it does. ``units`` are the pieces, and what ``calibrate`` found."""
    config = config_of([*SAME, *overrides])
    network = network_of(config, len(config.data.classes or range(10)))
    work, amounts = work_of(network), amounts_of(config, network)
    one_pass, pixels = units["pass"], config.data.crop**2
    tested = amounts.tested * amounts.crops
    parts = {
        "network": amounts.steps * np.dot(units["step"], step_work(work, amounts.batch)),
        "optimiser": amounts.steps * np.dot(units["update"], update_work(work)),
        "reading": amounts.steps * amounts.batch * np.dot(units["view"], [1, pixels]),
        "validation": amounts.epochs
        * (amounts.validated * units["middle"] + np.dot(one_pass, pass_work(work, amounts.validated))),
        "evaluation": tested * pixels * units["crop_pixel"]
        + amounts.tested * units["canvas"]
        + np.dot(one_pass, pass_work(work, tested)),
        "pictures": np.dot(one_pass, pass_work(work, amounts.traced))
        + np.dot(units.get("picture", [0, 0]), [amounts.panels, amounts.watched * work.cells]),
        "steps of the program": amounts.steps * units.get("step_of_program", 0.0),
        "epochs of the program": amounts.epochs * units.get("epoch", 0.0),
        "start": units.get("start", 0.0),
    }
    parts["network"] *= units.get("share_of_pieces", 1.0)
    return {name: float(seconds) for name, seconds in parts.items()}


class Home:
    """A folder for trainings, each with a cache of its own that holds the drawn images alone."""

    def __init__(self, folder: str) -> None:
        self.folder, self.count = Path(folder), 0

    def cpu_seconds(self, overrides: Sequence[str]) -> float:
        """User and system time of a training and its children."""
        self.count += 1
        cache = self.folder / f"cache_{self.count}"
        cache.mkdir()
        (cache / "phantom").symlink_to(ROOT / "data_cache/phantom")
        own = [f"data.cache={cache}", f"hydra.run.dir={self.folder}/run_{self.count}"]
        before = getrusage(RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "train.py", *SAME, *overrides, *own],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        after = getrusage(RUSAGE_CHILDREN)
        if done.returncode:
            raise RuntimeError(f"{' '.join(overrides)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def calibrate(home: Home, pieces: dict[str, Any]) -> dict[str, Any]:
    """What the program adds to the pieces: its start, an epoch, a step, a panel."""
    units = dict(pieces)
    start, more = (home.cpu_seconds(overrides) for overrides in (START, MORE_EPOCHS))
    known = sum(predicted(START, units).values()), sum(predicted(MORE_EPOCHS, units).values())
    units["epoch"] = max(0.0, (more - start - known[1] + known[0]) / 6)
    units["start"] = start - known[0] - units["epoch"]
    rows, rest = [], []
    for overrides in TRAININGS:
        parts, took = predicted(overrides, units), home.cpu_seconds(overrides)
        config = config_of(overrides)
        rows.append([amounts_of(config, network_of(config, 10)).steps, parts["network"]])
        rest.append(took - sum(parts.values()) + parts["network"])
    units["step_of_program"], units["share_of_pieces"] = fit(rows, rest)
    rows, rest = [], []
    for overrides in PICTURED:
        config = config_of(overrides)
        network = network_of(config, 10)
        amounts = amounts_of(config, network)
        rows.append([amounts.panels, amounts.watched * work_of(network).cells])
        rest.append(home.cpu_seconds(overrides) - sum(predicted(overrides, units).values()))
    units["picture"] = fit(rows, rest)
    return units


def mean_of(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of measured pieces."""
    return {name: np.mean([found[name] for found in rounds], axis=0).tolist() for name in rounds[0]}


def beside(predicted: float, measured: float) -> dict[str, float]:
    return {"predicted": round(predicted, 1), "measured": round(measured, 1), "ratio": round(predicted / measured, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", type=Path, default=ROOT / "benchmarks/cost_sweep.yaml")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    jobs: dict[str, list[str]] = yaml.safe_load(options.sweep.read_text(encoding="utf-8"))
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        home, rounds, took = Home(folder), [measured_pieces()], {}
        constants = calibrate(home, rounds[0])
        for number, (name, overrides) in enumerate(jobs.items()):
            took[name] = home.cpu_seconds(overrides)
            if number in (len(jobs) // 2, len(jobs) - 1):
                rounds.append(measured_pieces())
            loads.append(os.getloadavg()[0])
    units = constants | mean_of(rounds)
    before = {name: predicted(overrides, constants) for name, overrides in jobs.items()}
    parts = {name: predicted(overrides, units) for name, overrides in jobs.items()}
    found = {
        name: beside(sum(parts[name].values()), took[name])
        | {"by the first pieces alone": round(sum(before[name].values()) / took[name], 3)}
        | {"parts": {part: round(seconds, 1) for part, seconds in parts[name].items()}}
        for name in jobs
    }
    answer = {
        "jobs": found,
        "total": beside(sum(job["predicted"] for job in found.values()), sum(took.values())),
        "within 15 %": all(abs(job["ratio"] - 1) <= 0.15 for job in found.values()),
        "peak_gflops": [round(each["peak"] / 1e9, 1) for each in rounds],
        "load": [round(load, 1) for load in loads],
        "constants": units,
    }
    print(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
