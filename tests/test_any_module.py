"""Every tool on modules of other people: images that stay as they are, weights that are not finite."""

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn

from zfscope.correspondence import correspond
from zfscope.deconvnet.projection import project
from zfscope.deconvnet.winners import project_winners, top_images
from zfscope.evaluation import predict
from zfscope.evolution import observe
from zfscope.invariance import compare
from zfscope.networks.build import torchvision_chain
from zfscope.networks.chain import ConvNet
from zfscope.networks.fields import probe_field
from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig, PoolConfig
from zfscope.occlusion.maps import occlude
from zfscope.occlusion.sensitivity import look, projected

SIDE, LAYER = 20, "body.act"


class Copying(nn.Module):
    """Normalises a copy of its input; its ReLU works in place, and dropout makes training mode show."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential()
        self.body.add_module("conv", nn.Conv2d(3, 6, 5, stride=2))
        self.body.add_module("norm", nn.BatchNorm2d(6))
        self.body.add_module("act", nn.ReLU(inplace=True))
        self.body.add_module("pool", nn.MaxPool2d(2))
        self.body.add_module("drop", nn.Dropout())
        self.body.add_module("flat", nn.Flatten())
        self.body.add_module("head", nn.Linear(6 * 4 * 4, 3))

    def forward(self, images):
        return self.body((images - 0.5) / 0.2)


class Writing(Copying):
    """Normalises its input in place."""

    def forward(self, images):
        return self.body(images.sub_(0.5).div_(0.2))


def random_images(count=4, layout=torch.contiguous_format):
    images = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return images.contiguous(memory_format=layout)


def wrapped(module):
    return HookedNetwork(module, [LAYER], num_classes=3, image_size=SIDE)


MAPS, LABELS = torch.tensor([0, 1, 2, 5]), torch.tensor([0, 1, 2, 0])
BOXES = torch.tensor([[3, 3, 9, 9], [10, 2, 18, 8]]).repeat(4, 1, 1).movedim(0, 1)


def winners(network, images):
    batches = [(images[:2], LABELS[:2], torch.tensor([0, 1])), (images[2:], LABELS[2:], torch.tensor([2, 3]))]
    tables = top_images(network, batches, [LAYER], 2)
    shown = project_winners(network, tables, {LAYER: torch.arange(6)}, lambda wanted: images[wanted])
    return tables[LAYER], [(part.patches, part.projections) for part in shown]


# What a person calls with a module of his own.
ON_MODULES = {
    "project": lambda module, images: project(module, images, LAYER, MAPS),
    "project guided": lambda module, images: project(module, images, LAYER, MAPS, rule="guided"),
    "project cropped": lambda module, images: project(module, images, LAYER, MAPS, crop=True),
    "occlude": lambda module, images: occlude(module, images[0], 1, size=6, stride=5, layer=LAYER),
    "look": lambda module, images: vars(look(module, images[0], size=6, stride=5, layer=LAYER)),
    "projected": lambda module, images: projected(module, images[0], LAYER, 2),
    "compare": lambda module, images: vars(compare(module, images, LABELS, "rotation", [30.0], [LAYER], batch_size=2)),
    "correspond": lambda module, images: vars(correspond(module, images, BOXES, [LAYER])[LAYER]),
}
# What takes a Network.
ON_NETWORKS = {
    "trace": lambda network, images: vars(network.trace(images)),
    "features": lambda network, images: network.features(images, LAYER),
    "forward": lambda network, images: network(images),
    "probe_field": lambda network, images: probe_field(network, LAYER, SIDE),
    "predict": lambda network, images: vars(predict(network, [(images, LABELS, torch.arange(4))])),
    "winners": winners,
    "observe": lambda network, images: vars(
        observe(network, 1, lambda wanted: images[wanted], torch.arange(4), [LAYER], 6, 0)[LAYER]
    ),
}


def values_of(result):
    """All tensors and numbers of a result, however nested."""
    if isinstance(result, dict):
        result = list(result.values())
    return [value for part in result for value in values_of(part)] if isinstance(result, list | tuple) else [result]


def same(one, other):
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("tool", [*ON_MODULES, *ON_NETWORKS])
@torch.no_grad()
def test_a_module_that_writes_into_its_input_gives_what_one_that_copies_gives_and_leaves_images_alone(tool, layout):
    ask = ON_MODULES.get(tool) or ON_NETWORKS[tool]
    images, module, copying = random_images(layout=layout), Writing().eval(), Copying().eval()
    if tool in ON_NETWORKS:
        module, copying = wrapped(module), wrapped(copying)

    found = values_of(ask(module, images))

    assert torch.equal(images, random_images())
    expected = values_of(ask(copying, images))
    assert len(found) == len(expected) and all(map(same, found, expected))


@pytest.mark.parametrize("tool", ON_MODULES)
def test_a_module_in_training_mode_is_looked_at_in_eval_mode_and_stays_in_its_own(tool):
    module, images = Copying().eval(), random_images()
    expected = values_of(ON_MODULES[tool](module, images))
    module.train()
    module.body.norm.eval()
    state = {name: value.clone() for name, value in module.state_dict().items()}

    found = values_of(ON_MODULES[tool](module, images))

    assert all(map(same, found, expected))
    assert module.training and module.body.drop.training and not module.body.norm.training
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("conv.weight", math.nan),
        ("head.bias", -math.inf),
        ("norm.running_mean", math.nan),
        ("norm.running_var", math.inf),
    ],
)
@pytest.mark.parametrize("tool", [*ON_MODULES, "predict"])
def test_weights_that_are_not_finite_are_refused_by_name(tool, tensor, value):
    module = Copying().eval()
    module.state_dict()[f"body.{tensor}"].view(-1)[-1] = value
    ask = ON_MODULES.get(tool) or (lambda module, images: ON_NETWORKS[tool](wrapped(module), images))

    with pytest.raises(
        ValueError, match=rf"^the network's body\.{tensor} holds NaN or infinity; load finite"
    ) as refusal:
        ask(module, random_images())

    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("tool", ON_MODULES)
def test_images_that_are_not_finite_are_refused(tool, value):
    images = random_images()
    images[0, 1, 10, 10] = value

    with pytest.raises(ValueError, match="^the images hold NaN or infinity; look at how they were read"):
        ON_MODULES[tool](Copying().eval(), images)


@pytest.mark.parametrize("tool", ["project", "occlude", "look", "compare"])
def test_what_overflows_is_refused_rather_than_shown(tool):
    module = Copying().eval()
    nn.init.constant_(module.body.conv.weight, 1e30)
    nn.init.constant_(module.body.norm.weight, 1e10)

    with pytest.raises(ValueError, match="hold NaN or infinity, though weights and images are finite: float32 may be"):
        ON_MODULES[tool](module, random_images().abs() + 1)


def test_a_chain_whose_weights_are_not_finite_is_refused_by_name():
    layers = {"conv5": ConvLayer(maps=4, kernel_size=3, pool=PoolConfig()), "fc8": DenseLayer()}
    chain, image = ConvNet(layers, num_classes=3, image_size=SIDE), random_images()[0]
    with torch.no_grad():
        chain.conv5.conv.weight[3, 2, 1, 0] = math.nan

    for ask in (lambda: occlude(chain, image, 0, size=6), lambda: project(chain, image[None], "conv5", [0])):
        with pytest.raises(ValueError, match=r"^the network's conv5\.conv\.weight holds NaN or infinity"):
            ask()


class Named(Copying):
    """Gives a dictionary, as models of transformers do."""

    def forward(self, images):
        return {"logits": super().forward(images)}


def test_a_module_that_gives_a_dictionary_is_traced_and_projected_and_has_no_probability_to_occlude():
    module, images = Named().eval(), random_images()

    assert torch.equal(wrapped(module).trace(images).logits["logits"], Copying().eval()(images))
    assert torch.equal(project(module, images, LAYER, MAPS), project(Copying().eval(), images, LAYER, MAPS))
    with pytest.raises(ValueError, match=r"occlusion needs a network that gives logits \(N, classes\)"):
        occlude(module, images[0], 1, size=6, layer=LAYER)


def test_a_module_in_half_precision_takes_images_of_single_precision_to_occlude():
    module, images = Copying().eval().bfloat16(), random_images().bfloat16()

    found = occlude(module, images[0].float(), 1, size=6, stride=5, layer=LAYER)

    assert all(map(same, found, occlude(module, images[0], 1, size=6, stride=5, layer=LAYER)))
    assert project(module, images, LAYER, MAPS).dtype == torch.bfloat16


@pytest.fixture(scope="module")
def alexnets():
    """torchvision's AlexNet, with few units in its dense layers, and ours with the same weights, in float64."""
    units = {"fc6": DenseLayer(units=16, dropout=0.5), "fc7": DenseLayer(units=16, dropout=0.5)}
    torch.manual_seed(0)
    he = InitConfig(scheme="he")
    ours = ConvNet({**torchvision_chain("alexnet"), **units}, num_classes=5, image_size=95, init=he).double().eval()
    with torch.device("meta"):
        theirs = torchvision.models.alexnet()
    theirs.avgpool = nn.Identity()
    theirs.classifier = nn.Sequential(
        *(nn.Dropout(), nn.Linear(4 * 256, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5))
    )
    weights = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
    theirs.load_state_dict({name: tensor.clone() for name, tensor in weights}, assign=True)
    return theirs, ours


def test_torchvisions_alexnet_is_occluded_and_projected_as_ours_with_its_weights(alexnets):
    theirs, ours = alexnets
    images = torch.randn(2, 3, 95, 95, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs.train()  # with dropout

    occlusions = [
        occlude(module, images[0], 3, size=32, stride=32, layer=layer)
        for module, layer in ((theirs, "features.12"), (ours, "conv5"))
    ]
    projections = [project(theirs, images, "features.12", [7, 200]), project(ours, images, "conv5", [7, 200])]

    torch.testing.assert_close(occlusions[0].probability, occlusions[1].probability, rtol=0, atol=1e-12)
    torch.testing.assert_close(occlusions[0].activation, occlusions[1].activation, rtol=1e-10, atol=0)
    assert occlusions[0].feature_map == occlusions[1].feature_map
    torch.testing.assert_close(*projections, rtol=1e-9, atol=1e-12 * float(projections[1].abs().max()))
    assert projections[1].any() and theirs.training


def test_the_layer_that_nobody_named_is_the_last_one_with_maps(alexnets):
    theirs, ours = alexnets
    image = torch.randn(3, 95, 95, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    without = ConvNet({"conv1": ConvLayer(maps=4, kernel_size=5), "fc8": DenseLayer()}, num_classes=3, image_size=SIDE)

    def activation(module, image, **layer):
        return occlude(module, image, 1, size=16, stride=64, **layer).activation

    for module, picture, last in (
        (theirs, image, "features.10"),
        (ours, image, "conv5"),
        (without, image[:, :SIDE, :SIDE], "conv1"),
    ):
        expected = activation(module, picture, layer=last)
        assert torch.equal(activation(module, picture), expected)
        assert torch.equal(activation(module, picture, layer=None), expected)
    assert look(theirs, image, size=16, stride=64).layer == "features.10"
    with pytest.raises(ValueError, match="no layer 'conv5'; the layers are conv1, fc8"):
        activation(without, image[:, :SIDE, :SIDE], layer="conv5")


@pytest.mark.parametrize("tool", ON_MODULES)
def test_what_is_no_module_and_what_is_no_layer_is_refused(tool, monkeypatch):
    with pytest.raises(TypeError, match=r"a network must be a torch\.nn\.Module, but it is a function"):
        ON_MODULES[tool](lambda images: images, random_images())
    monkeypatch.setattr(f"{__name__}.LAYER", "body.acts")
    with pytest.raises(ValueError, match=r"Copying has no submodule 'body\.acts'; did you mean body\.act"):
        ON_MODULES[tool](Copying(), random_images())
