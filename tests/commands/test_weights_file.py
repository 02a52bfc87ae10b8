"""Public networks of timm on the command line, their weights in a file: nothing is downloaded."""

import json
import re

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from tests.commands.refusals import refused
from tests.conftest import ROOT, write_folders
from zfscope.networks.checkpoints import load_network
from zfscope.networks.imagenet import class_names

QUIET = ("device=cpu", "logger=none")
HEADLESS = "timm/convnextv2_atto.fcmae"


def saved(path, name, **options):
    torch.manual_seed(0)
    safetensors.torch.save_file(timm.create_model(name, **options).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("weights") / "test_resnet.safetensors", "test_resnet")


@pytest.fixture(scope="module")
def headless_file(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("weights") / "atto.safetensors", HEADLESS.removeprefix("timm/"))


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_an_image_is_looked_at_with_a_network_from_a_file(command, file, tmp_path):
    network = ("checkpoint=timm/test_resnet", f"weights_file={file}", f"image={ROOT}/docs/dog.png")
    fast = ("analysis.size=80", "analysis.stride=80", "analysis.rule=auto", "hydra.run.dir=out")

    code, out, err = command("analyze", "analysis=occlusion", *network, *fast, *QUIET)

    assert (code, err) == (0, "")
    told = re.search(r"^dog.png: (.*)$", out, re.MULTILINE)[1]
    assert len(told.split("%")) == 6 and any(name in told for name in class_names())
    conditions = results(tmp_path / "out")["conditions"]
    assert conditions["files"]["weights_file"] == conditions["run"]["identity"]["facts"]["weights_file"]
    assert (tmp_path / "out/figures/strongest/layer1.png").is_file()


def test_a_training_starts_from_a_file_and_has_it_in_its_identity(command, file, tmp_path):
    images = write_folders(tmp_path / "images", {"train": 2, "val": 1})
    data = ["data=folder", f"data.root={images}", "data.resize=168", "data.crop=160", "data.batch_size=2"]
    model = ["model=timm", "model.name=test_resnet", "weights=timm/test_resnet", f"weights_file={file}"]
    fast = ["trainer.max_epochs=1", "callbacks=none", "evaluate.enabled=false", "optim.lr=1e-9", *QUIET]

    code, out, err = command("train", *data, *model, *fast, "hydra.run.dir=run")

    assert code == 0, err
    assert f"weights from {file}, but body.fc.weight, body.fc.bias start fresh" in " ".join(out.split())
    network = load_network(tmp_path / "run" / "last")
    expected = safetensors.torch.load_file(file)
    torch.testing.assert_close(network.body.conv1[0].weight, expected["conv1.0.weight"], rtol=0, atol=1e-5)
    assert network.preprocessing.crop_mode == "center"
    facts = results(tmp_path / "run")["conditions"]["identity"]["facts"]
    assert re.fullmatch("timm/test_resnet [0-9a-f]{64}", facts["weights"])
    assert "weights_file" not in facts


@pytest.mark.slow
def test_a_network_without_a_head_is_looked_at_where_no_classes_are_needed(command, headless_file, tmp_path):
    images = write_folders(tmp_path / "images", {"train": 2, "val": 2})
    network = (f"checkpoint={HEADLESS}", f"weights_file={headless_file}", "data=folder", f"data.root={images}", *QUIET)

    fast = ("analysis.images=2", "analysis.shown=2", "hydra.run.dir=invariance")
    code, out, err = command("analyze", "analysis=invariance", *network, *fast)
    assert (code, err) == (0, "")
    assert not any(name.endswith("/probability") for name in results(tmp_path / "invariance")["metrics"])
    with Image.open(tmp_path / "invariance/figures/invariance.png") as picture:
        assert picture.size[0] > picture.size[1] / 2

    fast = ("analysis.maps=1", "analysis.top=2", "analysis.layers=[stages.0]", "hydra.run.dir=projections")
    code, out, err = command("analyze", "analysis=projections", "analysis.rule=gradient", *network, *fast)
    assert code == 0, err
    assert (tmp_path / "projections/figures/projections/stages.0.png").is_file()


@pytest.mark.parametrize(
    "question", [("analysis=evaluate", "analysis.part=val"), ("analysis=occlusion",), ("analysis=ensemble",)]
)
def test_where_classes_are_needed_a_network_without_a_head_says_so(
    question, command, headless_file, tmp_path, monkeypatch
):
    images = write_folders(tmp_path / "images", {"train": 2, "val": 2})
    file = (f"weights_file={headless_file}",)
    if question == ("analysis=ensemble",):  # which takes no file: where the line about the download says to put it
        folder = tmp_path / "torch/hub/checkpoints" / HEADLESS
        folder.mkdir(parents=True)
        (folder / "model.safetensors").symlink_to(headless_file)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        file = ()
    network = (f"checkpoint={HEADLESS}", *file, "data=folder", f"data.root={images}", *QUIET)

    err = refused(command, tmp_path, "analyze", *question, *network)

    assert "has no head and tells no classes apart" in err


@pytest.mark.parametrize(
    ("name", "typed", "told"),
    [
        ("train", ["weights_file=x.pth"], "weights_file=x.pth holds the weights of a public network: name that too"),
        ("train", ["weights_file=x.pth", "weights=outputs/run"], "such as weights=timm/resnet18"),
        ("analyze", ["weights_file=x.pth", "checkpoint=outputs/run"], "such as checkpoint=timm/resnet18"),
        ("analyze", ["weights_file=x.pth", "checkpoint=timm/test_resnet"], "there is no file x.pth; give the path of"),
        ("analyze", ["weights_file=x.pth", "checkpoint=timm/resnt18"], "did you mean timm/resnet18?"),
        ("analyze", ["weightsfile=x.pth", "checkpoint=timm/resnet18"], "did you mean weights_file"),
        (
            "analyze",
            ["weights_file=x.pth", "checkpoint=timm/resnet18", "analysis=ensemble"],
            "weights_file=x.pth is one network's; analysis=ensemble looks at several",
        ),
    ],
)
def test_a_wrong_file_or_name_is_refused_in_one_line(name, typed, told, command, tiny, tmp_path):
    err = refused(command, tmp_path, name, *(tiny if name == "train" else QUIET), *typed)

    assert told in err
