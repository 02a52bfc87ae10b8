"""Networks and images that several tests of this room use."""

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

CONF = str(Path(__file__).parents[2] / "conf")


def model(*overrides):
    """The model group as train.py composes it."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("train", overrides=list(overrides)).model


def random_images(size=112, count=2):
    generator = torch.Generator().manual_seed(1)
    return 50 * torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)
