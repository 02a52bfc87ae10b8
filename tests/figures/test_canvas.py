"""Names as they are written into pictures."""

import os

import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageFont

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


def test_a_plot_is_saved_as_pixels_and_as_lines_and_letters(tmp_path):
    figure = Figure()
    figure.subplots().plot([1, 2], label="猫")
    plot = drawn(figure)

    plot.save(tmp_path / "plot.png")
    plot.save(tmp_path / "plot.pdf")
    with open(tmp_path / "again.pdf", "wb") as file:
        plot.save(file, "pdf")

    assert Image.open(tmp_path / "plot.png").tobytes() == plot.tobytes()
    content = (tmp_path / "plot.pdf").read_bytes()
    assert content.startswith(b"%PDF") and b"/Subtype /Image" not in content and b"/Type0" in content
    assert content == (tmp_path / "again.pdf").read_bytes()


def test_a_part_of_a_plot_is_a_plain_picture():
    figure = Figure()
    figure.subplots()

    assert not hasattr(drawn(figure).crop((0, 0, 9, 9)), "figure")
