"""Imports point down only: entry points -> callbacks, analyses -> the science -> torch."""

import ast

import pytest

from tests.conftest import ROOT

SOURCES = sorted([*ROOT.glob("*.py"), *ROOT.glob("callbacks/*.py"), *ROOT.glob("src/**/*.py")])


def imported(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def room(path):
    return path.relative_to(ROOT).as_posix()


def using(package):
    names = {room(path): imported(path) for path in SOURCES}
    return {name for name, modules in names.items() if any(f"{each}.".startswith(f"{package}.") for each in modules)}


def test_only_the_entry_points_import_hydra():
    assert using("hydra") == {"train.py", "analyze.py"}


def test_only_the_callbacks_import_wandb():
    assert using("wandb")
    assert all(name.startswith("callbacks/") for name in using("wandb"))


def test_lightning_is_known_to_training_alone():
    allowed = ("callbacks/", "src/zfscope/data/", "src/zfscope/classifier.py", "train.py", "analyze.py")

    assert all(name.startswith(allowed) for name in using("lightning"))


@pytest.mark.parametrize("upper", ["zfscope.callbacks", "zfscope.analyses", "train", "analyze"])
def test_the_science_knows_nothing_of_what_stands_above_it(upper):
    below = {name for name in using(upper) if name.startswith("src/zfscope/")}

    assert below <= {name for name in below if upper == "zfscope.analyses" and "/analyses/" in name}


def test_there_is_no_room_without_a_noun():
    assert not {path.stem for path in SOURCES} & {"util", "utils", "helper", "helpers", "misc", "common"}


def test_requirements_pin_what_the_package_needs():
    import re
    import tomllib

    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.M))
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.M))

    for need in needs:
        assert re.match(r"[\w-]+", need)[0] in pinned, need
    for name, version in pinned.items():
        assert locked[name] == version
