"""The figure of invariance: tiles and curves."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from zfscope.figures import invariance_figure
from zfscope.figures.invariance import _draw_examples
from zfscope.invariance import Invariance, default_amounts


def planted():
    """Two images with flat curves, the second higher at conv1 and in probability, lower at fc7; tiles of one colour."""
    amounts = default_amounts("scale", 112)
    flat = torch.tensor([[0.25], [0.75]]).expand(2, len(amounts))
    distances = {"conv1": 3 * flat, "fc7": 5 * flat.flip(0)}
    found = Invariance("scale", amounts, distances, {"conv1": 3.0, "fc7": 5.0}, {}, flat)
    tiles = torch.tensor((255, 0, 255), dtype=torch.uint8).view(1, 1, 3, 1, 1).expand(2, 5, 3, 30, 30)
    return [found], {"scale": (amounts[:5], tiles)}, torch.tensor([0, 1])


def test_the_figure_holds_the_tiles_and_the_curves_at_their_heights():
    figure = np.asarray(invariance_figure(*planted(), ["dog", "a $very_ long$ name"])).astype(int)

    def height(column, colour):
        """Rows from the bottom at which a column of pixels has a colour, between the frames of the axes."""
        rows = np.flatnonzero((abs(figure[50:-150, column] - colour) <= 8).all(1))
        return len(figure) - 150 - rows.mean()

    assert (figure == (255, 0, 255)).all(2).mean() > 0.05
    blue, orange = (31, 119, 180), (255, 127, 14)  # the first two of the palette
    middles = []
    for share, lower, upper in ((0.42, blue, orange), (0.65, orange, blue), (0.89, blue, orange)):
        column = round(share * figure.shape[1])
        assert height(column, lower) < height(column, upper) - 50
        middles.append(height(column, (0, 0, 0)))
        assert middles[-1] == pytest.approx((height(column, lower) + height(column, upper)) / 2, abs=2)
    assert middles[0] == pytest.approx(middles[1], abs=2)  # each in its layer's unit


def test_amounts_and_names_stand_in_the_middle_of_their_tiles():
    axes = Figure().subplots()
    grey = torch.full((2, 3, 3, 30, 20), 100, dtype=torch.uint8)

    _draw_examples(axes, torch.tensor([-1.0, 0.0, 1.0]), grey, ["cat", "dog"], ["red", "blue"])

    shown = axes.images[0].get_array()
    columns, rows = ((shown == 100).all(2).any(axis) for axis in (0, 1))
    assert columns[axes.get_xticks().astype(int)].all() and rows[axes.get_yticks().astype(int)].all()
    middles = [(first + last) / 2 for first, last in runs(columns)]
    assert axes.get_xticks() == pytest.approx(middles, abs=1)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["-1", "0", "+1"]


def runs(marked):
    """First and last position of each run of marked ones."""
    places = np.flatnonzero(marked)
    return [(part[0], part[-1]) for part in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)]


def test_a_figure_of_what_does_not_belong_together_is_refused():
    found, examples, shown = planted()

    with pytest.raises(ValueError, match=r"but they number \[1, 2\]"):
        invariance_figure(found, examples, shown, ["dog"])
    with pytest.raises(ValueError, match="give 1 to 10 images to show"):
        invariance_figure([], examples, shown, ["dog", "cat"])
