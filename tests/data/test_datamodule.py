"""Data sets by name, and the loaders over their parts."""

from typing import get_args

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from tests.conftest import composed, tiny_images
from zfscope.data.datamodule import OPENERS, ImageData, open_data, workers_for
from zfscope.data.imageset import ArrayImages
from zfscope.data.loader import Loader
from zfscope.data.readers import begin_reading
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits
from zfscope.networks.preprocessing import Preprocessing
from zfscope.schema import check


def data_of(num_workers=0, count=30):
    images, labels = tiny_images(count)
    data = ArrayImages(images, labels, ("red", "green", "blue"), "tiny")
    config = check(DataConfig, {**composed()["data"], "resize": 24, "crop": 20, "batch_size": 8})
    config = config.model_copy(update={"num_workers": num_workers})
    prepare = Preprocessing(24, 20, torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 0.02))
    module = ImageData(Splits(data, data, data), config, prepare, seed=3)
    module.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=True)
    return module


def test_the_number_of_workers_changes_nothing():
    alone, helped = (list(data_of(workers).train_dataloader()) for workers in (0, 2))

    assert len(alone) == len(helped) == 3
    for one, other in zip(alone, helped, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_validation_sees_every_image_once_in_order():
    indices = torch.cat([index for _, _, index in data_of(count=29).val_dataloader()])

    assert indices.tolist() == list(range(29))


def test_one_rank_of_two_validates_its_half_but_evaluates_all(monkeypatch):
    module = data_of(count=29)
    monkeypatch.setattr(type(module.trainer), "world_size", 2)
    monkeypatch.setattr(type(module.trainer), "global_rank", 1)

    validated = torch.cat([index for _, _, index in module.val_dataloader()])
    evaluated = torch.cat([index for _, _, index in module.canvases(module.splits.val, 8)])

    assert validated.tolist() == list(range(1, 29, 2))
    assert evaluated.tolist() == list(range(29))


def test_a_batch_is_image_label_and_index():
    module = data_of()

    image, label, index = next(iter(module.train_dataloader()))

    assert image.shape == (8, 3, 20, 20)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(label.numpy(), module.splits.train.labels[index.numpy()])


def test_small_arrays_need_no_workers_and_files_do(folders):
    files = open_data(check(DataConfig, composed("data=folder", f"data.root={folders}")["data"]))
    config = check(DataConfig, composed()["data"])

    assert workers_for(files.train, config) > 0
    assert data_of("auto").num_workers == 0


def test_every_name_that_the_schema_knows_can_be_opened():
    assert set(OPENERS) == set(get_args(DataConfig.model_fields["name"].annotation))


@pytest.mark.parametrize("name", ["folder", "imagenet", "caltech101", "caltech256", "voc2012", "fashion_mnist"])
def test_a_data_set_of_files_needs_its_root(name):
    with pytest.raises(ValueError, match=rf"data={name} needs data\.root=DIR"):
        open_data(check(DataConfig, composed(f"data={name}")["data"]))


def test_a_batch_larger_than_the_data_is_refused():
    module = data_of()

    with pytest.raises(ValueError, match=r"data\.batch_size=31 is larger than the 30 training images"):
        ImageData(module.splits, module.config.model_copy(update={"batch_size": 31}), module.preprocessing)


def test_a_missing_folder_is_named(tmp_path):
    config = check(DataConfig, composed("data=folder", f"data.root={tmp_path / 'nowhere'}")["data"])

    with pytest.raises((ValueError, OSError), match="nowhere"):
        open_data(config)


def test_some_classes_of_a_data_set_are_its_only_ones_in_every_part(folders):
    config = check(DataConfig, {"name": "folder", "root": str(folders), "classes": ["owl", "cat"]})

    splits = open_data(config)

    assert splits.train.classes == splits.val.classes == ("cat", "owl")
    assert np.bincount(splits.train.labels).tolist() == [8, 8]
    with pytest.raises(ValueError, match=r"no class 'dgo' in this data set; did you mean dog\?"):
        open_data(config.model_copy(update={"classes": ("dgo", "cat")}))


def test_an_excluded_image_does_not_train_but_stays_where_it_validates(folders, tmp_path):
    first = open_data(check(DataConfig, {"name": "folder", "root": str(folders)}))
    (tmp_path / "exclude.txt").write_text(f"{first.train.key(3)}\n")

    splits = open_data(
        check(DataConfig, {"name": "folder", "root": str(folders), "exclude": str(tmp_path / "exclude.txt")})
    )

    assert len(splits.train) == len(first.train) - 1 and len(splits.val) == len(first.val)
    assert first.train.name(3) not in {splits.train.name(i) for i in range(len(splits.train))}
    assert splits.train.fingerprint != first.train.fingerprint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "phantom", "cells": "mono"}, r"cells=mono belongs to name=elpv"),
        ({"name": "phantom", "classes": ["dog", "dog"]}, r"classes names the classes to keep, two or more"),
    ],
)
def test_a_choice_of_images_that_cannot_be_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        check(DataConfig, values)


def test_processes_of_a_loader_outlive_a_schedulers_signal_whoever_makes_it():
    assert Loader([1, 2]).worker_init_fn is begin_reading
    assert Loader([1, 2], worker_init_fn=print).worker_init_fn is print
