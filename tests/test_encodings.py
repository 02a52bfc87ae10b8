"""Files are UTF-8 and names are whole whatever the locale; what a terminal cannot show is printed by its number."""

import ast
import io
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, on_folders, type_command, write_folders
from zfscope import load_network
from zfscope.data.sources.folders import read_class_folders

SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "callbacks").glob("*.py"), ROOT / "train.py", ROOT / "analyze.py"]
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
CLASSES = ("γάτα", "owl", "犬")
OF_TEXT = {"open", "fdopen", "read_text", "write_text", "TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile"}


def text_without_encoding(source):
    """Lines of calls that read or write text in the encoding of the locale."""
    lines = []
    for call in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        values = [value.value for value in [*call.args, *keywords.values()] if isinstance(value, ast.Constant)]
        if "encoding" in keywords or name not in OF_TEXT | {"run", "check_output", "Popen"}:
            continue
        if name in ("read_text", "write_text"):
            in_locale = len(call.args) <= (name == "write_text")
        elif name == "open" and isinstance(call.func, ast.Attribute):  # of a Path; Image and ZipFile have one too
            mode = call.args[0] if call.args else keywords.get("mode", ast.Constant("r"))
            in_locale = getattr(mode, "value", None) in ("r", "w", "a", "x", "rt", "wt", "at", "xt")
        elif name in OF_TEXT:
            binary_by_default = name.endswith("TemporaryFile")
            modes = [v for v in values if isinstance(v, str) and v and set(v) <= set("rwaxbt+")]
            in_locale = not binary_by_default if not modes else "b" not in modes[0]
        else:
            in_locale = any(getattr(keywords.get(key), "value", False) for key in ("text", "universal_newlines"))
        if in_locale:
            lines.append(call.lineno)
    return lines


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('open("a")', True),
        ('open(p, "w")', True),
        ('open(p, mode="rt")', True),
        ('open(p, "rb")', False),
        ('open(p, encoding="utf-8", newline="")', False),
        ("path.open()", True),
        ('path.open("w")', True),
        ('path.open("wb")', False),
        ('path.open(mode="rb")', False),
        ('archive.open(name, "w")', False),
        ("path.read_text()", True),
        ('path.read_text("utf-8")', False),
        ("path.write_text(text)", True),
        ('path.write_text(text, encoding="utf-8")', False),
        ("Image.open(path, formats=FORMATS)", False),
        ('tempfile.NamedTemporaryFile("w")', True),
        ("tempfile.NamedTemporaryFile()", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command)", False),
    ],
)
def test_the_search_knows_text_in_the_encoding_of_the_locale(source, found):
    assert text_without_encoding(source) == ([1] if found else [])


def test_no_text_is_read_or_written_in_the_encoding_of_the_locale():
    found = [f"{path}:{line}" for path in SOURCES for line in text_without_encoding(path.read_text(encoding="utf-8"))]

    assert len(SOURCES) > 80
    assert found == []


OPEN_AND_WRITE = """
import sys
from zfscope.console import console, print_anywhere
from zfscope.data.sources.folders import read_class_folders
from zfscope.runs import write_results

folder = sys.argv[1]
images = read_class_folders(folder + "/images/train")
sizes = [images.read(index).size for index in range(len(images))]
about = {"classes": images.classes, "keys": [images.key(0), images.key(5)], "fingerprint": images.fingerprint}
write_results(folder, {}, about | {"read": len(sizes), "encoding": sys.getfilesystemencoding()})
print_anywhere()
print(*images.classes)
console.print(images.name(5), "\\u2026", soft_wrap=True)
print(images.name(5), file=sys.stderr)
"""


def test_classes_of_any_script_are_read_written_and_printed_in_the_c_locale(tmp_path):
    images = read_class_folders(write_folders(tmp_path / "images", {"train": 2}, CLASSES) / "train")

    command = [sys.executable, "-c", OPEN_AND_WRITE, tmp_path]
    told = subprocess.run(command, env=os.environ | C_LOCALE, capture_output=True, check=True, timeout=60)

    results = json.loads((tmp_path / "results.json").read_bytes())["conditions"]
    assert results.pop("encoding") == "ascii"  # or this would test nothing
    assert results == {
        "classes": sorted(CLASSES),
        "keys": ["owl/1.jpg", "犬/5.jpg"],
        "fingerprint": images.fingerprint,
        "read": 6,
    }
    first, second = told.stdout.splitlines()
    assert first == rb"owl \u03b3\u03ac\u03c4\u03b1 \u72ac"
    assert second.endswith(rb"images/train/\u72ac/5.jpg \u2026")
    assert told.stderr.endswith(rb"images/train/\u72ac/5.jpg" + b"\n")


def test_a_command_prints_what_the_terminal_cannot_show_by_its_number(tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.chdir(tmp_path)

    code = type_command(monkeypatch, "train", "resume='γάτα'")

    terminal.flush()
    assert code == 2
    assert terminal.buffer.getvalue().startswith(rb"train.py: resume=\u03b3\u03ac\u03c4\u03b1: no run there")


@pytest.mark.slow  # half a minute: a whole training in a process of its own
def test_classes_of_any_script_train_in_the_c_locale(tmp_path):
    images = write_folders(tmp_path / "images", {"train": 8, "val": 4}, CLASSES)
    command = [sys.executable, ROOT / "train.py", *on_folders(images), f"hydra.run.dir={tmp_path / 'run'}"]

    told = subprocess.run(command, env=os.environ | C_LOCALE, capture_output=True, timeout=120)

    assert told.returncode == 0, told.stderr
    assert load_network(tmp_path / "run").classes == tuple(sorted(CLASSES))
