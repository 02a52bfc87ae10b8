"""What one look finds, against images covered one by one."""

import pytest
import torch
from torch import nn

from tests.callbacks.conftest import SIDE, Body, resnet, small_chain
from tests.oracles import check_alike, occluded_by_hand
from zfscope.deconvnet.projection import project
from zfscope.images import contrast_limits, to_tiles
from zfscope.networks.hooked import HookedNetwork
from zfscope.occlusion.sensitivity import look, projected

NETWORKS = {
    "chain": (lambda: small_chain(classes=3), "conv2"),
    "module": (lambda: HookedNetwork(Body(classes=3)), "conv2"),
    "resnet18": (lambda: resnet(classes=3), "layer4"),
}


def picture(seed=0, side=SIDE):
    return torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_look_finds_what_covering_by_hand_finds_also_beside_the_square(kind):
    make, last = NETWORKS[kind]
    network = make().double().train()

    sensitivity = look(network, picture(), 2, size=7, stride=4, fill=0.5)

    expected = occluded_by_hand(network, picture(), 2, 7, 4, 0.5, last)
    check_alike(sensitivity, expected)
    torch.testing.assert_close(sensitivity.drop, expected.probability - expected.occlusion.probability)
    assert network.training and all(part.training for part in network.modules())


def test_the_square_and_its_step_are_the_papers_share_and_the_target_the_most_probable_class():
    network, image = small_chain(112, classes=3), picture(1, side=112)

    sensitivity = look(network, image)

    with torch.no_grad():
        whole = network.eval()(image[None])[0].softmax(0)
    assert (sensitivity.size, sensitivity.stride, sensitivity.layer) == (24, 8, "conv2")
    assert sensitivity.target == sensitivity.label == int(whole.argmax())
    assert sensitivity.probability == pytest.approx(float(whole.max()), rel=1e-5)
    assert sensitivity.occlusion.probability.shape == (12, 12)


def test_of_the_layers_that_nobody_named_the_last_one_with_maps_is_taken():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(2), nn.Flatten(), nn.LazyLinear(3))
    body(picture()[None])

    assert look(HookedNetwork(body, ["0", "1", "2"]), picture(), size=9, stride=6).layer == "1"
    with pytest.raises(ValueError, match="none of 2 has feature maps"):
        look(HookedNetwork(body, ["2"]), picture())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "conv9"}, "no layer 'conv9'; the layers are conv1, conv2, fc3, fc4"),
        ({"size": 22}, "size=22 is larger than the image of 21x21 pixels"),
        ({"stride": 0}, "stride must be a whole number of pixels, 1 or more, but is 0"),
        ({"target": 3}, "0 … 2, but is 3"),
    ],
)
def test_a_look_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        look(small_chain(classes=3), picture(), **options)


def test_a_network_without_logits_is_refused_by_what_it_gives():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, images):
            return {"logits": self.conv(images).mean((2, 3))}

    with pytest.raises(ValueError, match="occlusion needs a network that gives logits"):
        look(HookedNetwork(Named(), ["conv"]), picture())


def test_a_projection_is_that_of_the_strongest_activation():
    network = small_chain(classes=3)
    with torch.no_grad():
        position = divmod(int(network.eval().features(picture()[None], "conv2")[0, 3].argmax()), 5)

    tile = projected(network, picture(), "conv2", 3)

    expected = project(network, picture()[None], "conv2", [3], torch.tensor([position]))
    assert torch.equal(tile, to_tiles(expected, limit=contrast_limits(expected))[0])
