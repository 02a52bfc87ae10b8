"""The pretrained models of timm by name; timm's own forward pass is the oracle. Nothing is downloaded."""

import re

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from timm.data import ImageNetInfo

from tests.conftest import composed
from zfscope import load_network
from zfscope.evaluation import check_classes
from zfscope.invariance import low_and_high
from zfscope.networks.build import build_network
from zfscope.networks.checkpoints import run_config, run_identity, save_network, start_from
from zfscope.networks.hooked import TimmNetwork
from zfscope.networks.imagenet import class_names, same_classes, wnids
from zfscope.networks.public import check_fits, is_zoo_name, zoo_config
from zfscope.networks.timm_weights import full_name, preprocessing
from zfscope.occlusion import occlude

HEADLESS = "convnextv2_atto.fcmae"


def saved_model(folder, name="test_resnet", form="safetensors"):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    path = folder / f"{name}.{form}"
    weights = model.state_dict()
    safetensors.torch.save_file(weights, path) if form == "safetensors" else torch.save(weights, path)
    return model, path


@pytest.mark.parametrize("form", ["safetensors", "pth"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@torch.no_grad()
def test_a_model_from_a_file_computes_what_timm_s_does(name, form, tmp_path):
    model, path = saved_model(tmp_path, name, form)
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))

    network = load_network(f"timm/{name}", weights_file=path)

    torch.testing.assert_close(network(images), model(images), rtol=0, atol=1e-6)
    assert not network.training
    assert network.classes == class_names()
    assert (network.num_classes, network.image_size) == (1000, 160)
    assert not any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])


@pytest.mark.slow
@torch.no_grad()
def test_both_heads_of_a_distilled_model_are_its_classifier(tmp_path):
    model, path = saved_model(tmp_path, "deit_tiny_distilled_patch16_224")
    images = torch.randn(1, 3, 224, 224)

    network = load_network("timm/deit_tiny_distilled_patch16_224", path)

    torch.testing.assert_close(network(images), model(images), rtol=0, atol=1e-6)
    assert network.classifier_prefixes == ("body.head.", "body.head_dist.")
    assert not {"head", "head_dist"} & set(network.layers_below_classes)


def test_names_of_a_model_s_authors_are_those_that_timm_knows(tmp_path):
    model, path = saved_model(tmp_path, "test_convnext", "pth")
    weights = {authors_name(name): tensor for name, tensor in model.state_dict().items()}
    assert "downsample_layers.0.0.weight" in weights
    torch.save({"model": weights}, path)

    network = load_network("timm/test_convnext", path)

    assert all(torch.equal(network.body.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def authors_name(name):
    """What ConvNeXt's authors call a parameter."""
    for ours, theirs in (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
        (r"^(stages\.\d+)\.blocks\.", r"\1."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.mlp\.fc(\d)\.", r".pwconv\1."),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ):
        name = re.sub(ours, theirs, name)
    return name


def test_a_name_means_timm_s_default_training():
    assert full_name("timm/resnet18") == "resnet18.a1_in1k"
    assert full_name("timm/resnet18.tv_in1k") == "resnet18.tv_in1k"
    assert zoo_config("timm/resnet18") == {"source": "timm", "name": "resnet18.a1_in1k", "input_scale": "unit"}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("timm/resnt18", "no public weights 'timm/resnt18'; did you mean timm/resnet18"),
        ("timm/resnet18.a9_in1k", "no public weights 'timm/resnet18.a9_in1k'; did you mean timm/resnet18.a[123]_in1k"),
        ("timm/seresnet18.a1_in1k", "timm has no pretrained weights of seresnet18"),
        (
            "timm/seresnet18",
            "timm has the model seresnet18, but no pretrained weights of it; train it .*weights_file=FILE",
        ),
        ("timm/volo_d4_448", "wants images of 389 px in a black frame of 448 px, which is not drawn"),
        ("timm/vit_base_patch16_sapiens2", "wants images of 3 x 1024 x 768; only squares in colour"),
    ],
)
def test_what_cannot_be_taken_is_refused_in_one_line(name, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert is_zoo_name(name)
    with pytest.raises(ValueError, match=told) as refusal:
        load_network(name)
    assert "\n" not in str(refusal.value)


def test_a_folder_called_timm_may_hold_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "timm").mkdir()

    assert is_zoo_name("timm/resnet18")
    assert not is_zoo_name("timm/my_run")
    assert not is_zoo_name("timm/resnet18/last")


def test_a_model_without_pretrained_weights_takes_a_file(tmp_path):
    model, path = saved_model(tmp_path, "test_mambaout")

    network = load_network("timm/test_mambaout", path)

    assert all(map(torch.equal, network.body.state_dict().values(), model.state_dict().values()))


def test_a_file_of_another_model_is_refused_by_the_first_name_that_is_missing(tmp_path):
    _, path = saved_model(tmp_path, "test_vit")

    with pytest.raises(
        ValueError, match=r"test_vit.safetensors has no weights for body\.\S+; it holds another network"
    ):
        load_network("timm/test_resnet", path)

    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), path.with_suffix(".pth"))
    with pytest.raises(ValueError, match=r"body.fc.weight has shape \(7, \d+\), but this network's is \(1000, \d+\)"):
        load_network("timm/test_resnet", path.with_suffix(".pth"))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model, _ = saved_model(tmp_path)
    weights = model.state_dict()
    weights["layer1.0.conv1.weight"][0, 0, 0, 0] = torch.inf
    torch.save(weights, tmp_path / "inf.pth")

    with pytest.raises(ValueError, match="inf.pth: body.layer1.0.conv1.weight holds NaN or infinity"):
        load_network("timm/test_resnet", tmp_path / "inf.pth")


@torch.no_grad()
def test_torchvision_s_networks_take_a_file_too_also_of_half_floats(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1().eval()
    half = {f"module.{name}": tensor.half() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(half, tmp_path / "half.safetensors")
    model.load_state_dict({name: tensor.half().float() for name, tensor in model.state_dict().items()})
    images = torch.randn(1, 3, 224, 224)

    network = load_network("torchvision/squeezenet1_1", tmp_path / "half.safetensors")

    torch.testing.assert_close(network(images), model(images), rtol=0, atol=1e-6)
    assert network.preprocessing.resize == 256


@pytest.mark.parametrize(
    ("count", "subset"),
    [(1000, "1k"), (11821, "12k"), (21841, "22k"), (21842, "22k-ms"), (21843, "21k-goog"), (11221, "21k-miil")],
)
def test_classes_are_timm_s_each_once_and_in_its_order(count, subset):
    info = ImageNetInfo(f"imagenet-{subset}")

    names = class_names(count)

    assert len(set(names)) == count == len(names)
    assert wnids(count) == tuple(info.label_names())
    for number in range(0, count, 97):
        described, wnid = info.index_to_description(number).split(", "), info.index_to_label_name(number)
        told, _, more = names[number].partition(" (")
        assert told == described[0] or "(" in described[0]
        assert more in ("", *(f"{word})" for word in (*described[1:2], wnid))) or "(" in described[0]
    assert same_classes(names, wnids(count))


def test_other_numbers_of_classes_have_no_names():
    assert class_names(512) == wnids(512) == ()
    assert same_classes((), ())
    assert not same_classes(("a",), ("b",))


@pytest.fixture(scope="module")
def headless(tmp_path_factory):
    model, path = saved_model(tmp_path_factory.mktemp("headless"), HEADLESS)
    return model, path, load_network(f"timm/{HEADLESS}", path)


@torch.no_grad()
def test_a_network_without_a_head_gives_features(headless):
    model, _, network = headless
    images = torch.randn(1, 3, 224, 224)

    torch.testing.assert_close(network(images), model(images), rtol=0, atol=1e-6)
    assert (network.num_classes, network.classes, network.classifier_prefixes) == (0, None, ())
    assert low_and_high(network) == (network.layers[0], network.layers[-1])
    assert network.layers[-1] not in network.layers_with_maps
    assert torch.equal(network.trace(images).maps[network.layers[-1]], network(images))


def test_a_network_without_a_head_says_so_where_classes_are_asked_for(headless):
    network = headless[2]

    with pytest.raises(ValueError, match="this network has no head and tells no classes apart; it can be asked for"):
        check_classes(network, ("cat", "dog"))
    with pytest.raises(ValueError, match="this network has no head"):
        occlude(network, torch.zeros(3, 224, 224), 0)


def test_a_network_without_a_head_comes_back_from_a_checkpoint(headless, tmp_path):
    network = headless[2]

    save_network(network, {"model": zoo_config(f"timm/{HEADLESS}")}, tmp_path / "own.ckpt")
    again = load_network(tmp_path / "own.ckpt")

    assert (again.num_classes, again.classes) == (0, None)
    assert again.preprocessing.canvas_kind == network.preprocessing.canvas_kind
    assert all(map(torch.equal, again.state_dict().values(), network.state_dict().values()))


def test_only_timm_s_networks_may_have_no_classes():
    with pytest.raises(ValueError, match="num_classes and image_size must be 1 or more, but are 0 and 64"):
        build_network(composed("model=zfnet_mini")["model"], 0, 64)


def test_a_training_starts_from_public_weights_and_its_classes_start_fresh(tmp_path):
    model, path = saved_model(tmp_path)
    network = TimmNetwork("test_resnet", 3, 160)

    fresh = start_from(network, "timm/test_resnet", path)

    assert fresh == ["body.fc.weight", "body.fc.bias"]
    assert torch.equal(network.body.state_dict()["layer1.0.conv1.weight"], model.state_dict()["layer1.0.conv1.weight"])
    assert network.preprocessing.resize == 168
    with pytest.raises(ValueError, match="was trained on crops of 160 px; use data.resize=168 data.crop=160"):
        start_from(TimmNetwork("test_resnet", 3, 64), "timm/test_resnet", path)
    with pytest.raises(ValueError, match="belong to another network; use model=timm model.name=test_resnet.r160_in1k"):
        start_from(TimmNetwork("test_vit", 3, 160), "timm/test_resnet", path)


def test_a_training_starts_from_weights_without_a_head(headless):
    model, path, _ = headless
    network = TimmNetwork("convnextv2_atto", 3, 224)

    fresh = start_from(network, f"timm/{HEADLESS}", path)

    assert fresh and all(name.startswith("body.head.fc.") for name in fresh)
    own = network.body.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())
    check_fits(network, f"timm/{HEADLESS}")


def test_a_file_counts_in_the_identity_of_a_network(tmp_path):
    _, path = saved_model(tmp_path)

    plain, own = run_identity("timm/test_resnet"), run_identity("timm/test_resnet", path)

    assert plain == {"digest": "timm/test_resnet", "facts": {"weights": "timm/test_resnet"}}
    assert own["digest"] != plain["digest"]
    assert re.fullmatch("[0-9a-f]{64}", own["facts"]["weights_file"])
    assert run_config("timm/test_resnet") == {}


def test_a_file_without_a_public_name_is_refused(trained_run, tmp_path):
    with pytest.raises(ValueError, match="weights_file=x.pth belongs to a public network, such as timm/resnet18"):
        load_network(trained_run, "x.pth")
    with pytest.raises(FileNotFoundError, match="there is no file .*x.pth"):
        load_network("timm/test_resnet", tmp_path / "x.pth")


def test_preprocessing_is_that_of_the_training_s_size():
    own = preprocessing("timm/resnet18", timm.get_pretrained_cfg("resnet18"))

    assert (own.resize, own.crop, own.interpolation, own.crop_mode) == (235, 224, "bicubic", "center")
    torch.testing.assert_close(own.mean.flatten(), torch.tensor([123.675, 116.28, 103.53]))


def test_an_encoder_that_knows_no_classifier_is_a_network_without_a_head():
    with torch.device("meta"):
        network = TimmNetwork("qwen3_vit_88m_enc", 0, timm.get_pretrained_cfg("qwen3_vit_88m_enc").input_size[-1])

    assert network.classifier_prefixes == ()
    assert len(network.layers) > 1
    with pytest.raises(ValueError, match="has no head"):
        network.check_head()
