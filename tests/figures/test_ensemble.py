"""The figure of ensembles: what stands where."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from zfscope.figures.ensemble import _draw


@pytest.mark.parametrize("count", [2, 6])
def test_names_of_members_stand_left_of_their_dots_inside_the_panel(count):
    axes, subsets = Figure().subplots(), [(member,) for member in range(count)] + [tuple(range(count))]

    _draw(axes, subsets, np.linspace(20, 30, count + 1), [f"net {number}" for number in range(count)], np.min)

    assert [text.get_text() for text in axes.texts] == [f"net {number}" for number in range(count)]
    left, _ = axes.get_xlim()
    for text in axes.texts:
        assert text.get_ha() == "right" and left < text.get_position()[0] < 1
