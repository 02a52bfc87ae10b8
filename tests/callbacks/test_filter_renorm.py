"""Filters are kept within their radius after every step, and what was rescaled is counted."""

import lightning
import pytest
import torch
from torch import nn

from tests.callbacks.conftest import Body, Module, Pictures, fit
from zfscope.callbacks import FilterRenorm
from zfscope.networks.layers import conv_layers, filter_rms

WITHIN = 1.00001  # rounding


class LargestRms(lightning.Callback):
    """Notes the largest RMS of a filter of each layer after each batch, and the dense layer's."""

    def __init__(self):
        self.values = {"conv1": [], "conv2": [], "head": []}

    def on_train_batch_end(self, trainer, pl_module, *_):
        layers = conv_layers(pl_module) | {"head": pl_module.network.head}
        for name, layer in layers.items():
            self.values[name].append(float(filter_rms(layer.weight.detach()).max()))


class Logging(Module):
    """Keeps what is logged: ``{name: [value of each epoch]}``."""

    def __init__(self, **options):
        super().__init__(training=Pictures(24), **options)
        self.logged = {}

    def log(self, name, value, *args, **kwargs):
        self.logged.setdefault(name, []).append(float(value))
        super().log(name, value, *args, **kwargs)


def test_filters_stay_within_the_radius_after_every_step_and_dense_layers_are_left_alone(tmp_path):
    rms = LargestRms()

    fit(tmp_path, Module(lr=0.5), FilterRenorm(0.05), rms, max_epochs=2)

    assert max(rms.values["conv1"]) <= 0.05 * WITHIN and max(rms.values["conv2"]) <= 0.05 * WITHIN
    assert max(rms.values["head"]) > 0.05


def test_while_gradients_accumulate_filters_are_not_touched(tmp_path):
    rms = LargestRms()

    fit(tmp_path, Logging(lr=0.5), FilterRenorm(0.05), rms, accumulate_grad_batches=3)

    assert [value <= 0.05 * WITHIN for value in rms.values["conv1"]] == [False, False, True, True, True, True]


def test_filters_above_the_radius_are_counted_once_an_epoch(tmp_path):
    module = Logging(lr=1e-6)
    with torch.no_grad():
        module.network.conv1.weight[:3] *= 100

    fit(tmp_path, module, FilterRenorm(1.0))

    assert module.logged["filter_renorm/conv1"] == [3] and module.logged["filter_renorm/conv2"] == [0]


def test_the_largest_rms_before_rescaling_is_logged(tmp_path):
    class Before(lightning.Callback):
        largest = [0.0, 0.0]

        def on_train_batch_end(self, trainer, pl_module, *_):
            if (trainer.fit_loop.epoch_loop.batch_idx + 1) % 2 == 0:  # a step is made of two batches
                rms = float(filter_rms(pl_module.network.conv1.weight.detach()).max())
                self.largest[trainer.current_epoch] = max(self.largest[trainer.current_epoch], rms)

    module, before = Logging(lr=0.5), Before()

    fit(tmp_path, module, before, FilterRenorm(0.05), accumulate_grad_batches=2, max_epochs=2)

    assert module.logged["filter_rms/conv1"] == pytest.approx(before.largest)
    assert min(module.logged["filter_rms/conv1"]) > 0.05
    assert filter_rms(module.network.conv1.weight.detach()).max() <= 0.05 * WITHIN


def test_frozen_filters_are_left_as_they_are(tmp_path):
    module = Module()
    module.network.conv1.requires_grad_(False)
    before = module.network.conv1.weight.clone()

    fit(tmp_path, module, FilterRenorm(0.01))

    assert torch.equal(module.network.conv1.weight, before)


def test_what_cannot_be_done_is_refused(tmp_path):
    with pytest.raises(ValueError, match="filter_rms=0 must be above 0"):
        FilterRenorm(0)
    body = Body()
    body.conv1, body.conv2 = nn.Identity(), nn.Identity()
    with pytest.raises(ValueError, match="needs a model with conv layers"):
        fit(tmp_path, Module(body), FilterRenorm(0.1))
