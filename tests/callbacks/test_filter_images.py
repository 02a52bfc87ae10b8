"""Sheets of a layer's filters while it trains."""

import numpy as np
import pytest
from PIL import Image
from torch import nn

from tests.callbacks.conftest import Body, Module, Pictures, fit, panels
from zfscope.callbacks import FilterImages
from zfscope.figures import filter_sheet
from zfscope.networks.layers import conv_layers


def test_a_sheet_shows_the_trained_filters_of_each_chosen_epoch(tmp_path):
    module = Module()

    trainer = fit(tmp_path, module, FilterImages(when=[2, 3, 4]), max_epochs=3)
    trainer.validate(module, verbose=False)  # Lightning's epoch is then the fourth, which was not trained

    assert panels(tmp_path) == [f"filter_images/conv1/epoch_00{epoch}.png" for epoch in (2, 3)]
    expected = filter_sheet(module.network.conv1.weight, title="conv1, epoch 3")
    shown = Image.open(tmp_path / "figures/filter_images/conv1/epoch_003.png")
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(expected))


@pytest.mark.parametrize("channels", [1, 5])
def test_any_layer_and_any_number_of_channels_is_shown(tmp_path, channels):
    images = Pictures(channels=channels)

    fit(tmp_path, Module(Body(channels), images, images), FilterImages(), FilterImages("conv2"))

    assert panels(tmp_path) == [f"filter_images/conv{number}/epoch_001.png" for number in (1, 2)]


def test_the_sanity_check_draws_nothing(tmp_path):
    class Stopping(Module):
        def on_train_start(self):
            raise RuntimeError("the sanity check is over")

    with pytest.raises(RuntimeError, match="the sanity check is over"):
        fit(tmp_path, Stopping(), FilterImages(), num_sanity_val_steps=1)

    assert not (tmp_path / "figures").exists()


def test_an_unknown_layer_is_refused_before_training(tmp_path):
    module = Module()

    with pytest.raises(ValueError, match="no conv layer 'conv6'; the conv layers are conv1, conv2"):
        fit(tmp_path, module, FilterImages("conv6"))

    assert module.global_step == 0 and not (tmp_path / "figures").exists()


def test_conv_layers_have_short_names_only_where_these_are_unique():
    model = nn.ModuleDict({"conv1": nn.Conv2d(1, 1, 1), "a": nn.ModuleDict({"conv2": nn.Conv2d(1, 1, 1)})})
    model["b"] = nn.ModuleDict({"conv2": nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1))})
    model["stem"] = nn.Conv2d(1, 1, 1)

    assert list(conv_layers(model)) == ["conv1", "a.conv2", "b.conv2.1", "stem"]
