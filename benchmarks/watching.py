"""The cost of watching: epochs of ``make train`` with all default pictures against the same epochs without any.

    python benchmarks/watching.py [--epochs 3] [--rounds 2] [--threads 2] [overrides]

Runs of ``train.py`` in turns, each in a folder of its own; seconds of training with its validations and pictures, as
the run itself notes them, and CPU seconds of the whole command. Ratios of rounds, as JSON: 1.1 means a tenth more.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

ROOT = Path(__file__).parents[1]
WAYS = {"watched": [], "alone": ["callbacks=none"]}


def run(folder: str, threads: int, arguments: list[str]) -> tuple[float, float]:
    """Seconds of the training, and CPU seconds of the command."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        before = getrusage(RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "train.py", "evaluate.enabled=false", *arguments, f"hydra.run.dir={place}/run"],
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        after = getrusage(RUSAGE_CHILDREN)
        results = json.loads(Path(place, "run", "results.json").read_text(encoding="utf-8"))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return results["conditions"]["seconds"], cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for way, more in WAYS.items():
                arguments = [*more, f"trainer.max_epochs={options.epochs}", *options.overrides]
                found[way].append(run(folder, options.threads, arguments))
    pairs = list(zip(found["watched"], found["alone"], strict=True))
    clock, cpu = ([watched[which] / alone[which] for watched, alone in pairs] for which in (0, 1))
    seconds = {way: round(statistics.median(time for time, _ in times), 1) for way, times in found.items()}
    print(
        json.dumps({"costs": {"epochs with all pictures": clock, "the same, CPU": cpu}, "seconds": seconds}, indent=2)
    )


if __name__ == "__main__":
    main()
