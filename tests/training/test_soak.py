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


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_handles_threads_and_temporary_files_do_not_grow_over_200_epochs(tiny, tmp_path, workers):
    own = [
        override for override in tiny if not override.startswith(("data.num_workers", "trainer.max_epochs", "logger"))
    ]
    own += [f"data.num_workers={workers}", f"trainer.max_epochs={EPOCHS}", "callbacks=default", "checkpoints.epochs=[]"]
    (tmp_path / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary"), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    words = [sys.executable, "-c", WATCHED % str(ROOT / "train.py"), *own, "hydra.run.dir=run"]

    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert ended.returncode == 0, ended.stderr
    samples = [
        json.loads(line.removeprefix("HOLDS ")) for line in ended.stdout.splitlines() if line.startswith("HOLDS ")
    ]
    assert len(samples) == EPOCHS
    for name in samples[0]:
        values = np.array([sample[name] for sample in samples])
        early, late = np.median(values[WARM_UP : WARM_UP + 20]), np.median(values[-20:])
        print(f"{name}: {early:,.0f} after {WARM_UP} epochs, {late:,.0f} at the end, {late / max(early, 1) - 1:+.2%}")
        assert late <= 1.01 * early, (name, early, late)
