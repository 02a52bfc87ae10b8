"""Mean image and spread of a training set, against numpy's."""

import numpy as np
import pytest
import torch

from tests.conftest import tiny_images
from zfscope.data.imageset import ArrayImages
from zfscope.data.statistics import statistics_of


def test_statistics_equal_numpys(tmp_path):
    images, labels = tiny_images(50, side=8)

    statistics = statistics_of(ArrayImages(images, labels, ("a", "b", "c"), "tiny"), 8, tmp_path)

    values = images.astype(np.float64)
    np.testing.assert_allclose(statistics.mean.permute(1, 2, 0).numpy(), values.mean(0), rtol=1e-6)
    assert statistics.std == pytest.approx(np.sqrt(((values - values.mean(0)) ** 2).mean()), rel=1e-9)
    colours = values.reshape(-1, 3) / 255
    np.testing.assert_allclose(statistics.covariance.numpy(), np.cov(colours.T, bias=True), rtol=1e-5)


def test_unit_inputs_have_mean_zero_and_variance_one(tmp_path):
    images, labels = tiny_images(50, side=8)
    statistics = statistics_of(ArrayImages(images, labels, ("a", "b", "c"), "tiny"), 8, tmp_path)
    prepare = statistics.preprocessing(8, "unit")

    inputs = torch.stack([prepare(image) for image in images])

    assert float(inputs.mean()) == pytest.approx(0, abs=1e-5)
    assert float(inputs.var()) == pytest.approx(1, rel=1e-2)


def test_statistics_are_computed_once_and_anew_for_other_images(tmp_path):
    images, labels = tiny_images(20, side=8)
    data = ArrayImages(images, labels, ("a", "b", "c"), "tiny")
    first = statistics_of(data, 8, tmp_path)
    (stored,) = tmp_path.iterdir()
    written = stored.stat().st_mtime_ns

    again = statistics_of(data, 8, tmp_path)
    other = statistics_of(data.subset(np.arange(10)), 8, tmp_path)

    assert stored.stat().st_mtime_ns == written
    torch.testing.assert_close(first.mean, again.mean, rtol=0, atol=0)
    assert not torch.equal(first.mean, other.mean)


def test_a_sample_of_the_images_is_spread_over_all(tmp_path):
    images, labels = tiny_images(21, side=8)

    statistics = statistics_of(ArrayImages(images, labels, ("a", "b", "c"), "tiny"), 8, tmp_path, most=3)

    np.testing.assert_allclose(statistics.mean.permute(1, 2, 0).numpy(), images[[0, 10, 20]].mean(0), rtol=1e-5)
