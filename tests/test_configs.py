"""Every option of every group of conf/."""

import json
from itertools import zip_longest

import pytest

from tests.conftest import ROOT, composed
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.schema import check
from zfscope.training.spec import TrainConfig

GROUPS = ["model/stem", "data", "data/augment", "optim", "optim/schedule", "trainer", "logger", "callbacks"]
MODELS = {
    "zfnet": "paper",
    "zfnet_wide": "paper",
    "alexnet": "paper",
    "torchvision": "paper",
    "timm": "paper",
    "zfnet_mini": "mini",
    "zfnet_mini_wide": "mini",
    "alexnet_mini": "mini",
}


def options(group):
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


CHOICES = [[f"{group}={name}" for name in options(group)] for group in [*GROUPS, "scale"]]
ALONE = [f"{group}={name}" for group in ("model", "experiment", "debug") for name in options(group)]


@pytest.mark.parametrize("choices", [*zip_longest(*CHOICES), *([choice] for choice in ALONE)])
def test_every_option_of_every_group_composes_and_is_valid(choices):
    larger = ["data.resize=128", "data.crop=112"] if "data=fashion_mnist" in choices else []  # zfnet_mini at 28 px

    check(TrainConfig, composed(*filter(None, choices), *larger))


@pytest.mark.parametrize("name", options("analysis"))
def test_every_analysis_composes_and_is_valid(name):
    looked_at = [] if name in ("cache", "ledger", "overlap") else ["checkpoint=RUN"]

    check(AnalyzeConfig, composed(f"analysis={name}", *looked_at, name="analyze"))


@pytest.mark.parametrize("name", options("analyze/experiment"))
@pytest.mark.parametrize("analysis", ["transfer", "probes"])
def test_every_experiment_of_the_analyses_composes_and_is_valid(name, analysis):
    config = check(AnalyzeConfig, composed(f"experiment={name}", f"analysis={analysis}", name="analyze"))

    assert config.checkpoint == "zoo/zfnet"
    assert config.data["name"] == name.removesuffix("_pretrained") and config.data["download"]


def test_every_model_brings_its_recipe_and_optim_says_otherwise():
    assert sorted(MODELS) == options("model")
    for model, recipe in MODELS.items():
        assert composed(f"model={model}")["optim"] == composed(f"optim={recipe}")["optim"], model
        assert composed(f"model={model}", "optim=modern")["optim"] == composed("optim=modern")["optim"]
    assert composed("model=zfnet_mini", "optim/schedule=constant")["optim"]["schedule"] == {"name": "constant"}
    mini, paper = composed("optim=mini")["optim"], composed("optim=paper")["optim"]
    assert (mini["epochs"], mini["lr"], mini["schedule"]["name"]) == (12, 0.001, "cosine")
    changed = {name for name in mini if mini[name] != paper[name]}
    assert changed == {
        "epochs", "name", "lr", "momentum", "nesterov", "weight_decay", "label_smoothing", "revive",
        "schedule",
    }  # fmt: skip


def test_an_experiment_of_table_3_names_the_row_whose_numbers_are_the_papers():
    for name in options("experiment"):
        row = name.removeprefix("table3_") if name.startswith("table3_") else None
        assert composed(f"experiment={name}")["paper"] == row


def test_the_papers_numbers_stand_in_no_config():
    papers = json.dumps([path.read_text() for path in (ROOT / "conf").rglob("*.yaml")])

    assert "top1_error:" not in papers and "validation error (ten crops)" not in papers


def test_what_an_experiment_says_goes_before_the_defaults():
    assert composed("experiment=zoo_zfnet", "data.root=DIR")["weights"] == "zoo/zfnet"
    assert composed("experiment=elpv")["evaluate"]["checkpoint"] == "last"
    assert not composed("debug=fast")["evaluate"]["enabled"]


def test_every_config_file_opens_with_the_command_that_uses_it():
    for path in (ROOT / "conf").rglob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]

        assert lines[0].startswith(("# python train.py", "# python analyze.py")), path
