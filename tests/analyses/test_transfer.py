"""analysis=transfer and probes on folders laid out as Caltech-101: what is refused when, which views, which numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import composed, write_folders
from zfscope import build_network
from zfscope.analyses import fresh, probes, transfer
from zfscope.analyses.run import analyze
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.networks.checkpoints import save_network
from zfscope.networks.preprocessing import Preprocessing
from zfscope.protocols import features
from zfscope.runs import read_results
from zfscope.schema import check

SMALL = [
    *("model.conv1.maps=4", "model.conv2.maps=4", "model.conv2.stride=1", "model.conv2.padding=2"),
    *("model.conv3.maps=4", "model.conv4.maps=4", "model.conv5.maps=4", "model.fc6.units=8", "model.fc7.units=8"),
]
QUICK = ["analysis.images_per_class=[15]", "analysis.folds=1", "analysis.scratch_steps=2", "analysis.test_images=50"]


def save_run(folder, root, *overrides):
    """A run folder with an untrained zfnet_mini whose config these overrides change; below ``folder``."""
    data = ["data=folder", f"data.root={root}", "data.resize=32", "data.crop=28", f"data.cache={folder / 'cache'}"]
    config = composed("model=zfnet_mini", *SMALL, *data, *overrides)
    torch.manual_seed(0)
    network = build_network(config["model"], num_classes=3, image_size=28)
    network.classes = ("cat", "dog", "owl")
    network.preprocessing = Preprocessing(32, 28, torch.full((3, 32, 32), 90.0), torch.full((3, 1, 1), 1 / 60))
    save_network(network, config, folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three classes of 20 images as ``101_ObjectCategories``, and the like as ``train`` and ``val``."""
    root = tmp_path_factory.mktemp("images")
    write_folders(root, {"101_ObjectCategories": 20, "train": 8, "val": 4}, side=32)
    return root


@pytest.fixture
def run(tmp_path, images):
    return save_run(tmp_path / "run", images)


@pytest.fixture
def no_features(monkeypatch):
    """Features must not be computed."""

    def compute(*_, **__):
        raise AssertionError("features were computed before the refusal")

    monkeypatch.setattr(features, "write_tables", compute)


@pytest.fixture
def used_views(monkeypatch):
    """The augmentations and colour directions with which training from scratch makes its views."""
    used = []

    class Views(transfer.TrainTransform):
        def __init__(self, preprocessing, augment, seed, colours=None):
            super().__init__(preprocessing, augment, seed, colours)
            used.append((augment, colours))

    monkeypatch.setattr(transfer, "TrainTransform", Views)
    return used


def ask(folder, run, *overrides, name="transfer", typed=()):
    overrides = [f"analysis={name}", f"checkpoint={run}", "device=cpu", "logger=none", *overrides, *typed]
    analyze(check(AnalyzeConfig, composed(*overrides, name="analyze")), folder, list(typed))
    return read_results(folder)


def on_caltech(images):
    return ["data=caltech101", f"data.root={images}"]


# Augmentation of training from scratch


def test_the_runs_augmentation_goes_over_to_another_data_set(tmp_path, images, used_views, capsys):
    run = save_run(tmp_path / "run", images, "data.augment.brightness=0.25")

    content = ask(tmp_path, run, *on_caltech(images), *QUICK)

    assert {augment.brightness for augment, _ in used_views} == {0.25}
    assert "augment" not in content["conditions"]["question"]
    assert "data.augment" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("data/augment=any_orientation", {"flip_vertical": True, "rotate90": True, "brightness": 0.0}),
        ("data/augment=standard", {"brightness": 0.0}),
        ("data.augment.erase=0.5", {"erase": 0.5, "brightness": 0.0}),
    ],
)
def test_an_augmentation_that_was_typed_is_used_told_and_recorded(
    tmp_path, images, used_views, capsys, typed, expected
):
    run = save_run(tmp_path / "run", images, "data.augment.brightness=0.25")

    content = ask(tmp_path, run, *on_caltech(images), *QUICK, typed=[typed])

    assert {name: getattr(used_views[-1][0], name) for name in expected} == expected
    assert content["conditions"]["question"]["augment"] == expected
    assert "augment" in content["conditions"]["unusual"]
    assert "from scratch with data.augment: " in capsys.readouterr().out


def test_a_single_value_changes_no_other_of_the_runs_augmentation(tmp_path, images, used_views):
    run = save_run(tmp_path / "run", images, "data.augment.brightness=0.25", "data.augment.flip=false")

    ask(tmp_path, run, *QUICK, "analysis.images_per_class=[4]", typed=["+data.augment.erase=0.5"])

    augment, _ = used_views[-1]
    assert (augment.brightness, augment.flip, augment.erase) == (0.25, False, 0.5)


def test_colours_are_shifted_by_those_of_the_folds_own_training_images(tmp_path, images, used_views):
    run = save_run(tmp_path / "run", images, "data.augment.pca_colour=0.1")

    ask(tmp_path, run, *on_caltech(images), *QUICK, "analysis.folds=2")

    (_, first), (_, second) = used_views[1:]  # before them the check, without images
    # Of tiny_images each class is brighter by 100 in one channel: a variance of 10,000 / 3 in two directions, beside
    # that of the noise, at most 1,200.
    assert first.shape == (3, 3) and not np.array_equal(first, second)
    assert np.sort(np.linalg.norm(first, axis=0))[1:] == pytest.approx([15.4, 15.4], abs=2.4)


# What is refused, and when


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*QUICK, "data.augment.policy=timm", "data.augment.auto_augment=nonsense"],
            "auto_augment=nonsense: .* rand-m7",
        ),
        (["analysis.images_per_class=[15,20]"], r"20 training images per class .* of cat \(20\)"),
        (["analysis.layer=conv9"], "conv9"),
    ],
)
def test_transfer_refuses_before_features_are_computed(tmp_path, run, images, no_features, overrides, message):
    with pytest.raises(ValueError, match=message):
        ask(tmp_path, run, *on_caltech(images), *overrides)


def test_a_network_that_cannot_be_built_anew_is_refused_before_features_are_computed(
    tmp_path, run, images, no_features, monkeypatch
):
    layer = {"maps": 4, "kernel_size": 99}
    recipe = fresh._recipe
    monkeypatch.setattr(
        fresh, "_recipe", lambda *about: replace(recipe(*about), model={"name": "n", "conv1": layer, "fc8": {}})
    )

    with pytest.raises(ValueError, match="99x99 kernel"):
        ask(tmp_path, run, *on_caltech(images), *QUICK)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("analysis.images_per_class=20", r"20 training images per class .* of cat \(20\)"),
        ("analysis.layers=[fc7,conv9]", "conv9"),
    ],
)
def test_probes_refuse_before_features_are_computed(tmp_path, run, images, no_features, override, message):
    with pytest.raises(ValueError, match=message):
        ask(tmp_path, run, *on_caltech(images), override, name="probes")


# The paper's numbers


def test_the_papers_number_beside_another_network_is_marked_and_the_conditions_tell(tmp_path, run, images, capsys):
    content = ask(tmp_path, run, *on_caltech(images), *QUICK, "analysis.scratch=false")

    printed = " ".join(capsys.readouterr().out.split())
    assert content["metrics"]["pretrained/15/accuracy"]["paper"] == 83.8
    by = "zfnet_mini trained on folder, 12 epochs, on caltech101, training identity not recorded"
    assert content["conditions"]["stand_in"] == by
    assert (
        "83.8 % (stand-in)" in printed
        and f"ours are by {by}; the paper's numbers beside them are no comparison" in printed
    )


def test_probes_mark_the_papers_number_too(tmp_path, run, images, capsys, monkeypatch):
    monkeypatch.setitem(probes.TABLE_7, ("caltech101", 4), {("svm", "fc7"): 85.5})
    overrides = [
        "analysis.folds=1",
        "analysis.images_per_class=4",
        "analysis.classifiers=[svm]",
        "analysis.layers=[fc7]",
    ]

    content = ask(tmp_path, run, *on_caltech(images), *overrides, name="probes")

    assert content["conditions"]["stand_in"].startswith("zfnet_mini trained on folder, ")
    assert "85.5 % (stand-in)" in " ".join(capsys.readouterr().out.split())


def test_without_a_number_of_the_papers_nothing_is_said_of_stand_ins(tmp_path, run, images, capsys):
    content = ask(tmp_path, run, *QUICK, "analysis.images_per_class=[4]", "analysis.scratch=false")

    assert "stand_in" not in content["conditions"] and "stand-in" not in capsys.readouterr().out
