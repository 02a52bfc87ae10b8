"""Weights that become NaN while a network trains."""

import math

import pytest
import torch

from tests.callbacks.conftest import Body, Module, fit, small_chain
from zfscope.callbacks import OcclusionMaps


@pytest.mark.parametrize("network", [Body, small_chain], ids=["module", "chain"])
def test_a_training_goes_on_without_panels_when_its_weights_become_nan_and_says_so_in_a_line(tmp_path, network):
    module = Module(network(), lr=math.inf)

    with pytest.warns(UserWarning, match=r"^OcclusionMaps: no pictures: .*conv1.*holds NaN or infinity") as warned:
        trainer = fit(tmp_path, module, OcclusionMaps(size=9, stride=12), max_epochs=2)

    assert trainer.current_epoch == 2 and not torch.isfinite(next(module.parameters())).any()
    assert not (tmp_path / "figures").exists()
    assert all("\n" not in str(one.message) for one in warned if "OcclusionMaps" in str(one.message))
