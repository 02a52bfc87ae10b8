import math

import lightning
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.conftest import composed, tiny_images
from zfscope.callbacks import FilterRenorm
from zfscope.data.datamodule import ImageData
from zfscope.data.imageset import ArrayImages
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits
from zfscope.networks.build import build_network
from zfscope.networks.checkpoints import load_network, read_checkpoint
from zfscope.networks.preprocessing import Preprocessing
from zfscope.schema import check
from zfscope.training.checkpointing import BestCheckpoint, CheckpointFiles, EpochCheckpoints, LastCheckpoint
from zfscope.training.classifier import Classifier, cosine_share
from zfscope.training.spec import OptimConfig

CLASSES = ("red", "green", "blue")
MODEL = {
    "name": "tiny",
    "conv1": {"maps": 6, "kernel_size": 3, "padding": 1, "pool": {}, "norm": "after_pool"},
    "fc6": {"units": 8, "dropout": 0.5},
    "fc8": {},
}


class StopAt(lightning.Callback):
    """Ctrl-C after so many batches."""

    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_end(self, trainer, *_):
        if trainer.fit_loop.epoch_loop.batch_progress.total.processed == self.batches:
            raise KeyboardInterrupt


def parts(folder, *, optim=None, count=30, epochs=3, labels=None, callbacks=(), seed=0, **options):
    torch.manual_seed(seed)
    images, numbers = tiny_images(count)
    data = ArrayImages(images, numbers if labels is None else labels, CLASSES, "tiny")
    config = check(DataConfig, {**composed()["data"], "resize": 24, "crop": 20, "batch_size": 8, "num_workers": 0})
    prepare = Preprocessing(24, 20, torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 0.02))
    network = build_network(MODEL, 3, 20)
    network.classes, network.preprocessing = CLASSES, prepare
    optim = check(OptimConfig, {"lr": 0.05, "schedule": {"name": "plateau", "patience": 0}, **(optim or {})})
    classifier = Classifier(
        network, optim, seed=seed, config={"model": MODEL}, data=data.fingerprint, multilabel=labels is not None
    )
    best = BestCheckpoint(folder / "checkpoints", classifier.monitor)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        plugins=[CheckpointFiles()],
        callbacks=[
            FilterRenorm(0.4),
            best,
            EpochCheckpoints(folder / "checkpoints", [2]),
            LastCheckpoint(folder / "checkpoints"),
            *callbacks,
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )
    return trainer, classifier, ImageData(Splits(data, data, data), config, prepare, seed)


def fit(folder, last=None, **options):
    trainer, classifier, data = parts(folder, **options)
    trainer.fit(classifier, data, ckpt_path=last, weights_only=True)
    return trainer, classifier


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
@pytest.mark.parametrize("stop", [3, 5, 6], ids=["at an epoch's end", "in an epoch's middle", "at the second end"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, stop, schedule):
    optim = {"schedule": {"name": schedule}, "momentum": 0.9}
    _, whole = fit(tmp_path / "whole", optim=optim, epochs=4)

    with pytest.raises(SystemExit):
        fit(tmp_path / "run", optim=optim, epochs=4, callbacks=[StopAt(stop)])
    _, resumed = fit(tmp_path / "run", tmp_path / "run/checkpoints/last.ckpt", optim=optim, epochs=4, seed=0)

    found = resumed.network.state_dict()
    for name, expected in whole.network.state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0, msg=name)


def test_a_finished_run_goes_on_as_if_it_had_been_longer(tmp_path):
    optim = {"schedule": {"name": "plateau", "patience": 0}}
    _, whole = fit(tmp_path / "whole", optim=optim, epochs=5)

    fit(tmp_path / "run", optim=optim, epochs=2)
    trainer, resumed = fit(tmp_path / "run", tmp_path / "run/checkpoints/last.ckpt", optim=optim, epochs=5)

    assert trainer.current_epoch == 5
    for expected, found in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_another_seed_ends_with_other_weights(tmp_path):
    _, one = fit(tmp_path / "one")
    _, other = fit(tmp_path / "other", seed=1)

    assert not torch.equal(one.network.fc8.linear.weight, other.network.fc8.linear.weight)


def test_the_first_step_is_sgd_with_momentum_and_decay_by_hand(tmp_path):
    optim = {"lr": 0.1, "weight_decay": 0.01, "schedule": {"name": "constant"}, "channels_last": False}
    trainer, classifier, data = parts(tmp_path, optim=optim, epochs=1, limit_train_batches=1)
    before = {name: value.clone() for name, value in classifier.network.named_parameters()}
    trainer.callbacks[:] = [each for each in trainer.callbacks if not isinstance(each, FilterRenorm)]
    seen = []
    classifier.on_before_optimizer_step = lambda optimizer: seen.append(
        {name: value.grad.clone() for name, value in classifier.network.named_parameters()}
    )

    trainer.fit(classifier, data)

    for name, value in classifier.network.named_parameters():
        expected = before[name] - 0.1 * (seen[0][name] + 0.01 * before[name])
        torch.testing.assert_close(value, expected, msg=name)


def test_training_learns_and_its_checkpoints_open(tmp_path):
    trainer, classifier = fit(tmp_path, epochs=12, count=60, optim={"schedule": {"name": "constant"}})

    assert float(trainer.callback_metrics["val/top1_error"]) < 20
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "best.ckpt",
        "epoch_002.ckpt",
        "last.ckpt",
    ]
    network = load_network(tmp_path / "last")
    assert network.classes == CLASSES
    images, labels = tiny_images(30, seed=5)
    inputs = torch.stack([network.preprocess(image) for image in images])
    assert float((network(inputs).argmax(1).numpy() == labels).mean()) > 0.8
    for expected, found in zip(classifier.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_checkpoint_holds_tensors_and_plain_containers_only(tmp_path):
    fit(tmp_path, epochs=1, optim={"ema": {"decay": 0.9}, "mixup": {}})

    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)

    assert content["zfscope"]["classes"] == list(CLASSES)
    assert read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["zfscope"]["data"] == content["zfscope"]["data"]


def test_errors_are_those_of_counting_by_hand(tmp_path):
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


def test_images_with_several_labels_share_the_softmax_target(tmp_path):
    labels = np.eye(3, dtype=np.float32)[np.arange(30) % 3]
    labels[::2, 0] = 1

    trainer, classifier = fit(tmp_path, epochs=1, labels=labels)

    assert "val/mean_average_precision" in trainer.callback_metrics
    logits, target = torch.randn(4, 3), torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1.0]])
    by_hand = -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(classifier._loss(logits, target), by_hand)


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"training loss became (nan|inf) .* lower optim\.lr"):
        fit(tmp_path, epochs=8, optim={"lr": 1e30})

    if (tmp_path / "checkpoints" / "last.ckpt").exists():
        load_network(tmp_path / "last")


def test_mixup_and_label_smoothing_train(tmp_path):
    trainer, _ = fit(tmp_path, epochs=1, optim={"mixup": {"mixup": 0.2, "cutmix": 1.0}, "label_smoothing": 0.1})

    assert math.isfinite(float(trainer.callback_metrics["train/loss"]))


def test_cosine_starts_warm_peaks_and_ends_at_its_final_share():
    shares = [cosine_share(step, 100, 10, 0.1) for step in range(101)]

    assert shares[0] == pytest.approx(1 / 11)
    assert max(shares) == pytest.approx(1)
    assert shares.index(max(shares)) == 10
    assert shares[100] == pytest.approx(0.1)
    assert shares[55] == pytest.approx(0.1 + 0.9 * 0.5)
    assert all(a >= b for a, b in zip(shares[10:], shares[11:], strict=False))


def test_a_cosine_without_an_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cosine needs an end"):
        fit(tmp_path, epochs=-1, optim={"schedule": {"name": "cosine"}})
