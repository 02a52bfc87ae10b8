"""A run folder made before the rooms were rebuilt: it loads, is analysed, and resumes to the weights it had then."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, write_folders
from zfscope import load_network
from zfscope.networks.checkpoints import read_checkpoint


@pytest.fixture
def old_run(tmp_path):
    """A copy of the folder, with the images that it was trained on beside it."""
    write_folders(tmp_path / "images", {"train": 8, "val": 4})
    return Path(shutil.copytree(ROOT / "tests/fixtures/old_run", tmp_path / "old_run"))


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
    weights = read_checkpoint(old_run / "checkpoints/last.ckpt")["state_dict"]
    before = read_checkpoint(ROOT / "tests/fixtures/old_run/checkpoints/last.ckpt")["state_dict"]
    expected = load_file(ROOT / "tests/fixtures/old_run_step_17.safetensors")
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():  # kinds of CPU add in different orders
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    assert max(float((weight - before[name]).abs().max()) for name, weight in weights.items()) > 1e-3
