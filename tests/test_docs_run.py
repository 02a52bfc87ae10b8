"""What README and docs print, run as printed: commands, blocks of Python, and what else a shell would take.

Lines are shortened only by what is appended to them: a step, an epoch, few images. ``make test-all`` runs them.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import product

import pytest
import torch
import torchvision
import yaml
from PIL import Image

from tests.conftest import ROOT, composed, type_command, write_folders
from tests.data.sources.test_fashion_mnist import lay_out as lay_out_clothes
from tests.data.sources.test_imagenet import devkit, flat_val, put
from tests.data.sources.test_voc import lay_out as lay_out_voc
from tests.data.sources.torchvision_layouts import celeba, mnist
from tests.printed_lines import (
    ANALYSES,
    BLOCKS,
    INLINE_IMPORTS,
    LINES,
    LOGGED,
    NOT_RUN,
    ONE_STEP,
    OTHERS,
    OTHERS_RUN,
    TEXTS,
    TO_RUN,
    TOOLS,
    placed,
    shortened,
)
from tests.scripts.same_commands import commands_of
from tests.test_docs import REFUSED
from zfscope import load_network
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.data.datamodule import open_data
from zfscope.data.spec import DataConfig
from zfscope.deconvnet import project
from zfscope.networks.imagenet import wnids
from zfscope.schema import check
from zfscope.training.spec import TrainConfig

DOGS = ("dog.png", "copy.png")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with small images, laid out as each data set is, by the names of ``data=``."""
    root = tmp_path_factory.mktemp("data")
    write_folders(root / "folder", {"train": 12, "val": 4})
    names = wnids()  # public weights refuse other folders
    for wnid in names:
        put(root / "imagenet/train" / wnid / f"{wnid}_1.JPEG")
    put(root / f"imagenet/train/{names[3]}/{names[3]}_2.JPEG")  # the first is left out by exclude.txt
    flat_val(root / "imagenet", range(1, 9))
    devkit(root / "imagenet", truth=range(1, 9), rows=[(i + 1, wnid, []) for i, wnid in enumerate(names)])
    write_folders(root / "caltech101", {"101_ObjectCategories": 35})
    write_folders(root / "caltech256", {"256_ObjectCategories": 65}, ("001.ak47", "002.american-flag", "003.backpack"))
    lay_out_voc(root / "voc2012/VOCdevkit/VOC2012")
    lay_out_clothes(root / "fashion_mnist/FashionMNIST/raw")
    with pytest.MonkeyPatch.context() as patch:
        mnist(root / "torchvision", patch), celeba(root / "torchvision", patch)
        yield root


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A working folder with the runs that the pages name: outputs/RUN, RUN2, six/0 … 5, paper; only copied from."""
    home = tmp_path_factory.mktemp("home")
    (home / "docs").symlink_to(ROOT / "docs")
    drawn = ROOT / "data_cache/phantom"  # as `make train` draws it: a minute and a half, once
    drawn.mkdir(parents=True, exist_ok=True)
    (home / "data_cache").mkdir()
    (home / "data_cache/phantom").symlink_to(drawn)
    short = [*ONE_STEP, "evaluate.enabled=false", "callbacks=none"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        two_epochs = [word for word in short if "max_epochs" not in word] + ["trainer.max_epochs=2"]
        assert type_command(patch, "train", *two_epochs, "hydra.run.dir=outputs/RUN") == 0
        assert type_command(patch, "train", *short, "model/stem=11x11s4", "hydra.run.dir=outputs/RUN2") == 0
        assert type_command(patch, "train", "-m", *short, "seed=0,1,2,3,4,5", "hydra.sweep.dir=outputs/six") == 0
    shutil.copytree(home / "outputs/six/0", home / "outputs/paper/laptop/members/1")
    (home / "outputs/analyses/RUN").mkdir(parents=True)
    (home / "outputs/analyses/RUN/exclude.txt").write_text("{0}/{0}_1.JPEG\n".format(wnids()[3]))
    (home / "parts.csv").write_text(
        "image,part,x0,y0,x1,y1\n"
        + "".join(
            f"docs/{name},{part},{x},60,{x + 14},74\n" for name in DOGS for part, x in (("nose", 56), ("eye", 40))
        )
    )
    return home


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """A file as pytorchcv downloads it, with ZFNet's weights at random."""
    zfnets = pytest.importorskip("pytorchcv.models.zfnet")
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("zoo") / "zfnet.pth"
    torch.save(zfnets.zfnet().state_dict(), file)
    return file


def take(source, target):
    """Checkpoints are replaced whole and may be shared; other files are written into."""
    (os.link if source.endswith(".ckpt") else shutil.copy2)(source, target)


@pytest.fixture
def workplace(home, tmp_path, monkeypatch):
    """A folder of its own for a line, with what ``home`` has; its outputs are removed afterwards."""
    shutil.copytree(home / "outputs", tmp_path / "outputs", copy_function=take)
    shutil.copy(home / "parts.csv", tmp_path)
    (tmp_path / "data_cache").symlink_to(home / "data_cache")
    (tmp_path / "docs").mkdir()
    for name in (*DOGS, "cat.jpg"):
        shutil.copy(ROOT / "docs/dog.png", tmp_path / "docs" / name)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    shutil.rmtree(tmp_path / "outputs")


def results_in(folder):
    """When each results.json was written, by its path."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("results.json")}


@pytest.mark.slow
@pytest.mark.parametrize("line", TO_RUN, ids=list(TO_RUN))
def test_a_printed_command_runs(line, workplace, data, monkeypatch, capsys, request):
    name, *words = TO_RUN[line]
    if not re.search("efficientnet_lite0|squeezenet1_1", line) and ("zoo" in line or "_pretrained" in line):
        file = request.getfixturevalue("zoo")
        monkeypatch.setattr("zfscope.networks.public.unpacked", lambda *_args: str(file))
        monkeypatch.setattr("zfscope.networks.downloads.ask_server", lambda url: None)
    if "elpv" in line:
        pytest.importorskip("elpv_dataset")
    for word in words:
        if target := re.fullmatch(r"hydra\.(?:run|sweep)\.dir=(.*)", word):
            shutil.rmtree(workplace / target[1])
    words = shortened(name, placed(words, data))
    if line in LOGGED:
        words.remove("logger=none")
    before = results_in(workplace)

    code = type_command(monkeypatch, name, *words)

    out, err = capsys.readouterr()
    refusals = [message for override, message in REFUSED.items() if override in words]
    if refusals:
        assert code == 2 and re.search(refusals[0], err)
        return
    assert code == 0, (words, err[-2000:], out[-2000:])
    if "--help" in words:
        assert "== Examples ==" in out
        return
    written = [path for path, time in results_in(workplace).items() if before.get(path) != time]
    assert written and all(json.loads(path.read_text())["state"] == "finished" for path in written)
    assert line not in LOGGED or "wandb sync " in out + err


def names_for(page, data):
    """What the blocks of a page take as there: a network, images, another network, data sets."""
    network = load_network("outputs/RUN")
    image = Image.open("docs/dog.png")
    folder = open_data(DataConfig(name="folder", root=str(data / "folder"), cache="data_cache", resize=32, crop=28))
    inputs = network.preprocess(image)
    images = torch.stack([inputs, inputs.flip(-1)])
    patches, boxes = project(network, images, "conv2", [0, 1], crop=True)
    names = {
        "network": network,
        "image": image,
        "images": images,
        "labels": torch.tensor([0, 1]),
        "resnet": torchvision.models.resnet18(num_classes=10).eval(),
        "positions": torch.tensor([[1, 2]]),
        "patches": patches,
        "boxes": boxes,
        "splits": folder,
        "other": folder.val,
    }
    return names | ({"images": folder.val} if page == "ensemble.md" else {})


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_a_printed_block_of_python_runs(block, workplace, data):
    names = names_for(block.split()[0], data)
    (workplace / "exclude.txt").write_text("cat/0.jpg\n")

    exec(BLOCKS[block], names)


@pytest.mark.parametrize("line", INLINE_IMPORTS)
def test_a_printed_import_is_one(line):
    exec(line)


@pytest.mark.parametrize("line", ANALYSES)
def test_a_printed_analysis_composes_and_is_valid(line):
    words = shlex.split(" ".join(line.split()))
    checkpoint = [] if line in ("analysis=overlap", "analysis=ledger") else ["checkpoint=outputs/RUN"]

    check(AnalyzeConfig, composed(*checkpoint, *words, name="analyze"))


@pytest.mark.parametrize("line", OTHERS_RUN)
def test_a_printed_command_of_another_program_runs(line):
    words = [sys.executable if word == "python" else word for word in shlex.split(line)]

    ran = subprocess.run([*words, *OTHERS_RUN[line]], cwd=ROOT, capture_output=True, text=True)

    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("line", [line for line in sorted(OTHERS) if line.startswith("make ")])
def test_make_knows_the_targets_that_are_printed(line):
    words = [word for word in shlex.split(line) if word != "…"]

    ran = subprocess.run([*words, "-n"], cwd=ROOT, capture_output=True, text=True)

    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_says_what_it_does(path):
    ran = subprocess.run([sys.executable, path, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert ran.returncode == 0 and f"usage: {path.name}" in ran.stdout, ran.stderr


def test_the_extras_that_are_printed_are_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    printed = {name for line in OTHERS for name in re.findall(r"^pip install -e '\.\[(\w+)\]'", line)}
    assert printed == {"elpv", "fonts", "imagenet", "zoo"} and printed <= extras.keys()


def test_what_is_installed_is_every_package_of_the_tree():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]

    folders = [path.parent.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("__init__.py")]
    assert sorted(packages) == sorted(
        ["zfscope.callbacks", "zfscope.conf", *(".".join(folder.parts) for folder in folders)]
    )


def test_what_the_agent_of_the_sweep_types_composes_and_is_valid():
    sweep = yaml.safe_load((ROOT / "sweep.yaml").read_text(encoding="utf-8"))
    values = {key: chosen.get("values", [chosen.get("value")]) for key, chosen in sweep["parameters"].items()}

    jobs = [[f"{key}={value}" for key, value in zip(values, job, strict=True)] for job in product(*values.values())]

    assert len(jobs) == 8 and sweep["program"] == "train.py"
    for job in jobs:
        check(TrainConfig, composed(*job))


def test_every_printed_line_is_run_or_listed_with_its_reason():
    run = TO_RUN.keys() | OTHERS_RUN.keys()

    assert len(TO_RUN) > 60 and len(BLOCKS) >= 9
    assert run | NOT_RUN.keys() == LINES.keys() | OTHERS
    assert not run & NOT_RUN.keys() and all(NOT_RUN.values())


def test_every_line_of_a_block_is_a_command_that_was_recognised():
    """Such as a command of a new program, which would be neither run nor listed."""
    for page, text in TEXTS.items():
        for opening, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M):
            if opening == "python":
                continue
            for line in block.splitlines():
                answer = line.startswith(("train.py: ", "analyze.py: "))
                known = commands_of(f"```\n{line}\n```") or re.match(TOOLS, line)
                assert answer or known, (page, line)
