"""Fig. 7 in short trainings on the CPU: every number against images covered one by one."""

from functools import partial

import lightning
import pytest
import torch
from torch.nn import functional as F

from tests.callbacks import conftest
from tests.callbacks.conftest import (
    Body,
    Module,
    Noted,
    Pictures,
    hooks_of,
    panels,
    resnet,
    same,
    small_chain,
)
from tests.oracles import check_alike, occluded_by_hand
from zfscope.callbacks import OcclusionMaps
from zfscope.deconvnet.winners import as_pictures, random_subset
from zfscope.figures import occlusion_panel
from zfscope.networks.hooked import as_network
from zfscope.occlusion.sensitivity import look, projected

fit = partial(conftest.fit, max_epochs=2)

SQUARE = {"size": 9, "stride": 6}


class Oracle(lightning.Callback):
    """Looks by hand after each validation, with the weights of that moment."""

    def __init__(self, images, layer, **square):
        self.images, self.layer, self.square, self.expected = images, layer, square, {}

    def on_validation_epoch_end(self, trainer, pl_module):
        network = as_network(pl_module)
        for index in self.images:
            image = pl_module.validation.images[index]
            maps = occluded_by_hand(network, image, index % 3, **self.square, layer=self.layer)
            tile = projected(network, image, self.layer, maps.occlusion.feature_map)
            self.expected[index, trainer.current_epoch + 1] = maps, as_pictures(network, image[None])[0], tile


@pytest.fixture
def drawn(monkeypatch):
    """What panels are drawn of: ``(picture, sensitivity, options)`` of each."""
    calls = []

    def recording(image, maps, **options):
        calls.append((image, maps, options))
        return occlusion_panel(image, maps, **options)

    monkeypatch.setattr("zfscope.callbacks.occlusion_maps.occlusion_panel", recording)
    return calls


@pytest.mark.parametrize(
    ("make", "layer", "epochs", "rule"),
    [
        (small_chain, "conv2", [1, 2], ""),
        (Body, "network.conv2", [1, 2], ", rule guided"),
        (resnet, "layer4", [1], ", rule guided"),
    ],
    ids=["chain", "module", "resnet18"],
)
def test_each_epoch_shows_the_same_images_as_the_network_sees_them_then(tmp_path, drawn, make, layer, epochs, rule):
    module, chosen = Module(make(classes=3), Pictures(classes=3)), random_subset(11, 2, 5).tolist()
    oracle = Oracle(chosen, layer, size=8, stride=5, fill=0.3)

    fit(tmp_path, module, OcclusionMaps(size=8, stride=5, fill=0.3, seed=5), oracle, max_epochs=max(epochs))

    assert panels(tmp_path) == sorted(f"occlusion/{i}/epoch_00{epoch}.png" for i in chosen for epoch in epochs)
    keys = [(index, epoch) for epoch in epochs for index in chosen]
    for (index, epoch), (image, maps, options) in zip(keys, drawn, strict=True):
        expected, shown, tile = oracle.expected[index, epoch]
        check_alike(maps, expected)
        assert torch.equal(image, shown)
        assert (options["projection"].int() - tile.int()).abs().max() <= 1
        assert options["title"] == f"validation image {index}, class {index % 3}, epoch {epoch}{rule}"
    assert epochs == [1] or drawn[0][1].probability != drawn[2][1].probability


def test_the_weights_are_bit_equal_with_and_without_it_and_nothing_is_left_behind(tmp_path):
    watched, alone = Module(), Module()

    fit(tmp_path, watched, OcclusionMaps(**SQUARE))
    fit(tmp_path, alone)

    assert same(watched.state_dict(), alone.state_dict()) and not hooks_of(watched)


def test_modes_and_random_numbers_go_on_as_they_were(tmp_path):
    class Noisy(Body):
        def forward(self, images):
            return super().forward(images) + 0 * torch.rand(1)

    before, after = Noted(), Noted()

    fit(tmp_path, Module(Noisy()), before, OcclusionMaps(**SQUARE), after)

    assert len(before.states) == 2 and same(before.states, after.states)


def test_the_images_are_read_once(tmp_path):
    alone, watched = Pictures(), Pictures()

    fit(tmp_path, Module(small_chain(), alone), max_epochs=3)
    fit(tmp_path, Module(small_chain(), watched), OcclusionMaps(images=3, **SQUARE), max_epochs=3)

    assert len(watched.read) - len(alone.read) == 3


def test_images_without_labels_are_followed_by_their_most_probable_class(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "zfscope.callbacks.occlusion_maps.look",
        lambda *arguments, **options: seen.append(look(*arguments, **options)) or seen[-1],
    )

    fit(tmp_path, Module(small_chain(), Pictures(parts=1)), OcclusionMaps(**SQUARE), max_epochs=1)

    assert len(seen) == 3 and all(maps.target == maps.label for maps in seen)  # one of them to try it out


def test_a_network_that_cannot_be_projected_is_shown_without_and_says_so_once(tmp_path, drawn):
    with pytest.warns(UserWarning, match="OcclusionMaps: the panels come without projections: .*gelu") as warned:
        fit(tmp_path, Module(Body(activation=F.gelu)), OcclusionMaps(**SQUARE))

    assert sum("OcclusionMaps" in str(warning.message) for warning in warned) == 1
    assert len(drawn) == 4 and all(options["projection"] is None for *_, options in drawn)


def test_other_ranks_neither_read_nor_look(tmp_path, monkeypatch):
    monkeypatch.setattr(lightning.Trainer, "is_global_zero", False)
    monkeypatch.setattr("zfscope.callbacks.occlusion_maps.look", None)
    module = Module(small_chain())

    fit(tmp_path, module, OcclusionMaps(**SQUARE), max_epochs=1)

    assert not (tmp_path / "figures").exists() and len(module.validation.read) == 11


def test_only_the_epochs_asked_for_are_shown_and_no_sanity_check(tmp_path, drawn):
    fit(tmp_path, Module(small_chain()), OcclusionMaps(images=1, **SQUARE), max_epochs=1, num_sanity_val_steps=1)
    assert len(drawn) == 1
    fit(tmp_path / "second", Module(small_chain()), OcclusionMaps(images=1, **SQUARE, when=2), max_epochs=3)

    assert [panel.split("/")[-1] for panel in panels(tmp_path / "second")] == ["epoch_002.png"]


def test_it_works_in_double_precision(tmp_path):
    fit(tmp_path, Module(small_chain()), OcclusionMaps(**SQUARE), max_epochs=1, precision="64-true")

    assert len(panels(tmp_path)) == 2


@pytest.mark.parametrize("number", [{"images": 0}, {"size": 0}, {"stride": -1}])
def test_a_number_below_one_is_refused(number):
    with pytest.raises(ValueError, match="OcclusionMaps: .*must be 1 or more"):
        OcclusionMaps(**number)


@pytest.mark.parametrize(
    ("options", "make", "message"),
    [
        ({"layer": "conv9"}, small_chain, "no layer 'conv9'; the layers are conv1, conv2, fc3, fc4"),
        ({"size": 22}, small_chain, "size=22 is larger than the image"),
        ({"label_of": "class"}, small_chain, "label_of='class' is not in an item of the data; it is tuple of 2"),
        ({"rule": "guided"}, lambda: Body(activation=F.gelu), "the rule 'guided' is not defined for gelu"),
    ],
    ids=["layer", "size", "key", "rule"],
)
def test_what_was_typed_and_cannot_be_is_refused_before_the_first_step(tmp_path, options, make, message):
    module = Module(make())

    # With a sanity check Lightning has the validation loader before training starts.
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, module, OcclusionMaps(**options), num_sanity_val_steps=1)

    assert module.global_step == 0
