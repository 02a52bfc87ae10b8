from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import nn
from torch.nn import functional as F

from zfscope.networks.build import build_network, torchvision_chain
from zfscope.networks.chain import ConvNet
from zfscope.networks.hooked import HookedNetwork, TimmNetwork, as_network
from zfscope.networks.network import evaluating, run_to, uncompiled
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.spec import ConvLayer, DenseLayer, PoolConfig

CONF = str(Path(__file__).parents[2] / "conf")
ZFNET_PARAMETERS = 62_357_608


def model(*overrides):
    """The model group as train.py composes it."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("train", overrides=list(overrides)).model


def sizeless(*overrides, num_classes=1000, image_size=224):
    """A network without memory for its weights."""
    with torch.device("meta"):
        return build_network(model(*overrides), num_classes, image_size)


def sizes(network):
    return list(network.sizes.values())


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture
def mini():
    """A small net with all that a chain can have: norms after and before a pool, groups, pools, dense layers."""
    torch.manual_seed(0)
    chain = {
        "conv1": ConvLayer(maps=6, kernel_size=7, stride=2, padding=1, pool=PoolConfig(), norm="after_pool"),
        "conv2": ConvLayer(maps=8, kernel_size=5, stride=2, pool=PoolConfig(), norm="before_pool", groups=2),
        "conv3": ConvLayer(maps=9, kernel_size=3, padding=1),
        "conv4": ConvLayer(maps=7, kernel_size=3, padding=1, norm="after_pool"),
        "conv5": ConvLayer(maps=5, kernel_size=3, padding=1, pool=PoolConfig()),
        "fc6": DenseLayer(units=11, dropout=0.5),
        "fc7": DenseLayer(units=12, dropout=0.5),
        "fc8": DenseLayer(),
    }
    return ConvNet(chain, num_classes=4, image_size=112).double().eval()


def by_hand(network, images):
    """The fixture's forward pass in torch's own functions: maps by layer, and the maps below each pool."""
    weights = dict(network.named_parameters())

    def filtered(name, maps, **options):
        return F.relu(F.conv2d(maps, weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"], **options))

    def pool(maps):
        return F.max_pool2d(maps, 3, 2, ceil_mode=True)

    def norm(maps):
        return F.local_response_norm(maps, 5, alpha=1e-4, beta=0.75, k=2.0)

    def dense(name, maps):
        return F.linear(maps, weights[f"{name}.linear.weight"], weights[f"{name}.linear.bias"])

    below = {"conv1": filtered("conv1", images, stride=2, padding=1)}
    maps = {"conv1": pool(below["conv1"])}
    below["conv2"] = norm(filtered("conv2", norm(maps["conv1"]), stride=2, groups=2))
    maps["conv2"] = pool(below["conv2"])
    maps["conv3"] = filtered("conv3", maps["conv2"], padding=1)
    maps["conv4"] = filtered("conv4", maps["conv3"], padding=1)
    below["conv5"] = filtered("conv5", norm(maps["conv4"]), padding=1)
    maps["conv5"] = pool(below["conv5"])
    maps["fc6"] = F.relu(dense("fc6", maps["conv5"].flatten(1)))
    maps["fc7"] = F.relu(dense("fc7", maps["fc6"]))
    maps["fc8"] = dense("fc8", maps["fc7"])
    return maps, below


def random_images(size=112, count=2):
    generator = torch.Generator().manual_seed(1)
    return 50 * torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


# --- the paper's facts ---


def test_zfnet_has_the_paper_s_map_sizes_and_parameters():
    network = sizeless("model=zfnet")

    assert sizes(network) == [110, 55, 26, 13, 13, 13, 13, 6]
    assert parameters(network) == ZFNET_PARAMETERS
    assert network.layers == ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    assert network.fc6.linear.in_features == 256 * 6 * 6 == 9216


def test_zfnet_has_pool_before_norm_and_dropout_of_a_half_in_layers_6_and_7():
    network = sizeless("model=zfnet")

    assert [list(dict(getattr(network, name).named_children())) for name in network.layers] == [
        ["conv", "relu", "pool", "norm"],
        ["conv", "relu", "pool", "norm"],
        ["conv", "relu"],
        ["conv", "relu"],
        ["conv", "relu", "pool"],
        ["linear", "relu", "dropout"],
        ["linear", "relu", "dropout"],
        ["linear"],
    ]
    assert network.fc6.dropout.p == network.fc7.dropout.p == 0.5


def test_wide_variant_b_has_512_1024_512_maps_of_the_same_size():
    network = sizeless("model=zfnet_wide")

    assert sizes(network) == [110, 55, 26, 13, 13, 13, 13, 6]
    assert [getattr(network, name).conv.out_channels for name in ("conv3", "conv4", "conv5")] == [512, 1024, 512]
    assert parameters(network) == 107_627_624  # as pytorchcv's variant (b)


def test_alexnet_is_the_replication_of_krizhevsky():
    network = sizeless("model=alexnet")

    assert sizes(network) == [55, 27, 27, 13, 13, 13, 13, 6]
    assert [getattr(network, f"conv{number}").conv.groups for number in range(1, 6)] == [1, 2, 1, 2, 2]
    assert list(dict(network.conv1.named_children())) == ["conv", "relu", "norm", "pool"]
    assert list(dict(network.conv2.named_children())) == ["conv", "relu", "norm", "pool"]
    assert parameters(network) == 60_965_224  # Krizhevsky's "60 million"; Caffe's AlexNet has as many


def test_mini_is_zfnet_s_topology_in_small():
    zfnet, mini = sizeless("model=zfnet"), sizeless("model=zfnet_mini", num_classes=10, image_size=112)

    assert sizes(mini) == [54, 27, 12, 6, 6, 6, 6, 3]
    assert [step for step in mini.all_steps()] == [step for step in zfnet.all_steps()]
    assert parameters(mini) < ZFNET_PARAMETERS / 20


@pytest.mark.parametrize(("name", "image_size"), [("zfnet", 224), ("zfnet_mini", 112)])
def test_all_stems_leave_the_sizes_from_conv2_s_pool_up(name, image_size):
    plain = sizeless(f"model={name}", image_size=image_size)

    stems = {
        stem: sizeless(f"model={name}", f"model/stem={stem}", image_size=image_size)
        for stem in ("7x7s2", "7x7s4", "11x11s2", "11x11s4")
    }

    assert {stem: sizes(network)[3:] for stem, network in stems.items()} == dict.fromkeys(stems, sizes(plain)[3:])
    for stem, network in stems.items():
        kernel, stride = network.spec["conv1"].kernel_size, network.spec["conv1"].stride
        assert stem == f"{kernel}x{kernel}s{stride}"
        assert network.fc6.linear.in_features == plain.fc6.linear.in_features


def test_stride_4_alone_shrinks_what_fc6_sees():
    network = sizeless("model=zfnet", "model.conv1.stride=4")

    assert network.fc6.linear.in_features == 2304


# --- layers removed and overridden ---


@pytest.mark.parametrize(
    ("removed", "layers"),
    [
        (["conv3"], ("conv1", "conv2", "conv4", "conv5", "fc6", "fc7", "fc8")),
        (["conv3", "conv4"], ("conv1", "conv2", "conv5", "fc6", "fc7", "fc8")),
        (["fc7"], ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc8")),
        (["fc6", "fc7"], ("conv1", "conv2", "conv3", "conv4", "conv5", "fc8")),
        (["conv3", "conv4", "fc6", "fc7"], ("conv1", "conv2", "conv5", "fc8")),
    ],
    ids="+".join,
)
def test_removed_layers_are_gone_and_the_rest_fits(removed, layers):
    config = model("model=zfnet_mini", *[f"model.{name}=null" for name in removed])

    network = build_network(config, num_classes=5, image_size=112)

    assert network.layers == layers
    assert network(torch.zeros(1, 3, 112, 112)).shape == (1, 5)


def test_removing_the_classes_layer_is_refused():
    with pytest.raises(ValueError, match="fc8 gives the classes' logits and cannot be removed"):
        build_network(model("model.fc8=null"), 5, 112)


@pytest.mark.parametrize("image_size", [96, 112, 127, 160])
def test_fc6_is_sized_by_the_image(image_size):
    network = build_network(model("model=zfnet_mini"), 3, image_size)

    assert network.fc6.linear.in_features == 64 * sizes(network)[-1] ** 2
    assert network(torch.zeros(1, 3, image_size, image_size)).shape == (1, 3)


def test_kernel_larger_than_its_map_is_refused_with_the_sizes_on_the_way_up():
    with pytest.raises(ValueError, match=r"5x5 kernel of conv2 .* 4x4: image 20 -> conv1 8 -> conv1's pool 4; use"):
        build_network(model("model=zfnet_mini"), 10, 20)


def test_groups_that_do_not_divide_the_maps_are_refused():
    with pytest.raises(ValueError, match=r"conv2.groups=5 must divide the 32 maps below and the 64 maps of conv2"):
        build_network(model("model.conv2.groups=5"), 10, 112)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.conv1.stride=0", "conv1.stride=0"),
        ("model.conv1.maps=0", "conv1.maps=0"),
        ("model.conv2.kernel_size=null", "conv2.kernel_size=None"),
        ("model.fc6.dropout=1", "fc6.dropout=1"),
        ("+model.conv1.kernel=7", "conv1.kernel=7: there is no such key; did you mean kernel_size"),
    ],
)
def test_impossible_values_are_refused_by_key(override, message):
    with pytest.raises(ValueError, match=message):
        build_network(model(override), 10, 112)


def test_chain_without_a_dense_end_or_with_filters_above_one_is_refused():
    conv, dense = ConvLayer(maps=2, kernel_size=3), DenseLayer(units=4)

    with pytest.raises(ValueError, match="ends in a dense layer"):
        ConvNet({"conv1": conv}, num_classes=2, image_size=8)
    with pytest.raises(ValueError, match="ends in a dense layer"):
        ConvNet({}, num_classes=2, image_size=8)
    with pytest.raises(ValueError, match="conv2 filters maps, but a dense layer stands below"):
        ConvNet({"fc1": dense, "conv2": conv, "fc8": DenseLayer()}, num_classes=2, image_size=8)
    with pytest.raises(ValueError, match="fc6.units is missing"):
        ConvNet({"fc6": DenseLayer(), "fc8": DenseLayer()}, num_classes=2, image_size=8)
    with pytest.raises(ValueError, match="must be 1 or more, but are 0 and 8"):
        ConvNet({"fc8": DenseLayer()}, num_classes=0, image_size=8)


# --- the trace ---


@torch.no_grad()
def test_trace_agrees_with_a_forward_pass_written_by_hand(mini):
    images = random_images()
    maps, _ = by_hand(mini, images)

    trace = mini.trace(images)

    assert list(trace.maps) == list(mini.layers)
    for layer in mini.layers:
        torch.testing.assert_close(trace.maps[layer], maps[layer], rtol=1e-12, atol=1e-12)
    assert torch.equal(trace.images, images)
    assert torch.equal(trace.logits, trace.maps["fc8"])
    torch.testing.assert_close(trace.logits, mini(images), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_switches_point_at_the_pooled_values(mini):
    images = random_images()
    _, below = by_hand(mini, images)

    trace = mini.trace(images)

    assert list(trace.switches) == ["conv1", "conv2", "conv5"]
    for layer, switches in trace.switches.items():
        pointed = below[layer].flatten(2).gather(2, switches.flatten(2)).view_as(switches)
        torch.testing.assert_close(pointed, trace.maps[layer], rtol=1e-12, atol=1e-12)
        height = below[layer].shape[-1]
        rows, columns = switches // height, switches % height
        window = 2 * torch.arange(switches.shape[-1])
        assert (rows - window.view(-1, 1)).min() >= 0 and (rows - window.view(-1, 1)).max() <= 2
        assert (columns - window).min() >= 0 and (columns - window).max() <= 2


@torch.no_grad()
def test_features_are_the_trace_s_maps_and_nothing_above_is_computed(mini):
    images = random_images()
    trace = mini.trace(images)
    called = []
    for name in mini.layers:
        getattr(mini, name)[0].register_forward_hook(lambda *_args, name=name: called.append(name))

    features = mini.features(images, "conv2")

    assert torch.equal(features, trace.maps["conv2"])
    assert called == ["conv1", "conv2"]


def test_trace_carries_gradients(mini):
    images = random_images(count=1).requires_grad_()

    (gradient,) = torch.autograd.grad(mini.trace(images).maps["conv4"].sum(), images)

    (expected,) = torch.autograd.grad(by_hand(mini, images)[0]["conv4"].sum(), images)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_dropout_stays_out_of_the_traced_maps_of_training_mode(mini):
    images = random_images()
    mini.train()

    maps = mini.trace(images).maps["fc6"]

    torch.testing.assert_close(maps, by_hand(mini, images)[0]["fc6"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 3, 111, 112), (1, 1, 112, 112), (3, 112, 112)])
def test_images_of_another_shape_are_refused(mini, shape):
    images = torch.zeros(shape, dtype=torch.float64)

    with pytest.raises(ValueError, match=r"images must be \(N, 3, 112, 112\), but they are"):
        mini(images)
    with pytest.raises(ValueError, match=r"images must be \(N, 3, 112, 112\), but they are"):
        mini.trace(images)


def test_unknown_layer_is_refused_with_the_list(mini):
    expected = "no layer 'conv6'; the layers are conv1, conv2, conv3, conv4, conv5, fc6, fc7, fc8"

    with pytest.raises(ValueError, match=expected):
        mini.features(random_images(), "conv6")
    with pytest.raises(ValueError, match=expected):
        mini.steps("conv6")


def test_steps_end_at_the_layer_and_dense_layers_see_the_whole_map(mini):
    assert [(step.layer, step.kind) for step in mini.steps("conv2")] == [
        ("conv1", "conv"),
        ("conv1", "pool"),
        ("conv2", "conv"),
        ("conv2", "pool"),
    ]
    assert mini.steps("fc7")[-1].kernel_size == 3  # 54, 27, 12, 6, 6, 6, 6, 3
    assert mini.steps("fc7")[-1].layer == "fc7"


def test_network_preprocesses_with_its_own_preprocessing_and_says_when_it_has_none(mini):
    image = np.full((300, 200, 3), 100, dtype=np.uint8)
    with pytest.raises(ValueError, match="no preprocessing yet"):
        mini.preprocess(image)
    mini.preprocessing = Preprocessing(128, 112, torch.full((3, 1, 1), 60.0), torch.full((3, 1, 1), 0.5))

    inputs = mini.preprocess(Image.fromarray(image))

    assert torch.equal(inputs, torch.full((3, 112, 112), 20.0))
    assert torch.equal(mini.unpreprocess(inputs), torch.full((3, 112, 112), 100.0))


# --- initialisation ---


def test_paper_s_start_is_normal_of_one_hundredth_with_biases_of_zero():
    torch.manual_seed(0)
    config = model("model=zfnet_mini", "model.init.scheme=normal", "model.init.std=0.01")

    network = build_network(config, 10, 112)

    for layer in ("conv2", "conv3", "fc6", "fc7"):
        weight = getattr(network, layer)[0].weight
        assert weight.std().item() == pytest.approx(0.01, rel=0.01)
        assert abs(weight.mean().item()) < 5 * 0.01 / weight.numel() ** 0.5
        assert (weight.abs() > 0.02).float().mean().item() == pytest.approx(0.0455, rel=0.1)  # normal, not uniform
        assert not getattr(network, layer)[0].bias.any()
    assert model("model=zfnet").init == {"scheme": "normal", "std": 0.01}


def test_he_s_start_keeps_the_scale_on_the_way_up():
    torch.manual_seed(0)

    network = build_network(model("model=zfnet_mini"), 10, 112)

    for layer in ("conv1", "conv2", "conv5", "fc6"):
        weight = getattr(network, layer)[0].weight
        fan_in = weight[0].numel()
        first = 0.25 if layer == "conv1" else 1.0
        assert weight.std().item() == pytest.approx(first * (2 / fan_in) ** 0.5, rel=0.03)


def test_start_follows_torch_s_generator():
    config = model("model=zfnet_mini")
    torch.manual_seed(3)
    first = build_network(config, 10, 112).state_dict()
    second = build_network(config, 10, 112).state_dict()
    torch.manual_seed(3)

    again = build_network(config, 10, 112).state_dict()

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.conv.weight"], second["conv1.conv.weight"])


# --- torchvision and timm ---


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("alexnet", "conv1 conv2 conv3 conv4 conv5 fc6 fc7 fc8"),
        ("vgg11", "conv1_1 conv2_1 conv3_1 conv3_2 conv4_1 conv4_2 conv5_1 conv5_2 fc6 fc7 fc8"),
        (
            "vgg16",
            "conv1_1 conv1_2 conv2_1 conv2_2 conv3_1 conv3_2 conv3_3 conv4_1 conv4_2 conv4_3 conv5_1 conv5_2 conv5_3 "
            "fc6 fc7 fc8",
        ),
    ],
)
def test_torchvision_chain_has_the_layers_and_the_parameters_of_the_model(name, layers):
    with torch.device("meta"):
        network = build_network(model("model=torchvision", f"model.name={name}"), 1000, 224)
        theirs = torchvision.models.get_model(name, weights=None)

    assert network.layers == tuple(layers.split())
    shapes = [tuple(tensor.shape) for tensor in network.state_dict().values()]
    assert shapes == [tuple(tensor.shape) for tensor in theirs.state_dict().values()]


def test_torchvision_model_that_is_no_chain_is_refused():
    with pytest.raises(ValueError, match="'resnet18' is no chain .* alexnet, vgg11, vgg13, vgg16, vgg19"):
        torchvision_chain("resnet18")


@torch.no_grad()
def test_timm_model_is_traced_stage_by_stage():
    torch.manual_seed(0)
    network = build_network(model("model=timm", "model.name=resnet18"), 7, 64).eval()
    images = torch.randn(2, 3, 64, 64)
    stages = timm.create_model("resnet18", features_only=True).eval()
    stages.load_state_dict(network.body.state_dict(), strict=False)

    trace = network.trace(images)

    assert network.layers == ("act1", "layer1", "layer2", "layer3", "layer4", "fc")
    for layer, expected in zip(network.layers, stages(images), strict=False):
        torch.testing.assert_close(trace.maps[layer], expected)
    assert torch.equal(trace.maps["fc"], trace.logits)
    assert torch.equal(trace.logits, network(images))
    assert trace.switches == {}
    assert torch.equal(network.features(images, "layer2"), trace.maps["layer2"])
    assert not any(module._forward_hooks for module in network.modules())


@torch.no_grad()
def test_timm_s_maps_are_not_overwritten_by_what_comes_after():
    torch.manual_seed(0)
    network = TimmNetwork("resnet18", 3, 64, ("layer1.0.conv1", "layer1.0.bn1", "layer1.0.bn2", "layer1.0")).eval()
    images = torch.randn(2, 3, 64, 64)
    block = network.body.layer1[0]

    maps = network.trace(images).maps

    # Each is followed by something that works in place: a ReLU, a ReLU, a sum with the shortcut.
    below = network.body.maxpool(network.body.act1(network.body.bn1(network.body.conv1(images))))
    torch.testing.assert_close(maps["layer1.0.conv1"], block.conv1(below))
    torch.testing.assert_close(maps["layer1.0.bn1"], block.bn1(block.conv1(below)))
    torch.testing.assert_close(maps["layer1.0.bn2"], block.bn2(block.conv2(block.bn1(block.conv1(below)).relu())))
    torch.testing.assert_close(maps["layer1.0"], (maps["layer1.0.bn2"] + below).relu())


def test_timm_s_hooks_are_gone_after_a_failure():
    network = TimmNetwork("resnet18", 3, 64)

    with pytest.raises(RuntimeError, match="channels"):
        network.trace(torch.zeros(1, 5, 64, 64))

    assert not any(module._forward_hooks for module in network.modules())


def test_timm_network_looks_into_the_submodules_asked_for():
    network = build_network(model("model=timm", "model.layers=[layer1.0.conv1,fc]"), 3, 64).eval()

    maps = network.trace(torch.zeros(1, 3, 64, 64)).maps

    assert {name: tuple(tensor.shape) for name, tensor in maps.items()} == {
        "layer1.0.conv1": (1, 64, 16, 16),
        "fc": (1, 3),
    }


def test_timm_s_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="timm has no model 'resnet81'; did you mean resnet"):
        TimmNetwork("resnet81", 3, 64)
    with pytest.raises(ValueError, match=r"resnet18 has no submodule 'layer5'; did you mean layer\d"):
        TimmNetwork("resnet18", 3, 64, ("layer5",))
    with pytest.raises(ValueError, match="no layer 'conv1_1'; the layers are act1, layer1"):
        TimmNetwork("resnet18", 3, 64).features(torch.zeros(1, 3, 64, 64), "conv1_1")


# --- any module as a network ---


def small_body():
    """Seven conv layers, two of them without a name of their own, and a ReLU that works in place."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3))
    tail = nn.ModuleDict({f"conv{number}": nn.Conv2d(4, 4, 1) for number in range(5)})
    return nn.Sequential(stem, *tail.values(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


class Module(nn.Module):
    """As a LightningModule of someone else: a network inside, a forward of its own."""

    def __init__(self, name, body):
        super().__init__()
        self.add_module(name, body)
        self.name = name

    def forward(self, images):
        return self.get_submodule(self.name)(images)


def test_eval_mode_lasts_as_long_as_the_block_and_each_flag_comes_back():
    body = small_body()
    body[0][1].eval()
    before = [module.training for module in body.modules()]

    with evaluating(body):
        within = [module.training for module in body.modules()]
    after = [module.training for module in body.modules()]
    with pytest.raises(RuntimeError, match="stop"), evaluating(body):
        raise RuntimeError("stop")

    assert not any(within)
    assert after == before == [module.training for module in body.modules()]
    assert True in before and False in before


@torch.no_grad()
def test_module_of_a_map_gives_the_map(mini):
    images = random_images()
    expected = mini.trace(images).maps

    for layer in mini.layers:
        torch.testing.assert_close(run_to(mini, images, layer), expected[layer], rtol=0, atol=0)

    assert mini.map_module("conv2") is mini.conv2.pool
    assert mini.map_module("conv3") is mini.conv3.relu
    assert mini.map_module("fc6") is mini.fc6.relu
    assert mini.map_module("fc8") is mini.fc8.linear
    with pytest.raises(ValueError, match="no layer 'conv6'; the layers are conv1"):
        mini.map_module("conv6")


def test_hooked_network_looks_into_five_conv_layers_from_the_first_to_the_last():
    body = small_body()

    network = HookedNetwork(body)

    assert network.layers == ("0.0", "1", "2", "3", "5")
    assert HookedNetwork(body[0]).layers == ("0", "3")
    assert HookedNetwork(body, ["0.2"], num_classes=3, image_size=9).layers == ("0.2",)
    assert network.map_module("0.0") is body[0][0]
    assert network.num_classes is network.image_size is network.preprocessing is None


@torch.no_grad()
def test_hooked_network_traces_what_its_submodules_give():
    body = small_body().eval()
    images = torch.randn(2, 3, 9, 9)

    trace = HookedNetwork(body, ["0.1", "0", "8"]).trace(images)

    torch.testing.assert_close(trace.maps["0.1"], body[0][1](body[0][0](images)))
    torch.testing.assert_close(trace.maps["0"], body[0](images))
    assert torch.equal(trace.logits, trace.maps["8"])
    assert torch.equal(trace.logits, body(images))


def test_wrapping_leaves_the_module_as_it_was():
    body = small_body().eval()
    module = Module("model", body)
    names, shown = list(module.state_dict()), repr(module)

    network = as_network(module)
    network.trace(torch.zeros(1, 3, 9, 9))

    assert network.training is module.training is True
    assert HookedNetwork(body).training is body.training is False
    assert list(module.state_dict()) == names
    assert repr(module) == shown
    assert list(module._modules) == ["model"]
    assert not any(each._forward_hooks for each in module.modules())
    assert network.layers == ("model.0.0", "model.1", "model.2", "model.3", "model.5")


def test_network_of_finds_the_network_that_is_there(mini):
    assert as_network(mini) is mini
    assert as_network(Module("network", mini)) is mini
    assert as_network(Module("network", mini), ["conv1", "fc8"]) is mini
    assert isinstance(as_network(Module("network", small_body())), HookedNetwork)
    assert as_network(Module("model", mini), ["model.conv2.pool"]).layers == ("model.conv2.pool",)


def test_network_of_refuses_unknown_layers(mini):
    with pytest.raises(ValueError, match="no layer 'conv9'; the layers are conv1"):
        as_network(Module("network", mini), ["conv1", "conv9"])
    with pytest.raises(ValueError, match=r"Sequential has no submodule '0\.9'; did you mean 0\.\d"):
        as_network(small_body(), ["0.9"])
    with pytest.raises(ValueError, match="Linear has no conv layers; name the submodules"):
        as_network(nn.Linear(3, 4))


def test_submodule_that_runs_twice_is_refused():
    twice = nn.Sequential(nn.Conv2d(3, 3, 1), relu := nn.ReLU(), nn.Conv2d(3, 3, 1), relu)

    with pytest.raises(ValueError, match="layer '1' runs more than once in one pass"):
        HookedNetwork(twice, ["1"]).trace(torch.zeros(1, 3, 4, 4))

    assert not relu._forward_hooks


@torch.no_grad()
def test_compiled_module_is_traced_too():
    body = small_body().eval()
    images = torch.randn(1, 3, 9, 9)
    expected = HookedNetwork(body).trace(images)
    compiled = torch.compile(body, backend="eager")
    compiled(images)

    network = as_network(Module("model", compiled))
    trace = network.trace(images)

    assert network.layers == ("model.0.0", "model.1", "model.2", "model.3", "model.5")
    for layer in expected.maps:
        torch.testing.assert_close(trace.maps[f"model.{layer}"], expected.maps[layer])


def test_timm_s_parameters_keep_their_names():
    network = TimmNetwork("resnet18", 3, 64)

    assert set(network.state_dict()) == {f"body.{name}" for name in timm.create_model("resnet18").state_dict()}
    assert network.classifier_prefix == "body.fc."
    assert network.map_module("layer2") is network.body.layer2


@torch.no_grad()
def test_run_stops_at_the_layer():
    body = small_body().eval()
    body[8] = nn.Linear(7, 7)  # does not fit what comes up
    network = HookedNetwork(body, ["2", "6"])
    body[7].register_module("unused", nn.Identity())

    maps = run_to(network, torch.zeros(1, 3, 9, 9), "2")

    assert maps.shape == (1, 4, 5, 5)
    assert not body[2]._forward_hooks
    with pytest.raises(ValueError, match=r"layer '7\.unused' does not run"):
        body[8] = nn.Identity()
        run_to(HookedNetwork(body, ["7.unused"]), torch.zeros(1, 3, 9, 9), "7.unused")


def test_compiled_code_is_compiled_again_whoever_lets_go_first():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    import torch._dynamo  # what torch.compile loads, without which nothing is held

    held = [uncompiled(), uncompiled()]
    for each in held:
        each.__enter__()
    for each in held:  # first come, first gone
        each.__exit__(None, None, None)
    torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(1))

    assert len(graphs) == 1
