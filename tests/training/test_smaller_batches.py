"""Loss, errors and steps where images that cannot be read are left out of their batches."""

from copy import deepcopy

import lightning
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.training.conftest import parts
from zfscope.callbacks import FilterRenorm
from zfscope.data.imageset import ArrayImages
from zfscope.data.quarantine import with_quarantine
from zfscope.data.reading import UnreadableImage
from zfscope.data.splits import Splits
from zfscope.training.classifier import mixed

PLAIN = {"lr": 0.05, "momentum": 0.0, "weight_decay": 0.0, "schedule": {"name": "constant"}, "channels_last": False}


class Broken(ArrayImages):
    """Images of which some cannot be read."""

    gone = frozenset()

    def pixels(self, index, short_side=None):
        if self._rows[index] in self.gone:
            raise UnreadableImage(f"cannot read the image {index}: broken", "broken")
        return super().pixels(index, short_side)


def without(images, gone):
    broken = Broken(images.images, images.labels, images.classes, images.prefix)
    broken.gone = frozenset(gone)
    return broken


class Steps(lightning.Callback):
    """The batches, the losses and the weights after each step."""

    def __init__(self):
        self.batches, self.losses, self.networks = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches.append((batch[0].clone(), batch[1].clone(), batch[2].clone()))
        self.losses.append(float(outputs["loss"]))
        self.networks.append(deepcopy(module.network))


def trained(folder, gone, gone_in_val=(), **options):
    steps = Steps()
    trainer, classifier, data = parts(folder, optim=PLAIN, epochs=1, callbacks=[steps], **options)
    trainer.callbacks[:] = [callback for callback in trainer.callbacks if not isinstance(callback, FilterRenorm)]
    for module in classifier.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    images = data.splits.train
    data.splits = with_quarantine(Splits(without(images, gone), without(images, gone_in_val)))
    for part in data.splits.parts.values():
        part.quarantine.collecting = True  # no limit
    first = deepcopy(classifier.network)
    trainer.fit(classifier, data)
    return trainer, classifier, steps, first


ORDER = np.random.default_rng((0, 0)).permutation(30)  # of the first epoch, in batches of 8


def test_in_a_step_an_image_that_cannot_be_read_counts_as_nothing(tmp_path):
    """As on several ranks, which do not know how many the others have left: 5 of 8 images make 5/8 of a step."""
    gone = [*ORDER[1:4], *ORDER[8:16]]

    _, _, steps, first = trained(tmp_path, gone)

    images, labels, indices = steps.batches[0]
    first.train()
    gradients = torch.autograd.grad(F.cross_entropy(first(images), labels), list(first.parameters()))
    assert indices.tolist() == [int(index) for index in ORDER[:8] if index not in gone]
    for weight, gradient, after in zip(first.parameters(), gradients, steps.networks[0].parameters(), strict=True):
        torch.testing.assert_close(after, weight - 0.05 * gradient * len(images) / 8)


def test_a_batch_of_which_no_image_is_left_moves_no_weight(tmp_path):
    _, _, steps, _ = trained(tmp_path, ORDER[8:16])

    before, after = (network.state_dict() for network in steps.networks[:2])
    assert [len(labels) for _, labels, _ in steps.batches] == [8, 0, 8]
    torch.testing.assert_close(before, after, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_loss_and_errors_of_an_epoch_are_means_over_the_images_that_are_left(tmp_path, workers):
    gone_in_val = [3, *range(8, 16)]

    trainer, classifier, steps, _ = trained(tmp_path, [*ORDER[1:4], *ORDER[8:16]], gone_in_val, workers=workers)

    counts = np.array([len(labels) for _, labels, _ in steps.batches])
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert counts.tolist() == [5, 0, 8]
    assert values["train/epoch_loss"] == pytest.approx(8 * sum(steps.losses) / 13, rel=1e-6)
    data = trainer.datamodule
    kept = [index for index in range(30) if index not in gone_in_val]
    inputs = torch.stack([data.preprocessing(data.splits.val.read(index)) for index in kept])
    labels = torch.from_numpy(data.splits.val.labels[kept])
    with torch.no_grad():
        logits = classifier.network.eval()(inputs)
    assert values["val/loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert values["val/top1_error"] == pytest.approx(100 * float((logits.argmax(1) != labels).double().mean()))


def test_an_odd_batch_is_mixed_as_one_in_which_its_first_image_stands_twice():
    def keep(images, labels):
        assert len(images) % 2 == 0, "as timm asks"
        return images + images.flip(0), labels * 10

    images, labels = torch.arange(5.0)[:, None], torch.arange(5)

    odd, targets = mixed(keep, images, labels)
    even, _ = mixed(keep, images[:4], labels[:4])

    assert odd.flatten().tolist() == [0.0, 5.0, 5.0, 5.0, 5.0]
    assert targets.tolist() == [0, 10, 20, 30, 40]
    assert even.flatten().tolist() == [3.0, 3.0, 3.0, 3.0]
