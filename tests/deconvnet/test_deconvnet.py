import math
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.conftest import composed
from zfscope import ConvNet, build_network
from zfscope.deconvnet.boxes import boxes_of, cut, strongest
from zfscope.deconvnet.projection import project, project_trace
from zfscope.networks.geometry import ReceptiveField
from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.spec import ContrastConfig, ConvLayer, DenseLayer, InitConfig, PoolConfig


class Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clamp(min=0)

    @staticmethod
    def backward(ctx, above):
        return above.clamp(min=0)


def oracle(network, images, layer, maps, positions, overwrite=False):
    """Autograd over plain functions: ReLU's gradient rectified, the norm's the identity."""
    images = images.clone().requires_grad_()
    found = images
    for name in network.layers:
        for part, module in getattr(network, name).named_children():
            if part == "norm":
                found = found + (module(found) - found).detach()
            elif part == "relu":
                found = Rectified.apply(found)
            elif part == "pool":
                # In the layer that is asked about only the seed is sent down; nothing can overwrite it.
                pooling = Overwriting.apply if overwrite and name != layer else pooled
                found = pooling(found, module.kernel_size, module.stride, module.ceil_mode)
            elif part == "linear":
                found = F.linear(found.flatten(1), module.weight, module.bias)
            elif part == "conv":
                found = F.conv2d(found, module.weight, module.bias, module.stride, module.padding, groups=module.groups)
            else:
                continue
            if part in ("relu", "pool", "linear"):
                feature_map = found
        if name == layer:
            break
    chosen = feature_map[torch.arange(len(maps)), maps]
    if positions is None:
        chosen = chosen.flatten(1).amax(1) if chosen.ndim > 1 else chosen
    elif chosen.ndim > 1:
        chosen = chosen[torch.arange(len(maps)), positions[:, 0], positions[:, 1]]
    (gradient,) = torch.autograd.grad((chosen * chosen.detach()).sum(), images)
    return gradient


def pooled(maps, kernel_size, stride, ceil_mode):
    return F.max_pool2d(maps, kernel_size, stride, ceil_mode=ceil_mode)


class Overwriting(torch.autograd.Function):
    """Max pooling whose gradient lets the last window in row-major order win, by a naive loop."""

    @staticmethod
    def forward(ctx, maps, kernel_size, stride, ceil_mode):
        out, ctx.switches = F.max_pool2d(maps, kernel_size, stride, ceil_mode=ceil_mode, return_indices=True)
        ctx.size = maps.shape
        return out

    @staticmethod
    def backward(ctx, above):
        below = above.new_zeros(ctx.size).flatten(2)
        switches, above = ctx.switches.flatten(2), above.flatten(2)
        for image in range(above.shape[0]):
            for channel in range(above.shape[1]):
                for window in range(above.shape[2]):
                    below[image, channel, switches[image, channel, window]] = above[image, channel, window]
        return below.view(ctx.size), None, None, None


def random_network(seed, dense=True, norms=True, bias=True):
    """A small chain that nobody would design: odd sizes, strides, paddings, groups, both orders of pool and norm."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    while True:
        layers, channels = {}, 3
        for number in range(1, chance.randint(1, 4) + 1):
            kernel = chance.choice([1, 2, 3, 4, 5, 7])
            groups = chance.choice([1, 1, 2, 3]) if number > 1 else chance.choice([1, 1, 3])
            groups = groups if channels % groups == 0 else 1
            pool = PoolConfig(kernel_size=3, stride=2, ceil_mode=True) if chance.random() < 0.6 else None
            if chance.random() < 0.1:
                pool = PoolConfig(kernel_size=2, stride=chance.choice([1, 2, 3]), ceil_mode=chance.random() < 0.5)
            layers[f"conv{number}"] = ConvLayer(
                maps=6,
                kernel_size=kernel,
                stride=chance.randint(1, 4) if number == 1 else chance.choice([1, 1, 2, 3]),
                padding=chance.randint(0, min(3, kernel - 1) if kernel > 1 else 1),
                groups=groups,
                pool=pool,
                norm=chance.choice([None, "after_pool", "before_pool"]) if norms else None,
            )
            channels = 6
        if dense:
            layers["fc6"] = DenseLayer(units=7, dropout=0.5)
        layers["fc8"] = DenseLayer()
        size = chance.randint(15, 49)
        try:
            network = ConvNet(
                layers,
                num_classes=4,
                image_size=size,
                contrast=ContrastConfig(size=3, alpha=0.5),
                init=InitConfig(scheme="he"),
            )
        except ValueError:
            continue  # a kernel larger than its map
        break
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, 0, 0.1) if bias else nn.init.zeros_(parameter)
    return network.double().eval()


def random_question(network, layer, seed, count=5):
    generator = torch.Generator().manual_seed(seed)
    size = network.image_size
    images = torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)
    feature_maps = network.features(images, layer)
    maps = torch.randint(feature_maps.shape[1], (count,), generator=generator)
    if feature_maps.ndim == 2:
        return images, maps, torch.zeros(count, 2, dtype=torch.int64)
    height, width = feature_maps.shape[2:]
    corners = torch.tensor([[0, 0], [height - 1, width - 1], [0, width - 1]])  # where padding and ceil mode bite
    inner = torch.stack([torch.randint(side, (count - 3,), generator=generator) for side in (height, width)], 1)
    return images, maps, torch.cat([corners, inner])


@pytest.mark.parametrize("seed", range(120))
def test_projections_equal_autograd_with_rectified_gradients(seed):
    network = random_network(seed)
    for layer in network.layers:
        images, maps, positions = random_question(network, layer, seed)

        found = project(network, images, layer, maps, positions)

        expected = oracle(network, images, layer, maps, positions)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("seed", range(60))
def test_overwriting_equals_a_naive_loop_over_the_whole_canvas(seed):
    network = random_network(seed)
    layer = [name for name in network.layers if name.startswith("conv")][-1]
    images, maps, positions = random_question(network, layer, seed)

    found = project(network, images, layer, maps, positions, unpooling="overwrite")

    expected = oracle(network, images, layer, maps, positions, overwrite=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("seed", range(40))
def test_nothing_lies_outside_the_box_and_the_patch_is_the_canvas_inside_it(seed):
    network = random_network(seed)
    size = network.image_size
    for layer in network.layers:
        images, maps, positions = random_question(network, layer, seed)

        canvases = project(network, images, layer, maps, positions)
        patches, boxes = project(network, images, layer, maps, positions, crop=True)

        pasted = torch.zeros_like(canvases)
        for canvas, patch, (x0, y0, x1, y1) in zip(pasted, patches, boxes.tolist(), strict=True):
            assert patch.shape == (3, y1 - y0, x1 - x0)
            for row in range(y0, y1):
                for column in range(x0, x1):
                    pixel = patch[:, row - y0, column - x0]
                    if 0 <= row < size and 0 <= column < size:
                        canvas[:, row, column] = pixel
                    else:
                        assert not pixel.any()
        assert torch.equal(pasted, canvases)


def test_the_box_is_exactly_what_an_activation_can_reach():
    torch.manual_seed(0)
    network = build_network(composed("model=zfnet_mini")["model"], 10, 112).eval()
    for weight in (getattr(network, name).conv.weight for name in ("conv1", "conv2")):
        weight.data.abs_()  # nothing is rectified away, so every pixel within reach shows
    images = torch.rand(6, 3, 112, 112)
    positions = torch.tensor([[2, 2], [2, 3], [3, 2], [3, 3], [2, 4], [4, 2]])

    patches, boxes = project(network, images, "conv2", torch.arange(6), positions, crop=True)

    assert patches.shape == (6, 3, 27, 27)
    assert ((boxes[:, 2:] - boxes[:, :2]) == 27).all()
    reached = project(network, images, "conv2", torch.arange(6), positions).abs().amax(1) > 0
    for pixels, (x0, y0, x1, y1) in zip(reached, boxes.tolist(), strict=True):
        outside = pixels.clone()
        outside[max(0, y0) : y1, max(0, x0) : x1] = False
        assert not outside.any()


def test_boxes_of_the_paper_have_the_sizes_that_fig_3_gives():
    network = build_network(composed("model=zfnet")["model"], 10, 224).eval()
    images, maps = torch.randn(1, 3, 224, 224), torch.tensor([0])
    sizes = {}
    for layer in network.layers[:5]:
        patches, boxes = project(network, images, layer, maps, crop=True)
        assert patches.shape[2:] == ((boxes[0, 3] - boxes[0, 1]), (boxes[0, 2] - boxes[0, 0]))
        sizes[layer] = patches.shape[2]

    assert sizes == {"conv1": 7, "conv2": 27, "conv3": 75, "conv4": 107, "conv5": 139}


@pytest.mark.parametrize("seed", range(20))
def test_equal_to_captums_neuron_deconvolution_times_the_activation(seed):
    attr = pytest.importorskip("captum.attr")
    network = random_network(seed, norms=False)
    layer = [name for name in network.layers if name.startswith("conv")][-1]
    images, maps, positions = random_question(network, layer, seed)
    activations = network.features(images, layer)

    found = project(network, images, layer, maps, positions)

    module = network.map_module(layer)
    for number in range(len(images)):
        place = (int(maps[number]), *positions[number].tolist())
        peer = attr.NeuronDeconvolution(network, module).attribute(images[number : number + 1], place)
        torch.testing.assert_close(
            found[number], (peer[0] * activations[(number, *place)]).detach(), atol=1e-12, rtol=0
        )


def test_a_network_of_one_layer_gives_the_filter_itself():
    torch.manual_seed(0)
    layers = {"conv1": ConvLayer(maps=4, kernel_size=5, stride=2, padding=1), "fc8": DenseLayer()}
    network = ConvNet(layers, num_classes=2, image_size=17).double()
    images = torch.randn(4, 3, 17, 17, dtype=torch.float64)
    maps = torch.arange(4)
    positions = torch.tensor([[0, 0], [3, 3], [2, 5], [7, 7]])
    values = network.features(images, "conv1")[maps, maps, positions[:, 0], positions[:, 1]]

    patches, boxes = project(network, images, "conv1", maps, positions, crop=True)

    assert boxes[1].tolist() == [5, 5, 10, 10]
    torch.testing.assert_close(patches[1], values[1] * network.conv1.conv.weight[1])
    assert boxes[0].tolist() == [-1, -1, 4, 4]
    torch.testing.assert_close(patches[0][:, 1:, 1:], values[0] * network.conv1.conv.weight[0][:, 1:, 1:])
    assert not patches[0][:, 0].any() and not patches[0][:, :, 0].any()


def test_scaling_an_image_of_a_network_without_biases_scales_the_projection():
    network = random_network(3, norms=False, bias=False)
    for layer in network.layers:
        images, maps, positions = random_question(network, layer, 3)

        found = project(network, 3 * images, layer, maps, positions)

        torch.testing.assert_close(found, 3 * project(network, images, layer, maps, positions))


def test_switches_and_weights_worked_by_hand():
    layers = {
        "conv1": ConvLayer(maps=2, kernel_size=1, pool=PoolConfig()),
        "conv2": ConvLayer(maps=1, kernel_size=2),
        "fc8": DenseLayer(),
    }
    network = ConvNet(layers, num_classes=2, image_size=5).double()
    with torch.no_grad():
        network.conv1.conv.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]])[:, :, None, None])
        network.conv1.conv.bias.zero_()
        network.conv2.conv.weight.copy_(torch.tensor([[[[1.0, 2], [-4, 8]], [[0.5, 0], [0, -1]]]]))
        network.conv2.conv.bias.fill_(0.25)
    image = torch.zeros(1, 3, 5, 5, dtype=torch.float64)
    image[0, 0, 2, 2] = 1.0  # the maximum of all four windows of map 0
    image[0, 1, 0, 0] = 2.0  # of the first window of map 1
    activation = 1 + 2 - 4 + 8 + 0.5 * 2 + 0.25

    found = project(network, image, "conv2", [0])

    # Map 0: its four windows sum to 7. Map 1: 0.5; its other windows are all zero, their switch is their first cell.
    expected = torch.zeros(3, 5, 5, dtype=torch.float64)
    expected[0, 2, 2] = activation * 7
    expected[1, 0, 0] = activation * 0.5
    torch.testing.assert_close(found[0], expected)
    overwritten = project(network, image, "conv2", [0], unpooling="overwrite")
    assert overwritten[0, 0, 2, 2] == activation * 8


def test_one_trace_serves_many_projections_of_its_images():
    network = random_network(7)
    layer = network.layers[1]
    images, _, _ = random_question(network, layer, 7)
    sources, maps = torch.tensor([4, 0, 0, 2, 4]), torch.tensor([0, 5, 1, 1, 3])

    found = project_trace(network, network.trace(images), layer, maps, sources=sources)

    torch.testing.assert_close(found, project(network, images[sources], layer, maps))


def test_chunks_of_any_size_give_the_same(monkeypatch):
    network = random_network(11)
    layer = network.layers[-2]
    images, maps, positions = random_question(network, layer, 11)
    expected = project(network, images, layer, maps, positions)

    monkeypatch.setattr("zfscope.deconvnet.chain._CHUNK_CPU", 1)

    torch.testing.assert_close(project(network, images, layer, maps, positions), expected)


def test_the_strongest_activation_is_the_default_and_the_first_of_equals():
    network = random_network(5)
    layer = "conv1"
    images, maps, _ = random_question(network, layer, 5)
    feature_maps = network.features(images, layer)

    found = project(network, images, layer, maps)

    torch.testing.assert_close(found, project(network, images, layer, maps, strongest(feature_maps, maps)))
    assert strongest(torch.tensor([[[[0.0, 2], [2, 1]]]]), torch.tensor([0])).tolist() == [[0, 1]]


def test_a_dead_activation_projects_to_nothing():
    network = random_network(5)
    nn.init.zeros_(network.conv1.conv.weight)
    nn.init.constant_(network.conv1.conv.bias, -1.0)
    images, maps, positions = random_question(network, "conv1", 5)

    assert not project(network, images, "conv1", maps, positions).any()


def test_the_network_is_left_as_it_was():
    network = random_network(2).train()
    layer = network.layers[0]
    images, maps, positions = random_question(network, layer, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()

    project(network, images, layer, maps, positions)

    assert network.training and all(module.training for module in network.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["alexnet", "vgg11"])
def test_torchvisions_chains_are_projected_as_autograd_does(name):
    torch.manual_seed(0)
    network = build_network({"source": "torchvision", "name": name}, 10, 224).eval().double()
    layer = "conv5" if name == "alexnet" else "conv4_2"
    images = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    maps = torch.tensor([3, 200])

    found = project(network, images, layer, maps)

    expected = oracle(network, images, layer, maps, None)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("rule", ["deconvnet", "guided", "gradient"])
def test_other_rules_go_by_autograd_and_the_deconvnet_agrees_with_it(rule):
    network = random_network(8, norms=False)
    layer = network.layers[-2]
    images, maps, positions = random_question(network, layer, 8)

    found = project(network, images, layer, maps, positions, rule=rule)

    hooked = HookedNetwork(network, [f"{layer}.linear" if layer == "fc8" else f"{layer}.relu"])
    torch.testing.assert_close(found, project(hooked, images, hooked.layers[0], maps, positions, rule=rule))


def test_windows_are_cut_from_images_with_what_overhangs_filled():
    image = torch.arange(9.0).view(1, 1, 3, 3)
    field = ReceptiveField(size=2, stride=2, offset=-1)

    boxes = boxes_of(field, torch.tensor([[0, 1]]))

    assert boxes.tolist() == [[1, -1, 3, 1]]
    assert cut(image, boxes, fill=7).tolist() == [[[[7, 7], [1, 2]]]]
    assert not math.isnan(float(cut(image, boxes).sum()))


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"layer": "conv9"}, "no layer 'conv9'; the layers are conv1"),
        ({"maps": [0, 0, 0, 0, 6]}, r"conv1 has the maps 0 … 5; there is no map 6"),
        ({"maps": [0, 0, 0, 0, -1]}, "there is no map -1"),
        ({"maps": [0]}, "one feature map for each of 5 images"),
        ({"positions": torch.full((5, 2), 99)}, r"position \(99, 99\) lies outside the \d+x\d+ maps of conv1"),
        ({"positions": torch.zeros(5, 2)}, "whole numbers"),
        ({"unpooling": "mean"}, "'sum' or 'overwrite'"),
        ({"rule": "lrp"}, "rule"),
    ],
)
def test_impossible_questions_are_refused_in_one_line(question, message):
    network = random_network(1)
    images, maps, positions = random_question(network, "conv1", 1)
    asked = {"layer": "conv1", "maps": maps, "positions": positions, **question}

    with pytest.raises(ValueError, match=message) as refusal:
        project(network, images, **asked)

    assert "\n" not in str(refusal.value)
