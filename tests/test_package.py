"""The package as it is installed: what its wheel holds, and its commands outside of a clone."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT, on_folders

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the unpacked wheel, built from a copy of what the repository holds."""
    home = tmp_path_factory.mktemp("package")
    kept = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "callbacks", "conf"):
        shutil.copytree(ROOT / name, home / "copy" / name, ignore=kept)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, home / "copy")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q", "-w", str(home)]
    subprocess.run([sys.executable, "-m", "pip", *build, str(home / "copy")], check=True)
    (wheel,) = home.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home / "site")
    return home / "site"


@pytest.fixture
def zfscope(installed, tmp_path):
    """Type ``zfscope …`` in an empty folder: ``(exit code, stdout, stderr)``."""

    def call(*words):
        done = subprocess.run(
            [sys.executable, "-m", "zfscope.commands", *words],
            cwd=tmp_path,
            env=ENVIRONMENT | {"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout, done.stderr

    return call


def files(folder, pattern="*"):
    return {str(path.relative_to(folder)) for path in folder.rglob(pattern) if path.is_file()}


def test_the_wheel_holds_all_configs_templates_and_modules(installed):
    package = installed / "zfscope"

    assert files(package / "conf") == files(ROOT / "conf", "*.yaml")
    assert files(package / "callbacks") == files(ROOT / "callbacks", "*.py")
    own = {name for name in files(ROOT / "src/zfscope") if "__pycache__" not in name}
    assert (
        files(package) - {f"{part}/{name}" for part in ("conf", "callbacks") for name in files(package / part)} == own
    )
    assert "py.typed" in own and any("templates/" in name for name in own)


def test_commands_of_the_package_train_and_analyse_in_any_folder(zfscope, folders, tmp_path):
    code, out, err = zfscope("train", *on_folders(folders), "logger=none", "hydra.run.dir=run")
    assert code == 0, err
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()

    code, out, err = zfscope("analyze", "analysis=evaluate", "checkpoint=run", "logger=none", "hydra.run.dir=evaluated")

    assert code == 0, err
    assert "top1_error" in out and (tmp_path / "evaluated/results.json").is_file()


def test_a_refusal_names_the_command_of_the_package(zfscope):
    code, _, err = zfscope("train", "experiment=caltech101_pretrained")

    assert code == 2
    assert "zfscope train: " in err and "zfscope analyze experiment=caltech101_pretrained" in err and ".py" not in err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 0, "zfscope train "),
        (["--help"], 0, "zfscope analyze "),
        (["tain"], 2, "zfscope: there is no command 'tain'; there are train and analyze"),
    ],
)
def test_without_a_command_of_the_two_it_says_what_there_is(zfscope, words, code, told):
    returned, out, err = zfscope(*words)

    assert returned == code and told in out + err
