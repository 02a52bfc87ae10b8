import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from zfscope import load_network
from zfscope.networks.build import build_network
from zfscope.networks.checkpoints import (
    find_checkpoint,
    load_weights,
    network_from_checkpoint,
    read_checkpoint,
    save_network,
    start_from,
    write_checkpoint,
)
from zfscope.networks.preprocessing import Preprocessing

CONF = str(Path(__file__).parents[2] / "conf")
SIZE = 64


@pytest.fixture(scope="module")
def config():
    """zfnet_mini, smaller still."""
    small = [f"model.conv{number}.maps=8" for number in range(1, 6)] + ["model.fc6.units=16", "model.fc7.units=16"]
    with initialize_config_dir(CONF, version_base="1.3"):
        return {"model": compose("train", overrides=["model=zfnet_mini", *small]).model}


def fresh(config, num_classes=3, seed=0):
    torch.manual_seed(seed)
    return build_network(config["model"], num_classes, SIZE)


@pytest.fixture
def network(config):
    network = fresh(config).eval()
    network.classes = ("cat", "dog", "owl")
    mean = 255 * torch.rand(3, 72, 72)
    network.preprocessing = Preprocessing(72, SIZE, mean, torch.full((3, 1, 1), 0.5))
    return network


@pytest.fixture
def saved(network, config, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    save_network(network, config, path)
    return path


def images():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def same(one, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


# --- there and back ---


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


# --- writing ---


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


# --- damaged and foreign files ---


@pytest.mark.parametrize("kept", [0, 1, 0.1, 0.5, 0.99, -1])
def test_truncated_file_is_refused_by_name(kept, saved):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else kept])

    with pytest.raises(ValueError, match=f"^{re.escape(str(saved))} is no checkpoint, or is cut off"):
        load_network(saved)


def test_flipped_bit_anywhere_is_refused_in_one_line_by_name_or_is_harmless(saved, network):
    whole = saved.read_bytes()
    refused = 0

    for place in torch.linspace(0, len(whole) - 1, 150).long().tolist():
        content = bytearray(whole)
        content[place] ^= 16
        saved.write_bytes(content)
        try:
            loaded = load_network(saved)
        except ValueError as error:
            assert str(saved) in str(error)
            assert "\n" not in str(error)
            refused += 1
        else:  # in the padding between two tensors, or a date
            assert same(network, loaded)
            assert torch.equal(loaded.preprocessing.mean, network.preprocessing.mean)

    assert refused > 100


def test_flipped_bit_within_a_tensor_would_load_without_the_checksum(saved):
    with zipfile.ZipFile(saved) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(saved.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 1
    saved.write_bytes(content)
    assert torch.load(saved, weights_only=True)  # what torch does on its own

    with pytest.raises(ValueError, match=r"best.ckpt is damaged at .*\(checksum\); use another"):
        load_network(saved)


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


def test_pickle_payload_is_refused_and_not_run(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0")
    torch.save({"state_dict": {}, "zfscope": Payload()}, saved)

    with pytest.raises(ValueError, match="best.ckpt holds more than tensors and plain containers") as refusal:
        load_network(saved)

    assert "\n" not in str(refusal.value)
    assert not Path("pwned").exists()


def test_pickle_payload_is_not_run_whatever_the_environment_says(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"state_dict": {}, "zfscope": Payload()}, saved)

    with pytest.raises(ValueError, match="best.ckpt holds more than tensors and plain containers"):
        load_network(saved)

    assert not Path("pwned").exists()


def test_bare_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps(Payload()))

    with pytest.raises(ValueError, match="model.ckpt is no checkpoint"):
        load_network(path)

    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a checkpoint's dictionary"),
        ({"weight": torch.zeros(1)}, "no 'zfscope' entry; bare weights go to weights="),
        ({"zfscope": {"format": 1}}, "no checkpoint of this project"),
        ({"zfscope": {"format": 99}, "state_dict": {}}, "has format 99, newer than 1; update this project"),
    ],
)
def test_other_content_is_refused(content, message, tmp_path):
    path = tmp_path / "other.ckpt"
    torch.save(content, path)

    with pytest.raises(ValueError, match=f"other.ckpt.* {message}"):
        load_network(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", None),
        ("model", {"name": "x", "conv1": 3}),
        ("num_classes", "ten"),
        ("image_size", -4),
        ("classes", 3),
        ("preprocessing", {"resize": 2}),
    ],
)
def test_damaged_settings_are_refused_in_one_line_that_names_the_file(key, value, saved):
    content = read_checkpoint(saved)
    content["zfscope"][key] = value
    write_checkpoint(content, saved)

    with pytest.raises(ValueError, match="best.ckpt") as refusal:
        load_network(saved)

    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["format", "model", "num_classes", "image_size", "classes", "preprocessing"])
def test_missing_settings_are_refused_by_name(key, saved):
    content = read_checkpoint(saved)
    del content["zfscope"][key]
    write_checkpoint(content, saved)

    with pytest.raises(ValueError, match=f"best.ckpt.*{key}"):
        load_network(saved)


def test_settings_that_ask_for_terabytes_are_refused_before_any_memory_is(saved):
    content = read_checkpoint(saved)
    content["zfscope"]["num_classes"] = 10**12
    write_checkpoint(content, saved)

    with pytest.raises(ValueError, match=r"best.ckpt: fc8.linear.weight has shape .*, but this .*\(1000000000000, 16"):
        load_network(saved)


def test_compressed_file_that_may_expand_is_refused(saved):
    with zipfile.ZipFile(saved) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)

    with pytest.raises(ValueError, match="best.ckpt is no checkpoint: .* in it is compressed"):
        load_network(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_tensor(value, network, config, tmp_path):
    with torch.no_grad():
        network.conv2.conv.weight[3, 1, 0, 2] = value
    save_network(network, config, tmp_path / "nan.ckpt")

    with pytest.raises(ValueError, match="nan.ckpt: conv2.conv.weight holds NaN or infinity; use an earlier"):
        load_network(tmp_path / "nan.ckpt")


def test_wrong_shape_missing_and_extra_tensors_are_refused_by_name(network):
    weights = network.state_dict()

    with pytest.raises(ValueError, match=r"x.ckpt: fc7.linear.bias has shape \(5,\), but this network's is \(16,\)"):
        load_weights(network, {**weights, "fc7.linear.bias": torch.zeros(5)}, "x.ckpt")
    with pytest.raises(ValueError, match="x.ckpt has no weights for conv1.conv.weight"):
        load_weights(network, {name: weights[name] for name in weights if name != "conv1.conv.weight"}, "x.ckpt")
    with pytest.raises(ValueError, match="x.ckpt holds conv6.conv.bias, which this network has not"):
        load_weights(network, {**weights, "conv6.conv.bias": torch.zeros(5)}, "x.ckpt")


def test_refused_weights_leave_the_network_as_it_was(config):
    network, other = fresh(config, seed=1), fresh(config, seed=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    with pytest.raises(ValueError, match="fc8.linear.bias"):
        load_weights(network, {**other.state_dict(), "fc8.linear.bias": torch.full((3,), torch.nan)}, "x.ckpt")

    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


# --- finding ---


def run(folder, *names):
    """A run folder with empty checkpoints of these names."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in names:
        (folder / "checkpoints" / f"{name}.ckpt").touch()
    return folder


def test_run_folder_means_its_best_checkpoint_else_its_last(tmp_path):
    both = run(tmp_path / "both", "best", "last", "epoch_001")
    last = run(tmp_path / "last", "last", "epoch_001")

    assert find_checkpoint(both) == both / "checkpoints" / "best.ckpt"
    assert find_checkpoint(str(last)) == last / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("name", ["last", "best", "epoch_010"])
def test_name_after_the_run_folder_means_that_checkpoint(name, tmp_path):
    folder = run(tmp_path / "run", "best", "last", "epoch_010")

    expected = folder / "checkpoints" / f"{name}.ckpt"

    assert find_checkpoint(folder / name) == expected
    assert find_checkpoint(folder / "checkpoints" / name) == expected
    assert find_checkpoint(expected) == expected


def test_missing_checkpoint_is_refused_with_the_candidates(tmp_path):
    folder = run(tmp_path / "outputs" / "monday", "best", "epoch_010")
    (tmp_path / "outputs" / "notes").mkdir()

    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*epoch_020; there are .*best.ckpt, .*epoch_010"):
        find_checkpoint(folder / "epoch_020")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*tuesday; there are \S*monday; give a run folder"):
        find_checkpoint(tmp_path / "outputs" / "tuesday")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at nowhere/run; give a run folder, a .ckpt file"):
        find_checkpoint("nowhere/run")


def test_run_without_a_finished_epoch_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no best.ckpt or last.ckpt; the run had not finished an epoch"):
        load_network(run(tmp_path / "run"))


@pytest.mark.parametrize("source", ["https://example.org/a.ckpt", "http://example.org/a.ckpt", "s3://bucket/a.ckpt"])
def test_url_is_refused(source):
    with pytest.raises(ValueError, match=f"{source} is a URL; download the file first"):
        load_network(source)


# --- starting from trained weights ---


def test_start_from_a_run_takes_all_weights(saved, network, config):
    start = fresh(config, seed=9)

    kept = start_from(start, str(saved.parent.parent))

    assert kept == []
    assert same(network, start)


def test_start_from_a_bare_state_dict_of_the_right_shapes(network, config, tmp_path):
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    start = fresh(config, seed=9)

    kept = start_from(start, str(tmp_path / "bare.pth"))

    assert kept == []
    assert same(network, start)


def test_classes_layer_of_another_size_stays_fresh(saved, network, config):
    start, untouched = fresh(config, num_classes=7, seed=9), fresh(config, num_classes=7, seed=9)

    kept = start_from(start, str(saved))

    assert kept == ["fc8.linear.weight", "fc8.linear.bias"]
    assert torch.equal(start.fc8.linear.weight, untouched.fc8.linear.weight)
    assert torch.equal(start.conv1.conv.weight, network.conv1.conv.weight)
    assert torch.equal(start.fc7.linear.weight, network.fc7.linear.weight)
    assert not torch.equal(start.fc7.linear.weight, untouched.fc7.linear.weight)


def test_any_other_layer_of_another_size_is_refused(saved, config):
    with initialize_config_dir(CONF, version_base="1.3"):
        other = build_network(compose("train", overrides=["model=zfnet_mini"]).model, 3, SIZE)

    with pytest.raises(ValueError, match=r"conv1.conv.weight has shape \(8, 3, 7, 7\), but this network's is \(32, 3"):
        start_from(other, str(saved))


def test_a_file_without_weights_is_refused(config, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "notes.pth")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")

    for name in ("notes.pth", "linear.pth"):
        with pytest.raises(ValueError, match=f"{name} has no weights for conv1.conv.weight"):
            start_from(fresh(config), str(tmp_path / name))


def test_entries_that_are_no_tensors_are_refused(network, config, tmp_path):
    torch.save({**network.state_dict(), "conv1.conv.weight": 3}, tmp_path / "odd.pth")

    with pytest.raises(ValueError, match="odd.pth.*conv1.conv.weight"):
        start_from(fresh(config), str(tmp_path / "odd.pth"))
