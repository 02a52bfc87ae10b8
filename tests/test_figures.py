"""The sheet of filters: one scale, sharp tiles, marks on dead and broken filters."""

import math
import time

import numpy as np
import pytest
import torch

from zfscope.figures import filter_sheet

TOP, SIDE, BELOW, RIGHT = 44, 49, 18, 6  # of a sheet of 7x7 filters, in pixels


def filters(count=96, channels=3):
    return 0.02 * torch.randn(count, channels, 7, 7, generator=torch.Generator().manual_seed(0))


def tile(sheet, index, columns):
    row, column = divmod(index, columns)
    top, left = TOP + row * (SIDE + BELOW), RIGHT + column * (SIDE + RIGHT)
    return np.asarray(sheet)[top : top + SIDE, left : left + SIDE]


def label(sheet, index, columns):
    row, column = divmod(index, columns)
    top, left = TOP + row * (SIDE + BELOW) + SIDE, RIGHT + column * (SIDE + RIGHT)
    return np.asarray(sheet)[top : top + BELOW, left : left + SIDE].astype(int)


def is_red(pixels):
    return bool((pixels[..., 0] - pixels[..., 1] > 80).any())


def test_pixels_of_the_sheet_are_the_filters_on_one_scale():
    weight = filters()

    sheet = filter_sheet(weight)

    limit = float(weight.abs().max())
    for index in (0, 17, 95):
        expected = np.rint(127.5 + 127.5 * weight[index].permute(1, 2, 0).numpy() / limit)
        np.testing.assert_allclose(tile(sheet, index, 16)[3::7, 3::7], expected, atol=1)
        np.testing.assert_array_equal(tile(sheet, index, 16)[0:7, 0:7].reshape(-1, 3).std(axis=0), 0)


def test_a_dominating_filter_takes_the_contrast_of_the_others_and_a_dead_one_is_marked():
    weight = filters()
    weight[17] *= 20
    weight[40] = 0

    sheet = filter_sheet(weight)

    assert np.ptp(tile(sheet, 17, 16)) > 200
    assert np.ptp(tile(sheet, 3, 16)) < 40
    assert np.ptp(tile(sheet, 40, 16)) == 0
    assert is_red(label(sheet, 40, 16)) and not is_red(label(sheet, 3, 16))


def test_a_broken_filter_is_crossed_out_and_leaves_the_scale_to_the_others():
    weight = filters(8)
    healthy = filter_sheet(weight)
    weight[5, 0, 0, 0] = math.nan
    weight[6, 0, 0, 0] = math.inf

    sheet = filter_sheet(weight)

    for index in (5, 6):
        assert (tile(sheet, index, 8)[range(SIDE), range(SIDE)] == 0).all()
        assert is_red(label(sheet, index, 8))
    limit = float(torch.cat([weight[:5], weight[7:]]).abs().max())
    expected = np.rint(127.5 + 127.5 * weight[0].permute(1, 2, 0).numpy() / limit)
    np.testing.assert_allclose(tile(sheet, 0, 8)[3::7, 3::7], expected, atol=1)
    assert healthy.size == sheet.size


@pytest.mark.parametrize("channels", [1, 2, 16])
def test_filters_over_other_than_three_maps_are_their_mean_in_grey(channels):
    weight = filters(4, channels)

    pixels = tile(filter_sheet(weight), 2, 4)

    mean = weight.mean(dim=1)
    expected = np.rint(127.5 + 127.5 * (mean[2] / mean.abs().max()).numpy())
    np.testing.assert_allclose(pixels[3::7, 3::7, 0], expected, atol=1)
    assert (pixels == pixels[..., :1]).all()


def test_every_filter_has_a_label_and_the_title_is_there():
    weight = filters()

    with_title, without = (np.asarray(filter_sheet(weight, title=title)) for title in ("conv1, epoch 12", ""))

    assert all(label(without, index, 16).min() < 100 for index in range(96))
    assert (with_title[:22] != without[:22]).any()
    assert (with_title[22:] == without[22:]).all()


def test_all_weights_zero_or_all_broken_still_make_a_sheet():
    assert filter_sheet(torch.zeros(4, 3, 7, 7)).size == filter_sheet(torch.full((4, 3, 7, 7), math.nan)).size


def test_a_sheet_of_96_filters_is_quick():
    filter_sheet(filters())

    start = time.process_time()
    filter_sheet(filters())

    assert time.process_time() - start < 0.3


def test_what_are_no_filters_is_refused():
    with pytest.raises(ValueError, match=r"filters \(C, C_in, h, w\), at least one, but came with \(4, 9\)"):
        filter_sheet(torch.zeros(4, 9))
    with pytest.raises(ValueError, match=r"one value for each of 4 filters, but came with \(3,\)"):
        filter_sheet(filters(4), rms=torch.zeros(3))
