"""The panel of Fig. 7: what is coloured where, what stands beside it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ImageDraw

from zfscope.figures import occlusion_panel
from zfscope.figures.occlusion import OPACITY, RAMP
from zfscope.occlusion.maps import Occlusion
from zfscope.occlusion.positions import spans
from zfscope.occlusion.sensitivity import Sensitivity


def sensitivity(probability, size=2, stride=2, **changed):
    """A Sensitivity whose maps are these probabilities of class 0, of 0.9 for the whole image."""
    probability = torch.as_tensor(probability)
    maps = Occlusion(probability, (probability < 0.5).long(), 10 * probability, 3)
    values = {"target": 0, "probability": 0.9, "label": 0, "activation": 9.0, "layer": "conv5"}
    return Sensitivity(maps, **(values | changed), size=size, stride=stride)


@pytest.fixture
def texts(monkeypatch):
    """What is written into pictures, and where."""
    places, text = {}, ImageDraw.ImageDraw.text

    def noted(self, place, words, *options, **more):
        places[words] = place
        return text(self, place, words, *options, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    return places


def corner(texts, name):
    """Left and upper edge of the tile under a heading."""
    x, y = texts[name]
    return int(x), int(y) + 6


@pytest.mark.parametrize(("length", "size", "stride"), [(112, 24, 8), (21, 7, 4), (30, 5, 9), (20, 1, 16), (16, 16, 5)])
def test_a_position_is_coloured_around_its_nearest_centre_and_a_stride_wide(texts, length, size, stride):
    first, last = spans(length, size, stride)
    centres = ((first + last) / 2).numpy()
    count, times = len(centres), round(224 / length)
    shares = np.linspace(0, 1, count * count).reshape(count, count) if count > 1 else np.ones((1, 1))

    panel = occlusion_panel(
        torch.zeros(3, length, length, dtype=torch.uint8), sensitivity(shares, size=size, stride=stride)
    )

    x, y = corner(texts, "(d) probability of class 0")
    pixels = np.arange(length * times)
    places = (pixels + 0.5) / times
    distances = np.abs(places[:, None] - centres)
    cells, nearest = distances.argmin(1), np.sort(distances, 1)
    decided = nearest[:, 0] < nearest[:, 1] - 1e-6 if count > 1 else pixels >= 0  # half-way between two either will do
    outer = np.array([centres[0] - stride / 2, centres[-1] + stride / 2])
    decided &= np.abs(places[:, None] - outer).min(1) > 1e-6
    covered = (places > outer[0]) & (places < outer[1])
    colours = OPACITY * RAMP[np.round(255 * shares).astype(int)][cells][:, cells]
    expected = np.where(covered[:, None, None] & covered[None, :, None], colours, 0)
    tile = np.asarray(panel.convert("RGB")).astype(float)[y : y + len(pixels), x : x + len(pixels)]
    assert np.abs(tile - expected)[decided][:, decided].max() < 2


def test_a_position_has_its_colour_where_the_squares_centre_was_and_the_image_shows_through(texts):
    image = torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    maps = sensitivity([[0.9, 0.9, 0.9], [0.9, 0.25, 0.9], [0.9, 0.9, 0.9]], size=4, stride=2)

    panel = np.asarray(occlusion_panel(image, maps, classes=("dog", "cat")).convert("RGB")).astype(float)

    grey = image.float().mean(0).numpy()
    side, times = 224, 28
    columns = [name for name in texts if name.startswith("(")]
    assert [name[:3] for name in columns] == ["(a)", "(b)", "(d)", "(e)"]
    for name, share, colour in (
        ("(b) conv5, map 3: sum", 2.5 / 9, None),
        ("(d) probability of dog", 0.25, None),
        ("(e) most probable class", None, (230, 159, 0)),
    ):
        x, y = corner(texts, name)
        tile = panel[y : y + side, x : x + side].reshape(8, times, 8, times, 3)
        colour = np.array(colour) if colour else RAMP[round(255 * share)]
        for row, column in ((3, 3), (4, 4), (4, 3)):  # centre (4, 4), a stride of 2 wide
            expected = OPACITY * colour + (1 - OPACITY) * grey[row, column]
            assert np.abs(tile[row, :, column] - expected).max() < 1.5, name
        assert np.abs(tile[0, :, 0] - grey[0, 0]).max() < 1.5 and np.abs(tile[7, :, 7] - grey[7, 7]).max() < 1.5
        assert np.abs(tile[2, :, 4] - (OPACITY * colour + (1 - OPACITY) * grey[2, 4])).max() > 20
    x, y = corner(texts, "(a) 4 px square, largest drop")
    tile = panel[y : y + side, x : x + side]
    assert (tile[2 * times, 2 * times : 6 * times] == 255).all()  # the outline of the middle square
    assert (tile[6 * times - 1, 2 * times : 6 * times] == 255).all()
    shown = np.repeat(np.repeat(image.permute(1, 2, 0).numpy(), times, 0), times, 1)
    assert (tile[: 2 * times - 1] == shown[: 2 * times - 1]).all()
    assert (tile[:, 6 * times + 1 :] == shown[:, 6 * times + 1 :]).all()


@pytest.mark.parametrize("place", [(row, column) for row in range(3) for column in range(3)])
def test_the_square_has_its_two_lines_on_all_sides_also_at_the_edge_of_the_image(texts, place):
    shares = np.full((3, 3), 0.9)
    shares[place] = 0.25

    panel = occlusion_panel(torch.full((3, 8, 8), 100, dtype=torch.uint8), sensitivity(shares, size=4, stride=2))

    x, y = corner(texts, "(a) 4 px square, largest drop")
    tile = np.asarray(panel.convert("RGB"))[y : y + 224, x : x + 224, 0]
    for colour in (0, 255):
        rows, columns = (np.flatnonzero((tile == colour).sum(axis) > 90) for axis in (1, 0))
        assert len(rows) == len(columns) == 2
        assert 108 <= rows[1] - rows[0] <= 114 and 108 <= columns[1] - columns[0] <= 114


def test_the_legend_names_the_classes_that_occur_most_frequent_first_and_joins_the_rest(texts):
    maps = sensitivity([[0.9] * 4] * 4)
    labels = torch.tensor([5, 5, 5, 5, 5, 0, 0, 0, 1, 1, 2, 3, 4, 6, 7, 8]).view(4, 4)
    maps = Sensitivity(**{**vars(maps), "occlusion": maps.occlusion._replace(label=labels), "label": 5})

    occlusion_panel(
        torch.zeros(3, 8, 8, dtype=torch.uint8), maps, classes=[f"kind {i}" for i in range(9)], title="image 4"
    )

    entries = [text for text in texts if text.endswith(" %")]
    assert entries[:3] == ["kind 5  31 %", "kind 0  19 %", "kind 1  12 %"]
    assert len(entries) == 8 and entries[-1] == "others  12 %"  # six colours, the target's, and the rest
    assert "image 4" in texts
    assert any("unoccluded: kind 0 0.90, but most probable is kind 5" in text for text in texts)


def test_projections_of_the_map_stand_between_its_sum_and_the_probability(texts):
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    tile = torch.full((3, 8, 8), 200, dtype=torch.uint8)
    others = torch.full((4, 3, 5, 5), 90, dtype=torch.uint8), torch.full((4, 3, 5, 5), 30, dtype=torch.uint8)

    panel = np.asarray(occlusion_panel(image, sensitivity([[0.5] * 4] * 4), projection=tile, others=others))

    names = [name for name in texts if name.startswith(("(", "…"))]
    assert [name[:3] for name in names] == ["(a)", "(b)", "(c)", "(c)", "… a", "(d)", "(e)"]
    for name, value in zip(names[2:5], (200, 90, 30), strict=True):
        x, y = corner(texts, name)
        assert (panel[y + 10 : y + 60, x + 10 : x + 60] == value).all(), name


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError, match=r"image must be uint8 \(3, H, W\)"):
        occlusion_panel(torch.zeros(3, 8, 8), sensitivity([[0.5]]))


@pytest.mark.parametrize("shape", [(3, 224, 224), (3, 480, 640), (3, 5, 9)])
def test_images_of_any_size_are_shown_at_about_one_size(shape):
    rows, columns = (len(spans(length, 1, 3)[0]) for length in shape[1:])

    panel = occlusion_panel(torch.zeros(shape, dtype=torch.uint8), sensitivity([[0.5] * columns] * rows, 1, 3))

    assert 300 < panel.width < 1500 and 150 < panel.height < 420


def test_of_a_network_without_maps_only_image_probability_and_class_are_drawn(texts):
    picture = torch.zeros(3, 16, 16, dtype=torch.uint8)

    panel = occlusion_panel(picture, sensitivity(torch.rand(8, 8)), projection=picture, with_map=False)

    assert [name[:3] for name in texts if name.startswith("(")] == ["(a)", "(d)", "(e)"]
    assert panel.width < occlusion_panel(picture, sensitivity(torch.rand(8, 8))).width


def test_of_a_probability_that_hardly_changes_the_colours_have_their_own_scale_and_say_so(texts):
    sure = replace(sensitivity([[0.99, 0.95], [0.97, 0.99]]), probability=0.9995)

    panel = np.asarray(occlusion_panel(torch.zeros(3, 4, 4, dtype=torch.uint8), sure)).astype(int)

    assert {"0.9500", "0.9995"} <= texts.keys() and any("(d) is on its own scale" in words for words in texts)
    x, y = corner(texts, "(d) probability of class 0")
    low = panel[y + 56, x + 168]  # the middle of the upper right position
    assert abs(low - OPACITY * RAMP[0]).max() < 2
    assert abs(panel[y + 56, x + 56] - low).max() > 40  # a difference of 0.04 is seen


@pytest.mark.parametrize("values", [[0.5, 0.7], [0.9999, 0.9999]], ids=["large", "none at all"])
def test_other_changes_are_shown_from_0_to_1(texts, values):
    occlusion_panel(torch.zeros(3, 2, 4, dtype=torch.uint8), replace(sensitivity([values]), probability=values[1]))

    assert not any("own scale" in words for words in texts) and {"0", "1"} <= texts.keys()
