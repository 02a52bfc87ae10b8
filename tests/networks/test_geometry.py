import itertools

import pytest
import torch
from timm.layers import SEModule as SqueezeExcite
from torch import nn
from torch.nn import functional as F

from tests.conftest import composed, seeds
from zfscope.networks.build import build_network
from zfscope.networks.chain import ConvNet
from zfscope.networks.fields import probe_field, receptive_field
from zfscope.networks.geometry import ReceptiveField, Step, field_of, map_sizes, steps_of
from zfscope.networks.hooked import HookedNetwork, TimmNetwork
from zfscope.networks.spec import ConvLayer, DenseLayer, PoolConfig

# Fig. 3, bottom to top, with what the paper's sizes and receptive fields must be after each step.
ZFNET = [
    (Step("conv1", "conv", 7, 2, 1), 110, (7, 2)),
    (Step("conv1", "pool", 3, 2, 0, True), 55, (11, 4)),
    (Step("conv2", "conv", 5, 2), 26, (27, 8)),
    (Step("conv2", "pool", 3, 2, 0, True), 13, (43, 16)),
    (Step("conv3", "conv", 3, 1, 1), 13, (75, 16)),
    (Step("conv4", "conv", 3, 1, 1), 13, (107, 16)),
    (Step("conv5", "conv", 3, 1, 1), 13, (139, 16)),
    (Step("conv5", "pool", 3, 2, 0, True), 6, (171, 32)),
]


def zfnet():
    with torch.device("meta"):
        return build_network(composed("model=zfnet")["model"], 1000, 224)


def test_receptive_fields_are_the_paper_s():
    steps = [step for step, _, _ in ZFNET]

    fields = [field_of(steps[: count + 1]) for count in range(len(steps))]

    assert [(field.size, field.stride) for field in fields] == [expected for _, _, expected in ZFNET]


def test_map_sizes_are_the_paper_s():
    assert map_sizes([step for step, _, _ in ZFNET], 224) == [size for _, size, _ in ZFNET]


def test_zfnet_s_own_steps_are_those_of_the_paper():
    network = zfnet()

    assert list(steps_of(network.spec)) == [step for step, _, _ in ZFNET]
    assert receptive_field(network, "conv2") == ReceptiveField(43, 16, -1)
    assert receptive_field(network, "conv4").size == 107
    with pytest.raises(ValueError, match="no layer 'pool1'; the layers are conv1"):
        receptive_field(network, "pool1")


def test_dense_layers_see_more_than_the_image():
    x0, y0, x1, y1 = receptive_field(zfnet(), "fc7").box(0, 0)

    assert min(x0, y0) <= 0
    assert min(x1, y1) >= 224


def test_box_has_x_from_the_column_and_y_from_the_row():
    field = ReceptiveField(size=7, stride=2, offset=-1)

    assert field.box(0, 0) == (-1, -1, 6, 6)
    assert field.box(row=1, column=5) == (9, 1, 16, 8)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_size_after_a_convolution_is_torch_s(padding):
    for size, kernel, stride in itertools.product(range(1, 14), range(1, 6), range(1, 5)):
        if size + 2 * padding >= kernel:
            below, weight = torch.zeros(1, 1, size), torch.zeros(1, 1, kernel)
            above = F.conv1d(below, weight, stride=stride, padding=padding)
            assert Step("conv1", "conv", kernel, stride, padding).out_size(size) == above.shape[2]
        else:
            assert Step("conv1", "conv", kernel, stride, padding).out_size(size) == 0


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_size_after_a_pool_is_torch_s(ceil_mode):
    for size, kernel, stride in itertools.product(range(1, 14), range(1, 6), range(1, 5)):
        for padding in range(kernel // 2 + 1):
            if size + 2 * padding < kernel:
                continue
            below = torch.zeros(1, size, size)
            above = F.max_pool2d(below, kernel, stride, padding, ceil_mode=ceil_mode)
            step = Step("conv1", "pool", kernel, stride, padding, ceil_mode)
            assert step.out_size(size) == above.shape[1], (step, size)


def test_a_kernel_may_be_as_large_as_its_map():
    assert map_sizes([Step("conv1", "conv", 5, 2), Step("conv2", "conv", 3, 1), Step("conv2", "pool", 1, 1)], 9) == [
        3,
        1,
        1,
    ]


def test_map_too_small_is_refused_with_the_sizes_so_far():
    steps = [Step("conv1", "conv", 7, 2, 1), Step("conv1", "pool", 3, 2, 0, True), Step("conv2", "conv", 9, 1, 1)]

    with pytest.raises(
        ValueError,
        match=r"the 9x9 kernel of conv2 is larger than its map of 6x6 \(8 with padding\): image 27 -> conv1 12 -> "
        r"conv1's pool 6; use a smaller kernel",
    ):
        map_sizes(steps, 27)
    with pytest.raises(ValueError, match="3x3 kernel of conv1's pool is larger than its map of 2x2: image 9"):
        map_sizes([Step("conv1", "conv", 8, 1), Step("conv1", "pool", 3, 2)], 9)


def random_steps(generator):
    """One to four steps whose windows leave no gaps, so that what a unit sees is one solid square."""
    draw = lambda low, high: int(torch.randint(low, high + 1, (), generator=generator))  # noqa: E731
    steps = []
    for number in range(draw(1, 4)):
        kernel = draw(1, 5)
        stride = draw(1, min(3, kernel))
        pool = bool(draw(0, 1))
        padding = 0 if pool else draw(0, kernel - 1)
        ceil_mode = pool and bool(draw(0, 1))
        steps.append(Step(f"conv{number}", "pool" if pool else "conv", kernel, stride, padding, ceil_mode))
    return steps


def positive(steps, maps):
    """The steps with means for maxima and weights of 1: nothing that a unit sees has gradient zero."""
    for step in steps:
        if step.kind == "pool":
            maps = F.avg_pool2d(maps, step.kernel_size, step.stride, ceil_mode=step.ceil_mode)
        else:
            weight = maps.new_ones(1, 1, step.kernel_size, step.kernel_size)
            maps = F.conv2d(maps, weight, stride=step.stride, padding=step.padding)
    return maps


@pytest.mark.parametrize("seed", seeds(30))
def test_box_is_where_the_gradient_of_a_unit_lives(seed):
    steps = random_steps(torch.Generator().manual_seed(seed))
    side = 45
    pixels = torch.ones(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    field = field_of(steps)
    top = positive(steps, pixels)[0, 0]
    assert map_sizes(steps, side)[-1] == len(top)

    for row, column in {(0, 0), (len(top) // 2, len(top) // 3), (1 % len(top), len(top) - 1)}:
        (gradient,) = torch.autograd.grad(top[row, column], pixels, retain_graph=True)

        rows, columns = gradient[0, 0].nonzero(as_tuple=True)
        x0, y0, x1, y1 = field.box(row, column)
        assert columns.min() == max(0, x0)
        assert rows.min() == max(0, y0)
        # Where a window overhangs on the far side, a step may have left the last pixels over: then it sees less.
        assert columns.max() + 1 == x1 if x1 <= side else columns.max() + 1 <= side
        assert rows.max() + 1 == y1 if y1 <= side else rows.max() + 1 <= side


@torch.no_grad()
@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3", "conv5"])
def test_pixels_outside_the_box_do_not_matter_to_a_real_network(layer):
    torch.manual_seed(0)
    chain = {
        "conv1": ConvLayer(maps=6, kernel_size=7, stride=2, padding=1, pool=PoolConfig(), norm="after_pool"),
        "conv2": ConvLayer(maps=6, kernel_size=5, stride=2, pool=PoolConfig(), norm="before_pool"),
        "conv3": ConvLayer(maps=6, kernel_size=3, padding=1),
        "conv5": ConvLayer(maps=6, kernel_size=3, padding=1, pool=PoolConfig()),
        "fc8": DenseLayer(),
    }
    network = ConvNet(chain, num_classes=2, image_size=224).double().eval()
    image = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    maps = network.features(image, layer)
    row, column = maps.shape[2] // 2, maps.shape[3] // 4
    x0, y0, x1, y1 = receptive_field(network, layer).box(row, column)
    inside = torch.zeros(224, 224, dtype=torch.bool)
    inside[max(0, y0) : y1, max(0, x0) : x1] = True

    elsewhere = network.features(torch.where(inside, image, torch.randn_like(image)), layer)
    within = network.features(torch.where(inside, torch.randn_like(image), image), layer)

    assert not inside.all()
    unit = (0, slice(None), row, column)
    torch.testing.assert_close(elsewhere[unit], maps[unit], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(elsewhere, maps)
    assert not torch.allclose(within[unit], maps[unit])


# --- measured with NaN ---


class Side(nn.Module):
    """A body whose field is wider than high: 1x5 after 3x3."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 4, (1, 5), padding=(0, 2))

    def forward(self, images):
        return self.second(self.first(images))


def probed(body, layer, image_size):
    return probe_field(HookedNetwork(body, [layer]), layer, image_size)


@pytest.mark.parametrize("seed", seeds(8))
def test_probed_field_is_that_of_the_chain(seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *choices: choices[int(torch.randint(len(choices), (), generator=generator))]  # noqa: E731
    chain = {
        f"conv{number}": ConvLayer(
            maps=4,
            kernel_size=draw(3, 5),
            stride=draw(1, 2) if number < 3 else 1,
            padding=draw(0, 1, 2),
            pool=PoolConfig() if number < 3 else None,
            norm=draw(None, "before_pool"),
        )
        for number in (1, 2, 3)
    }
    network = ConvNet({**chain, "fc8": DenseLayer()}, num_classes=2, image_size=127)

    fields = {layer: probe_field(network, layer, 127) for layer in chain}

    assert fields == {layer: receptive_field(network, layer) for layer in chain}


@pytest.mark.parametrize(("layer", "size", "stride"), [("act1", 7, 2), ("layer1", 43, 4), ("layer2", 99, 8)])
def test_probed_fields_of_resnet18_are_those_worked_out_by_hand(layer, size, stride):
    network = TimmNetwork("resnet18", 2, 128, (layer,))

    field = probe_field(network, layer, 128)

    # stem 7, pool 7 + 2 * 2 = 11, then four 3x3: 11 + 4 * 2 * 4 = 43, then 43 + 2 * 4 + 3 * 2 * 8 = 99.
    assert field == ReceptiveField(size, stride, -(size // 2))


def test_probed_field_that_only_outer_units_see_the_ends_of():
    body = nn.Sequential(nn.Conv2d(3, 2, 21, stride=4, padding=10), nn.Conv2d(2, 2, 5, padding=2))

    field = probed(body, "1", 40)

    # 21 + 4 * 4 = 37: every unit in the middle of 40 pixels sees one of the borders.
    assert field == ReceptiveField(37, 4, -18)


@pytest.mark.parametrize(
    "body",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), SqueezeExcite(4), nn.Conv2d(4, 4, 3)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(7)),
        nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(3 * 32 * 32, 5)),
        nn.Sequential(nn.Conv2d(3, 4, 31, padding=15), nn.ReLU(), nn.Conv2d(4, 4, 31, padding=15)),
    ],
    ids=["gate", "global pool", "uneven pool", "dense", "field larger than the image"],
)
def test_units_that_see_all_or_unevenly_get_the_whole_image(body):
    field = probed(body, "2", 32)

    assert field.box(0, 0) == field.box(5, 3) == (0, 0, 32, 32)


def test_single_unit_gets_its_own_box():
    body = nn.Sequential(nn.Conv2d(3, 4, 10, stride=30))

    assert probed(body, "0", 32).box(0, 0) == (0, 0, 10, 10)


def test_probed_box_covers_the_longer_side_of_a_field_that_is_not_square():
    assert probed(Side(), "second", 48) == ReceptiveField(11, 2, -5)


def test_probing_leaves_the_network_as_it_was():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    body[1].eval()
    network = HookedNetwork(body, ["2"])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()

    field = probe_field(network, "2", 16)

    assert field == ReceptiveField(3, 1, 0)
    assert [module.training for module in body] == [True, False, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in network.modules())


def test_what_cannot_be_probed_is_refused():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2))
    with pytest.raises(ValueError, match="no layer '7'; the layers are 0, 1"):
        probe_field(HookedNetwork(body, ["0", "1"]), "7", 16)
    with pytest.raises(ValueError, match="layer '1' has no feature maps"):
        probed(body, "1", 16)
    with torch.no_grad():
        body[0].bias[2] = float("nan")
    with pytest.raises(ValueError, match=r"layer '0' is NaN for an ordinary image: the network's 0\.bias holds NaN"):
        probed(body, "0", 16)
