"""State dicts of others, whatever they are called and wrapped in."""

import argparse
import random
import re
from collections import OrderedDict

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.networks.saved import fresh
from zfscope.networks.build import build_network
from zfscope.networks.checkpoints import read_checkpoint, start_from, write_checkpoint
from zfscope.networks.state_dicts import check_weights, find_weights, read_weights

WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "backbone.encoder.", "a_name_of_nobody.")
KEYS = ("state_dict", "model", "model_state", "net", "weights", "checkpoint", "of_nobody")
KINDS = ("chain", "timm", "torchvision", "torchvision chain")


def source(kind, seed=1):
    """A state dict under its author's names, and the network that it is for, with other weights."""
    torch.manual_seed(seed)
    if kind == "timm":
        return timm.create_model("test_resnet", num_classes=4).state_dict()
    if kind == "torchvision":
        return torchvision.models.squeezenet1_1(num_classes=4).state_dict()
    return torchvision.models.alexnet(num_classes=4).state_dict()


@pytest.fixture(scope="module")
def made(config):
    """By kind a network and the weights of another one under its author's names."""
    pairs = {"chain": (fresh(config), fresh(config, seed=1).state_dict())}
    for kind, model in {
        "timm": {"source": "timm", "name": "test_resnet"},
        "torchvision": {"source": "torchvision", "name": "squeezenet1_1"},
        "torchvision chain": {"source": "torchvision", "name": "alexnet"},
    }.items():
        with torch.device("meta"):
            network = build_network(model, 4, 224)
        with torch.device("meta" if kind == "torchvision chain" else "cpu"):
            pairs[kind] = network, source(kind)
    return pairs


def wrapped(weights, prefixes, keys):
    """Weights with prefixes before their names, in nested dictionaries beside what else a training saves."""
    named = {"".join(prefixes) + name: tensor for name, tensor in weights.items()}
    for key in reversed(keys):
        named = {"epoch": 7, key: named, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []}}
    return named


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(prefixes=st.lists(st.sampled_from(WRAPPERS), max_size=3), keys=st.lists(st.sampled_from(KEYS), max_size=2))
def test_any_prefixes_in_any_nesting_load(kind, prefixes, keys, made):
    network, weights = made[kind]

    found = find_weights(wrapped(weights, prefixes, keys), network, "file.pth")

    assert list(sorted(found)) == sorted(network.state_dict())
    own = dict(zip(sorted(map(id, weights.values())), sorted(map(id, found.values())), strict=True))
    assert all(before == after for before, after in own.items())  # the same tensors, each once
    for name, tensor in network.state_dict().items():
        assert found[name].shape == tensor.shape, name
        short = name.removeprefix("body.")
        assert short not in weights or found[name] is weights[short]


@pytest.mark.parametrize("kind", ["chain", "timm"])
def test_a_training_starts_from_a_wrapped_file(kind, made, config, tmp_path):
    weights = made[kind][1]
    torch.save(wrapped(weights, ("model.", "_orig_mod.", "module."), ("state_dict",)), tmp_path / "file.pth")
    if kind == "timm":
        network = build_network({"source": "timm", "name": "test_resnet"}, 4, 64)
    else:
        network = fresh(config)

    start_from(network, str(tmp_path / "file.pth"))

    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, weights[name.removeprefix("body.")])


def test_compiled_parts_of_a_module_load(made):
    network, weights = made["timm"]
    named = {re.sub(r"^layer1\.", "layer1._orig_mod.", name): tensor for name, tensor in weights.items()}
    assert named.keys() != weights.keys()

    assert find_weights(named, network, "file.pth").keys() == network.state_dict().keys()


def average_of(weights):
    return {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def named(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


AVERAGES = {
    "timm": lambda own, average: {"state_dict": own, "state_dict_ema": average, "epoch": 3},
    "detectron": lambda own, average: {"model": own, "model_ema": average},
    "yolo": lambda own, average: {"model": own, "ema": {"module": average, "updates": 5}},
    "averaged": lambda own, average: {"net": own, "averaged_weights": average},
    "flat": lambda own, average: (
        {f"net.{n}": t for n, t in own.items()} | {f"ema_net.{n}": t for n, t in average.items()}
    ),
    "camels": lambda own, average: {"model": own, "modelEMA": average},
    "swa": lambda own, average: {
        "model": own,
        "swa_model": {"n_averaged": torch.tensor(4)} | named("module.", average),
    },
    "lightning": lambda own, average: {
        "current_model_state": named("network.", own),
        "state_dict": named("network.", average),
        "averaging_state": {"n_averaged": torch.tensor(4)},
    },
}


@pytest.mark.parametrize("kind", ["chain", "timm", "torchvision chain"])
@pytest.mark.parametrize("way", AVERAGES)
def test_averaged_weights_are_taken_and_it_is_said_in_one_line(way, kind, made, capsys):
    network, weights = made[kind]
    average = average_of(weights)

    found = find_weights(AVERAGES[way](weights, average), network, "file.pth")

    assert {id(tensor) for tensor in found.values()} <= {id(tensor) for tensor in average.values()}
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert printed.startswith("file.pth: averaged weights are taken, ")


@pytest.mark.parametrize("names", ["state_dict", "ema"])
def test_weights_that_stand_alone_are_taken_without_a_word(names, made, capsys):
    network, weights = made["timm"]

    found = find_weights({names: weights}, network, "file.pth")

    assert found["body.conv1.0.weight"] is weights["conv1.0.weight"]
    assert capsys.readouterr().out == ""


def test_a_run_s_own_averages_are_taken_and_it_is_said(network, config, saved, capsys):
    content = read_checkpoint(saved)
    average = average_of(content["state_dict"])
    write_checkpoint({**content, "current_model_state": content["state_dict"], "state_dict": average}, saved)
    other = fresh(config, seed=5)

    start_from(other, str(saved))

    assert torch.equal(other.conv1.conv.weight, network.conv1.conv.weight + 1)
    assert capsys.readouterr().out.endswith(
        "averaged weights are taken, state_dict.network, not current_model_state.network\n"
    )


def test_several_different_weights_that_fit_are_refused(made):
    network, weights = made["timm"]
    other = average_of(weights)

    with pytest.raises(ValueError, match="file.pth holds several weights that fit: student, teacher; save"):
        find_weights({"student": weights, "teacher": other}, network, "file.pth")
    with pytest.raises(ValueError, match="several weights that fit: a_ema, b_ema"):
        find_weights({"model": weights, "a_ema": weights, "b_ema": other}, network, "file.pth")


def test_the_same_weights_twice_are_no_question(made):
    network, weights = made["timm"]
    copies = {name: tensor.clone() for name, tensor in weights.items()}

    assert find_weights({"model": weights, "state_dict": copies}, network, "file.pth")


def test_of_two_networks_the_one_whose_shapes_fit_is_taken(made):
    network, weights = made["timm"]
    wider = {name: torch.cat([tensor, tensor]) if tensor.ndim else tensor for name, tensor in weights.items()}

    found = find_weights({"student": weights, "teacher": wider}, network, "file.pth")

    assert found["body.conv1.0.weight"] is weights["conv1.0.weight"]


def test_counters_that_old_files_lack_start_at_zero(made):
    network, weights = made["timm"]
    old = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}

    found = find_weights(old, network, "old.pth")

    check_weights(network, found, "old.pth")
    assert len(old) < len(found)


def test_what_is_missing_is_named_whatever_stands_before_it(made):
    network, weights = made["timm"]
    part = {f"module.{name}": tensor for name, tensor in weights.items() if name != "layer2.0.conv1.weight"}

    with pytest.raises(ValueError, match="file.pth has no weights for body.layer2.0.conv1.weight; it holds another"):
        check_weights(network, find_weights({"model": part}, network, "file.pth"), "file.pth")
    with pytest.raises(ValueError, match="file.pth has no weights for body.conv1.0.weight"):
        check_weights(network, find_weights({"a": torch.zeros(3)}, network, "file.pth"), "file.pth")


def test_what_a_network_has_not_is_named(made):
    network, weights = made["timm"]
    more = {f"module.{name}": tensor for name, tensor in {**weights, "extra.weight": torch.zeros(3)}.items()}

    with pytest.raises(ValueError, match="file.pth holds extra.weight, which this network has not"):
        check_weights(network, find_weights(more, network, "file.pth"), "file.pth")


@pytest.mark.parametrize("form", ["torch", "old torch", "safetensors", "safetensors by another name"])
def test_files_of_weights_are_read_in_each_form(form, made, tmp_path):
    weights = made["timm"][1]
    path = tmp_path / ("file.safetensors" if form == "safetensors" else "file.pth")
    if "safetensors" in form:
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(OrderedDict(weights), path, _use_new_zipfile_serialization=form == "torch")

    found = read_weights(path)

    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_the_options_that_timm_saves_are_read_past(made, tmp_path):
    weights = made["timm"][1]
    options = argparse.Namespace(model="test_resnet", lr=0.1, mean=[0.5, 0.5, 0.5])
    torch.save({"state_dict": weights, "args": options, "epoch": 3}, tmp_path / "last.pth.tar")

    found = find_weights(read_weights(tmp_path / "last.pth.tar"), made["timm"][0], "last.pth.tar")

    assert torch.equal(found["body.fc.weight"], weights["fc.weight"])
    with pytest.raises(ValueError, match="holds more than tensors and plain containers.*argparse.Namespace"):
        read_checkpoint(tmp_path / "last.pth.tar")


class Payload:
    def __reduce__(self):
        return print, ("pwned",)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_payload_in_a_file_of_weights_is_refused(new_format, tmp_path, capsys):
    path = tmp_path / "file.pth"
    torch.save({"state_dict": Payload()}, path, _use_new_zipfile_serialization=new_format)

    with pytest.raises(ValueError, match="file.pth holds more than tensors and plain containers.*print in it"):
        read_weights(path)

    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_is_refused_in_one_line(name, seed, tmp_path):
    path, rng = tmp_path / name, random.Random(seed)
    weights = {"a.weight": torch.randn(3, 4), "b": torch.ones(2)}
    safetensors.torch.save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: rng.randrange(len(content) - 1)])

    with pytest.raises(ValueError, match=f"{name} ") as refusal:
        read_weights(path)

    assert "\n" not in str(refusal.value)


def test_a_file_that_is_not_there_or_holds_no_dictionary_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*no.pth; give the path of"):
        read_weights(tmp_path / "no.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="list.pth holds a list, not a dictionary of weights"):
        read_weights(tmp_path / "list.pth")


def test_a_module_called_like_an_average_is_none(capsys):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.ema = nn.Conv2d(3, 4, 3)

    from zfscope.networks.hooked import HookedNetwork

    torch.manual_seed(0)
    module = Attention()

    found = find_weights({"model": module.state_dict()}, HookedNetwork(module, ["ema"]), "file.pth")

    assert found.keys() == {"body.ema.weight", "body.ema.bias"}
    assert capsys.readouterr().out == ""
