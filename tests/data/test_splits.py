"""Parts of a data set, and how they are carved out of one whole."""

import numpy as np
import pytest

from zfscope.data.imageset import ArrayImages
from zfscope.data.splits import Splits, stratified_split


def images(*classes, count=8):
    return ArrayImages(np.zeros((count, 4, 4), np.uint8), np.arange(count) % len(classes), classes, prefix="x")


def test_splits_share_their_classes():
    with pytest.raises(ValueError, match="train and test have different classes"):
        Splits(images("a", "b"), images("a", "b"), images("b", "a"))


def test_each_part_of_a_data_set_can_be_changed():
    splits = Splits(images(*"abcd", count=12), images(*"abcd"), None, carved=True)

    changed = splits.map(lambda part: part.only(["a", "c"]))

    assert {name: len(part) for name, part in changed.parts.items()} == {"train": 6, "val": 4}
    assert changed.carved and changed.test is None


@pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 1 / 3, 0.9, 0.999])
def test_a_stratified_split_takes_the_fraction_of_every_stratum_and_leaves_no_image_out(fraction):
    strata = np.random.default_rng(0).permutation(np.repeat([3, 7, 8, 100], [1, 2, 31, 966]))

    rest, carved = stratified_split(strata, fraction, seed=1)

    assert sorted([*rest, *carved]) == list(range(1000))
    for stratum in (3, 7, 8, 100):
        count, total = (strata[carved] == stratum).sum(), (strata == stratum).sum()
        assert abs(count - fraction * total) <= 1
        assert count < total  # one always stays
        assert count >= (fraction > 0 and total > 1)


def test_a_stratified_split_carves_the_fraction_of_the_whole_to_the_nearest_image():
    strata = np.repeat(np.arange(8), [588, 920, 117, 178, 56, 50, 313, 402])  # the solar cells

    assert len(stratified_split(strata, 0.25, seed=0)[1]) == 656  # rounding each stratum would give 657


def test_a_stratified_split_is_a_function_of_the_seed_only():
    strata = np.repeat([0, 1], 10)

    # These positions were written down once: no version of numpy may change them, nor draws made before.
    np.random.seed(99)
    assert stratified_split(strata, 0.3, seed=5)[1].tolist() == [2, 5, 9, 12, 15, 16]
    assert stratified_split(strata, 0.3, seed=6)[1].tolist() != [2, 5, 9, 12, 15, 16]


def test_a_fraction_or_seed_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"below 1, but is 1\.0"):
        stratified_split(np.zeros(4, int), 1.0, seed=0)
    with pytest.raises(ValueError, match=r"in 0\.\.4294967295, but is -1"):
        stratified_split(np.zeros(4, int), 0.5, seed=-1)
