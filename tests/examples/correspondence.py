"""Networks and images for correspondence."""

import torch
from torch import nn

from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.preprocessing import Preprocessing

SIDE = 33


def module(seed=0):
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 5, 3, 2), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout())
    body.append(nn.Linear(5 * 16 * 16, 7))
    return HookedNetwork(body, ["2", "5"], num_classes=7, image_size=SIDE)


def plain(resize=SIDE, crop=SIDE):
    """Inputs are grey levels: mean 0, scale 1."""
    return Preprocessing(resize, crop, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))


def pictures(count, seed=0):
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
