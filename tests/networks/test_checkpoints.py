"""Checkpoints: there and back, and written whole or not at all."""

import os
from pathlib import Path

import pytest
import torch

from tests.networks.saved import SIZE, fresh, same
from zfscope import load_network
from zfscope.networks.build import build_network
from zfscope.networks.checkpoints import (
    network_from_checkpoint,
    read_checkpoint,
    save_network,
    write_checkpoint,
)


def images():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_network_comes_back_with_logits_classes_and_preprocessing(network, saved):
    loaded = load_network(saved)

    assert torch.equal(loaded(images()), network(images()))
    assert not loaded.training
    assert loaded.classes == ("cat", "dog", "owl")
    assert loaded.layers == network.layers
    assert torch.equal(loaded.preprocessing.mean, network.preprocessing.mean)
    assert torch.equal(loaded.preprocessing.scale, network.preprocessing.scale)


def test_network_without_classes_and_preprocessing_comes_back_without(config, tmp_path):
    save_network(fresh(config), config, tmp_path / "bare.ckpt")

    loaded = load_network(tmp_path / "bare.ckpt")

    assert loaded.classes is None
    assert loaded.preprocessing is None


def test_timm_network_comes_back_too(tmp_path):
    torch.manual_seed(0)
    config = {"source": "timm", "name": "resnet18", "layers": ["layer1", "layer3"]}
    network = build_network(config, 3, SIZE).eval()

    save_network(network, {"model": config}, tmp_path / "resnet18.ckpt")
    loaded = load_network(tmp_path / "resnet18.ckpt")

    assert loaded.layers == ("layer1", "layer3")
    with torch.no_grad():
        assert torch.equal(loaded(images()), network(images()))


def test_checkpoint_holds_tensors_and_plain_containers_only(saved):
    content = torch.load(saved, weights_only=True)

    assert set(content) == {"state_dict", "zfscope"}
    assert {"format", "model", "num_classes", "image_size", "classes", "preprocessing"} <= set(content["zfscope"])
    assert type(content["zfscope"]["model"]["conv1"]) is dict


def test_loading_leaves_torch_s_generator_where_it_was(saved):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    load_network(saved)

    assert torch.equal(torch.rand(3), expected)


def test_weights_beside_the_network_s_own_are_left_out(saved, network):
    content = read_checkpoint(saved)
    content["state_dict"]["metrics.count"] = torch.zeros(1)  # as a LightningModule's own state

    assert same(network, network_from_checkpoint(content, saved))


def test_writing_leaves_nothing_beside_the_checkpoint(saved):
    assert [entry.name for entry in saved.parent.iterdir()] == ["best.ckpt"]


@pytest.mark.parametrize("where", ["torch.save", "os.fsync", "os.replace"])
def test_failed_write_keeps_the_checkpoint_that_was_there_and_leaves_nothing(where, saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*arguments, **_options):
        if where == "torch.save":
            arguments[1].write(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(where, fail)

    with pytest.raises(OSError, match="No space left on device"):
        write_checkpoint({"state_dict": {}}, saved)

    assert [entry.name for entry in saved.parent.iterdir()] == ["best.ckpt"]
    assert saved.read_bytes() == before


def test_target_is_whole_at_every_moment(saved, monkeypatch):
    replaced = []
    replace = os.replace

    def spy(source, target):
        replaced.append((Path(source), Path(target)))
        assert "zfscope" in read_checkpoint(saved)  # the old one, until now
        assert torch.load(source, weights_only=True) == {"new": 1}
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)

    write_checkpoint({"new": 1}, saved)

    ((source, target),) = replaced
    assert target == saved
    assert source.parent == saved.parent  # the same file system, or the renaming would copy
    assert source.suffix != ".ckpt"  # never taken for a checkpoint after a crash
    assert read_checkpoint(saved) == {"new": 1}
