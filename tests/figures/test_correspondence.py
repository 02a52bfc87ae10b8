"""The sheet of correspondence."""

import pytest
import torch

from zfscope.data.sources.phantom_objects import CLASSES
from zfscope.figures import correspondence_sheet


def test_any_part_name_can_be_drawn():
    pictures = torch.zeros(2, 3, 3, 9, 9, dtype=torch.uint8)
    deltas = {"part": torch.rand(1), **dict.fromkeys(("random", "on_object", "same_place"), torch.rand(1, 5))}

    plain, odd = (correspondence_sheet(pictures, [name], {"$conv_{5$": deltas}) for name in ("nose", "$\\frac$" * 40))

    assert plain.size == odd.size


def test_the_sheet_shows_every_picture_and_one_panel_for_each_layer():
    count = len(CLASSES)  # any number of colours that are told apart
    pictures = torch.zeros(2, count // 2, 3, 70, 70, dtype=torch.uint8)
    colours = [(20 * number, 255 - 20 * number, 77) for number in range(count)]
    for tile, colour in zip(pictures.flatten(0, 1), colours, strict=True):
        tile[:] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    generator = torch.Generator().manual_seed(0)
    shapes = {"part": (3,), "random": (3, 40), "on_object": (3, 40), "same_place": (3, 40)}
    deltas = {kind: torch.rand(shape, generator=generator) for kind, shape in shapes.items()}

    one = correspondence_sheet(pictures, ["a", "b", "c"], {"conv5": deltas})
    two = correspondence_sheet(pictures, ["a", "b", "c"], {"conv5": deltas, "fc7": deltas})

    found = dict((colour, number) for number, colour in two.getcolors(2**24))
    assert [found[colour] for colour in colours] == [140 * 140] * count
    assert two.size == one.size and two.tobytes() != one.tobytes()
    with pytest.raises(ValueError, match=r"pictures \(R, 4, 3, h, w\) for 2 parts"):
        correspondence_sheet(pictures, ["a", "b"], {"conv5": deltas})
