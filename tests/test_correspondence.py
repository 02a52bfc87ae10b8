"""Sign changes by hand and in a double loop; masks."""

import itertools

import pytest
import torch

from tests.conftest import composed
from tests.examples.correspondence import SIDE, module, pictures
from zfscope.correspondence import (
    correspond,
    feature_errors,
    in_float64,
    layers_to_compare,
    occluded,
    random_boxes,
    sign_change,
)
from zfscope.networks.build import build_network
from zfscope.networks.chain import ConvNet
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig, PoolConfig


def chain(seed=0):
    torch.manual_seed(seed)
    layers = {
        "conv1": ConvLayer(maps=5, kernel_size=3, stride=2, pool=PoolConfig()),
        "conv2": ConvLayer(maps=6, kernel_size=3, padding=1, norm=None),
        "fc3": DenseLayer(units=40, dropout=0.5),
        "fc4": DenseLayer(),
    }
    return ConvNet(layers, num_classes=3, image_size=SIDE, init=InitConfig(scheme="he"))


def squares(count, draws=1, side=9, seed=1):
    corners = torch.randint(0, SIDE - side, (draws, count, 2), generator=torch.Generator().manual_seed(seed))
    return torch.cat([corners, corners + side], dim=-1)


def test_three_images_worked_by_hand():
    errors = torch.tensor([[0.5, -2.0, 0.0, 0.0], [3.0, 0.1, 0.0, -1.0], [-1.0, -0.2, 0.0, 4.0]])

    pairs = sign_change(errors)

    # (0, 1) differ in the second (- and +) and the last (0 and -); (0, 2) in the first and the last; (1, 2) in three.
    assert pairs.tolist() == [0.5, 0.5, 0.75]
    assert pairs.mean().item() == pytest.approx(7 / 12)


def test_sign_change_is_the_mean_of_a_double_loop_over_ordered_pairs():
    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(3, 6, 200, generator=generator) * (torch.rand(3, 6, 200, generator=generator) > 0.4)

    found = sign_change(errors)

    for some, pairs in zip(errors.sign().tolist(), found, strict=True):
        shares = {
            (i, j): sum(a != b for a, b in zip(some[i], some[j], strict=True)) / 200
            for i, j in itertools.permutations(range(6), 2)
        }
        assert pairs.mean().item() == pytest.approx(sum(shares.values()) / 30)
        torch.testing.assert_close(pairs.tolist(), [shares[pair] for pair in itertools.combinations(range(6), 2)])


def test_what_has_no_sign_change_is_refused():
    with pytest.raises(ValueError, match="2 images or more, but are"):
        sign_change(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="NaN or infinity"):
        sign_change(torch.tensor([[0.0, torch.nan], [0.0, 1.0]]))


@pytest.mark.parametrize("make", [chain, module])
def test_identical_images_with_identical_masks_change_alike(make):
    network = make()
    images = pictures(1).repeat(4, 1, 1, 1)

    found = correspond(network, images, squares(1, draws=3).repeat(1, 4, 1), network.layers, batch_size=3)

    for layer in network.layers:
        assert (found[layer].pairs == 0).all()
        assert (found[layer].changed > 0).all()


@pytest.mark.parametrize("make", [chain, module])
@pytest.mark.parametrize("fill", [0.0, 1.5])
def test_correspond_is_one_image_after_the_other_in_float64(make, fill):
    network, images, boxes = make(), pictures(4), squares(4, draws=5)
    network.eval().double()

    expected = {layer: [] for layer in network.layers}
    for each in boxes.tolist():
        errors = {layer: [] for layer in network.layers}
        for image, (x0, y0, x1, y1) in zip(images.double(), each, strict=True):
            masked = image.clone()
            masked[:, y0:y1, x0:x1] = fill
            for layer in network.layers:
                with torch.no_grad():
                    error = network.features(image[None], layer) - network.features(masked[None], layer)
                errors[layer].append(torch.where(error.abs() < 1e-11, 0, error).flatten())
        for layer in network.layers:
            signs = torch.stack(errors[layer]).sign()
            shares = [(signs[i] != signs[j]).double().mean() for i, j in itertools.permutations(range(4), 2)]
            expected[layer].append(torch.stack(shares).mean())
    network.float().train()

    for batch_size in (1, 6, 64):
        found = correspond(network, images, boxes, network.layers, fill=fill, batch_size=batch_size)
        for layer in network.layers:
            torch.testing.assert_close(found[layer].delta, torch.stack(expected[layer]))


def test_only_units_that_the_mask_reaches_change():
    network, images, boxes = chain().eval(), pictures(3), squares(3, draws=4, side=5)

    found = correspond(network, images, boxes, ["conv1", "conv2"])

    for number, each in enumerate(boxes):
        poisoned = network.trace(occluded(images, each, fill=torch.nan)).maps  # NaN spreads to all that a mask reaches
        for layer in ("conv1", "conv2"):
            reached = poisoned[layer].isnan().flatten(1).double().mean(1)
            assert (reached < 1).all()
            assert (found[layer].changed[number] <= reached).all()
            assert (found[layer].changed[number] > 0.3 * reached).all()


def test_a_mask_in_the_colour_of_what_it_hides_changes_nothing_whatever_the_batch():
    network, images = chain(), pictures(5)
    images[:, :, 5:20, 5:20] = 0

    found = correspond(network, images, torch.tensor([[[5, 5, 20, 20]] * 5]), network.layers, batch_size=2)

    assert all((each.changed == 0).all() and (each.delta == 0).all() for each in found.values())


def test_rounding_has_no_sign_and_a_small_change_has():
    original = torch.linspace(0, 50, 11, dtype=torch.float64).repeat(2, 1)
    noise = torch.randn(2, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).sign()

    assert (feature_errors(original, original + 1e-11 * noise) == 0).all()
    torch.testing.assert_close(feature_errors(original, original - 1e-6 * noise).sign(), noise)


@pytest.mark.parametrize("make", [chain, module])
def test_the_network_is_left_as_it_was(make):
    network = make().train()
    network.requires_grad_()
    before = {name: each.clone() for name, each in network.state_dict().items()}
    kept = list(network.parameters())
    modes = [each.training for each in network.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()

    correspond(network, pictures(2), squares(2), network.layers)
    with pytest.raises(RuntimeError), in_float64(network):
        network(pictures(1))  # float32 images

    assert torch.equal(torch.get_rng_state(), state)
    assert [each.training for each in network.modules()] == modes
    assert all(one is other for one, other in zip(network.parameters(), kept, strict=True))
    for name, each in network.state_dict().items():
        assert each.dtype == before[name].dtype
        assert torch.equal(each, before[name])
    network(pictures(2)).sum().backward()  # no tensor of it may have become one that cannot be trained
    assert all(each.grad is not None for each in network.parameters())


def test_unknown_layers_are_refused():
    with pytest.raises(ValueError, match="no layer 'conv9'; the layers are conv1, conv2, fc3, fc4"):
        correspond(chain(), pictures(2), squares(2), ["conv9"])


@pytest.mark.parametrize("box", [(3, 3, 3, 9), (9, 3, 5, 9), (-9, 0, 0, 9), (0, 40, 9, 60)])
def test_a_box_that_hides_nothing_is_refused(box):
    boxes = torch.tensor([[0, 0, 5, 5], box])[None]

    with pytest.raises(ValueError, match="a box is empty or outside its image"):
        correspond(chain(), pictures(2), boxes, ["conv1"])


def test_a_random_box_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="a box is larger than the images of 20x30 pixels"):
        random_boxes(torch.tensor([[0, 0, 31, 5]]), 3, (20, 30), torch.Generator())


def test_compared_are_the_last_maps_and_the_layer_below_the_classes():
    resnet = build_network(composed("model=timm", "model.name=resnet18")["model"], 3, 64)
    zfnet_mini = build_network(composed()["model"], 3, 112)

    assert layers_to_compare(chain()) == ("conv2", "fc3")
    assert layers_to_compare(zfnet_mini) == ("conv5", "fc7")
    assert layers_to_compare(resnet) == ("layer4",)
    squeezenet = build_network(composed("model=torchvision", "model.name=squeezenet1_1")["model"], 3, 64)
    assert layers_to_compare(squeezenet) == ("features.12",)  # its classifier is no layer


def test_a_mask_is_a_half_open_box_and_overhangs_are_cut():
    images = pictures(2)
    boxes = torch.tensor([[[3, 4, 10, 6], [-5, 30, 2, 90]], [[0, 0, SIDE, SIDE], [7, 7, 7, 9]]])

    found = occluded(images, boxes, fill=2.0)

    expected = images.repeat(2, 1, 1, 1, 1)
    expected[0, 0, :, 4:6, 3:10] = 2
    expected[0, 1, :, 30:, :2] = 2
    expected[1, 0] = 2
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"boxes must be \(…, N, 4\)"):
        occluded(images, boxes[:, :1])


def test_random_boxes_have_the_parts_sizes_and_come_everywhere_equally_often():
    boxes = torch.tensor([[2, 1, 6, 4], [0, 0, 8, 5]])

    found = random_boxes(boxes, 20_000, (5, 8), torch.Generator().manual_seed(0))

    assert torch.equal(found[..., 2:] - found[..., :2], torch.tensor([[4, 3], [8, 5]]).expand(20_000, 2, 2))
    assert (found[:, 1] == torch.tensor([0, 0, 8, 5])).all()  # as large as the image: one place
    places = (found[:, 0, 1] * 5 + found[:, 0, 0]).bincount(minlength=15)  # 5 columns, 3 rows
    assert len(places) == 15
    chi_square = ((places - 20_000 / 15) ** 2 / (20_000 / 15)).sum()
    assert chi_square < 29.1  # 99 % of 14 degrees of freedom
    assert torch.equal(found, random_boxes(boxes, 20_000, (5, 8), torch.Generator().manual_seed(0)))


def test_random_boxes_on_the_object_have_their_middles_in_it():
    boxes, around = torch.tensor([[2, 1, 6, 5], [0, 0, 6, 6]]), torch.tensor([[20, 12, 24, 13], [0, 0, 4, 4]])

    found = random_boxes(boxes, 2000, (SIDE, SIDE), torch.Generator().manual_seed(0), around=around)

    middles = (found[:, 0, :2] + found[:, 0, 2:]) / 2
    assert middles[:, 0].unique().tolist() == [20, 21, 22, 23, 24]
    assert middles[:, 1].unique().tolist() == [12, 13]
    assert (found >= 0).all() and (found <= SIDE).all()
    assert torch.equal(found[..., 2:] - found[..., :2], (boxes[:, 2:] - boxes[:, :2]).expand(2000, 2, 2))


def test_random_boxes_drawn_together_are_at_one_place_in_all_images():
    boxes = torch.tensor([[2, 1, 6, 5], [9, 9, 13, 13], [0, 0, SIDE, 4]])

    found = random_boxes(boxes, 500, (SIDE, SIDE), torch.Generator().manual_seed(0), together=True)

    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0, 1::2], found[:, 2, 1::2]) and (found[:, 2, 0] == 0).all()
    assert len(found[:, 0].unique(dim=0)) > 250
