"""The rooms of the house: who may import whom, and what an import costs."""

import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
import traceback

import pytest

import zfscope.activations
import zfscope.atlas
import zfscope.callbacks
import zfscope.deconvnet
import zfscope.occlusion
from tests.conftest import ROOT
from tests.rooms import DOORS, FLOORS, arrows, imported_modules, sources
from tests.scripts.draw_rooms import PICTURE, draw

HEAVY = ("torch", "lightning", "timm", "torchvision", "wandb", "matplotlib")
SPECS = [".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in ROOT.glob("src/**/spec.py")]
LIGHT = ["zfscope", "zfscope.schema", "zfscope.console", "zfscope.runs", *sorted(SPECS), "zfscope.commands"]
# Names that others rely on, with what must be there after them.
NAMES = {
    "zfscope": ("ConvNet", "build_network", "load_network", "receptive_field"),
    "zfscope.atlas": ("write",),
    "zfscope.deconvnet": ("project",),
    "zfscope.activations": ("TopActivations",),
    "zfscope.occlusion": ("occlude",),
    "zfscope.callbacks": ("Projections", "FilterImages", "OcclusionMaps", "FeatureEvolution"),
}


def rooms_using(package):
    """The rooms that import a package, or something in it."""
    return {
        room
        for path, room in sources().items()
        if any(f"{module}.".startswith(f"{package}.") for module in imported_modules(path))
    }


def python(code):
    """Run code in a fresh interpreter; what it prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_every_room_stands_on_a_floor():
    assert set(arrows()) == {room for floor in FLOORS for room in floor}
    assert len({room for path, room in sources().items() if "src" in path.parts} - {"__init__", *DOORS}) <= 25


def test_arrows_point_down_so_there_is_no_circle():
    level = {room: number for number, floor in enumerate(FLOORS) for room in floor}

    upwards = [(room, other) for room, others in arrows().items() for other in others if level[other] <= level[room]]

    assert not upwards


def test_an_import_within_a_function_or_for_type_checkers_is_an_arrow(tmp_path):
    (tmp_path / "src/zfscope").mkdir(parents=True)
    (tmp_path / "callbacks").mkdir()
    for name in ("train.py", "analyze.py", "src/zfscope/images.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "src/zfscope/runs.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from zfscope import images\n"
    )
    (tmp_path / "src/zfscope/schema.py").write_text("def f():\n    import zfscope.runs\n")

    assert arrows(tmp_path)["runs"] == {"images"}
    assert arrows(tmp_path)["schema"] == {"runs"}


def test_only_the_command_line_knows_hydra():
    assert rooms_using("hydra") == {"commands"}


def test_only_the_callbacks_know_wandb():
    assert rooms_using("wandb") == {"callbacks"}


def test_lightning_is_known_to_training_data_and_callbacks_alone():
    assert rooms_using("lightning") <= {"training", "data", "callbacks", "train.py", "analyze.py"}


def test_no_analysis_imports_its_sibling():
    folder = ROOT / "src/zfscope/analyses"
    siblings = {path.stem for path in folder.glob("*.py") if "\ndef analyse(" in path.read_text(encoding="utf-8")}
    assert {"ensemble", "occlusion", "ledger", "transfer"} <= siblings

    for name in siblings:
        modules = imported_modules(folder / f"{name}.py")
        assert not [m for m in modules for other in siblings if f"{m}.".startswith(f"zfscope.analyses.{other}.")], name


def test_the_picture_of_the_rooms_shows_the_imports_of_today():
    assert PICTURE.read_text(encoding="utf-8") == draw(), "run: python tests/scripts/draw_rooms.py"


def test_there_is_no_room_without_a_noun():
    assert not {path.stem for path in sources()} & {"util", "utils", "helper", "helpers", "misc", "common"}


def test_no_file_is_longer_than_four_hundred_lines():
    files = [*sources(), *(ROOT / "tests").rglob("*.py")]

    assert not [path.name for path in files if len(path.read_text(encoding="utf-8").splitlines()) > 400]


def test_what_the_command_line_needs_first_loads_nothing_heavy():
    assert {f"zfscope.{room}.spec" for room in ("networks", "data", "training", "analyses")} <= set(LIGHT)

    told = python(f"""
import importlib, sys
for module in {LIGHT!r}:
    importlib.import_module(module)
    print(module, *set({HEAVY!r}) & set(sys.modules))
""")

    assert told.splitlines() == LIGHT


def run_anew(code):
    """Run code in a copy of this process that has not imported this project yet; whether it ran to its end."""
    child = os.fork()
    if child == 0:
        try:
            for module in [name for name in sys.modules if name.partition(".")[0] == "zfscope"]:
                del sys.modules[module]
            exec(code, {})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def test_names_that_others_rely_on_are_no_modules_in_whatever_order_they_are_imported():
    names = {**NAMES, "zfscope.callbacks": zfscope.callbacks.__all__}
    for package, wanted in names.items():
        everything = f"""
import importlib, pkgutil, {package} as package
for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
    importlib.import_module(package.__name__ + "." + module.name)
"""
        takes = [f"from {package} import {name}\nassert callable({name}), {name}\n" for name in wanted]
        modules = {module.name for module in pkgutil.iter_modules(getattr(sys.modules[package], "__path__", []))}
        first = [take for take, name in zip(takes, wanted, strict=True) if name in modules]  # these alone can collide
        for case in [*first, everything + "".join(takes), "".join(takes) + everything + "".join(takes)]:
            assert run_anew(case), case


@pytest.mark.parametrize("name", ["", ".atlas", ".callbacks", ".deconvnet", ".figures", ".occlusion"])
def test_names_that_are_loaded_at_first_use_are_listed(name):
    package = importlib.import_module(f"zfscope{name}")

    assert set(package.__all__) <= set(dir(package)) and "__name__" in dir(package)


def test_requirements_pin_what_the_package_needs():
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.M))
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.M))

    for need in needs:
        assert re.match(r"[\w-]+", need)[0] in pinned, need
    for name, version in pinned.items():
        assert locked[name] == version
