"""Labels in any script: a glyph for each character, letters joined and in order, Latin ones as Pillow draws them."""

import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from zfscope.figures import Pair, embedding_figure, fonts, overlap_sheet
from zfscope.figures.canvas import clipped, drawn, entitle, shortened
from zfscope.figures.fonts import LabelFont, drawable, fonts_of

NAMES = {
    "Greek": "γάτα",
    "Cyrillic": "кошка",
    "Chinese": "猫",
    "Japanese": "ねこ",
    "Korean": "고양이",
    "Arabic": "قطة سوداء",
    "Persian": "می\u200cخواهم",
    "Hebrew": "חתול",
    "Devanagari": "बिल्ली",
    "Tamil": "பூனை",
    "Thai": "แมว",
    "Amharic": "ድመት",
    "accents": "Äé ñ",
    "emoji": "🐱",
    "joined emoji": "👩\u200d🔬",
    "heart": "❤\ufe0f",
}
UNKNOWN = "\U00013000"  # an Egyptian hieroglyph, of which no font here is


@pytest.fixture(autouse=True)
def warned_anew(monkeypatch):
    monkeypatch.setattr(fonts, "_warned", [])


@pytest.fixture
def bare(monkeypatch):
    """A machine that has matplotlib's own fonts alone; what is given to it stands for fonts of the system."""
    caches = fonts._extra_fonts, fonts._system_fonts, fonts._font_of
    system = []
    monkeypatch.setattr(fonts, "PACKAGES", ("no_such_package",))
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: list(map(str, system)))
    for cached in caches:
        cached.cache_clear()
    yield system
    for cached in caches:
        cached.cache_clear()


def written(text, font, anchor="ls", size=(400, 60), place=(20, 40)):
    """Ink of a text, ``(60, 400)``, with its baseline between rows 39 and 40."""
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).text(place, text, "black", font, anchor=anchor)
    return 255 - np.asarray(picture.convert("L")).astype(int)


def plotted(text, **style):
    """Ink of a text that matplotlib draws, cut to what is drawn."""
    figure = Figure(figsize=(6, 2), dpi=100)
    figure.text(0.1, 0.5, text, fontsize=24, parse_math=False, **style)
    ink = 255 - np.asarray(drawn(figure).convert("L")).astype(int)
    return ink[np.ix_(ink.any(1), ink.any(0))]


def cut(ink):
    return ink[np.ix_(ink.any(1), ink.any(0))]


WAYS = pytest.mark.parametrize("draw", [lambda text: cut(written(text, LabelFont(24))), plotted], ids=["pil", "plot"])


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
@WAYS
def test_every_script_is_drawn_without_a_warning_or_a_sign_for_what_is_missing(draw, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's layout warns of each glyph that is not there

        ink = draw(name)

    assert fonts.MISSING not in drawable(name)
    single = draw(fonts.MISSING)
    assert ink.shape != single.shape or (ink != single).any()


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_the_fonts_of_a_name_have_each_of_its_characters(name):
    tables = [TTFont(font.path, fontNumber=font.face_index, lazy=True).getBestCmap() for font in fonts_of(name)]

    assert [c for c in name if not any(ord(c) in table for table in tables)] in ([], ["\u200c"])


def test_letters_and_digits_are_of_noto_sans_and_of_other_fonts_only_what_it_lacks():
    assert [Path(font.path).name for font in fonts_of("γ 5")] == ["NotoSans[wght].ttf"]
    assert [Path(font.path).name[:7] for font in fonts_of("猫 5 🐱")] == ["NotoSan", "NotoSan", "NotoEmo"]
    assert fonts_of("\u200e\u2068猫\u2069\n") == fonts_of("猫")  # what is invisible needs none
    assert drawable("猫\u206a\ufe0e") == "猫\u206a\ufe0e"


def test_han_characters_are_those_of_china():
    (font,) = fonts_of("猫")

    assert TTFont(font.path, fontNumber=font.face_index, lazy=True)["name"].getDebugName(1) == "Noto Sans CJK SC"


@WAYS
def test_arabic_letters_are_joined_and_stand_from_right_to_left(draw):
    jim_alif = draw("جا")  # alif is a high stroke, jim has a bow below the line

    joined, apart = draw("ببب"), draw("ب\u200cب\u200cب")
    assert joined.shape[1] < 0.8 * apart.shape[1]
    columns = np.arange(jim_alif.shape[1])
    top, bottom = jim_alif[: len(jim_alif) // 4].sum(0), jim_alif[-len(jim_alif) // 4 :].sum(0)
    assert (columns * top).sum() / top.sum() < (columns * bottom).sum() / bottom.sum() - 2


@WAYS
def test_devanagari_is_shaped(draw):
    assert draw("क्ष").shape[1] < 0.9 * draw("क्\u200cष").shape[1]  # a conjunct is one letter
    # The sign of i stands left of its consonant, though it is written after it; that of long i stands right of it.
    high = [np.flatnonzero((ink > 128).mean(0) > 0.6) / ink.shape[1] for ink in (draw("कि"), draw("की"))]
    assert high[0][0] < high[1][0] - 0.1 and high[0][-1] < high[1][-1] - 0.1


@pytest.mark.parametrize("name", ["قطة", "חתול", "قطة سوداء"])
@WAYS
def test_a_right_to_left_name_stays_left_of_the_numbers_after_it(draw, name):
    alone, followed = draw(name), draw(f"{name}  53 %")

    rows = slice(0, min(len(alone), len(followed)))
    width = alone.shape[1] - 2
    beginning = followed[:, :width]
    beginning = beginning[np.flatnonzero(beginning.any(1))[0] :]  # the number may be higher
    assert followed.shape[1] > 1.3 * alone.shape[1]
    assert abs(alone[rows, :width] - beginning[: len(alone)]).mean() < 1


@pytest.mark.parametrize("anchor", ["la", "lm", "ls", "ma", "mm", "ms", "ra", "rm", "rs"])
def test_other_scripts_stand_where_latin_ones_do_at_any_anchor(anchor):
    font = LabelFont(40)  # large, so that the space before a letter is seen

    latin, cyrillic = (written(text, font, anchor, (600, 140), (300, 70)) > 128 for text in ("HEH", "НЕН"))

    rows, columns = ([np.flatnonzero(ink.any(axis)) for ink in (latin, cyrillic)] for axis in (1, 0))
    assert rows[0][-1] == rows[1][-1] and abs(rows[0][0] - rows[1][0]) <= 1
    places = [{"l": found[0], "m": (found[0] + found[-1]) / 2, "r": found[-1]}[anchor[0]] for found in columns]
    assert abs(places[0] - places[1]) <= 1


@pytest.mark.parametrize("size", [11, 12, 13, 14.5, 16, 35])
def test_latin_labels_have_the_pixels_of_before(size):
    font, before = LabelFont(size), ImageFont.load_default(size)

    for text in ("map 12", "max 3.4e-05", "(d) probability of Egyptian cat", "…/images/a_b-c.jpg", ""):
        assert font.getlength(text) == before.getlength(text)
        for anchor in ("la", "ls", "mm", "ms", "ma", "ra", "rs", "rm"):
            place = (200.4, 30.7)
            now = written(text, font, anchor, place=place)
            assert np.array_equal(now, written(text, before, anchor, place=place))


def test_latin_plots_have_the_pixels_of_before():
    def figure():
        plot = Figure(figsize=(6, 4), layout="constrained")
        axes = plot.subplots()
        axes.plot([0.001, -2, 30], label="cat, 3·10⁻² °")
        axes.set_xticks([0, 1, 2], ["cat", "dog", "Äpfel"])
        axes.set_title("a title")
        plot.legend()
        return plot

    canvas = FigureCanvasAgg(plain := figure())
    canvas.draw()

    assert np.array_equal(np.asarray(drawn(figure())), np.asarray(canvas.buffer_rgba())[..., :3])
    assert plain.axes[0].title.get_fontfamily() == matplotlib.rcParams["font.family"]


def test_a_plot_changes_no_setting_of_matplotlib():
    before = dict(matplotlib.rcParams)

    plotted("猫")

    assert dict(matplotlib.rcParams) == before


def test_a_tick_is_drawn_as_a_title_is():
    figure = Figure()
    axes = figure.subplots()
    axes.set_yticks([0, 1, 2], ["猫", "قطة", UNKNOWN], rotation=90)

    with pytest.warns(UserWarning, match="no font") as told:
        drawn(figure)

    assert len(told) == 1
    assert [label.get_text() for label in axes.get_yticklabels()] == ["猫", drawable("قطة"), fonts.MISSING]
    assert {label.get_rotation() for label in axes.get_yticklabels()} == {90}


def test_without_fonts_one_warning_for_all_labels_names_the_extra_and_a_character(bare):
    def everything():
        picture = Image.new("RGB", (60, 60))
        pair = Pair((picture, picture), ("猫/1.jpg", "бил/2.jpg"), 0.9, 3.0)
        overlap_sheet([pair, pair], [pair], "बिल्ली", "猫")
        embedding_figure(np.eye(3)[:, :2], np.arange(3), ["猫", "बिल्ली", "γάτα"], title="猫 🫠")

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        everything()
        everything()

    (warning,) = [each for each in told if each.category is UserWarning]
    assert "pip install -e '.[fonts]'" in str(warning.message) and "U+732B" in str(warning.message)
    assert "'猫'" in str(warning.message)


def test_with_the_extra_the_warning_of_an_unknown_script_does_not_name_it():
    with pytest.warns(UserWarning, match=r"EGYPTIAN HIEROGLYPH A001.*install a font that has it"):
        ink = written(UNKNOWN, LabelFont(16))

    assert np.array_equal(ink, written(fonts.MISSING, LabelFont(16)))


@WAYS
def test_without_the_extra_matplotlibs_font_has_greek_cyrillic_and_joined_arabic(bare, draw):
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        for name in ("γάτα", "кошка", "Äé"):
            assert draw(name).any()
        assert draw("ببب").shape[1] < 0.8 * draw("ب\u200cب\u200cب").shape[1]


@WAYS
def test_a_regular_noto_font_of_the_system_is_used_and_broken_files_are_passed_over(bare, draw, tmp_path):
    package = Path(find_spec("manimgx_fonts").origin).parent
    names = "NotoSansAdlam.ttf", "NotoSansCJK.ttc", "NotoSansDevanagari.ttf", "NotoSans-Bold.ttf", "Calligraphy.ttf"
    bare += [tmp_path / name for name in names]
    for path in bare:
        path.write_bytes(b"no font")
    for path in bare[2:]:
        shutil.copyfile(package / "NotoSansDevanagari[wght].ttf", path)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw("बिल्ली").any()

    assert [font.path for font in fonts_of("बिल्ली")] == [str(bare[2])]


def test_a_wide_character_counts_twice_where_names_are_cut():
    assert clipped("猫" * 30, 9) == "猫" * 4 + "…" and clipped("猫" * 4, 8) == "猫" * 4
    assert clipped("猫" * 30 + "a", 9, end=True) == "…" + "猫" * 3 + "a"
    font = LabelFont(12)
    short = shortened("猫" * 99, font, 80)
    assert 60 < font.getlength(short) <= 80 and short.endswith("…")


@pytest.mark.parametrize("write", [lambda name: clipped(name, 30), lambda name: shortened(name, LabelFont(12), 300)])
def test_joiners_of_a_name_are_kept_and_line_breaks_are_escaped(write):
    assert write("می\u200cخواهم 👩\u200d🔬\n") == "می\u200cخواهم 👩\u200d🔬\\n"


@pytest.mark.parametrize("title", ["猫" * 150, "a title of " + "猫と犬" * 50, "γάτα " * 40])
def test_a_title_in_any_script_keeps_within_its_figure(title):
    figure = Figure(figsize=(8, 4), layout="constrained")

    entitle(figure, title)

    drawn(figure)
    box = figure._suptitle.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    assert figure.get_suptitle().replace("\n", "").replace(" ", "") == title.replace(" ", "")
