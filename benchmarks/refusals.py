"""How long a typo, ``--help`` and a TAB take, and the way from a training's last line back to the prompt.

Medians of wall seconds, and whether torch was imported.

    python benchmarks/refusals.py [--rounds 5] [--peer TREE PYTHON]

With ``--peer`` another tree of this project, with its interpreter, answers the same in turns; the ratio is the median
over rounds of the peer's time over ours. Table in docs/reliability.md.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
CASES = {
    "mistyped key": ["optim.lrr=0.1"],
    "wrong type": ["optim.lr=abc"],
    "out of range": ["optim.momentum=5"],
    "no such option": ["model=zfnett"],
    "kernel larger than its map": ["model.conv5.kernel_size=40"],
    "too large for memory": ["model.fc6.units=1e11"],
    "keyword of the Trainer": ["+trainer.max_stepz=3"],
    "foreign class": ["callbacks.filter_images._target_=os.system"],
    "folder that cannot be written": ["hydra.run.dir=/proc/run"],
    "sweep that is empty": ["-m", "seed=range(3,3)"],
    "run that is not there": ["resume=outputs/none"],
    "--help": ["--help"],
    "TAB": ["-sc", "query=bash"],
}
MOST_SECONDS = 60
HEAVY = ("torch", "lightning", "timm", "torchvision", "wandb", "matplotlib")


def answer(tree: Path, python: str, arguments: list[str], folder: str, *flags: str) -> tuple[float, str]:
    """Seconds until the prompt is back, and what was written to stderr."""
    line = "train.py optim=pap"
    environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    since = time.perf_counter()
    try:
        done = subprocess.run(
            [python, *flags, str(tree / "train.py"), *arguments],
            capture_output=True, text=True, cwd=folder, env=environment, timeout=MOST_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:  # an earlier version drew its data first
        return math.inf, ""
    return time.perf_counter() - since, done.stderr


def write_images(root: Path) -> None:
    """Two classes of four small images each, for training and validation."""
    random = np.random.default_rng(0)
    for part, kind, number in product(("train", "val"), ("a", "b"), range(4)):
        folder = root / part / kind
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{part}_{number}.png")


def seconds_to_the_prompt(tree: Path, python: str, folder: str) -> float:
    """From the last line of a short training to the end of its process."""
    sizes = "data.resize=128 data.crop=112 data.batch_size=4 data.num_workers=0 trainer.max_epochs=1 logger=none"
    command = [python, str(tree / "train.py"), "data=folder", "data.root=images", "device=cpu", *sizes.split()]
    command += ["callbacks=none", "evaluate.enabled=false", f"hydra.run.dir=run_{time.time_ns()}"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    last = time.perf_counter()
    for _ in process.stdout:
        last = time.perf_counter()
    assert process.wait() == 0, "the training failed"
    return time.perf_counter() - last


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", nargs=2, metavar=("TREE", "PYTHON"))
    options = parser.parse_args()
    trees = [(ROOT, sys.executable)] + ([(Path(options.peer[0]), options.peer[1])] if options.peer else [])
    print(f"{'case':32} {'seconds':>8} {'peer':>8} {'ratio':>6}  imported")
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in CASES.items():
            rounds = [[answer(*tree, arguments, folder)[0] for tree in trees] for _ in range(options.rounds)]
            imports = answer(*trees[0], arguments, folder, "-X", "importtime")[1]
            loaded = {line.rpartition("|")[2].strip() for line in imports.splitlines()} & set(HEAVY)
            ours = statistics.median(seconds[0] for seconds in rounds)
            peer = f"{statistics.median(seconds[1] for seconds in rounds):8.2f}" if options.peer else f"{'':8}"
            ratio = f"{statistics.median(s[1] / s[0] for s in rounds):6.1f}" if options.peer else f"{'':6}"
            print(f"{name:32} {ours:8.2f} {peer} {ratio}  {', '.join(sorted(loaded)) or 'nothing heavy'}")
        write_images(Path(folder) / "images")
        rounds = [[seconds_to_the_prompt(*tree, folder) for tree in trees] for _ in range(options.rounds)]
        medians = "".join(f"{statistics.median(column):9.2f}" for column in zip(*rounds, strict=True))
        print(f"{'last line to prompt':32}{medians}")


if __name__ == "__main__":
    main()
