"""A step takes the same images on any number of ranks and accumulated batches: the same network comes out."""

import json

import lightning
import pytest
import torch
from torch import nn

from tests.conftest import START, quick_first
from tests.training.conftest import StopAt, parts
from zfscope.data import transforms
from zfscope.data.imageset import ImageSet
from zfscope.data.reading import UnreadableImage
from zfscope.networks.checkpoints import read_checkpoint
from zfscope.training.classifier import rescale


class Curves(lightning.Callback):
    """What the first rank logs of a training, in a file: it may be another process."""

    def __init__(self, file):
        self.file, self.losses, self.epochs = file, [], []

    def setup(self, trainer, module, stage):
        if trainer.world_size > 1:
            torch.set_num_threads(1)  # a forked process has not the threads of its parent
        original = module.log

        def log(name, value, **options):
            if name == "train/loss":
                self.losses.append(float(value))  # in float64, as it is kept in float32
            original(name, value, **options)

        module.log = log
        for layer in module.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0

    def on_train_epoch_start(self, trainer, module):
        if "train/epoch_loss" in trainer.callback_metrics:
            names = ("train/epoch_loss", "train/top1_error", "val/loss", "val/top1_error")
            self.epochs.append([float(trainer.callback_metrics[name]) for name in names])

    def on_train_end(self, trainer, module):
        self.on_train_epoch_start(trainer, module)  # of the last one
        if trainer.is_global_zero:
            self.file.write_text(json.dumps([self.losses, self.epochs]))


def trained(folder, ranks=1, accumulated=1, last=None, callbacks=(), **more):
    """Train tiny images in steps of 12, in float64; returns losses of steps, numbers of epochs, and the weights."""
    folder.mkdir(exist_ok=True)
    options = {"batch_size": 12, "count": 51, "precision": "64-true", "log_every_n_steps": 1} | more
    options |= {"devices": ranks, "accumulate_grad_batches": accumulated}
    if ranks > 1:
        options["strategy"] = f"ddp_{START}"
    trainer, classifier, data = parts(folder, callbacks=[Curves(folder / "curves.json"), *callbacks], **options)
    try:
        trainer.fit(classifier, data, ckpt_path=last, weights_only=True)
    except SystemExit:
        assert callbacks
        return None
    weights = read_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"]
    return *json.loads((folder / "curves.json").read_text()), weights


def check_same(one, other, steps_too=True):
    (losses, epochs, weights), (other_losses, other_epochs, other_weights) = one, other
    if steps_too:
        assert losses == pytest.approx(other_losses, rel=1e-10, abs=1e-10)
    torch.testing.assert_close(torch.tensor(other_epochs), torch.tensor(epochs), rtol=1e-6, atol=1e-6)  # of float32
    assert weights.keys() == other_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(other_weights[name], weight, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("case", quick_first([(2, 1), (1, 3), (2, 3), (3, 1), (4, 1)], 2))
def test_ranks_and_accumulated_batches_train_as_one_device_does(tmp_path, case):
    ranks, accumulated = case
    alone = trained(tmp_path / "alone")

    shared = trained(tmp_path / "shared", ranks, accumulated)

    assert len(alone[0]) == 12 and alone[0][-1] < alone[0][0]
    check_same(alone, shared, steps_too=accumulated == 1)


@pytest.mark.parametrize("case", quick_first([(2, 1), (1, 2)], 1))
def test_images_that_cannot_be_read_count_alike_on_any_number_of_ranks(tmp_path, monkeypatch, case):
    ranks, accumulated = case
    original = transforms.Examples._image

    def image(self, index):
        if index % 7 == 3:
            raise UnreadableImage("broken", "broken")
        return original(self, index)

    monkeypatch.setattr(transforms.Examples, "_image", image)
    monkeypatch.setattr(ImageSet, "leave_out", lambda self, index, error: None)

    check_same(trained(tmp_path / "alone"), trained(tmp_path / "shared", ranks, accumulated), accumulated == 1)


@pytest.mark.parametrize("case", quick_first([(3, 1, 3), (6, 3, 1), (7, 1, 2), (8, 2, 6)], 2))
def test_a_run_goes_on_exactly_with_another_number_of_accumulated_batches(tmp_path, case):
    stop, before, after = case
    alone = trained(tmp_path / "alone", callbacks=[])
    trained(tmp_path / "run", accumulated=before, callbacks=[StopAt(stop)])
    last = tmp_path / "run/checkpoints/last.ckpt"

    run = trained(tmp_path / "run", accumulated=after, last=last)

    for name, weight in alone[2].items():
        torch.testing.assert_close(run[2][name], weight, rtol=1e-10, atol=1e-10, msg=name)


def test_a_run_goes_on_exactly_on_two_ranks_and_back_on_one(tmp_path):
    alone = trained(tmp_path / "alone", epochs=4)
    trained(tmp_path / "run", epochs=2)
    last = tmp_path / "run/checkpoints/last.ckpt"
    trained(tmp_path / "run", 2, last=last, epochs=3)

    run = trained(tmp_path / "run", last=last, epochs=4)

    for name, weight in alone[2].items():
        torch.testing.assert_close(run[2][name], weight, rtol=1e-10, atol=1e-10, msg=name)


def test_within_a_step_the_number_of_accumulated_batches_stays(tmp_path):
    trained(tmp_path / "run", accumulated=3, callbacks=[StopAt(4)])

    with pytest.raises(ValueError, match="within a step of 3 batches; .* trainer.accumulate_grad_batches=3"):
        trained(tmp_path / "run", accumulated=2, last=tmp_path / "run/checkpoints/last.ckpt")


def test_progress_is_counted_in_the_batches_of_the_run_that_goes_on():
    counts = {"ready": 8, "started": 8, "processed": 8, "completed": 7}
    progress = {"total": dict(counts), "current": {name: count - 4 for name, count in counts.items()}}

    rescale(progress, before=2, now=3, within=False)

    assert progress["total"] == {"ready": 12, "started": 12, "processed": 12, "completed": 11}
    assert progress["current"] == {"ready": 6, "started": 6, "processed": 6, "completed": 5}
