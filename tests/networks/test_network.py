"""Any module as a network, and the modes that looking leaves as they were."""

import pytest
import timm
import torch
from torch import nn

from tests.networks.examples import random_images
from zfscope.networks.hooked import HookedNetwork, TimmNetwork, as_network
from zfscope.networks.network import evaluating, run_to, uncompiled


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
    assert not any(submodule._forward_hooks for submodule in module.modules())
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
    assert network.classifier_prefixes == ("body.fc.",)
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

    import torch._dynamo  # what torch.compile loads, without which uncompiled() does nothing

    blocks = [uncompiled(), uncompiled()]
    for block in blocks:
        block.__enter__()
    for block in blocks:  # the first is closed first
        block.__exit__(None, None, None)
    torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(1))

    assert len(graphs) == 1
