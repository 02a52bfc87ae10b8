"""Networks and images that several tests of this room use."""

import torch

from tests.conftest import composed


def model(*overrides):
    """The model group as train.py composes it."""
    return composed(*overrides)["model"]


def random_images(size=112, count=2):
    generator = torch.Generator().manual_seed(1)
    return 50 * torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)
