import pickle
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from tests.conftest import composed, quick_first
from zfscope import load_network
from zfscope.evaluation import check_classes
from zfscope.networks.build import CHAINS, build_network
from zfscope.networks.checkpoints import save_network
from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.imagenet import class_names, wnids
from zfscope.networks.public import (
    ZOO,
    check_fits,
    filled,
    imagenet_preprocessing,
    is_zoo_name,
    open_zoo,
    preprocessing_of,
    zoo_config,
)
from zfscope.networks.spec import ModelConfig
from zfscope.networks.state_dicts import find_weights
from zfscope.schema import check

zfnets = pytest.importorskip("pytorchcv.models.zfnet", reason="pip install -e '.[zoo]'")


def converted(model, name):
    return filled(name, model.state_dict()).train(model.training)


def images(count=1, dtype=torch.float32):
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture(scope="module", params=["zfnet", "zfnetb"])
def pytorchcv_zfnet(request):
    torch.manual_seed(0)
    return f"zoo/{request.param}", getattr(zfnets, request.param)().eval()


@pytest.fixture(scope="module", params=["alexnet", "vgg11"])
def torchvision_model(request):
    torch.manual_seed(0)
    return f"torchvision/{request.param}", torchvision.models.get_model(request.param, weights=None).eval()


@torch.no_grad()
def test_pytorchcv_zfnet_with_random_weights_gives_the_same_logits(pytorchcv_zfnet):
    name, model = pytorchcv_zfnet
    inputs = 50 * images()  # strong enough for the contrast normalisation to matter

    logits = converted(model, name)(inputs)

    expected = model(inputs)
    assert expected.std() > 1
    torch.testing.assert_close(logits / expected.std(), expected / expected.std(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_pytorchcv_zfnet_in_float64_agrees_to_rounding():
    torch.manual_seed(0)
    model = zfnets.zfnet().double().eval()
    inputs = 50 * images(dtype=torch.float64)

    logits = converted(model, "zoo/zfnet")(inputs)

    torch.testing.assert_close(logits, model(inputs), rtol=1e-12, atol=1e-10)


@torch.no_grad()
def test_torchvision_model_with_random_weights_gives_the_same_logits(torchvision_model):
    name, model = torchvision_model
    logits = converted(model, name)(images())

    expected = model(images())
    torch.testing.assert_close(logits / expected.std(), expected / expected.std(), rtol=0, atol=1e-5)


def test_converted_weights_are_a_copy_and_keep_the_mode():
    model = zfnets.zfnet().train()

    network = converted(model, "zoo/zfnet")

    with torch.no_grad():
        model.features.stage1.unit1.conv.bias.fill_(7)
    assert network.training
    assert not (network.conv1.conv.bias == 7).any()
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in network.parameters())


@torch.no_grad()
def test_converted_network_comes_back_from_a_checkpoint_with_logits_preprocessing_and_classes(tmp_path):
    torch.manual_seed(0)
    network = converted(zfnets.zfnet().eval(), "zoo/zfnet")
    network.preprocessing = imagenet_preprocessing()
    network.classes = tuple(f"class {number}" for number in range(1000))
    path = tmp_path / "zfnet.ckpt"

    save_network(network, {"model": zoo_config("zoo/zfnet")}, path)
    loaded = load_network(path)
    path.unlink()  # 0.2 GB

    assert torch.equal(loaded(images()), network(images()))
    assert torch.equal(loaded.preprocessing.mean, network.preprocessing.mean)
    assert torch.equal(loaded.preprocessing.scale, network.preprocessing.scale)
    assert (loaded.preprocessing.resize, loaded.preprocessing.crop) == (256, 224)
    assert loaded.classes == network.classes


CHAINS_OF_ZOO = [name for name, model in ZOO.items() if "conv1" in model or model["name"] in CHAINS]
CHAINS_FIRST = quick_first(sorted(ZOO, key=lambda name: (ZOO[name]["source"] != "convnet", "lite" in name, name)), 4)


@pytest.mark.parametrize("name", CHAINS_FIRST)
def test_each_config_is_valid_and_builds_the_package_s_number_of_parameters(name):
    published = {
        "zoo/zfnet": 62_357_608,
        "zoo/zfnetb": 107_627_624,
        "zoo/squeezenet1_1": 1_235_496,
        **{f"zoo/efficientnet_lite{n}": count for n, count in enumerate((4_652_008, 5_416_680, 6_092_072))},
    }
    if name.startswith("torchvision/"):
        entry = torchvision.models.get_model_weights(name.removeprefix("torchvision/"))
        published[name] = getattr(entry, "IMAGENET1K_V1", entry.DEFAULT).meta["num_params"]
    crop = preprocessing_of(name).crop

    with torch.device("meta"):
        network = build_network(check(ModelConfig, zoo_config(name)), 1000, crop)

    assert sum(parameter.numel() for parameter in network.parameters()) == published[name]


def test_changing_a_config_that_was_asked_for_leaves_the_zoo_alone():
    zoo_config("zoo/zfnet")["conv1"]["maps"] = 1

    assert ZOO["zoo/zfnet"]["conv1"]["maps"] == 96


def test_preprocessing_is_what_torchvision_s_weights_ask_for():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (300, 256, 3), dtype=np.uint8))  # short side 256: no resizing
    transforms = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms()

    inputs = imagenet_preprocessing()(image)

    torch.testing.assert_close(inputs, transforms(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["alexnet", "resnet50", "efficientnet_b1"])
@pytest.mark.parametrize("size", [(500, 375), (301, 257), (233, 999), (90, 61)])
def test_a_network_of_torchvision_gets_its_images_as_torchvision_gives_them(name, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))

    inputs = preprocessing_of(f"torchvision/{name}")(image)

    expected = torchvision.models.get_model_weights(name).IMAGENET1K_V1.transforms()(image)
    torch.testing.assert_close(inputs, expected, rtol=0, atol=2e-5)


def test_names_of_the_zoo_are_told_from_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("zoo/zfnet", "torchvision/vgg19", "zoo/zfnt", "torchvision/resnet18"):
        assert is_zoo_name(name)
    for name in ("outputs/run", "zoo", "run.ckpt", "zoo/zfnet/last", "../zoo/zfnet"):
        assert not is_zoo_name(name)

    (tmp_path / "zoo").mkdir()

    assert is_zoo_name("zoo/zfnet")
    assert not is_zoo_name("zoo/my_run")


def test_misspelt_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="no public weights 'zoo/zfnt'; did you mean zoo/zfnet"):
        open_zoo("zoo/zfnt")
    with pytest.raises(ValueError, match="no public weights"):
        load_network("zoo/zfnt")


def test_other_models_are_refused():
    with torch.device("meta"):
        resnet = torchvision.models.resnet18()
        batch_norm = torchvision.models.vgg11_bn()
        small = torchvision.models.alexnet(num_classes=10)

    with pytest.raises(ValueError, match="no weights of zoo/zfnet: those for conv1.conv.weight are missing"):
        converted(resnet, "zoo/zfnet")
    with pytest.raises(ValueError, match="no weights of torchvision/vgg11"):
        converted(batch_norm, "torchvision/vgg11")
    with pytest.raises(ValueError, match=r"for fc8.linear.weight have shape \(10, 4096\), expected \(1000, 4096\)"):
        converted(small, "torchvision/alexnet")


def test_foreign_names_become_ours_by_order_and_our_own_stay():
    with torch.device("meta"):
        model = torchvision.models.alexnet()
        network = build_network(zoo_config("torchvision/alexnet"), 1000, 224)
    weights = model.state_dict()

    renamed = find_weights(weights, network, "alexnet.pth")

    assert renamed["conv3.conv.weight"] is weights["features.6.weight"]
    assert renamed["fc6.linear.bias"] is weights["classifier.1.bias"]
    assert list(find_weights(renamed, network, "ours.pth")) == list(renamed)
    assert list(find_weights({"features.0.weight": 0}, network, "part.pth")) == ["features.0.weight"]
    assert list(find_weights(weights, HookedNetwork(model), "alexnet.pth")) == [f"body.{name}" for name in weights]


@pytest.mark.parametrize(
    "name", [name for name, model in ZOO.items() if "vgg" in name and "bn" not in name or "zfnet" in name]
)
def test_a_network_that_would_compute_something_else_is_told_the_overrides_that_fit(name):
    def built(*overrides):
        with torch.device("meta"):
            return build_network(composed(*overrides)["model"], 5, 224)

    with pytest.raises(ValueError, match=f"weights={name} were trained .*: conv1.*; use model=") as refusal:
        check_fits(built("model=zfnet"), name)

    check_fits(built(*str(refusal.value).partition("; use ")[2].split()), name)


def test_weights_of_a_network_that_is_no_chain_fit_that_network_alone():
    with torch.device("meta"):
        own = build_network(composed("model=torchvision", "model.name=squeezenet1_1")["model"], 5, 227)
        other = build_network(composed("model=zfnet")["model"], 5, 224)

    check_fits(own, "zoo/squeezenet1_1")
    told = "weights=zoo/squeezenet1_1 belong to another network; use model=torchvision model.name=squeezenet1_1"
    with pytest.raises(ValueError, match=told):
        check_fits(other, "zoo/squeezenet1_1")


def test_public_weights_do_not_fit_a_network_that_is_no_chain():
    network = HookedNetwork(nn.Sequential(nn.Conv2d(3, 4, 3)))

    with pytest.raises(ValueError, match="weights=zoo/zfnet were trained .*: conv1.maps is 96 there, None here; use"):
        check_fits(network, "zoo/zfnet")


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    def refuse_url(*_args, **_kwargs):
        raise urllib.error.URLError("Name or service not known")

    def refused(_url):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.urlopen", refuse_url)
    monkeypatch.setattr("zfscope.networks.downloads.ask_server", refused)


@pytest.mark.parametrize(
    ("name", "file"),
    [("zoo/zfnet", "zfnet-1727-d010ddca.pth.zip"), ("torchvision/alexnet", "alexnet-owt-7be5be79.pth")],
)
def test_without_network_one_line_names_the_file_and_the_offline_way(name, file, no_network, tmp_path):
    with pytest.raises(ConnectionError, match="weights_file=FILE") as refusal:
        load_network(name)

    line = str(refusal.value)
    assert "\n" not in line
    assert line.startswith(f"{name}: the weights could not be downloaded from https://")
    assert file in line
    assert "Name or service not known" in line
    assert str(tmp_path) in line


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


@pytest.mark.parametrize(
    "content", [b"<html>login</html>", pickle.dumps(Payload(), 2), b""], ids=["page", "payload", "empty"]
)
def test_a_download_that_is_no_weights_is_the_same_line(content, no_network, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stray.pth").write_bytes(content)
    monkeypatch.setattr("zfscope.networks.downloads.ask_server", lambda url: None)
    monkeypatch.setattr("zfscope.networks.public.unpacked", lambda *_args: "stray.pth")

    with pytest.raises(ConnectionError, match="zoo/zfnet: the weights could not be downloaded"):
        open_zoo("zoo/zfnet")

    assert not Path("pwned").exists()


def test_a_payload_in_torch_s_format_is_not_run(no_network, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.save({"features.stage1.unit1.conv.weight": Payload()}, "stray.pth")
    monkeypatch.setattr("zfscope.networks.downloads.ask_server", lambda url: None)
    monkeypatch.setattr("zfscope.networks.public.unpacked", lambda *_args: "stray.pth")

    with pytest.raises(ConnectionError, match="zoo/zfnet: the weights could not be downloaded"):
        open_zoo("zoo/zfnet")

    assert not Path("pwned").exists()


def test_downloaded_weights_end_up_in_the_network_in_eval_mode(no_network, monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = zfnets.zfnet().eval()
    file = tmp_path / "zfnet.pth"
    torch.save(model.state_dict(), file)
    monkeypatch.setattr("zfscope.networks.downloads.ask_server", lambda url: None)
    monkeypatch.setattr("zfscope.networks.public.unpacked", lambda *_args: str(file))

    network = load_network("zoo/zfnet")
    file.unlink()  # 0.2 GB

    assert not network.training
    assert network.classes == class_names()
    assert all(map(torch.equal, network.state_dict().values(), model.state_dict().values()))


def test_classes_of_torchvision_s_weights_are_in_words_and_imagenets_folders_fit(monkeypatch):
    def weights(_entry, **options):
        assert options["weights_only"] and options["check_hash"]
        with torch.device("meta"):
            return torchvision.models.alexnet().state_dict()

    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", weights)
    monkeypatch.setattr("zfscope.networks.downloads.ask_server", lambda url: None)

    network = open_zoo("torchvision/alexnet")

    assert network.classes == class_names()
    check_classes(network, wnids())
    assert network.num_classes == 1000
    assert network.layers[-1] == "fc8"


def test_missing_package_tells_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pytorchcv.models.common.model_store", None)

    with pytest.raises(FileNotFoundError, match=r"package pytorchcv.*pip install -e '\.\[zoo\]'"):
        open_zoo("zoo/zfnetb")
