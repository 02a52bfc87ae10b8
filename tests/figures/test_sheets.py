"""The sheets: pixels where and as they should be, and marks on what is dead, broken, missing or has changed."""

import math
import time

import numpy as np
import pytest
import torch

from tests.figures.drawn import box_of, coloured, cut, is_red, noise
from zfscope.figures import filter_sheet, projection_sheet

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


def of_maps(count, winners=9, side=7):
    """Arguments of a sheet of living maps."""
    values = torch.arange(count * winners, 0, -1.0).view(count, winners)
    return torch.arange(count), coloured(count, winners, 1, side), coloured(count, winners, 0, side), values


@pytest.mark.parametrize("winners", [1, 2, 9, 10])
def test_projections_stand_left_of_their_patches_row_by_row_in_blocks_row_by_row(winners):
    maps, patches, projections, values = of_maps(5, winners)

    sheet = projection_sheet(maps, patches, projections, values, columns=2, tile=14)

    across = math.ceil(math.sqrt(winners))
    first = [box_of(sheet, patches[0, 0]), box_of(sheet, projections[0, 0])]
    width, height = first[0][2] - first[0][0], first[0][3] - first[0][1]
    blocks = []
    for index in range(5):
        corners = []
        for tiles in (projections, patches):
            boxes = [box_of(sheet, tile) for tile in tiles[index]]
            assert {(box[2] - box[0], box[3] - box[1]) for box in boxes} == {(width, height)}
            left, top = boxes[0][:2]
            step = boxes[1][0] - left if winners > 1 else width + 2
            assert width < step <= width + 4
            for place, box in enumerate(boxes):
                assert box[:2] == (left + place % across * step, top + place // across * step)
            corners.append((left, top))
        assert corners[0][1] == corners[1][1] and corners[1][0] >= corners[0][0] + across * step
        blocks.append(corners[0])
    lefts, tops = sorted({left for left, _ in blocks}), sorted({top for _, top in blocks})
    assert blocks == [(lefts[index % 2], tops[index // 2]) for index in range(5)]


def test_small_tiles_are_shown_pixel_by_pixel_and_others_stay_as_they_are():
    maps, patches, projections, values = of_maps(2)
    box = box_of(projection_sheet(maps, patches, projections, values), patches[1, 4])
    patches[1, 4] = noise(3, 7, 7)

    sheet = projection_sheet(maps, patches, projections, values)

    times = (box[2] - box[0]) // 7
    expected = patches[1, 4].permute(1, 2, 0).numpy().repeat(times, axis=0).repeat(times, axis=1)
    assert times > 1
    np.testing.assert_array_equal(cut(sheet, box), expected)


@pytest.mark.parametrize(("size", "shown"), [((5, 8), (30, 48)), ((200, 120), (50, 30)), ((40, 50), (40, 50))])
def test_tiles_that_are_not_square_keep_their_shape(size, shown):
    tiles = [coloured(2, 4, part)[..., :1, :1].expand(2, 4, 3, *size) for part in (0, 1)]

    sheet = projection_sheet(torch.arange(2), *tiles, torch.ones(2, 4), tile=50)

    for half in tiles:
        left, top, right, bottom = box_of(sheet, half[1, 3])
        assert (bottom - top, right - left) == shown


def test_large_tiles_are_reduced_smoothly():
    maps, patches, projections, values = of_maps(1, side=200)
    box = box_of(projection_sheet(maps, patches, projections, values, tile=50), patches[0, 0])
    rows = torch.arange(200)
    patches[0, 0] = 255 * ((rows[:, None] + rows) % 2).to(torch.uint8)  # nearest pixels would be all black or all white
    ramp = (rows * 1.25).round().to(torch.uint8).expand(3, 200, 200)
    projections[0, 0] = ramp

    sheet = projection_sheet(maps, patches, projections, values, tile=50)

    assert box[2] - box[0] == box[3] - box[1] == 50
    np.testing.assert_allclose(cut(sheet, box), 127.5, atol=8)
    shift = box_of(sheet, patches[0, 1])[0] - box_of(sheet, projections[0, 1])[0]
    left = box[0] - shift, box[1], box[2] - shift, box[3]
    means = ramp[0].view(50, 4, 50, 4).double().mean(dim=(1, 3)).numpy()
    np.testing.assert_allclose(cut(sheet, left)[2:-2, 2:-2, 0], means[2:-2, 2:-2], atol=2)


SLOW_SIDES = [pytest.param(side, marks=pytest.mark.slow) for side in (11, 27, 59, 139, 224)]


@pytest.mark.parametrize("side", [7, 75, *SLOW_SIDES])
def test_tiles_of_a_few_maps_are_large_and_those_of_hundreds_fit_a_sheet(side):
    few, one = of_maps(16, side=side), of_maps(1, side=side)

    left, _, right, _ = box_of(projection_sheet(*few), few[1][15, 8])
    assert 72 <= right - left <= 128

    sheet = projection_sheet(*[part.expand(384, *part.shape[1:]) for part in one])
    left, _, right, _ = box_of(sheet.crop((0, 0, 400, 200)), one[1][0, 0])
    assert 48 <= right - left <= 64 and max(sheet.size) < 6000


def test_a_sheet_of_384_maps_is_quick():
    arguments = [part.expand(384, *part.shape[1:]) for part in of_maps(1, side=27)]

    start = time.process_time()
    projection_sheet(*arguments)

    assert time.process_time() - start < 3


def test_a_place_without_a_positive_winner_is_empty():
    maps, patches, projections, values = of_maps(1)
    boxes = [box_of(projection_sheet(maps, patches, projections, values), tile) for tile in patches[0]]
    values[0, 6], values[0, 7], values[0, 8] = 0, math.nan, -math.inf

    sheet = projection_sheet(maps, patches, projections, values)

    assert box_of(sheet, patches[0, 5]) == boxes[5] and box_of(sheet, projections[0, 5])
    for place in (6, 7, 8):
        assert box_of(sheet, projections[0, place]) is None
        pixels = cut(sheet, boxes[place])
        assert np.ptp(pixels) == 0 and pixels.min() > 230


def test_a_map_without_a_positive_activation_is_dead_and_says_so():
    maps, patches, projections, values = of_maps(5)
    alive = projection_sheet(maps, patches, projections, values, columns=5)
    values[1], values[2], values[3] = 0, -math.inf, torch.tensor([math.nan, -2.0] + 7 * [-3.0])

    sheet = projection_sheet(maps, patches, projections, values, columns=5)

    assert sheet.size == alive.size
    for index in range(5):
        left, top, right, bottom = box_of(alive, projections[index, 0])[:2] + box_of(alive, patches[index, 8])[2:]
        dead = index in (1, 2, 3)
        assert is_red(cut(sheet, (left, top, right, bottom))) == dead
        assert (box_of(sheet, patches[index, 4]) is None) == dead
        if dead:
            assert np.median(cut(sheet, (left, top, right, bottom))) > 230


def test_number_and_strongest_activation_stand_above_the_block():
    maps, patches, projections, values = of_maps(2)
    values = torch.tensor([[3.0] * 9, [1.5] + [12.25] + [math.nan] * 7])
    sheet = projection_sheet(maps, patches, projections, values, columns=2)
    left, top = box_of(sheet, projections[1, 0])[:2]
    right = box_of(sheet, patches[1, 1])[2]

    renumbered = projection_sheet(maps + torch.tensor([0, 40]), patches, projections, values, columns=2)
    values[1, 1] = 99
    stronger = projection_sheet(maps, patches, projections, values, columns=2)

    for changed, side in ((renumbered, "left"), (stronger, "right")):
        rows, columns = np.nonzero((np.asarray(changed) != np.asarray(sheet)).any(axis=2))
        assert len(rows) and rows.max() < top and rows.min() > 30
        assert columns.min() >= left
        assert columns.max() < (left + right) / 2 if side == "left" else columns.min() > (left + right) / 2


def test_long_labels_over_small_tiles_do_not_touch():
    maps, patches, projections, values = of_maps(6, winners=1)

    sheet = projection_sheet(maps + 123456, patches, projections, values * 1e-7, tile=7, columns=3)

    box = box_of(sheet, projections[0, 0])
    labels = cut(sheet, (0, box[1] - 18, sheet.width, box[1] - 3)).min(axis=(0, 2))
    inked = np.flatnonzero(labels < 200)
    blocks = np.split(inked, np.flatnonzero(np.diff(inked) > 14) + 1)
    lefts = [box_of(sheet, projections[index, 0])[0] for index in range(3)]
    assert [abs(block[0] - left) <= 3 for block, left in zip(blocks, lefts, strict=True)] == [True] * 3


def test_titles_are_written_and_never_cut():
    arguments = of_maps(1, winners=1)

    plain, titled = (projection_sheet(*arguments, title=title) for title in ("", "conv5 " * 60))

    assert titled.width > plain.width
    assert (np.asarray(titled)[:22] < 100).any() and (np.asarray(titled)[:, -10:] == 255).all()


def test_sheets_that_do_not_fit_together_are_refused():
    maps, patches, projections, values = of_maps(2)
    shape, tiles = r"must have shape \(2, k, 3, h, w\)", (maps, patches, projections)
    for arguments, message in (
        ((maps[:0], patches, projections, values), r"at least one feature map, shape \(M,\), but came with \(0,\)"),
        ((maps, patches[:1], projections, values), rf"patches {shape} for 2 maps, but .* \(1, 9, 3, 7, 7\)"),
        ((maps, patches, projections[:, :, :1], values), rf"projections {shape}.*\(2, 9, 1, 7, 7\)"),
        ((maps, patches, projections[:, :8], values), r"must have one shape.*\(2, 9, 3, 7, 7\) and \(2, 8, 3, 7, 7\)"),
        ((maps, patches, projections.float(), values), r"projections must be tiles of uint8, .* as torch.float32"),
        ((*tiles, values[:, :8]), r"values must have shape \(2, 9\) as the tiles have, but came with \(2, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            projection_sheet(*arguments)
    for name, message in (("tile", "at least 1 pixel, but is 0"), ("columns", "at least 1, but is 0")):
        with pytest.raises(ValueError, match=f"{name} must be {message}"):
            projection_sheet(*tiles, values, **{name: 0})
