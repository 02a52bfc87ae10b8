"""Names as they are written into pictures."""

import os

import pytest
from matplotlib.figure import Figure
from PIL import ImageFont

from zfscope.figures.canvas import clipped, drawn, shortened


@pytest.mark.parametrize("write", [lambda name, font: clipped(name, 30), lambda name, font: shortened(name, font, 300)])
def test_a_name_with_a_line_break_and_bytes_that_are_no_text_is_written_escaped(write):
    font = ImageFont.load_default(12)

    text = write(os.fsdecode(b"x\n\xff"), font)

    assert text == r"x\n\udcff"
    assert font.getlength(text) > 0
    figure = Figure()
    figure.text(0, 0, text)
    assert drawn(figure).size[0] > 0  # matplotlib refuses the bytes


def test_a_name_that_is_too_long_keeps_its_beginning_or_its_end():
    font = ImageFont.load_default(12)

    assert (clipped("abcdefgh", 4), clipped("abcdefgh", 4, end=True)) == ("abc…", "…fgh")
    assert clipped("abcd", 4) == shortened("abcd", font, 300) == "abcd"
    assert shortened("a" * 99, font, 80).endswith("a…") and shortened("a" * 99, font, 80, end=True).startswith("…a")
