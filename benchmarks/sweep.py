"""A sweep by joblib on one machine, against its jobs alone: what running them side by side costs.

A job trains zfnet_mini on the phantom for about ``--seconds`` on one thread, with W&B offline; one job of the sweep
fails after its training. The ideal is the median time of three jobs alone, each in a process of its own with one
thread, without the time of the imports, times the jobs, divided by the processes side by side.

    python benchmarks/sweep.py [--jobs 16] [--processes 2] [--seconds 60] [--alone 3]

Prints JSON (seconds, ratio to the ideal, of which 1.25 is the goal, exit code, states, W&B runs, memory), then the
sweep's table. Numbers in docs/sweeps.md.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTS = "import zfscope.commands, zfscope.training.run"
FAILURE = """
from lightning.pytorch.callbacks import Callback

class Failure(Callback):
    def on_train_end(self, trainer, module):
        if module.seed == {seed}:
            raise RuntimeError("this job fails on purpose")
"""
SAME = (
    "callbacks=none",
    "evaluate.enabled=false",
    "device=cpu",
    "logger=wandb",
    "logger.mode=offline",
    "optim.epochs=1000",
    "trust=[failure.Failure]",
    "+callbacks.failure._target_=failure.Failure",
)
PROBE_STEPS = 40


def timed(home: Path, *command: str, threads: int | None = None) -> tuple[float, subprocess.CompletedProcess]:
    """Wall seconds of a command, and what came of it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(home), os.environ.get("PYTHONPATH", "")])}
    environment |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    since = time.perf_counter()
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    return time.perf_counter() - since, done


def alone(home: Path, steps: int, seed: int) -> float:
    """Wall seconds of one training in a process of its own with one thread."""
    own = [f"seed={seed}", f"trainer.max_steps={steps}", f"hydra.run.dir=alone_{seed}_{steps}"]
    seconds, done = timed(home, sys.executable, str(ROOT / "train.py"), *SAME, *own, threads=1)
    assert done.returncode == 0, done.stdout + done.stderr
    return seconds


class Memory(threading.Thread):
    """Looks each second at the memory of the processes below this one; ``most`` is the largest sum, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.processes, self.ended = 0, 0, threading.Event()

    def run(self) -> None:
        """Look until ``ended`` is set."""
        while not self.ended.wait(1.0):
            sizes = [proportional_size(pid) for pid in below(os.getpid())]
            if sum(sizes) > self.most:
                self.most, self.processes = sum(sizes), len(sizes)


def below(pid: int) -> list[int]:
    """All processes that a process has started, and that these have."""
    try:
        text = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    except OSError:
        return []
    children = [int(word) for word in text.split()]
    return children + [other for child in children for other in below(child)]


def proportional_size(pid: int) -> int:
    """Bytes of a process's memory, what it shares divided among those that share it; 0 once it has ended."""
    try:
        return 1024 * int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1])
    except (OSError, TypeError):
        return 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60, help="of training of each job")
    parser.add_argument("--alone", type=int, default=3, help="jobs that run alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "failure.py").write_text(FAILURE.format(seed=options.jobs // 2))
        alone(home, 2, 1000)  # draws the images
        imports = statistics.median(timed(home, sys.executable, "-c", IMPORTS, threads=1)[0] for _ in range(3))
        alone(home, PROBE_STEPS, 1001)
        probe = json.loads((home / f"alone_1001_{PROBE_STEPS}/results.json").read_text())["conditions"]["seconds"]
        steps = max(1, round(PROBE_STEPS * options.seconds / probe))
        singles = [alone(home, steps, seed) - imports for seed in range(options.alone)]
        ideal = statistics.median(singles) * options.jobs / options.processes
        memory, load = Memory(), os.getloadavg()[0]
        memory.start()
        own = [f"seed=range({options.jobs})", f"trainer.max_steps={steps}", "hydra.sweep.dir=sweep"]
        launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={options.processes}"]
        seconds, done = timed(home, sys.executable, str(ROOT / "train.py"), "-m", *launcher, *SAME, *own)
        memory.ended.set()
        jobs = [json.loads(path.read_text()) for path in sorted((home / "sweep").glob("*/results.json"))]
        runs = [list(path.glob("wandb/offline-run-*")) for path in sorted((home / "sweep").glob("[0-9]*"))]
        peaks = re.findall(r"job \d+ took [\d.]+ min in a process of at most ([\d.]+) GB", done.stdout)
        answer = {
            "cores": os.cpu_count(),
            "load after the jobs alone": round(load, 2),  # 1 on a quiet machine
            "steps of a job": steps,
            "seconds of the imports": round(imports, 1),
            "seconds of a job alone, without imports": [round(single, 1) for single in singles],
            "ideal seconds": round(ideal, 1),
            "seconds of the sweep": round(seconds, 1),
            "ratio": round(seconds / ideal, 3),
            "exit code": done.returncode,
            "states": Counter(job["state"] for job in jobs),
            "causes": sorted({job["cause"] for job in jobs if job.get("cause")}),
            "folders": len(runs),
            "W&B runs": len({run.name.rpartition("-")[2] for found in runs for run in found}),
            "GB of all processes at most": round(memory.most / 2**30, 2),
            "processes then": memory.processes,
            "GB of a worker at most": max(map(float, peaks), default=None),
        }
        print(json.dumps(answer, indent=2))
        print(done.stdout[-6000:] if done.returncode not in (0, 1) else done.stdout[done.stdout.rfind(" jobs ") - 60 :])


if __name__ == "__main__":
    main()
