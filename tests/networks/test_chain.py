"""Chains of layers: the trace against a forward pass by hand, and how weights start."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.networks.examples import model, random_images
from zfscope.networks.build import build_network
from zfscope.networks.preprocessing import Preprocessing


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
    assert model("model=zfnet")["init"] == {"scheme": "normal", "std": 0.01}


def test_he_s_start_keeps_the_scale_on_the_way_up():
    torch.manual_seed(0)

    network = build_network(model("model=zfnet_mini"), 10, 112)

    for layer in ("conv1", "conv2", "conv5", "fc6"):
        weight = getattr(network, layer)[0].weight
        fan_in = weight[0].numel()
        first = 0.02 if layer == "conv1" else 1.0
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
