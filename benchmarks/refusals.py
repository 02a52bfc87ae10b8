"""How long a typo, ``--help`` and a TAB take: medians of wall seconds, and whether torch was imported.

    python benchmarks/refusals.py [--rounds 5] [--peer TREE PYTHON]

With ``--peer`` another tree of this project, with its interpreter, answers the same in turns; the ratio is the median
over rounds of the peer's time over ours. Table in docs/reliability.md.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
HEAVY = ("torch", "lightning", "timm", "torchvision", "wandb", "matplotlib")


def answer(tree: Path, python: str, arguments: list[str], folder: str, *flags: str) -> tuple[float, str]:
    """Seconds until the prompt is back, and what was written to stderr."""
    line = "train.py optim=pap"
    environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    since = time.perf_counter()
    done = subprocess.run(
        [python, *flags, str(tree / "train.py"), *arguments],
        capture_output=True, text=True, cwd=folder, env=environment, timeout=120,
    )  # fmt: skip
    return time.perf_counter() - since, done.stderr


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


if __name__ == "__main__":
    main()
