"""Mean image and spread of a training set, against numpy's."""

import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import tiny_images
from zfscope.data import statistics as module
from zfscope.data.imageset import ArrayImages, FileImages
from zfscope.data.statistics import statistics_of
from zfscope.networks.preprocessing import CanvasKind


def test_statistics_equal_numpys(tmp_path):
    images, labels = tiny_images(50, side=8)

    statistics = statistics_of(ArrayImages(images, labels, ("a", "b", "c"), "tiny"), CanvasKind(8), tmp_path)

    values = images.astype(np.float64)
    np.testing.assert_allclose(statistics.mean.permute(1, 2, 0).numpy(), values.mean(0), rtol=1e-6)
    assert statistics.std == pytest.approx(np.sqrt(((values - values.mean(0)) ** 2).mean()), rel=1e-9)
    colours = values.reshape(-1, 3) / 255
    np.testing.assert_allclose(statistics.covariance.numpy(), np.cov(colours.T, bias=True), rtol=1e-5)


def test_unit_inputs_have_mean_zero_and_variance_one(tmp_path):
    images, labels = tiny_images(50, side=8)
    statistics = statistics_of(ArrayImages(images, labels, ("a", "b", "c"), "tiny"), CanvasKind(8), tmp_path)
    prepare = statistics.preprocessing(8, "unit")

    inputs = torch.stack([prepare(image) for image in images])

    assert float(inputs.mean()) == pytest.approx(0, abs=1e-5)
    assert float(inputs.var()) == pytest.approx(1, rel=1e-2)


def test_statistics_are_computed_once_and_anew_for_other_images(tmp_path):
    images, labels = tiny_images(20, side=8)
    data = ArrayImages(images, labels, ("a", "b", "c"), "tiny")
    first = statistics_of(data, CanvasKind(8), tmp_path)
    (stored,) = tmp_path.iterdir()
    written = stored.stat().st_mtime_ns

    again = statistics_of(data, CanvasKind(8), tmp_path)
    other = statistics_of(data.subset(np.arange(10)), CanvasKind(8), tmp_path)

    assert stored.stat().st_mtime_ns == written
    torch.testing.assert_close(first.mean, again.mean, rtol=0, atol=0)
    assert not torch.equal(first.mean, other.mean)


def test_a_sample_of_the_images_is_spread_over_all(tmp_path):
    images, labels = tiny_images(21, side=8)

    statistics = statistics_of(ArrayImages(images, labels, ("a", "b", "c"), "tiny"), CanvasKind(8), tmp_path, most=3)

    np.testing.assert_allclose(statistics.mean.permute(1, 2, 0).numpy(), images[[0, 10, 20]].mean(0), rtol=1e-5)


def test_a_file_replaced_under_its_name_and_size_makes_new_statistics(tmp_path):
    images = files_of(tmp_path / "images")
    first = statistics_of(images, CanvasKind(8), tmp_path / "cache")
    pixels, _ = tiny_images(12, side=8, seed=1)
    Image.fromarray(pixels[3]).save(tmp_path / "images/3.bmp")

    again = statistics_of(images, CanvasKind(8), tmp_path / "cache")

    changed = np.stack([np.asarray(images.read(number)) for number in range(12)])
    assert files_of(tmp_path / "images", write=False).fingerprint == images.fingerprint
    np.testing.assert_allclose(again.mean.permute(1, 2, 0).numpy(), changed.mean(0, dtype=float), rtol=1e-6)
    assert not torch.equal(first.mean, again.mean)


def test_a_copied_folder_has_the_statistics_that_are_known(tmp_path, monkeypatch):
    first = statistics_of(files_of(tmp_path / "images"), CanvasKind(8), tmp_path / "cache")
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    monkeypatch.setattr(module, "_measure", lambda *_: pytest.fail("measured again"))

    copy = statistics_of(files_of(tmp_path / "copy", write=False), CanvasKind(8), tmp_path / "cache")

    torch.testing.assert_close(copy.mean, first.mean, rtol=0, atol=0)


def flip_a_pixel(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # most of the file is the mean image
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_pixel,
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save({"mean": torch.zeros(3, 16, 16)}, path),
        lambda path: torch.save([1, 2], path),
    ],
    ids=["flipped bit", "cut off", "empty", "other keys", "no dictionary"],
)
def test_damaged_statistics_are_measured_anew_with_one_line(tmp_path, damage):
    images, labels = tiny_images(12, side=16)
    data = ArrayImages(images, labels, ("a", "b", "c"), "tiny")
    whole = statistics_of(data, CanvasKind(16), tmp_path)
    (stored,) = tmp_path.glob("statistics_*.pt")
    damage(stored)

    with pytest.warns(UserWarning, match=r"statistics_\w+\.pt is damaged; the mean image is measured anew") as told:
        again = statistics_of(data, CanvasKind(16), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        later = statistics_of(data, CanvasKind(16), tmp_path)

    assert len(told) == 1
    for statistics in (again, later):
        torch.testing.assert_close(vars(statistics), vars(whole), rtol=0, atol=0)


def files_of(folder, write=True):
    """Twelve bitmaps of 8x8 px, all of one size."""
    pixels, labels = tiny_images(12, side=8)
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(pixels if write else ()):
        Image.fromarray(image).save(folder / f"{number}.bmp")
    return FileImages([f"{number}.bmp" for number in range(12)], labels, ("a", "b", "c"), root=folder)
