"""The callback in short trainings on the CPU: what it finds, what a checkpoint keeps of it, what it leaves alone."""

import random
import warnings

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from zfscope.callbacks.feature_evolution import FeatureEvolution
from zfscope.deconvnet.winners import random_subset
from zfscope.evolution import jumps
from zfscope.networks.chain import ConvNet
from zfscope.networks.hooked import HookedNetwork
from zfscope.networks.spec import ConvLayer, DenseLayer, InitConfig, PoolConfig

FIELDS = ("tiles", "scales", "values", "indices", "positions", "boxes")


class Pictures(Dataset):
    """Noise around fixed patterns; a view draws from all three global generators, as augmentation may."""

    def __init__(self, count=14, side=21, noise=0.1):
        self.patterns = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
        self.noise = noise

    def __len__(self):
        return len(self.patterns)

    def __getitem__(self, index):
        noise = torch.randn(1) + random.random() + np.random.rand()
        return self.patterns[index] + self.noise * noise.float(), index % 2


class Chain(lightning.LightningModule):
    def __init__(self, dataset=None, lr=0.1):
        super().__init__()
        torch.manual_seed(0)
        layers = {
            "conv1": ConvLayer(maps=5, kernel_size=3, stride=2, pool=PoolConfig()),
            "conv2": ConvLayer(maps=6, kernel_size=3, padding=1, norm=None),
            "fc3": DenseLayer(units=7, dropout=0.5),
            "fc4": DenseLayer(),
        }
        self.network = ConvNet(layers, num_classes=2, image_size=21, init=InitConfig(scheme="he"))
        self.dataset, self.lr = dataset if dataset is not None else Pictures(), lr

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=4, shuffle=not isinstance(self.dataset, IterableDataset))


class Plain(Chain):
    """No zfscope network: any module, with batch norm and in-place ReLUs."""

    def __init__(self, activation=nn.ReLU):
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation(), nn.Conv2d(4, 6, 3, 2), activation()),
            *(nn.Flatten(), nn.Dropout(), nn.Linear(486, 2)),
        )


class Weights(lightning.Callback):
    """Keeps a copy of the weights as they were at the end of each epoch."""

    def __init__(self):
        self.epochs = {}

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs[trainer.current_epoch + 1] = {name: each.clone() for name, each in pl_module.state_dict().items()}


def fit(folder, module, *callbacks, ckpt_path=None, seed=7, **options):
    lightning.seed_everything(seed, verbose=False)
    trainer = lightning.Trainer(
        **({"max_epochs": 3, "limit_val_batches": 0} | options),
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def alike(one, other):
    assert list(one) == list(other)
    for layer in one:
        assert one[layer].epochs == other[layer].epochs
        assert torch.equal(one[layer].maps, other[layer].maps)
        for name in FIELDS:
            assert torch.equal(getattr(one[layer], name), getattr(other[layer], name)), (layer, name)


@pytest.mark.parametrize("kind", [Chain, Plain])
def test_each_epoch_shows_the_strongest_activation_over_the_chosen_training_images(tmp_path, kind):
    evolution, weights, module = FeatureEvolution(maps=3, epochs=[1, 3], images=9, batch_size=4), Weights(), kind()
    module.dataset.noise = 0

    fit(tmp_path, module, evolution, weights)

    subset = random_subset(14, 9, 0)
    images = module.dataset.patterns[subset]
    assert list(evolution.found) == (["conv1", "conv2"] if kind is Chain else ["network.0", "network.3"])
    for layer, found in evolution.found.items():
        assert found.epochs == [1, 3] and found.alive.all()
        for column, epoch in enumerate([1, 3]):
            module.load_state_dict(weights.epochs[epoch])
            network = module.network if kind is Chain else HookedNetwork(module, [layer])
            with torch.no_grad():
                maps = network.eval().features(images, layer)[:, found.maps]
            strongest, winners = maps.flatten(2).amax(2).max(0)
            torch.testing.assert_close(found.values[:, column].float(), strongest)
            assert torch.equal(found.indices[:, column], subset[winners])
        assert len(list((tmp_path / "figures" / "feature_evolution" / layer).glob("*.png"))) == 2
        with Image.open(tmp_path / "figures" / "feature_evolution" / layer / "epoch_003.png") as sheet:
            assert sheet.width > 100


def test_the_weights_are_bit_equal_with_and_without_it(tmp_path):
    watched, alone = Chain(), Chain()

    fit(tmp_path, watched, FeatureEvolution(epochs=1, images=9))
    fit(tmp_path, alone)

    for name, weight in watched.state_dict().items():
        assert torch.equal(weight, alone.state_dict()[name]), name


def test_reading_the_images_draws_nothing_and_gives_the_same_views_each_time(tmp_path):
    class Drawn(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            self.states.append((torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()))

    before, after = Drawn(), Drawn()
    before.states, after.states = [], []
    first, again = (FeatureEvolution(epochs=1, images=9) for _ in range(2))

    fit(tmp_path, Chain(lr=0.0), before, first, after, max_epochs=2)
    fit(tmp_path, Chain(lr=0.0), again, max_epochs=2, seed=8)

    for one, other in zip(before.states, after.states, strict=True):
        assert torch.equal(one[0], other[0]) and one[1:] == other[1:]
    alike(first.found, again.found)


def test_a_run_that_goes_on_from_a_checkpoint_draws_the_same_strip(tmp_path):
    def watching():
        return FeatureEvolution(maps=3, epochs=[1, 2, 4], images=9)

    class Kept(ModelCheckpoint):
        def __init__(self):
            super().__init__(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)

    class Constant(Chain):
        def train_dataloader(self):
            return DataLoader(self.dataset, batch_size=4)

        def on_train_batch_start(self, batch, batch_idx):
            torch.manual_seed(self.global_step)

    through, resumed, later = watching(), watching(), watching()
    fit(tmp_path / "through", Constant(Pictures(noise=0)), through, Kept(), max_epochs=4)
    fit(tmp_path, Constant(Pictures(noise=0)), resumed, max_epochs=4, ckpt_path=tmp_path / "epoch=1.ckpt")

    assert resumed.found["conv1"].epochs == [1, 2, 4]
    alike(through.found, resumed.found)
    last = tmp_path / "figures" / "feature_evolution" / "conv2" / "epoch_004.png"
    assert last.read_bytes() == (tmp_path / "through" / last.relative_to(tmp_path)).read_bytes()

    # A callback that was in a longer run forgets what comes again.
    later.load_state_dict(through.state_dict())
    later.epochs = [3]
    fit(tmp_path, Constant(Pictures(noise=0)), later, max_epochs=1)

    assert later.found == {}


def test_a_strip_of_other_training_images_begins_anew(tmp_path):
    evolution = FeatureEvolution(epochs=1, images=9)
    kept = ModelCheckpoint(tmp_path, "kept", save_on_train_epoch_end=True)
    fit(tmp_path, Chain(), evolution, kept, max_epochs=1)

    with pytest.warns(UserWarning, match="the strips begin anew"):
        fit(tmp_path, Chain(Pictures(16)), evolution, max_epochs=2, ckpt_path=kept.best_model_path)

    assert evolution.found["conv1"].epochs == [2]


def test_two_of_them_keep_their_own_strips_in_one_checkpoint(tmp_path):
    def both():
        return FeatureEvolution(["conv1"], epochs=1, images=9), FeatureEvolution(["conv2"], epochs=1, images=9, seed=1)

    kept = ModelCheckpoint(tmp_path, "kept", save_on_train_epoch_end=True)
    first, again = both(), both()

    fit(tmp_path, Chain(), *first, kept, max_epochs=1)
    fit(tmp_path, Chain(), *again, max_epochs=1, ckpt_path=kept.best_model_path)

    for one, other in zip(first, again, strict=True):
        alike(one.found, other.found)


def test_dead_maps_are_said_to_be_dead_and_no_hook_stays(tmp_path):
    module, evolution = Chain(lr=0.0), FeatureEvolution(epochs=1, images=9, maps=6)
    nn.init.constant_(module.network.conv2.conv.bias, -1e4)

    fit(tmp_path, module, evolution, max_epochs=2)

    assert not evolution.found["conv2"].alive.any() and evolution.found["conv1"].alive.any()
    assert not jumps(evolution.found["conv2"].indices, evolution.found["conv2"].alive).any()
    assert (tmp_path / "figures/feature_evolution/conv2/epoch_002.png").is_file()
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())
    assert module.network.training


def test_the_images_are_read_once_and_no_more_than_asked_for(tmp_path):
    class Counting(Pictures):
        read = ()

        def __getitem__(self, index):
            self.read += (index,)
            return super().__getitem__(index)

    plain, watched = Counting(), Counting()

    fit(tmp_path, Chain(plain), max_epochs=3)
    fit(tmp_path, Chain(watched), FeatureEvolution(epochs=1, images=5), max_epochs=3)

    assert len(watched.read) - len(plain.read) == 5 + 1  # one to see at the start whether all is well


def test_other_ranks_neither_look_nor_draw(tmp_path, monkeypatch):
    monkeypatch.setattr(lightning.Trainer, "is_global_zero", False)
    monkeypatch.setattr("zfscope.callbacks.feature_evolution._read", None)
    evolution = FeatureEvolution(epochs=1, images=5)

    fit(tmp_path, Chain(), evolution)

    assert evolution.found == {} and not (tmp_path / "figures").exists()


@pytest.mark.parametrize("given", [{"maps": 0}, {"images": 0}, {"batch_size": 0}])
def test_a_number_below_one_is_refused(given):
    with pytest.raises(ValueError, match="FeatureEvolution: .*must be 1 or more"):
        FeatureEvolution(**given)


def test_epochs_below_one_are_refused():
    with pytest.raises(ValueError, match="must be a whole number"):
        FeatureEvolution(epochs=[0, 1])


class Endless(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(3, 21, 21), 0)] * 4)


class Tokens(Plain):
    def __init__(self):
        super().__init__()
        self.network[5] = nn.Sequential(nn.Flatten(2), nn.Flatten())


@pytest.mark.parametrize(
    ("make", "layers", "message"),
    [
        (Chain, ["conv9"], "no layer 'conv9'; the layers are conv1, conv2, fc3, fc4"),
        (lambda: Chain(Endless()), None, r"the data set needs dataset\[index\] and a length"),
        (lambda: Plain(nn.GELU), None, "gelu.*gradient"),
        (Tokens, ["network.5.0"], "layer 'network.5.0' has no feature maps"),
    ],
    ids=["layer", "dataset", "activation", "tokens"],
)
def test_what_cannot_be_shown_is_refused_before_the_first_step(tmp_path, make, layers, message):
    module = make()

    with pytest.raises(ValueError, match=message):
        fit(tmp_path, module, FeatureEvolution(layers, epochs=[2]))

    assert module.global_step == 0


def test_of_the_layers_that_nobody_named_those_without_maps_are_left_out(tmp_path):
    some, none, evolution = Tokens(), Tokens(), FeatureEvolution(epochs=1, images=5)
    some.network = HookedNetwork(some.network, ["3", "5.0"])
    none.network = HookedNetwork(none.network, ["5.0"])

    fit(tmp_path, some, evolution, max_epochs=1)

    assert list(evolution.found) == ["3"]
    with pytest.raises(ValueError, match="none of 5.0 has feature maps"):
        fit(tmp_path, none, FeatureEvolution(epochs=1, images=5))


def test_images_of_different_sizes_are_refused(tmp_path):
    class Sized(Pictures):
        def __getitem__(self, index):
            return self.patterns[index, :, : 21 - index % 2], 0

    module = Plain()
    module.dataset = Sized()
    module.train_dataloader = lambda: DataLoader(module.dataset, sampler=range(0, 14, 2), batch_size=4)

    with pytest.raises(ValueError, match=r"came as \(3, 2\d, 21\), image .* all of one size"):
        fit(tmp_path, module, FeatureEvolution(epochs=1))


def test_it_works_in_double_precision(tmp_path):
    evolution = FeatureEvolution(epochs=1, images=5)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(tmp_path, Chain(), evolution, max_epochs=1, precision="64-true")

    assert evolution.found["conv2"].alive.any()
