"""Labels in any script: which fonts have their characters, and how Pillow and matplotlib draw them.

Pillow's own font has ASCII and little else; matplotlib's has Greek, Cyrillic and Arabic too. What they lack comes from
the Noto fonts of the extra ``fonts``, else from those of the system. Text that Pillow's font has is drawn by it. All
other text is laid out by matplotlib (libraqm): letters are joined, right-to-left scripts ordered, fonts combined.
"""

import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from math import floor
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontPath, findfont, findSystemFonts, fontManager, get_font
from matplotlib.ft2font import FT2Font, LoadFlags
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator
from PIL import Image, ImageFont

from zfscope.schema import printable

PACKAGES = ("manimgx_fonts", "noto_cjk_sans_otc")  # of the extra
SYSTEM = re.compile(r"Noto(Sans|Emoji|Music)|DroidSansFallback|unifont|Arial Unicode", re.I)
NOT_REGULAR = re.compile(r"Italic|Bold|Light|Thin|Black|Medium|Condensed|Display|Mono", re.I)
MISSING = "\ufffd"  # drawn for a character that no font has
_RIGHT_TO_LEFT = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff"
_RUN = re.compile(f"[{_RIGHT_TO_LEFT}]+(?:[ _\u200c-]+[{_RIGHT_TO_LEFT}]+)*")
_warned: list[str] = []


class LabelFont(ImageFont.FreeTypeFont):
    """Pillow's own font, but characters that it lacks are drawn and measured as well, on the same baseline."""

    def __init__(self, size: float):
        default = ImageFont.load_default(size)
        super().__init__(BytesIO(default.font_bytes), size, layout_engine=default.layout_engine)

    def getlength(self, text: str, *args: Any, **kwargs: Any) -> float:
        """Width of a text in pixels."""
        if _pillow_has(text):
            return super().getlength(text, *args, **kwargs)
        return self._laid_out(text).get_width_height()[0] / 64

    def getmask2(
        self, text, mode="", direction=None, features=None, language=None, stroke_width=0, anchor=None, ink=0,
        start=None, *args, **kwargs,
    ):  # fmt: skip
        """What ``ImageDraw.text`` asks for: the mask of a text, and where its corner lies beside the place."""
        if _pillow_has(text):
            options = direction, features, language, stroke_width, anchor, ink, start
            return super().getmask2(text, mode, *options, *args, **kwargs)
        across, upright = anchor or "la"
        x, y = start or (0, 0)
        font = self._laid_out(text)
        font.draw_glyphs_to_bitmap()
        mask = Image.fromarray(font.get_image())
        ascent, descent = self.getmetrics()
        before = {"l": 0, "m": 0.5, "r": 1}[across] * font.get_width_height()[0] - font.get_bitmap_offset()[0]
        left = x - before / 64
        baseline = y + {"a": ascent, "m": (ascent - descent) / 2, "s": 0, "d": -descent}[upright]
        above = mask.height - 1 - floor(font.get_descent() / 64)  # rows; one more is empty below
        return mask.im, (round(left), floor(baseline + 0.5) - above)

    def _laid_out(self, text: str) -> FT2Font:
        text = drawable(text)
        font = get_font(fonts_of(text))
        font.clear()
        font.set_size(self.size, 72)
        font.set_text(text, flags=LoadFlags.TARGET_LIGHT)
        return font


def add_fallback_fonts(figure: Figure) -> None:
    """Give the texts of a matplotlib figure the fonts that their characters need, beside their own."""
    for axis in [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]:
        if isinstance(axis.get_major_locator(), FixedLocator):  # the texts of other ticks are numbers
            names = [label.get_text() for label in axis.get_ticklabels()]
            if (drawn := [drawable(name, _characters(_own_font(axis.label))) for name in names]) != names:
                axis.set_ticklabels(drawn)
    for text in figure.findobj(Text):
        if not text.get_text().isascii():
            own = _characters(_own_font(text))
            text.set_text(drawable(text.get_text(), own))
            if lacking := [c for c in text.get_text() if ord(c) not in own]:
                text.set_fontfamily([*text.get_fontfamily(), *map(_family, fonts_of(lacking))])


def drawable(text: str, own: frozenset[int] = frozenset()) -> str:
    """The text with a sign for each character that neither ``own`` nor a fallback font has; the first one is told.

    A name in a right-to-left script is isolated from what stands beside it, so that "name  53 %" keeps its order.
    """
    lacking = {c for c in text if ord(c) not in own and not _invisible(c) and _font_of(c) is None}
    if lacking:
        _warn(min(lacking))
        text = "".join(MISSING if c in lacking else c for c in text)
    return "\u200e" + _RUN.sub("\u2068\\g<0>\u2069", text) if _RUN.search(text) else text


def one_line(text: str) -> str:
    """A name, escaped as in `printable`; but joiners, which Persian, scripts of India and emoji need, stay."""
    return "".join(c if c in "\u200c\u200d" else printable(c) for c in text)


def columns(text: str) -> int:
    """How wide a text is, in Latin letters: Chinese, Japanese and Korean ones and emoji are twice as wide."""
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def fonts_of(characters: Iterable[str]) -> list[FontPath]:
    """The fallback fonts that together have these characters, in the order of preference."""
    ranked = {_font_of(c) for c in set(characters) if not _invisible(c)} - {None}
    return [font for _, font in sorted(ranked)] or [_own_font()]


@cache
def _font_of(character: str) -> tuple[int, FontPath] | None:
    """The first fallback font that has a character, and its rank."""
    return next((at for at in enumerate(_fallback_fonts()) if ord(character) in _characters(at[1])), None)


def _fallback_fonts() -> Iterator[FontPath]:
    """The fonts of the extra, then matplotlib's own, then those of the system, which are looked for only if needed."""
    yield from _extra_fonts()
    yield FontPath(matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf", 0)
    yield from _system_fonts()


@cache
def _extra_fonts() -> list[FontPath]:
    found = [find_spec(name) for name in PACKAGES]
    folders = [Path(folder) for spec in found if spec for folder in spec.submodule_search_locations]
    return _regular(str(path) for folder in folders for path in folder.iterdir())


@cache
def _system_fonts() -> list[FontPath]:
    return _regular(path for path in findSystemFonts() if SYSTEM.match(Path(path).name))


def _regular(paths: Iterable[str]) -> list[FontPath]:
    """Regular fonts among files, Noto Sans first; last those that have letters and digits of other scripts too."""

    def rank(path: str) -> tuple[int, str]:
        name = Path(path).name
        late = [part in name for part in ("Symbols", "CJK", "Emoji", "unifont")]
        return (1 + late.index(True) if any(late) else 0), name.replace("[", "-")

    files = {path for path in paths if path.lower().endswith((".ttf", ".otf", ".ttc"))}
    files = [path for path in files if not NOT_REGULAR.search(Path(path).name)]
    return [FontPath(path, _simplified_chinese(path)) for path in sorted(files, key=rank)]


def _simplified_chinese(path: str) -> int:
    """The face of a collection whose Han characters are as in China, where most names in Han characters are from."""
    if not path.lower().endswith(".ttc"):
        return 0
    try:
        names = [FT2Font(path, face_index=face).family_name for face in range(FT2Font(path).num_faces)]
    except RuntimeError:  # FreeType cannot read it, as `_characters` will find
        return 0
    return next((face for face, name in enumerate(names) if name.endswith("CJK SC")), 0)


@cache
def _characters(font: FontPath) -> frozenset[int]:
    try:
        return frozenset(FT2Font(font.path, face_index=font.face_index).get_charmap())
    except RuntimeError:  # a system's font that FreeType cannot read
        return frozenset()


@cache
def _pillows() -> frozenset[int]:
    return frozenset(FT2Font(BytesIO(ImageFont.load_default(12).font_bytes)).get_charmap())


def _pillow_has(text: str) -> bool:
    return text.isascii() or all(ord(c) in _pillows() for c in text)


def _own_font(text: Text | None = None) -> FontPath:
    """The font that matplotlib takes first for a text; without one, its default."""
    return findfont(text.get_fontproperties() if text else "DejaVu Sans")


@cache
def _family(font: FontPath) -> str:
    """The name by which matplotlib finds a font, which is made known to it."""
    fontManager.addfont(font.path)
    return FT2Font(font.path, face_index=font.face_index).family_name


def _invisible(character: str) -> bool:
    """Joiners, marks of direction, selectors of a variant and line breaks need no glyph."""
    return unicodedata.category(character) in ("Cf", "Cc") or "\ufe00" <= character <= "\ufe0f"


def _warn(character: str) -> None:
    """Tell once in a process that a name cannot be drawn."""
    if _warned:
        return
    _warned.append(character)
    way = (
        "install a font that has it, such as those of Debian's fonts-noto"
        if all(map(find_spec, PACKAGES))
        else "run: pip install -e '.[fonts]'"
    )
    named = f"U+{ord(character):04X} {unicodedata.name(character, '')}".strip()
    warnings.warn(f"no font has '{character}' ({named}); it and others are drawn as {MISSING}; {way}", stacklevel=2)
