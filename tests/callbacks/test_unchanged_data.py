"""Modules that write into their input change no image of anybody's data set."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.conftest import COUNT, SIDE, Module, fit, panels
from tests.callbacks.foreign import SMALL, Writing
from zfscope.callbacks import OcclusionMaps, Projections


def tensors():
    images = torch.randn(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images, torch.arange(COUNT) % 2)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_a_callback_gives_a_module_that_writes_into_its_input_copies(tmp_path, name, shuffled):
    validation, training = tensors(), tensors()
    module = Module(Writing(), DataLoader(validation, batch_size=4, shuffle=shuffled), training)

    fit(tmp_path, module, SMALL[name](), max_epochs=2, num_sanity_val_steps=1)

    assert torch.equal(validation.tensors[0], tensors().tensors[0])
    assert torch.equal(training.tensors[0], tensors().tensors[0])
    assert panels(tmp_path) or name == "diagnostics"


def test_images_of_a_shuffled_pass_are_kept_as_the_loader_gave_them(tmp_path, monkeypatch):
    read = []

    def recording(network, tables, maps, read_images, **options):
        read.append(read_images(sorted({int(n) for table in tables.values() for n in table.indices.unique()})))
        return iter(())

    monkeypatch.setattr("zfscope.callbacks.projections.project_winners", recording)

    fit(tmp_path, Module(Writing(), DataLoader(tensors(), batch_size=4, shuffle=True)), Projections())

    (images,) = read
    assert all(any(torch.equal(image, own) for own in tensors().tensors[0]) for image in images) and len(images) > 5


def test_images_that_are_kept_are_the_same_at_each_validation(tmp_path):
    callback, kept = OcclusionMaps(images=2, stride=20), []
    module = Module(Writing(), DataLoader(tensors(), batch_size=4), tensors())
    module.on_validation_end = lambda: kept.append({n: image.clone() for n, (image, _) in callback._subjects.items()})

    fit(tmp_path, module, callback, max_epochs=3)

    assert len(kept) == 3
    for number, image in kept[-1].items():
        assert torch.equal(image, tensors().tensors[0][number])
