"""A picture of each validation: those inside an epoch overwrite none."""

import pytest

from tests.callbacks.conftest import Module, fit, panels, small_chain
from tests.callbacks.foreign import SMALL
from tests.callbacks.test_panel import Recording
from zfscope.callbacks import FeatureEvolution, FilterImages
from zfscope.figures import filter_sheet

KEYS = {"filter_images": "filter_images/conv1", "projections": "projections/conv2", "occlusion_maps": "occlusion/"}
# Three batches an epoch.
INSIDE = ["epoch_001.png", "epoch_001_batch_000001.png", "epoch_001_batch_000002.png"]


@pytest.mark.parametrize("name", KEYS)
def test_three_validations_of_an_epoch_leave_three_pictures(tmp_path, name):
    fit(tmp_path, Module(small_chain()), SMALL[name](), val_check_interval=1, max_epochs=1)

    assert [panel.split("/")[-1] for panel in panels(tmp_path) if panel.startswith(KEYS[name])] == INSIDE


def test_validations_between_two_optimiser_steps_leave_a_picture_each(tmp_path):
    fit(tmp_path, Module(), FilterImages(), val_check_interval=1, accumulate_grad_batches=3)

    assert [panel.split("/")[-1] for panel in panels(tmp_path)] == INSIDE


def test_validations_by_steps_across_epochs_leave_a_picture_each(tmp_path):
    fit(tmp_path, Module(), FilterImages(), val_check_interval=2, check_val_every_n_epoch=None, max_epochs=2)

    names = [panel.split("/")[-1] for panel in panels(tmp_path)]
    assert names == ["epoch_001_batch_000002.png", "epoch_002.png", "epoch_002_batch_000001.png"]


@pytest.mark.parametrize("options", [{"limit_train_batches": 2}, {"overfit_batches": 2}, {"max_steps": 3}])
def test_the_picture_of_an_epochs_end_has_its_number_alone(tmp_path, options):
    module = Module()
    module.val_dataloader = module.train_dataloader

    fit(tmp_path, module, FilterImages(), **options)

    assert panels(tmp_path) == ["filter_images/conv1/epoch_001.png"]


def test_evolution_is_drawn_once_an_epoch(tmp_path):
    callback = FeatureEvolution(maps=1, epochs=1, images=4)

    fit(tmp_path, Module(small_chain()), callback, val_check_interval=1, max_epochs=2)

    assert [panel for panel in panels(tmp_path) if "conv1" in panel] == [
        f"feature_evolution/conv1/epoch_00{epoch}.png" for epoch in (1, 2)
    ]


class Keeping(Recording):
    name, version, save_dir = "kept", "0", None


def test_captions_and_titles_say_batch_and_step(tmp_path, monkeypatch):
    titles, logger = [], Keeping()
    monkeypatch.setattr("wandb.Image", lambda content, **options: options["caption"])

    def recording(weight, title):
        titles.append(title)
        return filter_sheet(weight, title=title)

    monkeypatch.setattr("zfscope.callbacks.filter_images.filter_sheet", recording)

    fit(tmp_path, Module(), FilterImages(), val_check_interval=1, logger=logger)

    captions = [metrics["filter_images/conv1"][0] for metrics in logger.sent if "filter_images/conv1" in metrics]
    assert captions == ["epoch 1, batch 1, step 1", "epoch 1, batch 2, step 2", "epoch 1"]
    assert titles == ["conv1, epoch 1, batch 1", "conv1, epoch 1, batch 2", "conv1, epoch 1"]
