"""The files of an atlas that are text: the page, its style and scripts, and data as scripts that call a function.

A page that is opened from disk may load classic scripts and pictures, but nothing by ``fetch``. Names come from data
sets and modules: they are escaped in the page, and are never part of a file's name unless letters of ASCII.
"""

import json
import re
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from zfscope.files import write_text

POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'"
ICON = "icon.svg"  # a browser that is told of none asks the server's root for one
STYLES, SCRIPTS = ("atlas.css",), ("parts.js", "maps.js", "images.js", "search.js", "atlas.js")
RESERVED = ("image", "images", "class", "classes", "index")  # what the page's own addresses begin with


def write_page(folder: Path, content: dict[str, Any]) -> None:
    """Write ``index.html`` with its style and scripts; ``content`` is what its template names."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("zfscope.atlas", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template("index.html.j2").render(
        policy=POLICY, icon=ICON, styles=STYLES, scripts=SCRIPTS, **content
    )
    write_text(folder / "index.html", page)
    for name in (ICON, *STYLES, *SCRIPTS):
        write_text(folder / name, (files("zfscope.atlas") / "templates" / name).read_text(encoding="utf-8"))


def is_atlas(folder: Path) -> bool:
    """Whether a folder holds an atlas and nothing else, so that it may be replaced by another one."""
    own = {"index.html", "data", "sprites", ICON, *STYLES, *SCRIPTS}
    return (folder / "data" / "index.js").is_file() and {entry.name for entry in folder.iterdir()} <= own


def write_data(folder: Path, name: str, content: Any) -> None:
    """Write ``data/NAME.js``: a call that hands ``content`` to the page."""
    path = folder / "data" / f"{name}.js"
    path.parent.mkdir(exist_ok=True)
    write_text(path, f"zfscopeAtlas.take({as_script(name)}, {as_script(content)});\n")


def as_script(content: Any) -> str:
    """JSON that stays data wherever it stands in a page: only ASCII, and no ``<``."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def address_of(name: str, taken: Collection[str]) -> str:
    """What a layer is called in addresses and file names: its name where that is plain, else what is plain of it.

    No two are alike where case does not count, as on some disks.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:60].strip("-.") or "layer"
    lower = {*map(str.lower, (*taken, *RESERVED))}
    if plain.lower() not in lower:
        return plain
    number = 2
    while f"{plain}-{number}".lower() in lower:
        number += 1
    return f"{plain}-{number}"


def rounded(value: float, digits: int = 4) -> float:
    """A number with so many significant digits."""
    return float(f"{value:.{digits}g}")
