"""Tiles and grids, checked pixel by pixel on small cases."""

import math

import numpy as np
import pytest
import torch

from zfscope.images import contrast_limits, cross_out, enlarge, grid, to_pil, to_tiles


def signed(*rows):
    return torch.tensor(rows).view(len(rows), 1, 1, -1)


def test_one_scale_keeps_tiles_comparable():
    tiles = to_tiles(signed([0.0, 1.0], [0.5, -1.0]))

    assert tiles.flatten(1).tolist() == [[128, 255], [191, 0]]


def test_a_given_limit_clips():
    assert to_tiles(signed([1.0, 8.0]), limit=2.0).flatten().tolist() == [191, 255]


def test_zeros_are_grey_and_nan_does_not_set_the_scale():
    tiles = to_tiles(signed([0.0, 0.0], [math.nan, math.inf], [2.0, -2.0]))

    assert tiles.flatten(1).tolist() == [[128, 128], [128, 128], [255, 0]]
    assert to_tiles(torch.zeros(2, 3, 1, 1)).unique().tolist() == [128]
    assert len(to_tiles(torch.zeros(0, 3, 4, 4))) == 0


@pytest.mark.parametrize(("side", "expected"), [(7, 49), (11, 55), (3, 48), (60, 60)])
def test_enlarging_repeats_pixels_a_whole_number_of_times(side, expected):
    tiles = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)

    large = enlarge(tiles, at_least=48)

    assert large.shape == (1, 3, expected, expected)
    np.testing.assert_array_equal(large[0, 0], np.kron(tiles[0, 0], np.ones((expected // side,) * 2, dtype=np.uint8)))


def test_a_cross_is_both_diagonals_of_the_chosen_tile_only():
    tiles = torch.full((2, 1, 3, 3), 200, dtype=torch.uint8)

    crossed = cross_out(tiles, torch.tensor([False, True]))

    assert crossed[0].eq(200).all() and tiles.eq(200).all()
    assert crossed[1, 0].tolist() == [[0, 200, 0], [200, 0, 200], [0, 200, 0]]


def test_grid_by_hand():
    tiles = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 1, 2)

    picture = grid(tiles, columns=2, pad=(1, 1), background=9)

    assert picture[0].tolist() == [
        [9, 9, 9, 9, 9, 9, 9],
        [9, 0, 0, 9, 1, 1, 9],
        [9, 9, 9, 9, 9, 9, 9],
        [9, 2, 2, 9, 9, 9, 9],
        [9, 9, 9, 9, 9, 9, 9],
    ]


def test_a_tile_becomes_a_picture_with_its_colours():
    tile = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 5)

    assert to_pil(tile).size == (5, 2)
    assert to_pil(tile).getpixel((4, 1)) == (10, 20, 30)
    assert to_pil(tile[:1]).getpixel((0, 0)) == (10, 10, 10)


def test_what_is_no_tile_is_refused():
    with pytest.raises(ValueError, match=r"\(N, 1 or 3, H, W\), but came with \(2, 4, 3, 3\)"):
        to_tiles(torch.zeros(2, 4, 3, 3))
    with pytest.raises(ValueError, match="columns must be at least 1, but is 0"):
        grid(torch.zeros(1, 1, 2, 2), columns=0)
    with pytest.raises(ValueError, match="came as torch.float32"):
        to_pil(torch.zeros(3, 2, 2))


def test_contrast_leaves_out_the_largest_of_the_values_that_are_not_zero():
    values = torch.zeros(3, 1, 20, 50)
    values[0].view(-1)[:1000] = torch.arange(1.0, 1001.0)[torch.randperm(1000)]
    values[1].view(-1)[300:500] = -torch.arange(1.0, 201.0)  # 800 zeros say nothing about contrast

    limits = contrast_limits(values, share=0.99)

    assert limits.tolist() == [990.0, 198.0, 0.0]
    tiles = to_tiles(values, limit=limits)
    assert tiles[0].flatten()[values[0].flatten() >= 990].unique().tolist() == [255]
    assert tiles[2].unique().tolist() == [128]


def test_contrast_does_not_cut_off_what_is_nearly_all_there_is():
    values = torch.full((1, 1, 100, 100), 1e-6)
    values[0, 0, 50, 50:60] = torch.arange(1.0, 11.0)

    assert contrast_limits(values, share=0.99).tolist() == [10.0]
