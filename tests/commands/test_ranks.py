"""Several ranks from the command line: the same files as of one, and where one is killed all end and say why."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT, on_two_ranks, quick_first
from zfscope.networks import ranks
from zfscope.networks.checkpoints import load_network, read_checkpoint, run_config, save_network

ON_CPUS = ("trainer.accelerator=cpu", "trainer.strategy=ddp")


def typed(folder, *arguments, **more):
    """``train.py`` as a process that starts others."""
    known = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "NODE_RANK")
    own = {name: value for name, value in os.environ.items() if name not in known} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own, **more
    )


def finish(process, seconds=300):
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return out


def rank_of(process):
    """The process of the other rank."""
    (child,) = (int(number) for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    return child


def alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("killed", quick_first(["the other", "the first"], 1))
def test_where_a_rank_is_killed_all_end_and_the_run_goes_on_exactly(tiny, tmp_path, killed):
    own = [*tiny, *ON_CPUS, "trainer.devices=2", "evaluate.enabled=false", "trainer.max_epochs=40", "hydra.run.dir=run"]
    process = typed(tmp_path, *own)
    assert any(line.startswith("epoch 3/") for line in iter(process.stdout.readline, "")), process.stderr.read()
    other, since = rank_of(process), time.monotonic()

    os.kill(process.pid if killed == "the first" else other, signal.SIGKILL)

    _, err = process.communicate(timeout=60)
    while alive(other) and time.monotonic() < since + 30:
        time.sleep(0.05)
    assert time.monotonic() - since < 10 and not alive(other)
    if killed == "the first":
        assert process.returncode == -signal.SIGKILL
    else:
        told = "train.py: rank 1 was killed by SIGKILL; what was saved is whole: go on with python train.py resume=run"
        assert (process.returncode, err.splitlines()[-1]) == (2, told), err
        assert "Traceback" not in err
    finish(typed(tmp_path, "resume=run"))
    finish(typed(tmp_path, *own[:-1], "hydra.run.dir=whole"))
    weights = [read_checkpoint(tmp_path / run / "checkpoints/last.ckpt")["state_dict"] for run in ("run", "whole")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


WAITING = """
import subprocess, sys, threading, time
from pathlib import Path
from zfscope.training import ranks

ranks.GRACE = 0.2
end = "import os, time; time.sleep({0}); os.kill(os.getpid(), 9)"
others = [subprocess.Popen([sys.executable, "-c", end.format(seconds)]) for seconds in (600, 0)]
threading.Thread(target=ranks._watch, args=(others, threading.Event(), Path(sys.argv[1])), daemon=True).start()
print(others[0].pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("saved", [False, True])
def test_a_first_rank_that_waits_for_a_dead_one_ends_and_says_which(tmp_path, saved):
    if saved:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints/last.ckpt").touch()

    answer = subprocess.run([sys.executable, "-c", WAITING, str(tmp_path)], capture_output=True, text=True, timeout=120)

    way_on = f"; what was saved is whole: go on with python train.py resume={tmp_path}" if saved else ""
    assert (answer.returncode, answer.stderr) == (2, f"train.py: rank 2 was killed by SIGKILL{way_on}\n")
    assert not alive(int(answer.stdout))


def test_a_batch_that_ranks_cannot_share_is_refused_before_any_work(command, tiny, tmp_path):
    more = ["trainer.devices=3", "trainer.accumulate_grad_batches=2", *ON_CPUS, "hydra.run.dir=run"]

    code, _, err = command("train", *tiny, *more)

    told = "for 3 devices and trainer.accumulate_grad_batches=2; use data.batch_size=6"
    assert code == 2 and err.splitlines()[-1].endswith(told)
    assert not (tmp_path / "run").exists()


def test_several_processes_of_torchrun_for_one_device_are_refused(command, tiny, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")

    code, _, err = command("train", *tiny)

    assert code == 2 and "torchrun started 2 processes of a training on one device; say trainer.devices=2" in err


def losses_of(run):
    with open(run / "csv/version_0/metrics.csv", encoding="utf-8") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


@pytest.mark.slow  # minutes
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_train_the_small_zfnet_and_evaluate_and_show_as_one_does(tmp_path, ranks):
    own = ["logger=csv", "trainer.log_every_n_steps=1", "trainer.precision=64-true", "data.batch_size=32"]
    own += ["model.fc6.dropout=0", "model.fc7.dropout=0", "trainer.max_steps=50", "trainer.val_check_interval=25"]
    own += [
        "evaluate.ten_crops=false",
        "callbacks.occlusion_maps=null",
        "trainer.accelerator=cpu",
        f"data.cache={ROOT / 'data_cache'}",
    ]
    finish(typed(tmp_path, *own, "hydra.run.dir=one"), 1500)

    finish(typed(tmp_path, *own, "trainer.strategy=ddp", f"trainer.devices={ranks}", "hydra.run.dir=all"), 1500)

    one, several = losses_of(tmp_path / "one"), losses_of(tmp_path / "all")
    assert len(one) == 50 and one == pytest.approx(several, rel=3e-7)  # logged as float32
    results = [json.loads((tmp_path / run / "results.json").read_text())["metrics"] for run in ("one", "all")]
    assert results[0] == results[1]
    weights = [read_checkpoint(tmp_path / run / "checkpoints/last.ckpt")["state_dict"] for run in ("one", "all")]
    torch.testing.assert_close(*weights, rtol=1e-10, atol=1e-10)
    pictures = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one/figures").rglob("*.png"))
    assert len(pictures) >= 5
    for picture in pictures:
        shown = [np.asarray(Image.open(tmp_path / run / picture), dtype=int) for run in ("one", "all")]
        assert shown[0].shape == shown[1].shape and np.abs(shown[0] - shown[1]).max() <= 1, picture


def asked(folder, *arguments, ranks=1):
    """``analyze.py``, by torchrun where several processes share it."""
    starter = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    known = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT", "NODE_RANK")
    own = {name: value for name, value in os.environ.items() if name not in known} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *starter, str(ROOT / "analyze.py"), *arguments, "logger=none", "device=cpu"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=own, timeout=300)


ON_FOLDS = ["analysis.batch_size=2", "analysis.folds=2", "analysis.random_weights=true"]
QUESTIONS = {
    "evaluate": ["analysis.batch_size=2"],
    "projections": ["analysis.batch_size=2", "analysis.top=3"],
    "ensemble": ["analysis.batch_size=2"],
    "transfer": [*ON_FOLDS, "analysis.images_per_class=[4]", "analysis.scratch_steps=2", "analysis.scratch_folds=1"],
    "probes": [*ON_FOLDS, "analysis.images_per_class=4"],
    "embedding": ["analysis.batch_size=2", "analysis.images=12", "analysis.neighbours=2", "analysis.draws=2"],
}


def another_like(run, folder):
    """A run folder whose network has other weights than that of ``run``."""
    network = load_network(run)
    network.fc8.linear.weight.data.mul_(1.5)
    save_network(network, run_config(run), folder / "checkpoints/best.ckpt")
    return folder


@pytest.mark.parametrize("name", quick_first(QUESTIONS, 1))
def test_processes_that_share_an_analysis_write_the_files_of_one(tmp_path, trained_run, name):
    source = trained_run if name != "ensemble" else f"[{trained_run},{another_like(trained_run, tmp_path / 'other')}]"
    words = [f"analysis={name}", f"checkpoint={source}", *QUESTIONS[name]]

    for count in (1, 2):
        answer = asked(tmp_path, *words, f"data.cache=cache{count}", f"hydra.run.dir={count}", ranks=count)
        assert answer.returncode == 0, answer.stderr

    caches = [sorted(path.name for path in (tmp_path / f"cache{count}").rglob("*")) for count in (1, 2)]
    assert caches[0] == caches[1]
    first, second = ({path.relative_to(tmp_path / run) for path in (tmp_path / run).rglob("*.*")} for run in "12")
    assert first == second
    for path in first:
        one, other = (tmp_path / run / path for run in "12")
        if path.suffix == ".npz":
            with np.load(one) as left, np.load(other) as right:
                assert left.files == right.files and all(np.array_equal(left[key], right[key]) for key in left.files)
        elif path.suffix == ".png":
            assert one.read_bytes() == other.read_bytes()
    one, other = (json.loads((tmp_path / run / "results.json").read_text())["metrics"] for run in "12")
    assert one == other and one


@pytest.mark.slow
def test_images_that_another_process_cannot_read_end_all_in_one_line(tmp_path, trained_run):
    images = shutil.copytree(trained_run.parent / "images", tmp_path / "images")
    for name in "69":  # the second batch, and one more than may be left out
        (images / f"val/cat/{name}.jpg").write_bytes(b"no image")
    words = ["analysis=evaluate", f"checkpoint={trained_run}", *QUESTIONS["evaluate"], "analysis.part=val"]

    answer = asked(tmp_path, *words, f"data.root={images}", "hydra.run.dir=run", ranks=2)

    told = [line for line in answer.stderr.splitlines() if line.startswith("analyze.py: ")]
    assert len(told) == 1 and "analyze.py: 2 of the 12 validation images cannot be read, and at most 1 may" in told[0]
    assert "exitcode  : 2 " in answer.stderr and "src/zfscope" not in answer.stderr
    assert not (tmp_path / "run/results.json").exists()


def test_an_analysis_that_no_processes_can_share_is_refused(command, trained_run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")

    code, _, err = command("analyze", "analysis=invariance", f"checkpoint={trained_run}", "device=cpu", "logger=none")

    assert code == 2 and "analysis=invariance runs in one process, and torchrun started 2; start it with python" in err


class Reads:
    """A loader of three batches that notes which it gives."""

    def __init__(self, numbers):
        self.numbers, self.given = numbers, []

    def __iter__(self):
        for number in self.numbers:
            self.given.append(number)
            yield number


def shared_on(rank):
    with ranks.ending_together():
        own = [list(part) for part in ranks.own_batches(7, 2)["batch_sampler"]]
        loader = Reads(own)
        found = list(ranks.shared(loader, lambda batch: [10 * index for index in batch]))
        ended = True
        ranks.end_passes()
        ended = False
    return loader.given, found, ended


def test_each_process_reads_its_own_batches_and_the_first_has_all_in_order(tmp_path):
    (first, found, first_ended), (second, nothing, second_ended) = on_two_ranks(tmp_path, shared_on)

    assert (first, second) == ([[0, 1], [4, 5]], [[2, 3], [6]])
    assert found == [[0, 10], [20, 30], [40, 50], [60]] and nothing == []
    assert (first_ended, second_ended) == (False, True)
