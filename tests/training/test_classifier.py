"""Loss, errors, optimiser and schedule, each against a calculation by hand."""

import math
from copy import deepcopy

import lightning
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.conftest import tiny_images
from tests.training.conftest import parts
from zfscope.callbacks import FilterRenorm
from zfscope.networks.checkpoints import load_network
from zfscope.training.classifier import shared_targets
from zfscope.training.optimisers import cosine_share


def test_another_seed_ends_with_other_weights(fit, tmp_path):
    _, one = fit(tmp_path / "one")
    _, other = fit(tmp_path / "other", seed=1)

    assert not torch.equal(one.network.fc8.linear.weight, other.network.fc8.linear.weight)


def test_the_first_step_is_sgd_with_momentum_and_decay_by_hand(tmp_path):
    optim = {"lr": 0.1, "weight_decay": 0.01, "schedule": {"name": "constant"}, "channels_last": False}
    trainer, classifier, data = parts(tmp_path, optim=optim, epochs=1, limit_train_batches=1)
    before = {name: value.clone() for name, value in classifier.network.named_parameters()}
    trainer.callbacks[:] = [callback for callback in trainer.callbacks if not isinstance(callback, FilterRenorm)]
    gradients = {}
    classifier.on_before_optimizer_step = lambda optimizer: gradients.update(
        {name: value.grad.clone() for name, value in classifier.network.named_parameters()}
    )

    trainer.fit(classifier, data)

    for name, value in classifier.network.named_parameters():
        expected = before[name] - 0.1 * (gradients[name] + 0.01 * before[name])
        torch.testing.assert_close(value, expected, msg=name)


class Batches(lightning.Callback):
    """The images and labels of every training batch."""

    def __init__(self):
        self.seen, self.losses = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append((batch[0].clone(), batch[1].clone()))

    def on_train_batch_end(self, trainer, *_):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7])
def test_every_window_of_batches_makes_a_step_of_its_mean_also_the_last_and_shorter_one(tmp_path, window):
    optim = {"lr": 0.05, "momentum": 0.0, "weight_decay": 0.0, "schedule": {"name": "constant"}, "channels_last": False}
    batches = Batches()
    trainer, classifier, data = parts(
        tmp_path,
        optim=optim,
        epochs=2,
        count=64,
        callbacks=[batches],
        accumulate_grad_batches=window,
        limit_train_batches=5,
    )
    trainer.callbacks[:] = [callback for callback in trainer.callbacks if not isinstance(callback, FilterRenorm)]
    for module in classifier.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    network = deepcopy(classifier.network).train()

    trainer.fit(classifier, data)

    losses = []
    for epoch in (batches.seen[:5], batches.seen[5:]):
        for start in range(0, 5, window):
            part = [F.cross_entropy(network(images), labels) for images, labels in epoch[start : start + window]]
            losses += [loss.item() for loss in part]
            gradients = torch.autograd.grad(sum(part) / len(part), list(network.parameters()))
            with torch.no_grad():
                for weight, gradient in zip(network.parameters(), gradients, strict=True):
                    weight -= 0.05 * gradient
    for expected, weight in zip(network.parameters(), classifier.network.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-6)
    assert batches.losses == pytest.approx(losses, rel=1e-4)  # what is logged is the loss itself


def test_errors_are_those_of_counting_by_hand(fit, tmp_path):
    trainer, classifier = fit(tmp_path, epochs=2)
    network = classifier.network.eval()
    images, labels = tiny_images(30)
    with torch.no_grad():
        logits = network(torch.stack([network.preprocess(image) for image in images]))

    error = 100 * float((logits.argmax(1).numpy() != labels).mean())
    loss = float(F.cross_entropy(logits, torch.from_numpy(labels)))

    assert float(trainer.callback_metrics["val/top1_error"]) == pytest.approx(error, abs=1e-4)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(loss, rel=1e-4)
    assert float(trainer.callback_metrics["images_per_second"]) > 0


def test_images_with_several_labels_share_the_softmax_target(fit, tmp_path):
    labels = np.eye(3, dtype=np.float32)[np.arange(30) % 3]
    labels[::2, 0] = 1

    trainer, classifier = fit(tmp_path, epochs=1, labels=labels)

    assert "val/mean_average_precision" in trainer.callback_metrics
    network = classifier.network.eval()
    with torch.no_grad():
        logits = network(torch.stack([network.preprocess(image) for image in tiny_images(30)[0]]))
    shares = torch.from_numpy(labels) / torch.from_numpy(labels).sum(1, keepdim=True)
    by_hand = -(shares * logits.log_softmax(1)).sum(1).mean()
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(float(by_hand), rel=1e-4)


def test_shared_targets_sum_to_one_and_single_labels_stay():
    several = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 0]])

    torch.testing.assert_close(shared_targets(several), torch.tensor([[0.5, 0.5, 0], [0, 1, 0], [0, 0, 0]]))
    assert shared_targets(torch.tensor([2, 0])).tolist() == [2, 0]


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_checkpoint(fit, tmp_path):
    with pytest.raises(ValueError, match=r"training loss became (nan|inf) .* lower optim\.lr"):
        fit(tmp_path, epochs=8, optim={"lr": 1e30})

    if (tmp_path / "checkpoints" / "last.ckpt").exists():
        load_network(tmp_path / "last")


def test_mixup_and_label_smoothing_train(fit, tmp_path):
    trainer, _ = fit(tmp_path, epochs=1, optim={"mixup": {"mixup": 0.2, "cutmix": 1.0}, "label_smoothing": 0.1})

    assert math.isfinite(float(trainer.callback_metrics["train/loss"]))


def test_the_plateau_divides_the_rate_when_the_error_stops_falling(fit, tmp_path):
    optim = {"lr": 1e-6, "schedule": {"name": "plateau", "patience": 0, "factor": 0.5, "min_lr": 2e-7}}

    trainer, _ = fit(tmp_path, epochs=5, optim=optim)

    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(2e-7)


def test_cosine_starts_warm_peaks_and_ends_at_its_final_share():
    shares = [cosine_share(step, 100, 10, 0.1) for step in range(101)]

    assert shares[0] == pytest.approx(1 / 11)
    assert max(shares) == pytest.approx(1)
    assert shares.index(max(shares)) == 10
    assert shares[100] == pytest.approx(0.1)
    assert shares[55] == pytest.approx(0.1 + 0.9 * 0.5)
    assert all(a >= b for a, b in zip(shares[10:], shares[11:], strict=False))


def test_a_cosine_without_an_end_is_refused(fit, tmp_path):
    with pytest.raises(ValueError, match="cosine needs an end"):
        fit(tmp_path, epochs=-1, optim={"schedule": {"name": "cosine"}})


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps_also_where_weights_have_16_bits(fit, tmp_path):
    class Steps(lightning.Callback):
        losses = []

        def on_train_batch_end(self, trainer, pl_module, outputs, *_):
            self.losses.append(float(outputs["loss"]))

    steps = Steps()
    trainer, _ = fit(tmp_path, count=400, epochs=1, callbacks=[steps], precision="bf16-true")

    assert len(steps.losses) == 50
    assert float(trainer.callback_metrics["train/epoch_loss"]) == pytest.approx(np.mean(steps.losses), rel=1e-6)
