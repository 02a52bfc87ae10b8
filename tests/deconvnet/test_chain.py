"""The deconvnet of random chains, against autograd, a naive loop, captum and hand-worked cases."""

import pytest
import torch

from tests.conftest import composed, seeds
from tests.deconvnet.random_networks import oracle, random_network, random_question
from zfscope import ConvNet, build_network
from zfscope.deconvnet.chain import ChainDeconvnet
from zfscope.deconvnet.projection import project
from zfscope.networks.spec import ConvLayer, DenseLayer, PoolConfig


@pytest.mark.parametrize("seed", seeds(120))
def test_projections_equal_autograd_with_rectified_gradients(seed):
    network = random_network(seed)
    for layer in network.layers:
        images, maps, positions = random_question(network, layer, seed)

        found = project(network, images, layer, maps, positions, rule="deconvnet")

        expected = oracle(network, images, layer, maps, positions)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("seed", seeds(60))
def test_overwriting_equals_a_naive_loop_over_the_whole_canvas(seed):
    network = random_network(seed)
    layer = [name for name in network.layers if name.startswith("conv")][-1]
    images, maps, positions = random_question(network, layer, seed)

    found = project(network, images, layer, maps, positions, unpooling="overwrite")

    expected = oracle(network, images, layer, maps, positions, overwrite=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("seed", seeds(40))
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


@pytest.fixture(scope="module")
def zfnet():
    """The paper's layers with maps, at 224 px."""
    torch.manual_seed(0)
    config = composed("model=zfnet", "model.fc6.units=8", "model.fc7.units=8")["model"]
    return build_network(config, 10, 224).eval()


def test_boxes_of_the_paper_have_the_sizes_that_fig_3_gives(zfnet):
    images, maps = torch.randn(1, 3, 224, 224), torch.tensor([0])
    sizes = {}
    for layer in zfnet.layers[:5]:
        patches, boxes = project(zfnet, images, layer, maps, crop=True)
        assert patches.shape[2:] == ((boxes[0, 3] - boxes[0, 1]), (boxes[0, 2] - boxes[0, 0]))
        sizes[layer] = patches.shape[2]

    assert sizes == {"conv1": 7, "conv2": 27, "conv3": 75, "conv4": 107, "conv5": 139}


@pytest.mark.parametrize("rule", ["guided", "gradient"])
@pytest.mark.parametrize(("layer", "side"), [("conv2", 27), ("conv5", 139)])
def test_the_box_of_a_unit_is_the_same_whatever_the_rule(zfnet, rule, layer, side):
    images, maps = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 7, 20])

    _, by_deconvnet = project(zfnet, images, layer, maps, crop=True)
    patches, boxes = project(zfnet, images, layer, maps, crop=True, rule=rule)
    canvases = project(zfnet, images, layer, maps, rule=rule)

    assert torch.equal(boxes, by_deconvnet) and ((boxes[:, 2:] - boxes[:, :2]) == side).all()
    assert patches.shape[2:] == (side, side)
    for canvas, (x0, y0, x1, y1) in zip(canvases, boxes.tolist(), strict=True):
        canvas[:, max(0, y0) : y1, max(0, x0) : x1] = 0
        assert not canvas.any()


@pytest.mark.parametrize("seed", seeds(20))
def test_equal_to_captums_neuron_deconvolution_times_the_activation(seed):
    attr = pytest.importorskip("captum.attr")
    network = random_network(seed, norms=False)
    layer = [name for name in network.layers if name.startswith("conv")][-1]
    images, maps, positions = random_question(network, layer, seed)
    activations = network.features(images, layer)

    found = project(network, images, layer, maps, positions, rule="deconvnet")

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

    found = ChainDeconvnet(network, network.trace(images)).project(layer, maps, sources=sources)

    torch.testing.assert_close(found, project(network, images[sources], layer, maps))


def test_chunks_of_any_size_give_the_same(monkeypatch):
    network = random_network(11)
    layer = network.layers[-2]
    images, maps, positions = random_question(network, layer, 11)
    expected = project(network, images, layer, maps, positions)

    monkeypatch.setattr("zfscope.deconvnet.chain.CHUNK_CPU", 1)

    torch.testing.assert_close(project(network, images, layer, maps, positions), expected)
