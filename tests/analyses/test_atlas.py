"""``analysis=atlas`` by its command: its folder and numbers; nothing half written takes the place of an earlier one."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.atlas.conftest import content_of
from tests.atlas.test_write import check_whole
from tests.conftest import type_command, write_folders
from zfscope.analyses.atlas import source_of
from zfscope.data.imageset import ArrayImages

LINE = ("analysis=atlas", "device=cpu", "logger=none", "analysis.part=val", "hydra.run.dir=out")


@pytest.fixture(scope="module")
def made(tmp_path_factory, trained_run):
    """The run folder of an atlas of the tiny training's validation images."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert type_command(patch, "analyze", *LINE, f"checkpoint={trained_run}", "analysis.pages=4") == 0
    return folder / "out"


def test_the_command_writes_a_whole_atlas_and_its_numbers(made):
    metrics = json.loads((made / "results.json").read_text())["metrics"]
    index = content_of(made / "atlas", "index")

    check_whole(made / "atlas")
    assert [layer["name"] for layer in index["layers"]] == [f"conv{number}" for number in range(1, 6)]
    for layer in index["layers"]:
        metric = metrics[f"{layer['name']}/dead_maps"]
        assert (metric["value"], metric["unit"]) == (layer["dead"], f"of {layer['count']}")
    files = [path for path in (made / "atlas").rglob("*") if path.is_file()]
    assert sum(metrics[f"bytes/{kind}"]["value"] for kind in ("sprites", "data", "page")) == sum(
        path.stat().st_size for path in files
    )
    assert metrics["bytes/sprites"]["value"] == sum(path.stat().st_size for path in files if path.suffix == ".webp")
    assert sorted(path.name for path in made.iterdir() if path.name[0] != ".") == ["atlas", "results.json"]
    assert not list(made.glob(".atlas*"))


def test_classes_and_images_are_those_of_the_data(made):
    index = content_of(made / "atlas", "index")
    labels = {one["index"]: (one["name"], one["labels"]) for one in content_of(made / "atlas", "images")}

    assert index["classes"] == index["answers"] == ["cat", "dog", "owl"] and index["images"].startswith("12 val images")
    assert all(name.split("/")[-2] == index["classes"][own[0]] for name, own in labels.values())
    assert sorted(labels[number][1][0] for number in index["pages"][:3]) == [0, 1, 2] and len(index["pages"]) == 4


def test_an_atlas_that_fails_leaves_the_earlier_one_and_no_scratch(command, trained_run, monkeypatch):
    line = (*LINE, f"checkpoint={trained_run}", "analysis.pages=0", "analysis.layers=[conv1]", "analysis.controls=0")
    code, _, errors = command("analyze", *line)
    assert code == 0, errors
    folder = Path("out")
    before = content_of(folder / "atlas", "layer-0")
    for place in ("zfscope.atlas.public.write_page", "zfscope.analyses.run.write_results"):
        with monkeypatch.context() as patch:
            patch.setattr(place, lambda *_: (_ for _ in ()).throw(ValueError("stopped halfway")))
            code, _, errors = command("analyze", *line, "analysis.top=2")
        assert code != 0 and "stopped halfway" in errors

    assert content_of(folder / "atlas", "layer-0") == before
    assert not [path for path in folder.iterdir() if path.name.startswith((".atlas", ".results"))]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("analysis.layers=[conv9]", "analysis.layers: no layer 'conv9'; the layers with feature maps are conv1"),
        ("analysis.layers=[fc7]", "analysis.layers: fc7 is dense"),
        ("analysis.part=test", "this data set has no labelled test images; use val"),
        ("analysis.pages=-1", "analysis.pages"),
    ],
)
def test_what_cannot_be_shown_is_refused(command, trained_run, override, message):
    code, _, errors = command("analyze", *LINE, f"checkpoint={trained_run}", override)

    assert code == 2 and message in errors


def test_images_of_other_classes_are_shown_with_the_networks_own_answers(command, trained_run, tmp_path):
    root = write_folders(tmp_path / "others", {"train": 2, "val": 2}, ("red", "green"))
    own = [f"data.root={root}", f"data.cache={tmp_path / 'cache'}", "data=folder", "analysis.pages=1"]
    code, _, errors = command("analyze", *LINE, f"checkpoint={trained_run}", *own, "analysis.layers=[conv5]")

    assert code == 0, errors
    index = content_of(tmp_path / "out/atlas", "index")
    assert index["classes"] == ["green", "red"] and index["answers"] == ["cat", "dog", "owl"]
    occlusion = content_of(tmp_path / "out/atlas", f"image-{index['pages'][0]}")["occlusion"]
    assert occlusion["whole"] == max(
        share for _, share in content_of(tmp_path / "out/atlas", f"image-{index['pages'][0]}")["answers"]
    )


@pytest.mark.filterwarnings("ignore:.*cannot read|.*cannot be read")
def test_images_that_cannot_be_read_are_left_out_of_maps_and_pages(command, trained_run, tmp_path):
    images = shutil.copytree(trained_run.parent / "images", tmp_path / "images")
    (images / "val/cat/0.jpg").write_bytes(b"")  # the first one
    own = [f"data.root={images}", f"data.cache={tmp_path / 'cache'}", "analysis.pages=12", "analysis.layers=[conv5]"]
    code, _, errors = command("analyze", *LINE, f"checkpoint={trained_run}", *own)

    assert code == 0, errors
    index = content_of(tmp_path / "out/atlas", "index")
    assert sorted(index["pages"]) == list(range(1, 12))
    assert {one["index"] for one in content_of(tmp_path / "out/atlas", "images")} == set(range(1, 12))
    check_whole(tmp_path / "out/atlas")


def test_an_image_with_several_labels_has_all_of_them():
    images = ArrayImages(
        np.zeros((3, 8, 8, 3), np.uint8), np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]]), "abc", "several"
    )
    question = SimpleNamespace(
        part="val", inputs=lambda _: None, data=SimpleNamespace(config=SimpleNamespace(name="voc"))
    )

    source = source_of(question, images, torch.zeros(3, 8, 8))

    assert source.labels == [(0, 2), (), (1,)] and source.title == "3 val images of voc"
    assert [source.name(number) for number in range(3)] == ["several/0", "several/1", "several/2"]
