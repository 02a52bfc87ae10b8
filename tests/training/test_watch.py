"""NaN and infinity in a training: it stops before they reach the weights, and none is saved."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from zfscope.networks.checkpoints import load_network, read_checkpoint
from zfscope.networks.finite import broken_entry, broken_state, first_broken_module
from zfscope.training.checkpointing import find_resumable


class At(lightning.Callback):
    """Does something to the training at one of its batches, 7 by default: within the third epoch of four."""

    def __init__(self, harm, when="start", batch=7):
        self.harm, self.when, self.batch = harm, when, batch

    def reached(self, trainer, when):
        done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        return when == self.when and done == self.batch

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.reached(trainer, "start"):
            self.harm(trainer, module, batch)

    def on_after_backward(self, trainer, module):
        if self.reached(trainer, "backward"):
            self.harm(trainer, module, None)

    def on_train_batch_end(self, trainer, module, *_):
        if self.reached(trainer, "end"):
            self.harm(trainer, module, None)


def put(value):
    """Write a value into a tensor."""

    def into(tensor):
        with torch.no_grad():
            tensor[(-1,) * tensor.ndim] = value

    return into


NAN, INFINITY = put(float("nan")), put(float("inf"))
LAST = 11  # of the 12 batches of four epochs


def weight(name, value=NAN):
    return lambda trainer, module, batch: value(module.get_parameter(f"network.{name}"))


def gradient(name, value=NAN):
    return lambda trainer, module, batch: value(module.get_parameter(f"network.{name}").grad)


def moment(trainer, module, batch):
    NAN(next(iter(trainer.optimizers[0].state.values()))["momentum_buffer"])


HARMS = {
    "an image": (At(lambda trainer, module, batch: NAN(batch[0])), "became nan .*, because its images hold NaN"),
    "a weight": (At(weight("conv1.conv.weight")), "the training loss became nan .*, first in the output of conv1"),
    "an infinite weight": (At(weight("fc8.linear.bias", INFINITY)), "the training loss became (nan|inf)"),
    "a gradient": (At(gradient("fc6.linear.weight"), "backward"), "the gradient of fc6.linear.weight became"),
    "an infinite gradient": (At(gradient("fc8.linear.bias", INFINITY), "backward"), "the gradient of fc8.linear.bias"),
    "a gradient of the last step": (At(gradient("fc8.linear.bias"), "backward", LAST), "the gradient of fc8.linear"),
    "a moment": (At(moment), "became NaN or infinite|the training loss became nan"),
    "a moment of the last step": (
        At(moment, "end", LAST + 1),
        "momentum_buffer became NaN or infinite and was",
    ),
    "a weight after the last step": (
        At(weight("fc8.linear.bias"), "end", LAST + 1),
        "bias became NaN or infinite and",
    ),
}


class Averages(EMAWeightAveraging):
    """Averages that break after the last step."""

    def on_train_batch_end(self, trainer, module, *others):
        super().on_train_batch_end(trainer, module, *others)
        if trainer.fit_loop.epoch_loop.batch_progress.total.processed == LAST + 1:
            NAN(next(self._average_model.parameters()))


def test_averages_that_are_not_finite_are_not_saved(fit, tmp_path):
    with pytest.raises(ValueError, match="became NaN or infinite|holds NaN or infinity|the training loss"):
        fit(tmp_path, epochs=4, callbacks=[Averages(decay=0.5)])

    assert broken_state(read_checkpoint(tmp_path / "checkpoints/last.ckpt")) is None


@pytest.mark.parametrize("case", HARMS)
def test_what_is_not_finite_stops_a_training_and_is_not_saved(fit, tmp_path, case):
    harm, message = HARMS[case]

    with pytest.raises(ValueError, match=message) as told:
        fit(tmp_path, epochs=4, callbacks=[harm], every_n_steps=1)

    assert "lower optim.lr or set trainer.gradient_clip_val=1, or go on from the last checkpoint with resume=" in str(
        told.value
    )
    for path in (tmp_path / "checkpoints").iterdir():
        content = read_checkpoint(path)
        assert broken_entry({name: content.get(name, {}) for name in ("state_dict", "optimizer_states")}) is None, path
    step = find_resumable(tmp_path)[1]["global_step"]
    assert harm.batch - 1 <= step <= harm.batch + 1  # no update was lost, and none that was broken is there
    load_network(tmp_path / "last")


def test_control_without_the_looks_at_gradients_and_checkpoints_nan_is_saved(fit, tmp_path, monkeypatch):
    monkeypatch.setattr("zfscope.training.watch.Watch.finds", lambda *_: False)
    monkeypatch.setattr("zfscope.training.classifier.broken_state", lambda _: None)

    fit(tmp_path, epochs=4, callbacks=[At(gradient("fc8.linear.bias"), "backward", LAST)])

    assert broken_state(read_checkpoint(tmp_path / "checkpoints/last.ckpt")) is not None


def test_what_is_finite_trains_as_without_a_watch(fit, tmp_path, monkeypatch):
    watched, own = fit(tmp_path / "watched", epochs=2)
    monkeypatch.setattr("zfscope.training.watch.Watch.finds", lambda *_: False)
    alone, other = fit(tmp_path / "alone", epochs=2)

    torch.testing.assert_close(own.network.state_dict(), other.network.state_dict(), rtol=0, atol=0)


def test_the_first_module_whose_output_is_broken_is_found():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))
    images = torch.ones(2, 3, 9, 9)

    assert first_broken_module(network, images) is None
    with torch.no_grad():
        network[2][0].bias[1] = torch.nan
    assert first_broken_module(network, images) == "2.0"
    assert not network[0]._forward_hooks  # nothing stays


def test_a_mask_of_infinities_may_be_saved():
    mask = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)

    assert broken_entry({"state_dict": {"mask": mask}}) is None
    assert broken_entry({"state_dict": {"weight": torch.full((2,), torch.inf)}}) == "state_dict.weight"
    assert broken_entry({"state_dict": {"weight": torch.tensor([0.0, torch.nan])}}) == "state_dict.weight"
