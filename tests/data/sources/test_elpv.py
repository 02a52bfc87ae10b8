"""Solar cells: fixed test images, strata, and the real package where it is installed."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from zfscope.data.datamodule import open_data
from zfscope.data.sources import elpv
from zfscope.data.spec import DataConfig
from zfscope.schema import check

# The data set's own counts: probability 0, 1/3, 2/3, 1 of mono, then of poly cells.
COUNTS = {"mono": (588, 117, 56, 313), "poly": (920, 178, 50, 402)}


def open_elpv(resize=300, **values):
    return elpv.open_elpv(DataConfig(name="elpv", resize=resize, crop=resize, **values))


def tiny_cells():
    """As many cells of each probability and kind as the real ones, of 4 x 4 px that hold their number."""
    probability = np.concatenate([np.repeat([0, 1 / 3, 2 / 3, 1], counts) for counts in COUNTS.values()])
    types = np.repeat(list(COUNTS), [sum(counts) for counts in COUNTS.values()])
    order = np.random.default_rng(0).permutation(len(types))
    images = np.zeros((len(types), 4, 4), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.divmod(np.arange(len(types)), 256)
    return images, probability[order], types[order]


@pytest.fixture
def package(monkeypatch):
    """Stands for the installed package ``elpv_dataset``."""
    utils = ModuleType("elpv_dataset.utils")
    utils.load_dataset = tiny_cells
    monkeypatch.setitem(sys.modules, "elpv_dataset", ModuleType("elpv_dataset"))
    monkeypatch.setitem(sys.modules, "elpv_dataset.utils", utils)


def numbers(cells):
    pixels = [np.asarray(cells.read(i)) for i in range(len(cells))]
    return {int(p[0, 0, 0]) * 256 + int(p[0, 1, 0]) for p in pixels}


def test_the_three_parts_hold_every_cell_once_and_the_test_part_is_a_quarter_of_each_kind(package):
    splits = open_elpv(val_fraction=0.2)

    train, val, test = (numbers(part) for part in (splits.train, splits.val, splits.test))
    assert sorted([*train, *val, *test]) == list(range(2624))
    assert len(test) == 656 and len(val) == 394 and int(splits.test.labels.sum()) == 205
    for kind, counts in COUNTS.items():
        for third, count in enumerate(counts):
            for part, share in ((splits.test, 0.25), (splits.val, 0.75 * 0.2)):
                found = ((part.types == kind) & (np.rint(part.probability * 3) == third)).sum()
                assert abs(found - share * count) <= 1.2  # two roundings for val


def test_the_seed_changes_who_validates_and_never_who_tests(package):
    first, again, other = open_elpv(split_seed=1), open_elpv(split_seed=1), open_elpv(split_seed=2)

    assert first.test.fingerprint == again.test.fingerprint == other.test.fingerprint
    assert first.val.fingerprint == again.val.fingerprint != other.val.fingerprint
    # These were written down once: results are only comparable on the same images.
    assert sorted(numbers(first.test))[:8] == [0, 1, 9, 10, 17, 20, 23, 27]


def test_a_cell_is_defective_from_a_probability_of_one_half(package):
    splits = open_elpv()

    assert splits.train.classes == ("functional", "defective")
    for part in (splits.train, splits.val, splits.test):
        assert np.array_equal(part.labels, np.where(part.probability > 0.5, 1, 0))
    assert sum(part.labels.sum() for part in (splits.train, splits.val, splits.test)) == 106 + 715


def test_probability_and_kind_follow_a_subset(package):
    _, probability, types = tiny_cells()

    cells = open_elpv().train.subset([5, 900, 3])

    for i, number in enumerate(int(cells.name(i).removeprefix("elpv/")) for i in range(3)):
        assert cells.probability[i] == probability[number] and cells.types[i] == types[number]
        assert np.asarray(cells.read(i))[0, 1, 0] == number % 256


def test_a_missing_package_is_told_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "elpv_dataset", None)
    monkeypatch.setitem(sys.modules, "elpv_dataset.utils", None)

    with pytest.raises(FileNotFoundError, match=r"package elpv-dataset, .* run: pip install -e '\.\[elpv\]'"):
        open_elpv()


@pytest.mark.parametrize("size", [1, 7, 301])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(ValueError, match=f"data.resize={size}: the solar cells have 300 px; give 8 to 300"):
        open_elpv(resize=size)


def test_the_real_cells_are_reduced_by_area_averaging(monkeypatch, tmp_path):
    utils = pytest.importorskip("elpv_dataset.utils")
    folder = Path(utils.__file__).parent / "data"
    lines = (folder / "labels.csv").read_text().splitlines()
    (tmp_path / "images").symlink_to(folder / "images")
    (tmp_path / "labels.csv").write_text("\n".join(lines[::20]))  # decoding all of them takes seconds
    images, probability, types = cells = utils.load_dataset(tmp_path / "labels.csv")
    monkeypatch.setattr(utils, "load_dataset", lambda: cells)

    splits = open_elpv(resize=100)

    assert sum(map(len, splits.parts.values())) == len(images) == 132
    number = int(splits.test.name(17).removeprefix("elpv/"))
    averaged = images[number].reshape(100, 3, 100, 3).mean((1, 3))
    read = splits.test.read(17)
    assert isinstance(read, Image.Image) and read.mode == "RGB"
    assert np.abs(np.asarray(read)[..., 1] - averaged).max() <= 1  # rounded along rows, then along columns
    assert splits.test.probability[17] == probability[number] and splits.test.types[17] == types[number]


def test_the_real_cells_are_as_many_of_each_kind_as_counted_here():
    utils = pytest.importorskip("elpv_dataset.utils")

    rows = [line.split() for line in (Path(utils.__file__).parent / "data" / "labels.csv").read_text().splitlines()]

    thirds = [(kind, round(3 * float(probability))) for _, probability, kind in rows]
    assert {kind: tuple(thirds.count((kind, third)) for third in range(4)) for kind in COUNTS} == COUNTS


def test_the_cells_of_one_kind_can_be_had_alone(package):
    splits = open_data(check(DataConfig, {"name": "elpv", "cells": "poly", "resize": 300, "crop": 300}))

    assert {kind for part in splits.parts.values() for kind in part.types} == {"poly"}
    assert sum(map(len, splits.parts.values())) == 1550
