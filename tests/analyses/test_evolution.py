"""analysis=evolution: when each layer of a run settles."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import composed
from zfscope import build_network
from zfscope.analyses.run import analyze
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.evolution import settled_epoch
from zfscope.networks.checkpoints import save_network
from zfscope.networks.preprocessing import Preprocessing
from zfscope.schema import check


def test_the_analysis_tells_when_each_layer_settles(tmp_path, folders):
    run, out = tmp_path / "run", tmp_path / "out"
    config = composed(
        "data=folder", f"data.root={folders}", f"data.cache={tmp_path / 'cache'}", "data.num_workers=0",
        "data.resize=68", "data.crop=64", "model.fc6.units=9", "model.fc7=null",
    )  # fmt: skip
    (run / "checkpoints").mkdir(parents=True)
    out.mkdir()
    for epoch in (1, 2, 5):
        torch.manual_seed(1)
        network = build_network(config["model"], 3, 64)
        network.classes = ("cat", "dog", "owl")
        network.preprocessing = Preprocessing(68, 64, torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 0.02))
        if epoch < 5:  # conv1 stays as it is, conv4 is another one until the end
            torch.manual_seed(epoch)
            nn.init.normal_(network.conv4.conv.weight, std=0.05)
        nn.init.zeros_(network.conv5.conv.weight)  # says nothing of any image, so that nothing can settle
        save_network(network, config, run / f"checkpoints/epoch_{epoch:03d}.ckpt")
    (run / "checkpoints/best.ckpt").write_bytes((run / "checkpoints/epoch_005.ckpt").read_bytes())
    values = composed(
        "analysis=evolution", f"checkpoint={run}", "analysis.maps=2", "device=cpu", "logger=none", name="analyze"
    )

    analyze(check(AnalyzeConfig, values), out)

    metrics, arrays = json.loads((out / "results.json").read_text())["metrics"], np.load(out / "arrays.npz")
    assert (metrics["conv1/settled"]["value"], metrics["conv1/unsettled"]["value"]) == (1, pytest.approx(0, abs=1e-9))
    assert np.isnan(arrays["conv5/agreement"]).any()
    assert not {"conv5/settled", "conv5/unsettled"} & metrics.keys()
    first, second, _ = curve = arrays["conv4/agreement"]
    assert metrics["conv4/settled"]["value"] == pytest.approx(settled_epoch((1, 2, 5), curve)) and second < 0.9
    # Two trapezoids: one epoch wide, three epochs wide.
    lacking = 100 * ((2 - first - second) / 2 + 3 * (1 - second) / 2) / 4
    assert metrics["conv4/unsettled"]["value"] == pytest.approx(lacking)
