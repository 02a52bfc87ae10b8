"""A data set of class folders to be broken."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import tiny_images
from tests.data.bad_images import SIDE, checked


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """200 training, 20 validation and 20 test images of two classes, and a cache that knows them."""
    home = tmp_path_factory.mktemp("whole")
    for seed, (part, count) in enumerate({"train": 200, "val": 20, "test": 20}.items()):
        images, labels = tiny_images(count, SIDE, 2, seed)
        for number, image in enumerate(images):
            folder = home / "images" / part / ("cat", "dog")[labels[number]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.jpg")
    checked(home)
    return home


@pytest.fixture
def home(whole, tmp_path):
    """A copy of ``whole`` to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "home"))
