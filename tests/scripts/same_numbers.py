"""Does a tree compute what another one computes? Weights, projections, occlusion maps and analyses, bit by bit.

    python tests/scripts/same_numbers.py --old TREE --old-python PYTHON --new TREE --new-python PYTHON --work FOLDER

Both trees are run through their commands and public names with one thread, on the phantom. WORK keeps what was
computed: a second call computes only what is missing. A line for each comparison; exit code 1 if numbers differ that
may not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

COMMON = ["device=cpu", "data.num_workers=0", "logger=none"]
TRAININGS = {
    "mini": ["trainer.max_epochs=3", "+trainer.max_steps=200", "checkpoints.every_n_steps=100"],
    "mini_other_seed": ["seed=1", "+trainer.max_steps=60", "checkpoints.every_n_steps=30"],
    "zfnet": [
        *("model=zfnet", "data.resize=256", "data.crop=224", "data.batch_size=8", "+trainer.max_steps=3"),
        *("+trainer.limit_val_batches=1", "checkpoints.every_n_steps=3"),
    ],
}
# The old tree was told nothing of loggers in analyses, and named data sets by data.name.
ANALYSES = {
    "evaluate": [],
    "projections": ["analysis.maps=8", "analysis.controls=16"],
    "evolution": ["analysis.images=100", "analysis.maps=3"],
    "occlusion": ["analysis.images=2", "analysis.shown=2"],
    "invariance": ["analysis.images=8"],
    "correspondence": ["analysis.masks=4"],
    "diagnostics": ["analysis.images=200", "analysis.maps=8", "analysis.other={other}"],
    "ensemble": [],
    "transfer": [
        *("analysis.images_per_class=[15]", "analysis.folds=2", "analysis.scratch_steps=5"),
        *("analysis.scratch_folds=1", "analysis.test_images=10"),
    ],
    "probes": ["analysis.images_per_class=15", "analysis.folds=2", "analysis.test_images=10"],
    "overlap": ["{data}=phantom", "{second}=phantom", "analysis.parts=[test]", "analysis.threshold=0.95"],
}
POINTS = 0.1  # percentage points by which the softmax of Tables 4 to 7 may move
# Runs in the tree that is asked: projections and occlusion maps of a chain and of a network that is none.
LIBRARY = """
import sys, numpy as np, torch
from zfscope import build_network, load_network
from zfscope.deconvnet import project
from zfscope.occlusion import occlude
run, out = sys.argv[1:]
chain = load_network(run)
torch.manual_seed(0)
foreign = build_network({"source": "timm", "name": "resnet18"}, 10, 64).eval()
arrays = {}
for title, network, side in (("chain", chain, 112), ("resnet18", foreign, 64)):
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))
    maps = [1, 3, 5, 7]
    for layer in network.layers:
        for rule in ("deconvnet", "guided", "gradient"):
            for unpooling in ("sum", "overwrite") if title == "chain" and rule == "deconvnet" else ("sum",):
                name = f"project/{title}/{layer}/{rule}/{unpooling}"
                options = {"rule": rule, "unpooling": unpooling}
                arrays[name] = project(network, images, layer, maps, **options).numpy()
                patches, boxes = project(network, images, layer, maps, crop=True, **options)
                arrays[name + "/patches"], arrays[name + "/boxes"] = patches.numpy(), boxes.numpy()
    layer = "conv5" if title == "chain" else "layer4"
    for size, stride in ((side // 5, side // 14), (side // 14, side // 14), (side // 2, side // 4)):
        found = occlude(network, images[0], 3, size=size, stride=stride, layer=layer)
        for part in ("probability", "label", "activation"):
            arrays[f"occlude/{title}/{size}/{stride}/{part}"] = getattr(found, part).numpy()
np.savez(out, **arrays)
"""


class Tree:
    """A checkout with the interpreter that has it installed, and where its results go."""

    def __init__(self, folder: Path, python: str, work: Path, spelling: dict[str, str]) -> None:
        self.folder, self.python, self.work, self.spelling = folder.resolve(), python, work, spelling
        self.work.mkdir(parents=True, exist_ok=True)

    def call(self, *arguments: str) -> None:
        """Run the interpreter with one thread; what it prints is kept beside the results."""
        answer = subprocess.run(
            [self.python, *arguments],
            cwd=self.work,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if answer.returncode:
            sys.exit(f"{' '.join(arguments)[:300]}\n{answer.stdout[-1000:]}{answer.stderr[-2000:]}")

    def train(self, name: str, cache: Path) -> Path:
        """The last checkpoint of one of ``TRAININGS``."""
        last = self.work / name / "checkpoints/last.ckpt"
        if not last.is_file():
            fixed = [f"hydra.run.dir={name}", f"data.cache={cache}", "evaluate.enabled=false", "callbacks=none"]
            self.call(str(self.folder / "train.py"), *COMMON, *fixed, *TRAININGS[name])
        return last

    def analyse(self, name: str, run: Path, other: Path, cache: Path) -> Path:
        """The folder of one of ``ANALYSES``."""
        folder = self.work / f"analysis_{name}"
        if not (folder / "results.json").is_file():
            common = [override for override in COMMON if self.spelling["logger"] or not override.startswith("logger")]
            options = [override.format(other=other, **self.spelling) for override in ANALYSES[name]]
            checkpoint = [] if name == "overlap" else [f"checkpoint={run}"]
            if name == "ensemble":
                checkpoint = [f"checkpoint=[{run},{other}]"]
            fixed = [f"analysis={name}", f"hydra.run.dir={folder}", f"data.cache={cache}"]
            self.call(str(self.folder / "analyze.py"), *common, *fixed, *checkpoint, *options)
        return folder

    def library(self, run: Path) -> Path:
        """Projections and occlusion maps, through the public names."""
        arrays = self.work / "library.npz"
        if not arrays.is_file():
            self.call("-c", LIBRARY, str(run), str(arrays))
        return arrays


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Weights and moments of a checkpoint."""
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    moments = content["optimizer_states"][0]["state"]
    named = {f"moments/{number}/{key}": value for number, state in moments.items() for key, value in state.items()}
    named |= {f"weights/{name}": tensor for name, tensor in content["state_dict"].items()}
    return {name: value.numpy() for name, value in named.items() if hasattr(value, "numpy")}


def metrics(folder: Path) -> dict[str, np.ndarray]:
    """Values of ``results.json``."""
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))["metrics"]
    return {name: np.array(np.nan if each["value"] is None else each["value"]) for name, each in content.items()}


def may_differ(title: str, name: str, old: np.ndarray, new: np.ndarray) -> bool:
    """What is allowed: boxes of a chain under other rules than the deconvnet's, the softmax within ``POINTS``."""
    if title == "library":
        chain_by_autograd = name.startswith("project/chain/") and ("/guided/" in name or "/gradient/" in name)
        return chain_by_autograd and name.endswith(("/boxes", "/patches"))
    softmax = ("probes" in title and "softmax" in name) or "transfer" in title
    return softmax and old.shape == new.shape and bool(np.abs(new - old).max() <= POINTS)


def compare(title: str, old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> int:
    """Print what of two sets of arrays differs; returns how many differ that may not."""
    wrong, allowed = [], []
    for name in sorted({*old, *new}):
        if name not in old or name not in new:
            wrong.append(name)
        elif not np.array_equal(old[name], new[name], equal_nan=old[name].dtype.kind == "f"):
            (allowed if may_differ(title, name, old[name], new[name]) else wrong).append(name)
    counts = f"{len(old)} compared, {len(allowed)} differ as they may, {len(wrong)} as they may not"
    print(f"{title}: {counts} {', '.join(wrong[:5])}")
    return len(wrong)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("old", "new"):
        parser.add_argument(f"--{name}", type=Path, required=True)
        parser.add_argument(f"--{name}-python", required=True)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    work = options.work.resolve()
    spellings = {
        "old": {"data": "data.name", "second": "analysis.other.name", "logger": ""},
        "new": {"data": "data", "second": "data@analysis.other", "logger": "yes"},
    }
    trees = [
        Tree(getattr(options, name), getattr(options, f"{name}_python"), work / name, spellings[name])
        for name in ("old", "new")
    ]
    cache, wrong = work / "cache", 0
    for name in TRAININGS:
        wrong += compare(f"training {name}", *(tensors(tree.train(name, cache)) for tree in trees))
    run, other = (trees[0].work / name for name in ("mini", "mini_other_seed"))
    wrong += compare("library", *(dict(np.load(tree.library(run))) for tree in trees))
    for name in ANALYSES:
        folders = [tree.analyse(name, run, other, cache) for tree in trees]
        wrong += compare(f"{name}, metrics", *map(metrics, folders))
        wrong += compare(f"{name}, arrays", *(arrays_of(folder) for folder in folders))
    return int(wrong > 0)


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """``arrays.npz`` of an analysis; empty where it has none."""
    path = folder / "arrays.npz"
    return dict(np.load(path, allow_pickle=False)) if path.is_file() else {}


if __name__ == "__main__":
    sys.exit(main())
