"""Two hundred epochs with pictures: a process that trains for days must not grow."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT

EPOCHS, WARM_UP = 200, 40
# Samples what this process holds at the end of each epoch.
WATCHED = """
import gc, json, os, runpy, sys, tempfile
from pathlib import Path
from zfscope.training.classifier import Classifier

def on_train_epoch_end(self):
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    holds = {
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
        "file handles": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "temporary files": sum(1 for _ in Path(tempfile.gettempdir()).rglob("*")),
    }
    print("HOLDS", json.dumps(holds), flush=True)
    return original(self)

original, Classifier.on_train_epoch_end = Classifier.on_train_epoch_end, on_train_epoch_end
sys.argv[0] = "train.py"
runpy.run_path(%r, run_name="__main__")
"""


def samples(folder, overrides, epochs, watched=WATCHED):
    """What a training in a process of its own holds after each of its epochs."""
    own = [override for override in overrides if not override.startswith(("trainer.max_epochs", "logger"))]
    own += [f"trainer.max_epochs={epochs}", "callbacks=default", "checkpoints.epochs=[]", "hydra.run.dir=run"]
    (folder / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(folder / "temporary"), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    words = [sys.executable, "-c", watched % str(ROOT / "train.py"), *own]
    ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if line.startswith("HOLDS ")]
    assert len(lines) == epochs
    return [json.loads(line.removeprefix("HOLDS ")) for line in lines]


def growth(held, warm_up):
    """By how much of itself each count has grown, medians of some epochs after the warm-up and at the end."""
    shares = {}
    for name in held[0]:
        values = np.array([sample[name] for sample in held])
        few = warm_up // 2
        early, late = np.median(values[warm_up : warm_up + few]), np.median(values[-few:])
        shares[name] = late / max(early, 1) - 1
        print(f"{name}: {early:,.0f} after {warm_up} epochs, {late:,.0f} at the end, {shares[name]:+.2%}")
    return shares


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_handles_threads_and_temporary_files_do_not_grow_over_200_epochs(tiny, tmp_path, workers):
    held = samples(tmp_path, [override.replace("num_workers=0", f"num_workers={workers}") for override in tiny], EPOCHS)

    assert all(share <= 0.01 for share in growth(held, WARM_UP).values())


@pytest.mark.slow
def test_control_a_training_that_keeps_a_megabyte_and_a_file_each_epoch_is_noticed(tiny, tmp_path):
    keeps = "    kept.append((bytearray(os.urandom(2**20)), tempfile.NamedTemporaryFile()))\n"
    watched = WATCHED.replace("    gc.collect()\n", f"    gc.collect()\n{keeps}").replace("\ndef", "\nkept = []\ndef")

    shares = growth(samples(tmp_path, tiny, 60, watched), 20)

    assert {name for name, share in shares.items() if share > 0.01} == {"memory", "file handles", "temporary files"}
