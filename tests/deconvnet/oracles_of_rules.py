"""Networks whose activations are replaced by hand."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from tests.deconvnet.oracles import project_by_autograd
from zfscope.networks.layers import ContrastNorm
from zfscope.networks.network import run_to


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

    projections = project_by_autograd(network, images, layer, maps, positions, rule=rule)
    strongest = project_by_autograd(network, images, layer, strong_maps, rule=rule)

    expected = by_oracle(network, images, layer, maps, positions, rule)
    scale = expected.abs().max().item()
    torch.testing.assert_close(projections, expected, rtol=0, atol=1e-12 * max(1.0, scale))
    expected = by_oracle(network, images, layer, strong_maps, peaks, rule)
    scale = expected.abs().max().item()
    assert scale > 0
    torch.testing.assert_close(strongest, expected, rtol=0, atol=1e-12 * max(1.0, scale))
