"""The callback in short trainings: what it finds, what a checkpoint keeps of it, what it leaves alone."""

import warnings
from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from tests.callbacks import conftest
from tests.callbacks.conftest import (
    SIDE,
    Module,
    Noted,
    Pictures,
    Snapshots,
    feature_maps,
    hooks_of,
    same,
    small_chain,
)
from zfscope.callbacks import FeatureEvolution
from zfscope.deconvnet.winners import random_subset
from zfscope.evolution import jumps
from zfscope.networks.hooked import HookedNetwork

FIELDS = ("tiles", "scales", "values", "indices", "positions", "boxes")

fit = partial(conftest.fit, max_epochs=3, limit_val_batches=0)


def chain(**options):
    return Module(small_chain(), training=Pictures(14, **({"noise": 0.1} | options)))


def stages(activation=nn.ReLU):
    """No zfscope network: a sequence with batch norm and modules of its own for ReLUs."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation(), nn.Conv2d(4, 6, 3, 2), activation()),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(486, 2)),
    )


def tokens():
    network = stages()
    network[5] = nn.Sequential(nn.Flatten(2), nn.Flatten())
    return network


def alike(one, other):
    assert list(one) == list(other)
    for layer in one:
        assert one[layer].epochs == other[layer].epochs
        assert torch.equal(one[layer].maps, other[layer].maps)
        for name in FIELDS:
            assert torch.equal(getattr(one[layer], name), getattr(other[layer], name)), (layer, name)


@pytest.mark.parametrize("make", [small_chain, stages])
def test_each_epoch_shows_the_strongest_activation_over_the_chosen_training_images(tmp_path, make):
    evolution, weights = FeatureEvolution(maps=3, epochs=[1, 3], images=9, batch_size=4), Snapshots()
    module = Module(make(), training=Pictures(14))

    fit(tmp_path, module, evolution, weights)

    subset = random_subset(14, 9, 0)
    assert list(evolution.strips) == (["conv1", "conv2"] if make is small_chain else ["network.0", "network.3"])
    for layer, strip in evolution.strips.items():
        assert strip.epochs == [1, 3] and strip.alive.all()
        for column, epoch in enumerate([1, 3]):
            module.load_state_dict(weights.epochs[epoch])
            maps = feature_maps(module, module.training_set.images[subset], layer)[:, strip.maps]
            strongest, winners = maps.flatten(2).amax(2).max(0)
            torch.testing.assert_close(strip.values[:, column].float(), strongest)
            assert torch.equal(strip.indices[:, column], subset[winners])
        assert len(list((tmp_path / "figures" / "feature_evolution" / layer).glob("*.png"))) == 2
        with Image.open(tmp_path / "figures" / "feature_evolution" / layer / "epoch_003.png") as sheet:
            assert sheet.width > 100


def test_the_weights_are_bit_equal_with_and_without_it(tmp_path):
    watched, alone = chain(), chain()

    fit(tmp_path, watched, FeatureEvolution(epochs=1, images=9))
    fit(tmp_path, alone)

    assert same(watched.state_dict(), alone.state_dict())


def test_reading_the_images_draws_nothing_and_gives_the_same_views_each_time(tmp_path):
    before, after = Noted("on_train_epoch_end"), Noted("on_train_epoch_end")
    first, again = (FeatureEvolution(epochs=1, images=9) for _ in range(2))

    fit(tmp_path, Module(small_chain(), training=Pictures(14, noise=0.1), lr=0.0), before, first, after, max_epochs=2)
    fit(tmp_path, Module(small_chain(), training=Pictures(14, noise=0.1), lr=0.0), again, max_epochs=2, seed=8)

    assert len(before.states) == 2 and same(before.states, after.states)
    alike(first.strips, again.strips)


def test_a_run_that_goes_on_from_a_checkpoint_draws_the_same_strip(tmp_path):
    def watching():
        return FeatureEvolution(maps=3, epochs=[1, 2, 4], images=9)

    class Constant(Module):
        def train_dataloader(self):
            return DataLoader(self.training_set, batch_size=4)

        def on_train_batch_start(self, batch, batch_idx):
            torch.manual_seed(self.global_step)

    def module():
        return Constant(small_chain(), training=Pictures(14))

    through, resumed, later = watching(), watching(), watching()
    saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    fit(tmp_path / "through", module(), through, saving, max_epochs=4)
    fit(tmp_path, module(), resumed, max_epochs=4, ckpt_path=tmp_path / "epoch=1.ckpt")

    assert resumed.strips["conv1"].epochs == [1, 2, 4]
    alike(through.strips, resumed.strips)
    last = tmp_path / "figures" / "feature_evolution" / "conv2" / "epoch_004.png"
    assert last.read_bytes() == (tmp_path / "through" / last.relative_to(tmp_path)).read_bytes()

    # A callback that was in a longer run forgets what comes again.
    later.load_state_dict(through.state_dict())
    later.epochs = [3]
    fit(tmp_path, module(), later, max_epochs=1)

    assert later.strips == {}


def test_a_strip_of_other_training_images_begins_anew(tmp_path):
    evolution = FeatureEvolution(epochs=1, images=9)
    saving = ModelCheckpoint(tmp_path, "saved", save_on_train_epoch_end=True)
    fit(tmp_path, chain(), evolution, saving, max_epochs=1)

    with pytest.warns(UserWarning, match="the strips begin anew"):
        other = Module(small_chain(), training=Pictures(16))
        fit(tmp_path, other, evolution, max_epochs=2, ckpt_path=saving.best_model_path)

    assert evolution.strips["conv1"].epochs == [2]


def test_two_of_them_keep_their_own_strips_in_one_checkpoint(tmp_path):
    def both():
        return FeatureEvolution(["conv1"], epochs=1, images=9), FeatureEvolution(["conv2"], epochs=1, images=9, seed=1)

    saving = ModelCheckpoint(tmp_path, "saved", save_on_train_epoch_end=True)
    first, again = both(), both()

    fit(tmp_path, chain(), *first, saving, max_epochs=1)
    fit(tmp_path, chain(), *again, max_epochs=1, ckpt_path=saving.best_model_path)

    for one, other in zip(first, again, strict=True):
        alike(one.strips, other.strips)


def test_dead_maps_are_said_to_be_dead_and_no_hook_stays(tmp_path):
    module, evolution = Module(small_chain(), lr=0.0), FeatureEvolution(epochs=1, images=9, maps=6)
    nn.init.constant_(module.network.conv2.conv.bias, -1e4)

    fit(tmp_path, module, evolution, max_epochs=2)

    assert not evolution.strips["conv2"].alive.any() and evolution.strips["conv1"].alive.any()
    assert not jumps(evolution.strips["conv2"].indices, evolution.strips["conv2"].alive).any()
    assert (tmp_path / "figures/feature_evolution/conv2/epoch_002.png").is_file()
    assert not hooks_of(module) and module.network.training


def test_the_images_are_read_once_and_no_more_than_asked_for(tmp_path):
    alone, watched = Pictures(14), Pictures(14)

    fit(tmp_path, Module(training=alone))
    fit(tmp_path, Module(training=watched), FeatureEvolution(epochs=1, images=5))

    assert len(watched.read) - len(alone.read) == 5 + 1  # one to see at the start whether all is well


def test_other_ranks_neither_look_nor_draw(tmp_path, monkeypatch):
    monkeypatch.setattr(lightning.Trainer, "is_global_zero", False)
    module, evolution = Module(training=Pictures(14)), FeatureEvolution(epochs=1, images=5)

    fit(tmp_path, module, evolution, max_epochs=1)

    assert len(module.training_set.read) == 14
    assert evolution.strips == {} and not (tmp_path / "figures").exists()


@pytest.mark.parametrize("number", [{"maps": 0}, {"images": 0}, {"batch_size": 0}])
def test_a_number_below_one_is_refused(number):
    with pytest.raises(ValueError, match="FeatureEvolution: .*must be 1 or more"):
        FeatureEvolution(**number)


def test_epochs_below_one_are_refused():
    with pytest.raises(ValueError, match="must be a whole number"):
        FeatureEvolution(epochs=[0, 1])


@pytest.mark.parametrize(
    ("make", "layers", "message"),
    [
        (chain, ["conv9"], "no layer 'conv9'; the layers are conv1, conv2, fc3, fc4"),
        (lambda: Module(stages(nn.GELU)), ["network.3"], "gelu.*gradient"),
        (lambda: Module(tokens()), ["network.5.0"], "layer 'network.5.0' has no feature maps"),
    ],
    ids=["layer", "activation", "tokens"],
)
def test_what_cannot_be_shown_is_refused_before_the_first_step(tmp_path, make, layers, message):
    module = make()

    with pytest.raises(ValueError, match=message):
        fit(tmp_path, module, FeatureEvolution(layers, epochs=[2]))

    assert module.global_step == 0


def test_of_the_layers_that_nobody_named_those_without_maps_are_left_out(tmp_path):
    evolution = FeatureEvolution(epochs=1, images=5)

    fit(tmp_path, Module(HookedNetwork(tokens(), ["3", "5.0"])), evolution, max_epochs=1)

    assert list(evolution.strips) == ["3"]
    with pytest.warns(UserWarning, match="FeatureEvolution: no pictures: none of 5.0 has feature maps"):
        fit(tmp_path, Module(HookedNetwork(tokens(), ["5.0"])), FeatureEvolution(epochs=1, images=5), max_epochs=1)


def test_images_of_different_sizes_are_told_of(tmp_path):
    class Sized(Pictures):
        def __getitem__(self, index):
            return self.images[index, :, : SIDE - index % 2], 0

    module = Module(training=Sized(14))
    module.train_dataloader = lambda: DataLoader(module.training_set, sampler=range(0, 14, 2), batch_size=4)

    with pytest.warns(UserWarning, match=r"came as \(3, 2\d, 21\), image .* all of one size"):
        fit(tmp_path, module, FeatureEvolution(epochs=1), max_epochs=2)

    assert module.global_step == 4 and not (tmp_path / "figures").exists()


def test_it_works_in_double_precision(tmp_path):
    evolution = FeatureEvolution(epochs=1, images=5)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(tmp_path, chain(), evolution, max_epochs=1, precision="64-true")

    assert evolution.strips["conv2"].alive.any()
