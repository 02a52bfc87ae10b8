"""Analyses of networks that the deconvnet is not defined for: a refusal names a way out, and the way out works."""

import json

import numpy as np
import pytest
import torch

from tests.conftest import composed, write_folders
from zfscope import build_network
from zfscope.networks.checkpoints import save_network
from zfscope.networks.preprocessing import Preprocessing


@pytest.fixture
def analyse(command, tmp_path):
    """Ask an untrained model of timm: ``analyse(model, overrides…) -> (exit code, stderr)``."""
    write_folders(tmp_path / "images", {"train": 1, "val": 2})

    def call(name, *overrides):
        torch.manual_seed(0)
        config = composed("model=timm", f"model.name={name}")["model"]
        network = build_network(config, 3, 64)
        network.classes = ("cat", "dog", "owl")
        network.preprocessing = Preprocessing(64, 64, torch.full((3, 1, 1), 110.0), torch.full((3, 1, 1), 0.02))
        folder = tmp_path / name
        for checkpoint in ("best", "epoch_001"):
            save_network(network, {"model": config}, folder / "checkpoints" / f"{checkpoint}.ckpt")
        data = ["data=folder", f"data.root={tmp_path / 'images'}", f"data.cache={tmp_path / 'cache'}", "device=cpu"]
        options = ["logger=none", f"checkpoint={folder}", "data.num_workers=0", "hydra.run.dir=answer"]
        code, _, err = command("analyze", *data, *options, *overrides)
        return code, err

    return call


@pytest.mark.parametrize("analysis", ["projections", "evolution"])
def test_a_network_without_relus_is_refused_with_the_rule_that_takes_it(analyse, tmp_path, analysis):
    code, err = analyse("test_convnext", f"analysis={analysis}")
    again, error = analyse("test_convnext", f"analysis={analysis}", "analysis.rule=gradient", "analysis.maps=2")

    assert code == 2 and len(err.splitlines()) == 1
    assert "'guided' is not defined for layer_norm; rule='gradient' takes any network: analysis.rule=gradient" in err
    assert again == 0, error
    assert len(list((tmp_path / "answer/figures" / analysis).iterdir())) == 4


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_occlusion_maps_have_the_projections_of_the_rule_and_its_numbers_do_not_move(analyse, tmp_path):
    options = ["analysis=occlusion", "analysis.images=1", "analysis.top=1", "analysis.stride=32"]

    with pytest.warns(UserWarning, match="without projections: .* takes any network: analysis.rule=gradient"):
        analyse("test_convnext", *options)
    before = dict(np.load(tmp_path / "answer/arrays.npz"))
    code, err = analyse("test_convnext", *options, "analysis.rule=gradient")

    assert (code, err) == (0, "")
    after = dict(np.load(tmp_path / "answer/arrays.npz"))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert "rule" not in json.loads((tmp_path / "answer/results.json").read_text())["conditions"]["question"]


def test_a_vision_transformer_is_refused_with_the_layers_that_it_has(analyse, tmp_path):
    code, err = analyse("test_vit", "analysis=projections")
    occluded, error = analyse("test_vit", "analysis=occlusion")

    assert code == occluded == 2 and len((err + error).splitlines()) == 2
    assert "none of blocks.0, " in err and "train with other layers, such as model.layers=[patch_embed.proj]" in err
    assert "name another layer, such as layer=head" in error
    way_out = [
        "analysis.layer=head",
        "analysis.images=1",
        "analysis.top=0",
        "analysis.stride=32",
        "analysis.rule=gradient",
    ]
    assert analyse("test_vit", "analysis=occlusion", *way_out) == (0, "")
