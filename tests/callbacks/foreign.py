"""Data and modules as other people have them: mappings, grey or oblong images, forwards that write into their input."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tests.callbacks.conftest import COUNT, SIDE, Body, Module, Pictures
from zfscope.callbacks import Diagnostics, FeatureEvolution, FilterImages, OcclusionMaps, Projections

# Smaller than by default, so that a test takes a second.
SMALL = {
    "filter_images": FilterImages,
    "projections": partial(Projections, maps=2, top=3),
    "feature_evolution": partial(FeatureEvolution, maps=2, epochs=1, images=6),
    "occlusion_maps": partial(OcclusionMaps, images=1, stride=20),
    "diagnostics": Diagnostics,
}


def all_callbacks(**options):
    """One of each; ``options`` by their keys in conf/callbacks."""
    return [make(**options.get(key, {})) for key, make in SMALL.items()]


class Shaped(Pictures):
    """Pictures of any shape ``(C, H, W)``, as items of any kind that ``wrap(image, label)`` makes."""

    def __init__(self, shape=(3, SIDE, SIDE), wrap=lambda image, label: (image, label), count=COUNT):
        super().__init__(count)
        self.images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))
        self.wrap = wrap

    def __getitem__(self, index):
        image, label, *_ = super().__getitem__(index)
        return self.wrap(image, label)


class Taking(Module):
    """Takes batches apart by a function; ``shuffled`` validation."""

    def __init__(self, network, data, take=lambda batch: batch, shuffled=False, **options):
        super().__init__(network, data, data, **options)
        self.take, self.shuffled = take, shuffled

    def training_step(self, batch, _):
        images, labels = self.take(batch)
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch, _):
        self(self.take(batch)[0])

    def val_dataloader(self):
        return DataLoader(self.validation, batch_size=4, shuffle=self.shuffled)


def by_keys(image, label):
    """Where ``take`` of ``Taking`` finds what items of these keys hold."""
    return {
        "wrap": lambda x, y: {image: x, label: y},
        "take": lambda batch: (batch[image], batch[label]),
    }


class Writing(Body):
    """Normalises its input in place at its top."""

    def forward(self, images):
        return super().forward(images.sub_(0.5).div_(0.2))


def without_convs():
    """A network of dense layers alone."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 9), nn.ReLU(), nn.Linear(9, 2))


def told(warned, who):
    """The warnings of one callback."""
    return [str(warning.message) for warning in warned if str(warning.message).startswith(f"{who}:")]
