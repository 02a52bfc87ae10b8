"""A run folder made before the rooms were rebuilt: it loads, is analysed, and resumes to the weights it had then."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, write_folders
from zfscope import load_network

# Of the weights after step 17 by the commit that made the folder, resumed and uninterrupted alike; one thread.
DIGEST = "793ec2ea1a401d21cee51f4de5afcf63baefeed884976545e85542a68f97ffa4"


@pytest.fixture
def old_run(tmp_path):
    """A copy of the folder, with the images that it was trained on beside it."""
    write_folders(tmp_path / "images", {"train": 8, "val": 4})
    return Path(shutil.copytree(ROOT / "tests/fixtures/old_run", tmp_path / "old_run"))


def digest_of(checkpoint):
    """SHA-256 of the weights, tensor by tensor in the order of their names."""
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_an_old_run_loads(old_run):
    network = load_network(old_run)

    assert network.classes == ("cat", "dog", "owl")
    assert network.preprocess(torch.zeros(3, 40, 40, dtype=torch.uint8)).shape == (3, 28, 28)


def test_an_old_run_is_analysed(old_run, command, tmp_path):
    code, _, _ = command(
        "analyze", "analysis=evaluate", "checkpoint=old_run", "logger=none", "device=cpu", "hydra.run.dir=found"
    )

    results = json.loads((tmp_path / "found/results.json").read_text())
    trained = json.loads((old_run / "results.json").read_text())
    assert code == 0
    error = trained["metrics"]["val/top1_error"]["value"]
    assert results["metrics"]["val/top1_error"]["value"] == pytest.approx(error, abs=1e-4)
    assert results["conditions"]["run"]["identity"] is None


def test_an_old_run_resumes_to_the_weights_that_it_had_then(old_run, command):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        code, _, err = command("train", "resume=old_run", "+trainer.max_steps=17")
    finally:
        torch.set_num_threads(before)

    assert code == 0, err
    assert digest_of(old_run / "checkpoints/last.ckpt") == DIGEST
