"""The model of what trainings cost: its counts, its fits, and the tables of docs/scale.md that it prints."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import ROOT

NETWORKS = {
    "zfnet_mini": [],
    "two groups, norm before pool": ["model=alexnet_mini"],
    "layers removed": ["model.conv3=null", "model.conv4=null", "model.fc7=null"],
    "other filters": ["model.conv1.kernel_size=9", "model.conv1.stride=3", "model.conv2.kernel_size=3"],
}


def loaded(name):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


@pytest.fixture(scope="module")
def cost():
    return loaded("cost")


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """For the phantom, which is opened here and not drawn, however full this machine's disk is."""
    monkeypatch.setattr("zfscope.data.sources.phantom.check_writable", lambda *_, **__: None)


@pytest.fixture(scope="module")
def imagenet(cost):
    return loaded("cost_imagenet")


@pytest.mark.parametrize("overrides", NETWORKS.values(), ids=NETWORKS)
def test_counted_operations_are_those_that_torch_counts(cost, overrides):
    network = cost.network_of(cost.config_of(overrides), 10)
    images = torch.randn(1, 3, 112, 112)
    work = cost.work_of(network)

    with FlopCounterMode(display=False) as forward:
        logits = network(images)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()

    assert forward.get_total_flops() == 2 * work.multiply_adds
    if "model=alexnet_mini" not in overrides:  # torch 2.14 forgets the groups in a filter's gradient
        assert forward.get_total_flops() + backward.get_total_flops() == work.operations


def test_counted_cells_and_weights_are_those_of_the_modules(cost):
    network = cost.network_of(cost.config_of(["model=alexnet_mini"]), 10)
    found = Counter()
    for module in network.modules():
        kind = type(module).__name__
        module.register_forward_hook(lambda _, given, out, kind=kind: found.update({kind: out.numel()}))

    network(torch.randn(1, 3, 112, 112))
    work = cost.work_of(network)

    assert work.cells == found["Conv2d"] + found["Linear"] and work.normed == found["ContrastNorm"]
    assert work.weights == sum(weight.numel() for weight in network.parameters())


def test_the_paper_says_how_many_multiply_adds_zfnet_has(imagenet):
    training = imagenet.training_of(("experiment=table3_zfnet",))

    assert training.work.weights == 62_357_608 and round(training.work.multiply_adds / 1e9, 2) == 1.17
    assert (training.epochs, training.batch, training.saved_epochs) == (70, 128, 8)


def test_a_fit_finds_what_a_unit_takes_and_nothing_below_zero(cost):
    rows = [[1e9, 3.0], [2e9, 1.0], [5e9, 8.0]]

    found = cost.fit(rows, [1e-9 * one + 0.5 * other for one, other in rows])

    assert found == pytest.approx([1e-9, 0.5])
    assert cost.fit(rows, [1e-9 * one for one, _ in rows])[1] == pytest.approx(0, abs=1e-12)


def test_the_amounts_of_a_training_follow_from_its_config(cost, tmp_path):
    overrides = ["data.classes=[dog,owl]", "trainer.max_epochs=3", f"data.cache={tmp_path}"]
    config = cost.config_of(overrides)

    amounts = cost.amounts_of(config, cost.network_of(config, 2))

    assert (amounts.steps, amounts.batch, amounts.validated, amounts.tested) == (3 * (1200 // 32), 32, 200, 800)
    assert amounts.crops == 10 and amounts.panels == 3 * (1 + 5 + 2) + 2 * 5  # the strips at epochs 1 and 2


def test_more_epochs_cost_what_the_further_ones_take(cost, tmp_path):
    units = {"step": [0, 1e-12, 0, 0, 0], "pass": [0] * 5, "update": [0] * 3, "view": [0, 0], "middle": 0.0}
    units |= {"canvas": 0.0, "crop_pixel": 0.0, "start": 5.0, "step_of_program": 0.01, "epoch": 1.0}
    overrides = ["callbacks=none", f"data.cache={tmp_path}"]

    one, three = (cost.predicted([*overrides, f"trainer.max_epochs={count}"], units) for count in (1, 3))

    assert one["steps of the program"] == pytest.approx(187 * 0.01) and one["start"] == three["start"] == 5.0
    assert three["network"] == pytest.approx(3 * one["network"]) and one["network"] > 0


def test_no_network_of_the_sweep_is_among_those_of_the_calibration(cost):
    own = [*cost.NETWORKS, *cost.TRAININGS, *cost.PICTURED, cost.START, cost.MORE_EPOCHS]
    known = {(cost.work_of(cost.network_of(cost.config_of(overrides), 10))) for overrides in own}

    for path in sorted((ROOT / "benchmarks").glob("cost_sweep*.yaml")):
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))
        networks = {name: cost.work_of(cost.network_of(cost.config_of(job), 10)) for name, job in jobs.items()}
        assert len(set(networks.values())) == len(jobs) >= 4 and not known & set(networks.values())


def test_the_tables_of_the_page_are_those_that_the_script_prints(imagenet):
    page = imagenet.PAGE.read_text(encoding="utf-8")

    assert imagenet.tables() in page


@pytest.mark.slow
def test_the_trainings_are_those_of_make_paper(cost, imagenet, tmp_path):
    for name in ("Makefile", "paper.mk", "requirements.txt", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    command = ["make", "-n", "paper", "scale=imagenet", "imagenet=/i", "caltech101=/c", "caltech256=/d"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    lines = Counter(
        tuple(word for word in shlex.split(line)[2:] if not re.match("hydra|seed|data.exclude|trainer", word))
        for line in made.splitlines()
        if "train.py" in line
    )
    counted, expected = Counter(), Counter()
    for words, count in lines.items():
        counted[imagenet.training_of(words)] += count
    for overrides, count in imagenet.TRAININGS.values():
        expected[imagenet.training_of(overrides)] += count

    assert counted == expected and sum(expected.values()) == 25
