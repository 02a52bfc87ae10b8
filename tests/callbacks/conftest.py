"""What the callbacks' tests share: fixed noise to look at, networks of every kind, short trainings on the CPU."""

import random
import warnings
from functools import cache

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tests.conftest import composed
from zfscope import build_network
from zfscope.networks.chain import ConvNet
from zfscope.networks.hooked import as_network
from zfscope.networks.network import evaluating
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig, PoolConfig

SIDE, COUNT = 21, 11


class Pictures(Dataset):
    """Fixed noise; each reading is noted and draws from all three global generators, as an augmentation may.

    Items are ``(image, label, index)[:parts]``, or with one part the image alone; ``noise`` is what the drawn numbers
    change an image by.
    """

    def __init__(self, count=COUNT, parts=2, side=SIDE, channels=3, classes=2, noise=0.0):
        self.images = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))
        self.parts, self.classes, self.noise, self.read = parts, classes, noise, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.read.append(index)
        drawn = torch.randn(1) + random.random() + np.random.rand()
        image = self.images[index] + self.noise * drawn.float() if self.noise else self.images[index]
        return (image, index % self.classes, index)[: self.parts] if self.parts > 1 else image


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(3, SIDE, SIDE), 0)] * 4)


def in_batches_of_its_own(dataset):
    """Batches back to front, as a sampler of one's own may have them."""
    return DataLoader(dataset, batch_sampler=[[10, 9, 8], [7, 6, 5, 4], [3, 2, 1, 0]])


class Body(nn.Module):
    """No network of ours: functional ReLUs, of which nothing is seen among the modules, batch norm, dropout."""

    def __init__(self, channels=3, classes=2, activation=F.relu):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm, self.conv2 = nn.Conv2d(channels, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 6, 3, 2)
        self.head, self.activation = nn.Linear(6, classes), activation

    def forward(self, images):
        maps = self.activation(self.conv2(F.max_pool2d(self.activation(self.norm(self.conv1(images))), 2)))
        return self.head(F.dropout(maps.mean((2, 3)), training=self.training))


def small_chain(side=SIDE, classes=2):
    torch.manual_seed(0)
    layers = {
        "conv1": ConvLayer(maps=5, kernel_size=3, stride=2, pool=PoolConfig()),
        "conv2": ConvLayer(maps=6, kernel_size=3, padding=1, norm=None),
        "fc3": DenseLayer(units=7, dropout=0.5),
        "fc4": DenseLayer(),
    }
    network = ConvNet(layers, num_classes=classes, image_size=side, init=InitConfig(scheme="he"))
    network.preprocessing = Preprocessing(side, side, torch.full((3, 1, 1), 128.0), torch.full((3, 1, 1), 1 / 60))
    return network


@cache
def timm_config():
    return composed("model=timm", "model.name=resnet18")["model"]


def resnet(classes=2):
    torch.manual_seed(0)
    return build_network(timm_config(), classes, SIDE)


class Module(lightning.LightningModule):
    """Trains a network on `Pictures`; validation sees a data set, or a loader, list or dict of loaders."""

    def __init__(self, network=None, validation=None, training=None, lr=0.1):
        super().__init__()
        self.network, self.lr = network if network is not None else Body(), lr
        self.validation = validation if validation is not None else Pictures()
        self.training_set = training if training is not None else Pictures()

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self(batch[0] if isinstance(batch, list) else batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)

    def train_dataloader(self):
        return DataLoader(self.training_set, batch_size=4, shuffle=not isinstance(self.training_set, IterableDataset))

    def val_dataloader(self):
        made = isinstance(self.validation, DataLoader | list | dict)
        return self.validation if made else DataLoader(self.validation, batch_size=4)


def trainer_of(folder, *callbacks, **options):
    """A Trainer of two epochs without a logger; options are its own."""
    return lightning.Trainer(
        **({"max_epochs": 2, "devices": 1, "log_every_n_steps": 1, "logger": False} | options),
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(folder, module, *callbacks, seed=7, ckpt_path=None, **options):
    """Train a module, seeded, for an epoch without a sanity check unless the Trainer's options say otherwise."""
    lightning.seed_everything(seed, verbose=False)
    trainer = trainer_of(folder, *callbacks, **({"max_epochs": 1, "num_sanity_val_steps": 0} | options))
    trainer.fit(module, ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.fixture
def warned():
    """All warnings of a test, those that come again too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@pytest.fixture(autouse=True)
def lossless(monkeypatch):
    """All pictures are PNG files, which can be compared to the bit; tests of the choice set it anew."""
    monkeypatch.setattr("zfscope.callbacks.panel.FLAT", 0.0)


def panels(folder):
    """The pictures of a run folder, as paths below ``figures``."""
    return sorted(str(path.relative_to(folder / "figures")) for path in (folder / "figures").rglob("*.png"))


def hooks_of(module):
    return [part for part in module.modules() if part._forward_hooks or part._forward_pre_hooks]


def same(one, other):
    """Whether two values are equal to the bit: tensors, and containers of them."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else one == other


class Noted(lightning.Callback):
    """What a callback must leave alone, noted at each of the Trainer's calls of one name: one stands on each side."""

    def __init__(self, hook="on_validation_epoch_end"):
        self.states = []
        setattr(self, hook, self.note)

    def note(self, trainer, pl_module):
        gradients = [None if part.grad is None else part.grad.clone() for part in pl_module.parameters()]
        self.states.append(
            {
                "weights": {name: value.clone() for name, value in pl_module.state_dict().items()},
                "gradients": gradients,
                "trainable": [part.requires_grad for part in pl_module.parameters()],
                "modes": [part.training for part in pl_module.modules()],
                "generators": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1]),
            }
        )


class Snapshots(lightning.Callback):
    """The weights at the end of each epoch, by its number from 1."""

    def __init__(self):
        self.epochs = {}

    def on_train_epoch_end(self, trainer, pl_module):
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.epochs[trainer.current_epoch + 1] = state


def feature_maps(module, images, layer):
    """A layer's maps of all images at once, in eval mode."""
    network = as_network(module)
    with torch.no_grad(), evaluating(network):
        return network.features(images, layer)
