"""Averaged weights, against averages by hand: also before their first update, and in a run that goes on."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from tests.conftest import composed
from tests.training.conftest import StopAt
from zfscope.networks.checkpoints import read_checkpoint
from zfscope.schema import check
from zfscope.training.averaging import CurrentUntilAveraged
from zfscope.training.checkpointing import BestCheckpoint
from zfscope.training.run import build_callbacks
from zfscope.training.spec import TrainConfig

# Three steps an epoch: the first update is after step 5 of nine, or after the second of three epochs.
LATE = [{"update_starting_at_step": 4}, {"update_starting_at_epoch": 1, "update_every_n_steps": 0}]


def weights_of(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


class Recorder(lightning.Callback):
    """The weights after each step, and those that each validation uses."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_batch_end(self, trainer, module, *_):
        self.trained.append(weights_of(module))

    def on_validation_epoch_end(self, trainer, module):
        self.validated.append(weights_of(module))


def averaging(options):
    callback = EMAWeightAveraging(decay=0.5, **options)
    return [CurrentUntilAveraged(callback), callback]


def averages_by_hand(trained, options):
    """What stands for the weights after each epoch's steps (when it is validated) and after its end."""
    average, before, after = None, [], []
    for step, weights in enumerate(trained):
        first = options.get("update_starting_at_step")
        if first is not None and step >= first:
            average = updated(average, weights)
        if step % 3 == 2:
            before.append(average or weights)
            if first is None and step // 3 >= options["update_starting_at_epoch"]:
                average = updated(average, weights)
            after.append(average or weights)
    return before, after


def updated(average, weights):
    return {name: weights[name] if average is None else 0.5 * average[name] + 0.5 * weights[name] for name in weights}


@pytest.mark.parametrize("options", LATE, ids=["step", "epoch"])
def test_until_their_first_update_averages_are_the_current_weights(fit, tmp_path, options):
    recorder = Recorder()

    _, classifier = fit(tmp_path, callbacks=[recorder, *averaging(options)])

    before, after = averages_by_hand(recorder.trained, options)
    for found, expected in zip(recorder.validated, before, strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(weights_of(classifier), after[-1])
    assert not torch.equal(before[2]["network.fc8.linear.weight"], recorder.trained[-1]["network.fc8.linear.weight"])


@pytest.mark.parametrize("stop", [2, 4, 7])
@pytest.mark.parametrize("options", LATE, ids=["step", "epoch"])
def test_a_resumed_run_averages_as_a_whole_one(fit, tmp_path, options, stop):
    whole, resumed = Recorder(), Recorder()
    fit(tmp_path / "whole", callbacks=[whole, *averaging(options)])

    with pytest.raises(SystemExit):
        fit(tmp_path / "run", callbacks=[*averaging(options), StopAt(stop)])
    last = tmp_path / "run/checkpoints/last.ckpt"
    saved = read_checkpoint(last)
    assert (saved["averaging_state"]["n_averaged"] == 0) == (stop < 5)
    if stop < 5:
        torch.testing.assert_close(saved["state_dict"], saved["current_model_state"], rtol=0, atol=0)
    fit(tmp_path / "run", last, callbacks=[resumed, *averaging(options)])

    for found, expected in zip(resumed.validated, whole.validated[stop // 3 :], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    ends = [read_checkpoint(tmp_path / run / "checkpoints/last.ckpt")["state_dict"] for run in ("whole", "run")]
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_every_average_of_a_config_is_followed(tmp_path):
    typed = "+callbacks.x={_target_: lightning.pytorch.callbacks.WeightAveraging}"
    for override in ("++optim.ema.decay=0.9", typed):
        config = check(TrainConfig, composed("callbacks=none", override))

        callbacks = build_callbacks(config, BestCheckpoint(tmp_path, "val/loss"), tmp_path)

        (follower,) = (callback for callback in callbacks if isinstance(callback, CurrentUntilAveraged))
        assert callbacks.index(follower) < callbacks.index(follower.averaging)
