import copy

import captum.attr
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from zfscope.deconvnet.autograd import backward_rule, project_backward
from zfscope.networks.chain import ConvNet
from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.layers import ContrastNorm
from zfscope.networks.network import run_to
from zfscope.networks.spec import ConvLayer, DenseLayer, PoolConfig

RULES = ["deconvnet", "guided", "gradient"]


class OneRule(torch.autograd.Function):
    """A ReLU (ending at ``high``) with the rule written down once more, for the oracle."""

    @staticmethod
    def forward(ctx, maps, high, rule):
        ctx.save_for_backward(maps)
        ctx.high, ctx.rule = high, rule
        return maps.clamp(0, high)

    @staticmethod
    def backward(ctx, above):
        (maps,) = ctx.saved_tensors
        passed = ((maps > 0) & (maps < ctx.high)).to(above.dtype)
        below = {"gradient": above * passed, "deconvnet": F.relu(above), "guided": F.relu(above) * passed}
        return below[ctx.rule], None, None


class OracleReLU(nn.Module):
    def __init__(self, rule, high=torch.inf):
        super().__init__()
        self.rule, self.high = rule, high

    def forward(self, maps):
        return OneRule.apply(maps, self.high, self.rule)


class OracleNorm(nn.Module):
    """Normalises; to the gradient it is not there (deconvnet), or what torch's own is."""

    def __init__(self, rule, norm):
        super().__init__()
        self.rule, self.norm = rule, norm

    def forward(self, maps):
        out = F.local_response_norm(maps, self.norm.size, self.norm.alpha, self.norm.beta, self.norm.k)
        return maps + (out - maps).detach() if self.rule == "deconvnet" else out


def with_oracles(model, rule):
    """A copy whose ReLU modules and norms are the oracle's."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(parent, name, OracleReLU(rule, 6.0 if isinstance(child, nn.ReLU6) else torch.inf))
            elif isinstance(child, nn.LocalResponseNorm | ContrastNorm):
                setattr(parent, name, OracleNorm(rule, child))
    return model


def by_oracle(network, images, layer, maps, positions, rule):
    """One image at a time, by plain autograd that starts from the activation's own value."""
    network = with_oracles(network, rule)
    found = []
    for number, image in enumerate(images):
        pixels = image[None].clone().requires_grad_()
        output = run_to(network, pixels, layer)[0, maps[number]]
        activation = output[tuple(positions[number])] if output.ndim else output
        found += torch.autograd.grad(activation, pixels, activation.detach())
    return torch.cat(found)


def assert_projects(network, images, layer, rule, seed=0):
    """Random maps and positions, and the strongest ones, agree with the oracle."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        output = run_to(network, images, layer)
    maps = torch.randint(output.shape[1], (len(images),), generator=generator)
    sides = output.shape[2:] if output.ndim == 4 else (1, 1)
    positions = torch.stack([torch.randint(side, (len(images),), generator=generator) for side in sides], 1)
    strong_maps = output.reshape(*output.shape[:2], -1).amax(2).argmax(1)
    peaks = output.reshape(*output.shape[:2], -1)[range(len(images)), strong_maps].argmax(1)
    peaks = torch.stack([peaks // sides[1], peaks % sides[1]], 1)

    projections = project_backward(network, images, layer, maps, positions, rule=rule)
    strongest = project_backward(network, images, layer, strong_maps, rule=rule)

    expected = by_oracle(network, images, layer, maps, positions, rule)
    scale = expected.abs().max().item()
    torch.testing.assert_close(projections, expected, rtol=0, atol=1e-12 * max(1.0, scale))
    expected = by_oracle(network, images, layer, strong_maps, peaks, rule)
    scale = expected.abs().max().item()
    assert scale > 0
    torch.testing.assert_close(strongest, expected, rtol=0, atol=1e-12 * max(1.0, scale))


def random_images(count=3, side=24, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(build):
    torch.manual_seed(0)
    body = build().double().eval()
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:  # eval mode must do more than nothing
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, -1.0, 1.5)
    return body


def plain():
    """Only nn.ReLU modules, none of them in place: what captum can do."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 5, 3, padding=1),
    )


class Ways(nn.Module):
    """The same network as ``plain`` with its ReLUs called in one of the ways there are."""

    def __init__(self, body, relu):
        super().__init__()
        self.conv1, self.pool, self.conv2, self.norm, self.conv3 = (body[index] for index in (0, 2, 3, 4, 6))
        self.relu = relu

    def forward(self, images):
        maps = self.pool(self.relu(self.conv1(images)))
        return self.conv3(self.relu(self.norm(self.conv2(maps))))


class Aliased(Ways):
    """Goes on with the tensor that an in-place ReLU wrote to, not with what the call gave back."""

    def forward(self, images):
        maps = self.conv1(images)
        self.relu(maps)
        maps = self.norm(self.conv2(self.pool(maps)))
        self.relu(maps)
        return self.conv3(maps)


class InParts(Ways):
    """An in-place ReLU on each half of the maps, which are views of them; torch's own gradient cannot do that."""

    def forward(self, images):
        maps = self.conv1(images)
        for part in (maps[:, :3], maps[:, 3:]):
            self.relu(part)
        return self.conv3(self.relu(self.norm(self.conv2(self.pool(maps)))))


class Gated(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.conv, self.gate, self.top = nn.Conv2d(3, 4, 3), gate, nn.Conv2d(4, 4, 1)

    def forward(self, images):
        return self.top(self.gate(self.conv(images)))


def network_with(gate):
    """A conv layer, whatever ``gate`` does to its maps, another conv layer."""
    return HookedNetwork(seeded(lambda: Gated(gate)), ["top", "conv"])


# --- against others ---


@pytest.mark.parametrize(
    ("rule", "captum_s"),
    [("deconvnet", captum.attr.NeuronDeconvolution), ("guided", captum.attr.NeuronGuidedBackprop)],
    ids=["deconvnet", "guided"],
)
@pytest.mark.parametrize("layer", ["2", "3", "6"])
def test_projection_is_captum_s_times_the_activation(rule, captum_s, layer):
    body, images = seeded(plain), random_images()
    network = HookedNetwork(body, [layer])
    maps = torch.tensor([0, 3, 4])

    projections = project_backward(network, images, layer, maps, rule=rule)

    for number in range(3):
        model, image = copy.deepcopy(body), images[number : number + 1].clone().requires_grad_()
        activations = model[: int(layer) + 1](image)[0, maps[number]].detach()
        unit = (int(maps[number]), *divmod(int(activations.argmax()), activations.shape[1]))
        # Captum starts from 1. Rectification commutes with a factor only above zero.
        assert activations.max() > 0
        expected = activations.max() * captum_s(model, model[int(layer)]).attribute(image, unit)[0]
        assert expected.any()
        torch.testing.assert_close(projections[number], expected.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ["layer2.0.conv1", "layer3", "fc"]),
        ("densenet121", ["features.denseblock2"]),
        ("mobilenetv2_050", ["blocks.1", "blocks.4"]),
    ],
)
def test_timm_models_project_as_with_their_activations_replaced(name, layers, rule):
    body = seeded(lambda: timm.create_model(name, num_classes=4))
    network = HookedNetwork(body, layers)

    for layer in layers:
        assert_projects(network, random_images(2, 64), layer, rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("norm", ["before_pool", "after_pool"])
@pytest.mark.parametrize("seed", range(1, 4))
def test_chains_project_as_with_their_activations_replaced(rule, norm, seed):
    torch.manual_seed(seed)
    chain = {
        "conv1": ConvLayer(maps=6, kernel_size=5, stride=2, padding=1, pool=PoolConfig(), norm=norm),
        "conv2": ConvLayer(maps=8, kernel_size=3, stride=1, padding=seed, pool=PoolConfig(), norm=norm, groups=2),
        "conv3": ConvLayer(maps=5, kernel_size=3, padding=1, norm="after_pool"),
        "fc6": DenseLayer(units=7, dropout=0.5),
        "fc8": DenseLayer(),
    }
    network = ConvNet(chain, num_classes=4, image_size=35 + 2 * seed).double().eval()
    for layer in ("conv1", "conv2", "conv3"):
        getattr(network, layer).conv.weight.data.mul_(30)
        if norm_module := getattr(getattr(network, layer), "norm", None):
            norm_module.alpha = 0.5  # strong enough to be seen

    for layer in network.layers:
        assert_projects(network, random_images(3, 35 + 2 * seed), layer, rule, seed)


@pytest.mark.parametrize("rule", RULES)
def test_torch_s_own_normalisation_is_passed_or_kept(rule):
    norm = nn.LocalResponseNorm(3, alpha=0.7, beta=0.6, k=0.9)

    assert_projects(network_with(nn.Sequential(nn.ReLU(), norm)), random_images(), "top", rule)


# --- each way to call a ReLU ---


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "relu",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        F.relu,
        lambda maps: F.relu(maps, True),
        F.relu_,
        torch.relu,
        torch.relu_,
        lambda maps: torch.relu(input=maps),
        torch.Tensor.relu,
        torch.Tensor.relu_,
        lambda maps: maps.clamp(min=0),
        lambda maps: maps.clamp(0),
        lambda maps: maps.clamp_(0.0, None),
        lambda maps: torch.clip(maps, min=0),
        lambda maps: maps.clamp_min_(0),
        nn.Threshold(0, 0),
        lambda maps: F.threshold_(maps, 0.0, 0.0),
        lambda maps: F.hardtanh(maps, 0, 1e9),
    ],
)
def test_each_way_to_call_a_relu_gives_the_same_projection(relu, rule):
    body, images = seeded(plain), random_images()
    maps = torch.tensor([0, 2, 4])
    expected = project_backward(HookedNetwork(body, ["6"]), images, "6", maps, rule=rule)

    projections = project_backward(HookedNetwork(Ways(body, relu), ["conv3"]), images, "conv3", maps, rule=rule)

    torch.testing.assert_close(projections, expected, rtol=0, atol=0)
    with torch.no_grad():
        below, activations = body[:3](images), body(images).flatten(2).amax(2)[range(3), maps]
    assert below.any() and activations.all()


@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
@pytest.mark.parametrize("relu", [nn.ReLU(inplace=True), torch.relu_])
def test_in_place_relu_on_views_of_the_maps(relu, rule):
    body, images, maps = seeded(plain), random_images(), torch.tensor([0, 2, 4])
    expected = project_backward(HookedNetwork(body, ["6"]), images, "6", maps, rule=rule)

    projections = project_backward(HookedNetwork(InParts(body, relu), ["conv3"]), images, "conv3", maps, rule=rule)

    torch.testing.assert_close(projections, expected, rtol=0, atol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("relu", [nn.ReLU(inplace=True), torch.relu_, lambda maps: F.relu6(maps, inplace=True)])
def test_in_place_relu_changes_the_tensor_itself(relu, rule):
    body, images = seeded(plain), random_images()
    maps = torch.tensor([0, 2, 4])
    expected = project_backward(HookedNetwork(Ways(body, relu), ["conv3"]), images, "conv3", maps, rule=rule)

    projections = project_backward(HookedNetwork(Aliased(body, relu), ["conv3"]), images, "conv3", maps, rule=rule)

    torch.testing.assert_close(projections, expected, rtol=0, atol=0)


@pytest.mark.parametrize("relu6", [nn.ReLU6(), nn.ReLU6(inplace=True), F.relu6, lambda maps: maps.clamp(0, 6)])
def test_relu6_by_hand(relu6):
    maps = torch.tensor([-1.0, 0.0, 2.0, 6.0, 7.0])
    above = torch.tensor([3.0, 3.0, 3.0, 3.0, 3.0])
    found = {}

    for rule in RULES:
        for sign in (1, -1):
            pixels = maps.clone().requires_grad_()
            with backward_rule(rule):
                output = relu6(pixels * 1)
                (gradient,) = torch.autograd.grad(output, pixels, sign * above)
            assert output.tolist() == [0, 0, 2, 6, 6]
            found[rule, sign] = gradient.tolist()

    assert found["deconvnet", 1] == [3, 3, 3, 3, 3]
    assert found["guided", 1] == [0, 0, 3, 0, 0]
    assert found["deconvnet", -1] == found["guided", -1] == [0, 0, 0, 0, 0]
    plain = maps.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(relu6(plain * 1), plain, above)
    assert found["gradient", 1] == gradient.tolist()


def test_outputs_are_the_same_under_every_rule():
    body = timm.create_model("resnet18", num_classes=4).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = body(images)

    for rule in RULES:
        with backward_rule(rule):
            assert torch.equal(body(images), expected)
            with torch.no_grad():
                assert torch.equal(body(images), expected)


def test_rule_ends_with_its_block():
    maps = torch.tensor([-1.0, 2.0], requires_grad=True)

    with pytest.raises(RuntimeError, match="stop"), backward_rule("deconvnet"):
        raise RuntimeError("stop")

    (gradient,) = torch.autograd.grad(F.relu(maps), maps, torch.tensor([3.0, -3.0]))
    assert gradient.tolist() == [0, -3]
    assert torch.jit.script(nn.ReLU())(maps).requires_grad  # what is refused inside


def test_scaling_an_input_of_a_network_without_biases_scales_the_projection():
    body = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 3, bias=False))
    network, images = HookedNetwork(body.double(), ["3"]), random_images(1)
    maps, positions = torch.tensor([1]), torch.tensor([[4, 5]])

    once = project_backward(network, images, "3", maps, positions)

    torch.testing.assert_close(project_backward(network, 3 * images, "3", maps, positions), 3 * once)
    assert once.any()


def test_one_layer_gives_its_filter():
    conv = nn.Conv2d(3, 4, 3).double()
    network, images = HookedNetwork(nn.Sequential(conv), ["0"]), random_images(1)
    activation = conv(images)[0, 2, 5, 7].detach()

    projection = project_backward(network, images, "0", torch.tensor([2]), torch.tensor([[5, 7]]))

    expected = torch.zeros_like(images)
    expected[0, :, 5:8, 7:10] = activation * conv.weight[2].detach()
    torch.testing.assert_close(projection, expected, rtol=0, atol=1e-15)


# --- what has no rule ---


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps):
        return 2 * maps

    @staticmethod
    def backward(ctx, above):
        return 2 * above


class Mul(Doubled):
    """Its node has nearly the name of torch's own product."""


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, maps):
        tokens = maps.flatten(2).transpose(1, 2)
        return self.heads(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).unflatten(2, maps.shape[2:])


@torch.jit.script
def scripted_gate(maps: torch.Tensor) -> torch.Tensor:
    return maps * torch.sigmoid(maps)


def in_part(function):
    def applied(maps):
        maps = maps.clone()
        function(maps[:, :2])
        return maps

    return applied


REFUSED = {
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "elu": nn.ELU(inplace=True),
    "leaky_relu": nn.LeakyReLU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": torch.tanh,
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardtanh": nn.Hardtanh(),
    "mish": nn.Mish(),
    "softplus": nn.Softplus(),
    "prelu": nn.PReLU(),
    "softmax": nn.Softmax(1),
    "layer_norm": nn.LayerNorm(22),
    "group_norm": nn.GroupNorm(2, 4),
    "instance_norm": nn.InstanceNorm2d(4),
    "multi_head_attention_forward": Attention(),
    "normalize": F.normalize,
    "threshold": nn.Threshold(0.5, 0),
    "clamp": lambda maps: maps.clamp(min=-1),
    "maximum": lambda maps: torch.maximum(maps, torch.zeros_like(maps)),
    "abs": torch.abs,
    r"a mask made from the maps \(gt\)": lambda maps: maps * (maps > 0),
    "mul of two things that come from the image": lambda maps: maps * maps.mean((2, 3), keepdim=True),
    "rdiv": lambda maps: 1 / maps,
    "div of two things that come from the image": lambda maps: maps / maps.sum(1, keepdim=True),
    "conv2d of two things that come from the image": lambda maps: F.conv2d(maps, maps[:1].repeat(4, 1, 1, 1)),
    "matmul of two things that come from the image": lambda maps: maps @ maps,
    "batch_norm by the batch's own statistics": nn.BatchNorm2d(4, track_running_stats=False),
    "sigmoid_": in_part(torch.sigmoid_),
    "Doubled": Doubled.apply,
    "Mul": Mul.apply,
    "div of two": lambda maps: torch.ones_like(maps) / maps,
    "mul of two": in_part(lambda part: part.__imul__(part.mean())),
    "a scripted function": scripted_gate,
}


@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
@pytest.mark.parametrize("named", REFUSED)
def test_what_has_no_rule_is_refused_by_name(rule, named):
    network, images, maps = network_with(REFUSED[named]), random_images(), torch.tensor([0, 1, 2])
    shown = {"sigmoid_": "sigmoid", "a scripted function": ""}.get(named, named)

    with pytest.raises(ValueError, match=rf"the rule '{rule}' is not defined for {shown}.*; rule='gradient' takes any"):
        project_backward(network, images, "top", maps, rule=rule)

    assert project_backward(network, images, "conv", maps, rule=rule).any()  # it stands above that layer
    assert project_backward(network, images, "top", maps, rule="gradient").any()


@pytest.mark.parametrize(
    "linear",
    [
        nn.Dropout(),
        nn.AvgPool2d(2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.PixelShuffle(2),
        lambda maps: torch.cat([maps, maps.roll(1, 2), F.pad(maps, (1, 1, 1, 1))[..., 1:-1, 1:-1]], 1)[:, 3:7],
        lambda maps: (maps + maps.mean((2, 3), keepdim=True)) / 3 - 2 * maps.flip(3),
        lambda maps: maps.flatten(2).transpose(1, 2).reshape(-1, 22, 22, 4).permute(0, 3, 1, 2).contiguous(),
        timm.layers.StdConv2d(4, 4, 3),
        timm.layers.LayerScale2d(4),
        nn.Conv2d(4, 4, 3, padding_mode="reflect"),
    ],
)
def test_what_is_linear_is_not_refused(linear):
    body = Gated(linear)
    body.top = nn.LazyConv2d(4, 1)
    body.double()(random_images())

    assert_projects(HookedNetwork(body.eval(), ["top"]), random_images(), "top", "deconvnet")


@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
def test_scripted_submodules_are_refused_by_name(rule):
    scripted = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)).double())
    network, maps = network_with(scripted), torch.tensor([0, 1, 2])

    with pytest.raises(ValueError, match="not defined for the scripted module 'body.gate'"):
        project_backward(network, random_images(), "top", maps, rule=rule)
    with pytest.raises(ValueError, match="not defined for the scripted module Sequential"), backward_rule(rule):
        network(random_images().requires_grad_())

    assert project_backward(network, random_images(), "top", maps, rule="gradient").any()


def test_compiled_network_follows_the_rule_too():
    body, images, maps = seeded(plain), random_images(), torch.tensor([0, 2, 4])
    expected = project_backward(HookedNetwork(body, ["6"]), images, "6", maps)
    compiled = torch.compile(copy.deepcopy(body), backend="eager")
    compiled(images.requires_grad_())

    projections = project_backward(HookedNetwork(nn.Sequential(compiled), ["0.6"]), images, "0.6", maps)

    torch.testing.assert_close(projections, expected)


# --- nothing is left behind ---


def state_of(network):
    return {
        "modes": [module.training for module in network.modules()],
        "needed": [parameter.requires_grad for parameter in network.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone().tolist() for p in network.parameters()],
        "buffers": {name: tensor.tolist() for name, tensor in network.state_dict().items()},
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()],
        "global hooks": len(nn.modules.module._global_forward_pre_hooks),
        "random": torch.get_rng_state().tolist(),
    }


class Noisy(nn.Module):
    """Draws random numbers in eval mode too."""

    def forward(self, maps):
        return maps + torch.randn_like(maps)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fails", [False, True])
def test_network_is_left_as_it_was(rule, fails):
    class Failing(nn.Module):
        def forward(self, maps):
            if fails:
                raise RuntimeError("as planned")
            return F.relu(maps)

    network = network_with(nn.Sequential(nn.BatchNorm2d(4), Noisy(), Failing(), nn.Dropout()))
    network.train()
    network.body.gate[0].eval()
    network.body.top.weight.requires_grad_(False)
    network.body.conv(random_images()).sum().backward()
    before, images = state_of(network), random_images()

    if fails:
        with pytest.raises(RuntimeError, match="as planned"):
            project_backward(network, images, "top", torch.tensor([0, 1, 2]), rule=rule)
    else:
        project_backward(network, images, "top", torch.tensor([0, 1, 2]), rule=rule)

    assert state_of(network) == before
    assert not images.requires_grad
    assert images.grad is None


def test_network_in_training_mode_projects_as_in_eval_mode():
    body, images, maps = seeded(plain), random_images(), torch.tensor([0, 2, 4])
    body.insert(3, nn.Dropout())
    expected = project_backward(HookedNetwork(body, ["7"]), images, "7", maps)

    projections = project_backward(HookedNetwork(body.train(), ["7"]), images, "7", maps)

    torch.testing.assert_close(projections, expected, rtol=0, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("rule", RULES)
def test_projection_under_modes_without_gradients(mode, rule):
    network, maps = HookedNetwork(seeded(plain), ["6"]), torch.tensor([0, 2, 4])
    expected = project_backward(network, random_images(), "6", maps, rule=rule)

    with mode():
        projections = project_backward(network, random_images(), "6", maps, rule=rule)
        assert not torch.is_grad_enabled()

    torch.testing.assert_close(projections, expected, rtol=0, atol=0)
    assert not projections.requires_grad


def test_network_that_writes_into_its_input_leaves_the_images_alone():
    body = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3)).double()
    images = random_images()
    before = images.clone()

    project_backward(HookedNetwork(body, ["1"]), images, "1", torch.tensor([0, 1, 0]))

    assert torch.equal(images, before)


def test_nothing_above_the_layer_is_computed():
    body = seeded(plain)
    network = HookedNetwork(body, ["3", "6"])
    maps = torch.tensor([0, 2, 4])
    expected = project_backward(network, random_images(), "3", maps)  # also sees that layer 3 runs once
    body[6] = nn.Linear(1, 1)

    torch.testing.assert_close(project_backward(network, random_images(), "3", maps), expected)


# --- bad input ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "7"}, "no layer '7'; the layers are 2, 6, 7"),
        ({"rule": "grad-cam"}, "no rule 'grad-cam'; the rules are deconvnet, guided, gradient"),
        ({"maps": torch.tensor([0, 1, 5])}, "map 5 is not in layer '6', whose maps are 0 to 4"),
        ({"maps": torch.tensor([0, -1, 4])}, "map -1 is not in layer '6'"),
        ({"maps": torch.tensor([0, 1])}, r"maps must be whole numbers \(3,\) for 3 images, but are torch.int64 \(2,\)"),
        ({"maps": torch.tensor([0.0, 1.0, 2.0])}, "maps must be whole numbers .* but are torch.float32"),
        ({"positions": torch.tensor([[0, 0], [5, 0], [0, 0]])}, r"position \(5, 0\) is outside .* maps are 5x5"),
        ({"positions": torch.tensor([[0, 0], [0, 0], [0, -1]])}, r"position \(0, -1\) is outside layer '6'"),
        ({"positions": torch.tensor([0, 0, 0])}, r"positions must be whole numbers \(3, 2\)"),
        ({"images": torch.zeros(3, 24, 24)}, r"images must be floating point \(N, 3, H, W\)"),
        ({"images": torch.zeros(3, 3, 24, 24, dtype=torch.uint8)}, "but are torch.uint8"),
        ({"layer": "tokens"}, r"layer 'tokens' has no feature maps .*: its output is \(3, 5, 25\)"),
        ({"layer": "unused"}, "layer 'unused' does not run when the network does"),
        ({"layer": "twice"}, "layer 'twice' runs more than once in one pass"),
        ({"layer": "cut"}, "layer 'cut' is cut off from the image"),
        ({"layer": "dense", "maps": torch.tensor([0, 1, 2]), "positions": torch.ones(3, 2).long()}, r"maps are 1x1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused(change, message):
    class Cut(nn.Module):
        def forward(self, maps):
            return maps.detach()

    body = seeded(plain)
    twice = nn.Identity()
    body.add_module("twice", twice)
    body.add_module("again", twice)
    body.add_module("tokens", nn.Flatten(2))
    body.add_module("dense", nn.LazyLinear(1).double())
    body.add_module("flat", nn.Flatten())
    body.add_module("cut", Cut())
    body.dense.register_module("unused", nn.Identity())
    body(random_images())
    layers = ["2", "6", "twice", "tokens", "dense", "flat", "cut", "dense.unused"]
    given = {"images": random_images(), "layer": "6", "maps": torch.tensor([0, 1, 2]), "positions": None, **change}
    names = {"unused": "dense.unused", "dense": "flat"}
    given["layer"] = names.get(given["layer"], given["layer"])
    message = message.replace("'unused'", "'dense.unused'").replace("2, 6, 7", "2, 6, twice")

    with pytest.raises(ValueError, match=message):
        project_backward(HookedNetwork(body, layers), **given)


def test_places_of_dense_layers_are_zeros_or_none():
    body = nn.Sequential(seeded(plain), nn.Flatten(), nn.ReLU(), nn.Linear(125, 4).double())
    network, maps = HookedNetwork(body, ["3"]), torch.tensor([0, 1, 2])

    projections = project_backward(network, random_images(), "3", maps)

    assert torch.equal(project_backward(network, random_images(), "3", maps, torch.zeros(3, 2).long()), projections)
    assert projections.any()
