"""The sheet of diagnostics."""

import numpy as np
import pytest
import torch
from PIL import ImageDraw

from tests.examples.diagnostics import drawn
from zfscope.diagnostics import GridScore, filter_frequencies


def test_half_of_the_bar_is_red_where_half_of_the_maps_are_dead():
    sheet = np.asarray(drawn()).astype(int)

    red = (abs(sheet - [176, 0, 32]) < 8).all(2)
    grey = (abs(sheet - [228, 228, 228]) < 3).all(2)
    row = red.sum(1).argmax()
    assert red[row].sum() == pytest.approx(21 / 40 * 0.63 * 660, abs=4)
    assert red[row].sum() / (red[row].sum() + grey[row].sum()) == pytest.approx(21 / 40, abs=0.02)


def test_the_heading_of_the_projections_says_how_many_are_shown_of_those_scored_and_fits(monkeypatch):
    written, text = [], ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, place, words, *more, **options: (
            written.append(words) or text(self, place, words, *more, **options)
        ),
    )
    tiles = torch.zeros(24, 3, 27, 27, dtype=torch.uint8)

    drawn(second="conv2", tiles=tiles, scored=64, grids={2: GridScore(0.12, 0.1), 4: GridScore(0.33, 0.11)})

    scores = "0.12 at 2 px, 0.33 at 4 px (by chance 0.10, 0.11)"
    assert f"conv2: 24 of 64 projected maps; grid score of these 64: {scores}" in written


def test_filters_have_one_scale_and_bars_the_shares():
    weak = torch.randn(40, 3, 7, 7, generator=torch.Generator().manual_seed(0)) * 1e-3
    weak[0] = 1

    sheet = np.asarray(drawn(filters=weak)).astype(int)

    assert (sheet[100:110, 32:70] == 255).all()  # the first filter is white, all others grey
    assert abs(sheet[100:110, 90:110] - 127.5).max() < 2
    low = filter_frequencies(torch.randn(40, 3, 7, 7, generator=torch.Generator().manual_seed(0))).low
    blue = (abs(np.asarray(drawn()).astype(int) - [27, 58, 92]) < 6).all(2)
    orange = (abs(np.asarray(drawn()).astype(int) - [224, 160, 48]) < 6).all(2)
    chart = blue[blue[200:].any(1).argmax() + 220 :]  # below the legend
    heights = chart.sum(0)[chart.sum(0) > 0]
    assert heights[:100].mean() > 2 * heights[-100:].mean()  # sorted
    middle = filter_frequencies(torch.randn(40, 3, 7, 7, generator=torch.Generator().manual_seed(0))).middle
    assert blue[200:].sum() / orange[200:].sum() == pytest.approx(float(low.sum() / middle.sum()), rel=0.35)
