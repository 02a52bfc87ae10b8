"""Networks, and other ways to project them, that several tests of this room use."""

import torch
from torch import nn

from zfscope.deconvnet.autograd import AutogradDeconvnet
from zfscope.networks.hooked import HookedNetwork

RULES = ["deconvnet", "guided", "gradient"]


def project_by_autograd(network, images, layer, maps, positions=None, *, rule="deconvnet"):
    return AutogradDeconvnet(network, images, rule).project(layer, maps, positions)


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


class Gated(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.conv, self.gate, self.top = nn.Conv2d(3, 4, 3), gate, nn.Conv2d(4, 4, 1)

    def forward(self, images):
        return self.top(self.gate(self.conv(images)))


def network_with(gate):
    """A conv layer, whatever ``gate`` does to its maps, another conv layer."""
    return HookedNetwork(seeded(lambda: Gated(gate)), ["top", "conv"])
