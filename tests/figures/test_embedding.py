"""The scatter, the grid and the curve of the map of images: colours, names, places."""

import numpy as np
import pytest
import torch

from tests.figures.drawn import box_of, coloured
from zfscope.figures import embedding
from zfscope.figures.embedding import class_styles, embedding_grid, mean_and_error, neighbours_figure

# Machado et al. (2009): how colours look without one kind of cones, on linear RGB.
BLIND = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}


@pytest.fixture
def axes(monkeypatch):
    """The axes of the figure that is drawn next, before it becomes pixels."""
    kept = []
    monkeypatch.setattr(embedding, "drawn", lambda figure: kept.extend(figure.axes))
    return kept


def test_ten_classes_have_ten_colours_and_ten_shapes_and_twenty_no_pair_twice():
    styles = class_styles(np.arange(20), [f"class {number}" for number in range(20)])

    assert len({style.colour for style in styles[:10]}) == len({style.marker for style in styles[:10]}) == 10
    assert len({(style.colour, style.marker) for style in styles}) == 20
    assert [style.name for style in styles[:2]] == ["class 0 (1)", "class 1 (1)"]


def test_of_more_classes_the_strongest_are_named_and_the_others_are_grey():
    labels = np.concatenate([np.arange(30), np.arange(5, 25)])

    others, *named = class_styles(labels, [f"{number}" for number in range(40)])

    assert others.name == "10 other classes (10)" and others.colour == embedding.OTHER
    assert [style.name for style in named] == [f"{number} (2)" for number in range(5, 25)]
    assert sum(style.mask.sum() for style in (others, *named)) == 50


@pytest.mark.parametrize("kind", BLIND)
def test_colours_differ_for_the_colour_blind_or_the_shape_tells_more(kind):
    values = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in embedding.COLOURS]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(BLIND[kind]).T, 0, 1) ** (1 / 2.2)

    distances = np.linalg.norm(seen[:, None] - seen, axis=2) + np.eye(10)

    assert distances.min() > 0.1 and len(set(embedding.MARKERS)) == 10


def test_each_tile_stands_in_its_cell_in_a_frame_of_its_class():
    tiles = coloured(2, 3).flatten(0, 1)
    labels = np.array([0, 1, 0, 1, 1, 0])

    sheet = embedding_grid(tiles, 2, 3, labels, ("cat", "dog"))

    boxes = [box_of(sheet, tile) for tile in tiles]
    pixels = np.asarray(sheet)
    for number, (left, top, right, bottom) in enumerate(boxes):
        assert (right - left, bottom - top) == (7, 7)
        assert (left, top) == (boxes[number % 3][0], boxes[3 * (number // 3)][1])
        colour = embedding.COLOURS[labels[number]]
        expected = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert pixels[top - 1, left].tolist() == pixels[bottom, right - 1].tolist() == expected


def test_too_few_tiles_for_the_cells_are_refused():
    with pytest.raises(ValueError, match="2 x 4 cells need as many tiles and labels, but have 6 and 6"):
        embedding_grid(torch.zeros(6, 3, 4, 4, dtype=torch.uint8), 2, 4, np.zeros(6, int), ("cat",))


def test_names_of_classes_are_drawn_as_they_are(axes):
    embedding.embedding_figure(np.random.rand(4, 2), np.array([0, 1, 1, 0]), ("$a_b$", "line\nbreak"), title="$x$")

    names = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert names == ["$a_b$ (2)", r"line\nbreak (2)"]
    assert not any(text.get_parse_math() for text in axes[0].figure.legends[0].get_texts())


def test_the_curve_has_means_errors_and_a_gap_where_a_layer_is_dead(axes):
    network = np.array([[20.0, 30.0], [np.nan, np.nan], [80.0, 90.0]])
    shares = {"network": network, "random_weights": np.full((3, 2), 15.0)}

    neighbours_figure(["conv1", "fc7", "fc8"], shares, np.array([10.0, 12.0]), chance=9.0, neighbours=10, title="RUN")

    line = axes[0].containers[0][0]
    np.testing.assert_allclose(line.get_ydata(), [25, np.nan, 85])
    bars = axes[0].containers[0][2][0].get_segments()
    np.testing.assert_allclose(bars[0][:, 1], [25 - 2 * 5, 25 + 2 * 5])  # 5: 7.07 / sqrt(2)
    texts = [text.get_text() for text in axes[0].get_legend().get_texts()]
    curves = {"trained network (bars: two standard errors)", "random weights"}
    assert set(texts) == {"pixels, 11 %", "chance, 9 %"} | curves
    assert axes[0].get_ylabel() == "of the 10 nearest neighbours in the same class, %"
    assert axes[0].get_ylim() == (0, 100)


def test_mean_and_error_leave_out_draws_that_are_not_known():
    mean, error = mean_and_error(np.array([[1.0, 2, 6], [3, np.nan, 5], [4, np.nan, np.nan], [np.nan] * 3]))

    np.testing.assert_allclose(mean, [3, 4, 4, np.nan])
    np.testing.assert_allclose(error, [np.std([1, 2, 6], ddof=1) / 3**0.5, 1, np.nan, np.nan])
