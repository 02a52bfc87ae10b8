"""analysis=diagnostics: two networks side by side."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import composed
from zfscope import build_network
from zfscope.analyses.diagnostics import filters_at_radius
from zfscope.analyses.run import analyze
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.diagnostics import (
    filter_frequencies,
)
from zfscope.networks.checkpoints import save_network
from zfscope.networks.layers import filter_rms
from zfscope.networks.preprocessing import Preprocessing
from zfscope.schema import check


def checkpoint(path, folders, *overrides, crop=64, seed=0):
    config = composed("data=folder", f"data.root={folders}", f"data.crop={crop}", f"data.resize={crop + 4}", *overrides)
    torch.manual_seed(seed)
    network = build_network(config["model"], 3, crop)
    network.classes = ("cat", "dog", "owl")
    network.preprocessing = Preprocessing(crop + 4, crop, torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 0.02))
    save_network(network, config, path)
    return network


def analysed(folder, source, *overrides):
    folder.mkdir()
    overrides = ["analysis=diagnostics", f"checkpoint={source}", "device=cpu", "logger=none", *overrides]
    analyze(check(AnalyzeConfig, composed(*overrides, name="analyze")), folder)
    return json.loads((folder / "results.json").read_text())["metrics"], np.load(folder / "arrays.npz")


MAPS = ("model.conv1.maps=6", "model.conv2.maps=10", "model.fc6.units=9", "model.fc7=null")


def test_two_networks_of_other_stems_and_sizes_are_measured_side_by_side(tmp_path, folders):
    checkpoint(tmp_path / "one.ckpt", folders, *MAPS)
    other = checkpoint(tmp_path / "two.ckpt", folders, "model/stem=11x11s4", *MAPS, crop=80)

    metrics, arrays = analysed(tmp_path / "both", tmp_path / "one.ckpt", f"analysis.other={tmp_path / 'two.ckpt'}")
    alone, _ = analysed(tmp_path / "alone", tmp_path / "two.ckpt")

    assert {name.removeprefix("other/"): each for name, each in metrics.items() if name.startswith("other/")} == alone
    weight = other.conv1.conv.weight
    share = 100 * filter_frequencies(weight, 4).beyond_stride.median().item()
    assert metrics["other/conv1/energy_beyond_stride"]["value"] == pytest.approx(share)
    assert metrics["conv1/dead_maps"]["unit"] == "of 6" and metrics["fc6/near_dead_maps"]["unit"] == "of 9"
    assert metrics["other/conv1/largest_filter_rms"]["value"] == pytest.approx(float(filter_rms(weight.detach()).max()))
    assert {name for name in metrics if "grid" in name and "chance" not in name} == {
        *("conv2/grid_2px", "conv2/grid_4px", "other/conv2/grid_4px", "other/conv2/grid_8px")
    }
    assert arrays["tiles"].shape[2:] == (27, 27) and arrays["other/tiles"].shape[2:] == (51, 51)
    with (
        Image.open(tmp_path / "both/figures/diagnostics.png") as both,
        Image.open(tmp_path / "alone/figures/diagnostics.png") as one,
    ):
        assert both.width - one.width > 600


def test_ranges_in_the_arrays_are_those_of_all_images(tmp_path, folders):
    network = checkpoint(tmp_path / "one.ckpt", folders, *MAPS).eval()

    metrics, arrays = analysed(tmp_path / "out", tmp_path / "one.ckpt", "analysis.batch_size=5")
    _, some = analysed(tmp_path / "some", tmp_path / "one.ckpt", "analysis.images=4", "analysis.maps=3")

    files = sorted(folders.glob("val/*/*.jpg"))
    inputs = torch.stack([network.preprocess(Image.open(path).convert("RGB")) for path in files])
    with torch.no_grad():
        for layer in ("conv1", "conv5", "fc6"):
            maps = network.features(inputs, layer).transpose(0, 1).flatten(1)
            np.testing.assert_allclose(arrays[f"ranges/{layer}"], [maps.amax(1), maps.amin(1)], atol=1e-5)
            dead = int((maps.amax(1) <= 0).sum())
            assert metrics[f"{layer}/dead_maps"]["value"] == dead
            assert (some[f"ranges/{layer}"][0] <= arrays[f"ranges/{layer}"][0] + 1e-5).all()
    assert len(some["maps"]) <= 3 < len(arrays["maps"])


def test_dominance_is_how_far_the_largest_filter_stands_out(tmp_path, folders):
    network = checkpoint(tmp_path / "one.ckpt", folders, *MAPS)
    weight = network.conv1.conv.weight.detach()
    weight /= filter_rms(weight)[:, None, None, None] / torch.tensor([1.0, 2, 3, 4, 5, 21])[:, None, None, None]

    found = filters_at_radius(network, None)

    assert found["conv1/filter_dominance"]["value"] == pytest.approx(7)  # of six the lower of the middle two is 3


def test_what_a_network_has_not_is_left_out_and_said(tmp_path, folders):
    checkpoint(tmp_path / "vit.ckpt", folders, "model=timm", "model.name=test_vit")
    checkpoint(tmp_path / "gelu.ckpt", folders, "model=timm", "model.name=test_convnext")

    vit, _ = analysed(tmp_path / "vit", tmp_path / "vit.ckpt")
    gelu, arrays = analysed(tmp_path / "gelu", tmp_path / "gelu.ckpt")

    assert not any("dead" in name or "grid" in name for name in vit)
    assert vit["patch_embed.proj/energy_beyond_stride"]["value"] > 99
    assert "stages.0/dead_maps" in gelu and not any("grid" in name for name in gelu) and "tiles" not in arrays


def test_a_checkpoint_that_is_not_there_is_refused_and_nothing_is_written(tmp_path, folders):
    checkpoint(tmp_path / "one.ckpt", folders, *MAPS)

    with pytest.raises(FileNotFoundError, match="no checkpoint at .*nowhere"):
        analysed(tmp_path / "out", tmp_path / "one.ckpt", f"analysis.other={tmp_path / 'nowhere'}")

    assert list((tmp_path / "out").iterdir()) == []
