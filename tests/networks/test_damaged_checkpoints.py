"""Damaged and foreign checkpoints are refused by name."""

import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch

from tests.networks.saved import fresh, same
from zfscope import load_network
from zfscope.networks.checkpoints import (
    check_weights,
    read_checkpoint,
    save_network,
    start_from,
    write_checkpoint,
)


@pytest.mark.parametrize("length", [0, 1, 0.1, 0.5, 0.99, -1])
def test_truncated_file_is_refused_by_name(length, saved):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(length * len(content)) if 0 < length < 1 else length])

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


def test_a_name_of_any_characters_is_told_in_one_line(saved):
    content = read_checkpoint(saved)
    content["state_dict"]["network.a\x1b\n" + "b" * 5000] = torch.zeros(1)
    write_checkpoint(content, saved)

    with pytest.raises(ValueError, match=r"holds a\\x1b\\nb+ … b+, which this network has not") as told:
        load_network(saved)

    assert str(told.value).isprintable() and len(str(told.value)) < 500


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", None),
        ("format", {"mean": torch.zeros(99, 1), "a\nb": ["x"] * 999}),
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


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["state_dict"], 3),
        (["epoch"], "x"),
        (["loops"], {"fit_loop": 1}),
        (["zfscope", "config"], 3),
        (["zfscope", "config", "data"], [1]),
        (["zfscope", "config", "seed"], torch.zeros(2)),
        (["zfscope", "identity"], {"digest": 3}),
        (["zfscope", "classes"], [1, 2, 3]),
        (["zfscope", "preprocessing"], {"crop": 3}),
        (["zfscope", "preprocessing", "resize"], {}),
        (["zfscope", "preprocessing", "mean"], 0.5),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, list) and isinstance(value[0], str) else "",
)
def test_a_part_of_another_kind_is_refused_by_name(keys, value, saved, network):
    content = read_checkpoint(saved)
    part = content
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    write_checkpoint(content, saved)

    for use in (load_network, lambda path: start_from(network, path)):
        with pytest.raises(ValueError, match="best.ckpt.*(its|does not tell how its images are prepared)") as refusal:
            use(str(saved))
        assert "\n" not in str(refusal.value)


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
        check_weights(network, {**weights, "fc7.linear.bias": torch.zeros(5)}, "x.ckpt")
    with pytest.raises(ValueError, match="x.ckpt has no weights for conv1.conv.weight"):
        check_weights(network, {name: weights[name] for name in weights if name != "conv1.conv.weight"}, "x.ckpt")
    with pytest.raises(ValueError, match="x.ckpt holds conv6.conv.bias, which this network has not"):
        check_weights(network, {**weights, "conv6.conv.bias": torch.zeros(5)}, "x.ckpt")


def test_refused_weights_leave_the_network_as_it_was(config):
    network, other = fresh(config, seed=1), fresh(config, seed=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    with pytest.raises(ValueError, match="fc8.linear.bias"):
        check_weights(network, {**other.state_dict(), "fc8.linear.bias": torch.full((3,), torch.nan)}, "x.ckpt")

    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
