"""Projections over the epochs: a row for each map, a column for each epoch, and marks on jumps and dead maps."""

import math

import numpy as np
import pytest
import torch

from tests.figures.drawn import box_of, coloured, cut, is_red
from zfscope.figures import evolution_sheet


def over_epochs(maps=3, epochs=(1, 2, 5, 10), side=27):
    """Arguments of a sheet of maps whose strongest image never changes."""
    count = len(epochs)
    numbers = torch.arange(maps)
    indices = numbers[:, None].repeat(1, count)
    return [numbers, list(epochs), coloured(maps, count, side=side), torch.ones(maps, count), indices]


def marked(sheet, tile):
    """Whether there is red just left of a tile."""
    left, top, _, bottom = box_of(sheet, tile)
    strip = cut(sheet, (left - 8, top, left, bottom))
    red = strip[..., 0] - strip[..., 1] > 80
    assert not red.any() or red.any(axis=1).all()  # as high as the tile
    return bool(red.any())


def test_each_map_has_a_row_and_each_epoch_a_column():
    arguments = over_epochs()

    sheet = evolution_sheet(*arguments)

    boxes = [[box_of(sheet, tile) for tile in row] for row in arguments[2]]
    lefts, tops = [box[0] for box in boxes[0]], [row[0][1] for row in boxes]
    assert lefts == sorted(set(lefts)) and tops == sorted(set(tops))
    assert [[box[:2] for box in row] for row in boxes] == [[(left, top) for left in lefts] for top in tops]
    assert all(72 <= box[2] - box[0] <= 128 for row in boxes for box in row)


def test_epochs_stand_above_their_columns_and_numbers_before_their_rows():
    arguments = over_epochs()
    sheet = evolution_sheet(*arguments)
    tile = box_of(sheet, arguments[2][1, 2])

    arguments[1][2] = 7
    renamed = evolution_sheet(*arguments)
    arguments[0] = torch.tensor([0, 4, 2])
    renumbered = evolution_sheet(*arguments)

    rows, columns = np.nonzero((np.asarray(renamed) != np.asarray(sheet)).any(axis=2))
    assert tile[0] <= columns.min() and columns.max() < tile[2]
    assert rows.min() > 40 and rows.max() < box_of(sheet, arguments[2][0, 0])[1]
    rows, columns = np.nonzero((np.asarray(renumbered) != np.asarray(renamed)).any(axis=2))
    assert columns.max() < box_of(sheet, arguments[2][0, 0])[0] and tile[1] <= rows.min() and rows.max() < tile[3]


def test_a_jump_is_marked_where_the_strongest_image_changes_and_nowhere_else():
    arguments = over_epochs(epochs=(1, 2, 5, 10, 20))
    calm = evolution_sheet(*arguments)
    arguments[4] = torch.tensor([[4, 4, 9, 9, 4], [7, 7, 7, 7, 7], [0, 1, 2, 3, 3]])

    sheet = evolution_sheet(*arguments)

    marks = [[marked(sheet, tile) for tile in row] for row in arguments[2]]
    assert marks == [[False, False, True, False, True], [False] * 5, [False, True, True, True, False]]
    for tile in arguments[2].flatten(0, 1):
        assert box_of(sheet, tile) == box_of(calm, tile)  # no mark covers a tile


@pytest.mark.parametrize(("value", "index"), [(0.0, 3), (-1.0, 3), (math.nan, 3), (2.0, -1)])
def test_where_a_map_is_dead_the_tile_says_so_and_jumps_are_counted_from_the_last_living_epoch(value, index):
    arguments = over_epochs(2, (1, 2, 3, 4))
    places = [[box_of(evolution_sheet(*arguments), tile) for tile in row] for row in arguments[2]]
    arguments[4] = torch.tensor([[5, index, 5, 6], [index, 8, index, 9]])
    arguments[3][0, 1] = arguments[3][1, 0] = arguments[3][1, 2] = value

    sheet = evolution_sheet(*arguments)

    for row, column in ((0, 1), (1, 0), (1, 2)):
        pixels = cut(sheet, places[row][column])
        assert box_of(sheet, arguments[2][row, column]) is None
        assert is_red(pixels) and np.median(pixels) > 230
    assert not marked(sheet, arguments[2][0, 2]) and marked(sheet, arguments[2][0, 3])
    assert not marked(sheet, arguments[2][1, 1]) and marked(sheet, arguments[2][1, 3])


def test_the_mark_of_a_jump_is_explained_above():
    sheet = evolution_sheet(*over_epochs())

    assert is_red(cut(sheet, (0, 0, sheet.width, 44)))
    assert not is_red(cut(sheet, (0, 44, sheet.width, sheet.height)))


def test_evolutions_that_do_not_fit_together_are_refused():
    maps, epochs, tiles, values, indices = over_epochs()
    table = r"must have shape \(3, 4\) as the tiles have, but came with"
    for arguments, message in (
        ((maps, epochs[:3], tiles, values, indices), "epochs must name the 4 epochs of the .* but names 3"),
        ((maps, epochs, tiles, values, indices[:, :3]), rf"indices {table} \(3, 3\)"),
        ((maps, epochs, tiles, values.T, indices), rf"values {table} \(4, 3\)"),
        ((maps[:2], epochs, tiles, values, indices), r"\(2, k, 3, h, w\) for 2 maps, but .*\(3, 4, 3, 27, 27\)"),
    ):
        with pytest.raises(ValueError, match=message):
            evolution_sheet(*arguments)
