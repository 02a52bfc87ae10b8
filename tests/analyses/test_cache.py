"""``analysis=cache`` and ``data.cache_images``: typed, with what they leave and print."""

import json
import shlex
import subprocess

import torch

from tests.commands.refusals import refused
from tests.conftest import ROOT
from zfscope.networks.checkpoints import read_checkpoint


def weights(run):
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


def test_a_training_from_the_cache_is_that_from_the_files_bit_for_bit(command, tiny, tmp_path):
    own = [*tiny, "data.resizer=torch", "data.augment.pca_colour=0.1"]

    plain = command("train", *own, "hydra.run.dir=plain")
    cached = command("train", *own, "data.cache_images=true", "hydra.run.dir=cached")
    again = command("train", *own, "data.cache_images=true", "hydra.run.dir=again")

    assert plain[0] == cached[0] == again[0] == 0
    assert "decoding 24 training images and 12 validation images once" in " ".join(cached[1].split())
    assert "decoding" not in again[1]
    runs = [tmp_path / name for name in ("plain", "cached", "again")]
    first, *others = [weights(run) for run in runs]
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    digests = {json.loads((run / "results.json").read_text())["conditions"]["identity"]["digest"] for run in runs}
    assert len(digests) == 1


def test_what_make_cache_types_decodes_a_data_set_and_mends_what_is_damaged(command, folders, tmp_path):
    printed = subprocess.run(
        ["make", "-n", "cache", "data=folder", f"root={folders}", "check=true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    line = next(line for line in printed.stdout.splitlines() if "analyze.py" in line)
    words = [*shlex.split(line.split("analyze.py")[1]), f"data.cache={tmp_path / 'cache'}", "data.num_workers=0"]
    sizes = ["data.resize=32", "data.crop=28"]

    code, out, err = command("analyze", *words, *sizes, "hydra.run.dir=first")
    (path,) = sorted((tmp_path / "cache").rglob("*0.canvases"))
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    trusting = command("analyze", *words, *sizes, "analysis.check=false", "hydra.run.dir=second")
    checking = command("analyze", *words, *sizes, "hydra.run.dir=third")

    assert (code, err) == (0, "")
    metrics = json.loads((tmp_path / "first" / "results.json").read_text())["metrics"]
    assert (metrics["train/images"]["value"], metrics["val/images"]["value"]) == (24, 12)
    assert metrics["size"]["value"] * 1e9 == sum(
        file.stat().st_size for file in (tmp_path / "cache").rglob("*.canvases")
    )
    assert "decoding" not in trusting[1] and "damaged" not in trusting[1]
    assert "damaged, made again" in checking[1] and checking[0] == 0
    assert path.read_bytes() != content


def test_a_data_set_in_memory_and_make_without_one_are_refused(command, tmp_path):
    told = refused(command, tmp_path, "analyze", "analysis=cache", "data=phantom", "logger=none", "data.cache=cache")
    assert "data=phantom is in memory already; a cache is for images that are files" in told

    asked = subprocess.run(["make", "-n", "cache"], cwd=ROOT, capture_output=True, text=True)
    assert "cache needs data=NAME" in asked.stdout
