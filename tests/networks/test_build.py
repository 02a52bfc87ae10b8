"""The paper's networks, and what removing and changing layers makes of them."""

import pytest
import torch

from tests.networks.examples import model
from zfscope.networks.build import build_network
from zfscope.networks.chain import ConvNet
from zfscope.networks.geometry import steps_of
from zfscope.networks.spec import ConvLayer, DenseLayer

ZFNET_PARAMETERS = 62_357_608


def sizeless(*overrides, num_classes=1000, image_size=224):
    """A network without memory for its weights."""
    with torch.device("meta"):
        return build_network(model(*overrides), num_classes, image_size)


def sizes(network):
    return list(network.sizes.values())


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


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
    assert list(steps_of(mini.spec)) == list(steps_of(zfnet.spec))
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
