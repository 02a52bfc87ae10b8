"""Networks of torchvision and timm by name."""

import pytest
import timm
import torch
import torchvision

from tests.networks.examples import model
from zfscope.networks.build import build_network, torchvision_chain
from zfscope.networks.hooked import TimmNetwork


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
        original = torchvision.models.get_model(name, weights=None)

    assert network.layers == tuple(layers.split())
    shapes = [tuple(tensor.shape) for tensor in network.state_dict().values()]
    assert shapes == [tuple(tensor.shape) for tensor in original.state_dict().values()]


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


@pytest.mark.parametrize(
    ("name", "size", "own"),
    [("test_vit", 100, 160), ("halonet26t", 100, 256), ("crossvit_tiny_240", 224, 240), ("inception_v3", 64, 299)],
)
def test_timm_s_models_are_refused_at_sizes_that_they_do_not_take_with_their_own(name, size, own):
    refusal = (
        rf"{name} takes no images of {size}x{size} pixels \(.+\); its own size is data\.crop={own}, with data.resize"
    )

    with pytest.raises(ValueError, match=refusal) as error:
        TimmNetwork(name, 3, size)

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "size"),
    [("efficientvit_m0", 224), ("test_vit", 160), ("test_vit", 64), ("test_maxvit", 96), ("resnet18", 50)],
)
def test_trying_a_model_of_timm_leaves_it_as_timm_makes_it(name, size):
    torch.manual_seed(0)
    expected = timm.create_model(name, num_classes=3, **({"img_size": size} if "vit" in name else {}))
    torch.manual_seed(0)

    network = TimmNetwork(name, 3, size)

    torch.testing.assert_close(network.body.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert all(module.training for module in network.modules())
    assert not any(getattr(module, "attention_bias_cache", None) for module in network.modules())  # of eval mode


def test_a_stage_that_timm_names_twice_is_one_layer():
    assert TimmNetwork("crossvit_tiny_240", 3, 240).layers == ("blocks.0", "blocks.1", "blocks.2", "head")
