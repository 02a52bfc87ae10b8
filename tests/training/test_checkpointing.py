"""Checkpoints while training: when they are written, what they hold, and that a resumed run repeats a whole one."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from tests.conftest import tiny_images
from tests.training.conftest import CLASSES, StopAt, parts
from zfscope.networks.checkpoints import load_network, read_checkpoint, run_progress
from zfscope.training.checkpointing import BestCheckpoint, CheckpointFiles


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
@pytest.mark.parametrize("stop", [2, 5, 6], ids=["in the first epoch", "in an epoch's middle", "before a validation"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(fit, tmp_path, stop, schedule):
    optim = {"schedule": {"name": schedule}, "momentum": 0.9}
    _, whole = fit(tmp_path / "whole", optim=optim, epochs=4)

    with pytest.raises(SystemExit):
        fit(tmp_path / "run", optim=optim, epochs=4, callbacks=[StopAt(stop)])
    _, resumed = fit(tmp_path / "run", tmp_path / "run/checkpoints/last.ckpt", optim=optim, epochs=4, seed=0)

    weights = resumed.network.state_dict()
    for name, expected in whole.network.state_dict().items():
        torch.testing.assert_close(weights[name], expected, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_images_that_workers_read_ahead_are_those_of_where_the_run_stands(fit, tmp_path, schedule):
    # The cosine asks for the number of steps, which opens the loader: its workers read before the run is restored.
    optim = {"schedule": {"name": schedule}, "momentum": 0.9}
    _, whole = fit(tmp_path / "whole", optim=optim, workers=1)

    with pytest.raises(SystemExit):
        fit(tmp_path / "run", optim=optim, workers=1, callbacks=[StopAt(5)])
    _, resumed = fit(tmp_path / "run", tmp_path / "run/checkpoints/last.ckpt", optim=optim, workers=1)

    for expected, weight in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("stop", "window"), [(3, 2), (7, 4), (10, 4)])
def test_a_stop_within_a_window_of_accumulated_batches_loses_none(fit, tmp_path, stop, window):
    options = {"optim": {"momentum": 0.9}, "count": 64, "accumulate_grad_batches": window, "limit_train_batches": 5}
    _, whole = fit(tmp_path / "whole", **options)

    with pytest.raises(SystemExit):
        fit(tmp_path / "run", **options, callbacks=[StopAt(stop)])
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert ("gradients" in read_checkpoint(last)) == (stop % 5 != 0)
    _, resumed = fit(tmp_path / "run", last, **options)

    for expected, weight in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)
    assert "gradients" not in read_checkpoint(last)  # that of the last epoch's end


def test_a_window_that_the_epoch_decides_is_that_of_the_epoch_where_the_run_stands(fit, tmp_path):
    options = {"optim": {"momentum": 0.9}, "count": 40}  # five batches an epoch
    windows = {0: 1, 1: 3}
    _, whole = fit(tmp_path / "whole", **options, callbacks=[GradientAccumulationScheduler(windows)])

    with pytest.raises(SystemExit):
        fit(tmp_path / "run", **options, callbacks=[GradientAccumulationScheduler(windows), StopAt(7)])
    last = tmp_path / "run/checkpoints/last.ckpt"
    _, resumed = fit(tmp_path / "run", last, **options, callbacks=[GradientAccumulationScheduler(windows)])

    for expected, weight in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_the_plateau_of_a_run_that_goes_on_is_that_of_a_whole_one(fit, tmp_path):
    optim = {"schedule": {"name": "plateau", "patience": 0}, "lr": 1e-4}
    _, whole = fit(tmp_path / "whole", optim=optim, epochs=5)

    fit(tmp_path / "run", optim=optim, epochs=2)
    _, resumed = fit(tmp_path / "run", tmp_path / "run/checkpoints/last.ckpt", optim=optim, epochs=5)

    expected = whole.lr_schedulers().state_dict()
    assert resumed.lr_schedulers().state_dict() == expected
    assert expected["_last_lr"][0] < 1e-6  # it was divided more than once


def test_the_error_of_an_epoch_that_was_stopped_is_of_all_its_batches(fit, tmp_path):
    whole, _ = fit(tmp_path / "whole", epochs=2)

    with pytest.raises(SystemExit):
        fit(tmp_path / "run", epochs=2, callbacks=[StopAt(5)])
    resumed, classifier = fit(tmp_path / "run", tmp_path / "run/checkpoints/last.ckpt", epochs=2)

    for name in ("train/top1_error", "train/epoch_loss"):
        assert float(resumed.callback_metrics[name]) == float(whole.callback_metrics[name])
    assert classifier.seconds_before > 0


class Rates(lightning.Callback):
    """What the optimiser has at every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *_):
        (group,) = trainer.optimizers[0].param_groups
        self.seen.append({name: group[name] for name in ("lr", "momentum", "weight_decay")})


@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
def test_values_typed_with_a_resume_count_from_its_first_step(fit, tmp_path, schedule):
    before, now = (
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0},
        {"lr": 0.001, "momentum": 0.5, "weight_decay": 0.1},
    )
    whole, resumed = Rates(), Rates()

    fit(tmp_path / "whole", optim={"schedule": {"name": schedule}, **now}, callbacks=[whole])
    with pytest.raises(SystemExit):
        fit(tmp_path / "run", optim={"schedule": {"name": schedule}, **before}, callbacks=[StopAt(4)])
    last = tmp_path / "run/checkpoints/last.ckpt"
    fit(tmp_path / "run", last, optim={"schedule": {"name": schedule}, **now}, callbacks=[resumed])

    assert resumed.seen == whole.seen[4:]


def test_a_plateau_without_validation_is_refused_before_the_first_step(fit, tmp_path):
    with pytest.raises(ValueError, match=r"optim\.schedule=plateau goes by validation, .*limit_val_batches=0"):
        fit(tmp_path, limit_val_batches=0)


def test_a_finished_run_goes_on_as_if_it_had_been_longer(fit, tmp_path):
    optim = {"schedule": {"name": "plateau", "patience": 0}}
    _, whole = fit(tmp_path / "whole", optim=optim, epochs=5)

    fit(tmp_path / "run", optim=optim, epochs=2)
    trainer, resumed = fit(tmp_path / "run", tmp_path / "run/checkpoints/last.ckpt", optim=optim, epochs=5)

    assert trainer.current_epoch == 5
    for expected, weight in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_training_learns_and_its_checkpoints_open(fit, tmp_path):
    trainer, classifier = fit(tmp_path, epochs=12, count=60, optim={"schedule": {"name": "constant"}})

    assert float(trainer.callback_metrics["val/top1_error"]) < 20
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.ckpt", "epoch_002.ckpt", "last.ckpt"]
    network = load_network(tmp_path / "last")
    assert network.classes == CLASSES
    images, labels = tiny_images(30, seed=5)
    inputs = torch.stack([network.preprocess(image) for image in images])
    assert float((network(inputs).argmax(1).numpy() == labels).mean()) > 0.8
    for expected, weight in zip(classifier.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(weight, expected)


def test_a_checkpoint_holds_tensors_and_plain_containers_only(fit, tmp_path):
    fit(tmp_path, epochs=1, optim={"ema": {"decay": 0.9}, "mixup": {}})

    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)

    assert content["zfscope"]["classes"] == list(CLASSES)
    assert read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["zfscope"]["data"] == content["zfscope"]["data"]


def test_the_last_checkpoint_is_written_every_few_steps_and_at_the_end_of_an_epoch(fit, tmp_path):
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path / "middle", epochs=1, every_n_steps=2, callbacks=[_FailAt(3)])
    fit(tmp_path / "end", epochs=1, every_n_steps=2)

    steps = [read_checkpoint(tmp_path / run / "checkpoints/last.ckpt")["global_step"] for run in ("middle", "end")]
    assert steps == [2, 3]


def test_an_error_leaves_the_last_checkpoint_as_it_was(fit, tmp_path):
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, epochs=2, callbacks=[_FailAt(5)])

    assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == 3


def test_the_best_error_survives_a_move_of_the_run(fit, tmp_path):
    trainer, _ = fit(tmp_path / "run", epochs=1)
    state = trainer.checkpoint_callback.state_dict()

    moved = BestCheckpoint(tmp_path / "moved/checkpoints", "val/top1_error")
    moved.load_state_dict(state)

    assert moved.best_model_score == state["best_model_score"]


def test_checkpoint_files_are_read_whole_and_removed_twice(tmp_path):
    files, path = CheckpointFiles(), tmp_path / "folder/last.ckpt"

    files.save_checkpoint({"weights": torch.arange(3), "name": "x"}, path)

    assert files.load_checkpoint(path)["weights"].tolist() == [0, 1, 2]
    files.remove_checkpoint(path)
    files.remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []


class _FailAt(StopAt):
    def on_train_batch_end(self, trainer, *_):
        if trainer.fit_loop.epoch_loop.batch_progress.total.processed == self.batches:
            raise RuntimeError("stop")


def test_a_checkpoint_tells_how_many_whole_epochs_it_has_behind_it(fit, tmp_path):
    with pytest.raises(SystemExit):
        fit(tmp_path, epochs=4, callbacks=[StopAt(8)])  # of three batches an epoch

    told = {name: run_progress(tmp_path / name) for name in ("last", "epoch_002")}

    assert {name: (one["epoch"], one["steps"], one["finished"]) for name, one in told.items()} == {
        "last": (2, 8, False),
        "epoch_002": (2, 6, False),
    }
    assert run_progress(tmp_path)["steps"] == 3 * run_progress(tmp_path)["epoch"]


def test_a_checkpoint_of_a_network_that_was_not_trained_tells_of_no_seconds(tmp_path):
    trainer, classifier, data = parts(tmp_path)

    trainer.validate(classifier, data, verbose=False)
    trainer.save_checkpoint(tmp_path / "untrained.ckpt")

    assert read_checkpoint(tmp_path / "untrained.ckpt")["progress"]["seconds"] == 0
