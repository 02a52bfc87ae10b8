"""What cannot be drawn is told once and left out, and the training goes on."""

import re

import lightning
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.callbacks.conftest import SIDE, Body, Module, Pictures, Stream, fit, hooks_of, panels
from tests.callbacks.foreign import Shaped, Taking, all_callbacks, told, without_convs
from tests.conftest import composed
from zfscope import build_network
from zfscope.callbacks import Diagnostics, FeatureEvolution, FilterImages, OcclusionMaps, Projections
from zfscope.figures import occlusion_panel

NAMES = {
    "Projections": "projections",
    "FeatureEvolution": "feature_evolution",
    "OcclusionMaps": "occlusion_maps",
    "Diagnostics": "diagnostics",
    "FilterImages": "filter_images",
}


MAPS = "Projections FeatureEvolution OcclusionMaps"


def timm_network(name, **options):
    torch.manual_seed(0)
    return build_network(composed("model=timm", f"model.name={name}")["model"] | options, 2, 64)


def train(folder, network, *callbacks, **options):
    """A training of two epochs of one step each."""
    module = Module(network, Pictures(4, side=64), Pictures(4, side=64), lr=1e-3)
    fit(folder, module, *callbacks, **({"max_epochs": 2, "num_sanity_val_steps": 1} | options))
    assert module.global_step == 2 and not hooks_of(module)


def drawn(folder, room):
    """The layers that a callback drew in the first epoch."""
    names = (re.fullmatch(rf"{room}/(.+)/epoch_001\.png", panel) for panel in panels(folder))
    return [name[1] for name in names if name]


def no_maps(layers, first):
    return rf"none of {layers}.* has feature maps \(N, C, h, w\); train with .*model.layers=\[{first}\]"


@pytest.mark.parametrize(
    ("name", "layers", "cause", "telling"),
    [
        ("test_vit", [], no_maps("blocks.0", "patch_embed.proj"), MAPS + " Diagnostics"),
        ("test_mambaout", [], no_maps("stages.0", "stem.conv1"), MAPS + " Diagnostics"),
        ("test_convnext", [], "stages.0, .*: .* not defined for layer_norm", MAPS),
        ("test_efficientnet", [], "blocks.0, .*: .* not defined for silu", MAPS),
        ("test_byobnet", ["stem"], "drawn: stages.0, .*for sigmoid", MAPS),
        ("test_resnet", ["act1", "layer1", "layer2", "layer3", "layer4"], None, ""),
    ],
)  # fmt: skip
def test_a_model_of_timm_trains_with_all_callbacks_and_what_it_has_is_drawn(
    tmp_path, warned, name, layers, cause, telling
):
    train(tmp_path, timm_network(name), *all_callbacks())

    assert drawn(tmp_path, "projections") == drawn(tmp_path, "feature_evolution") == layers
    assert len(drawn(tmp_path, "occlusion")) == len(drawn(tmp_path, "filter_images")) == 1
    messages = {who: told(warned, who) for who in NAMES}
    assert [who for who in messages if messages[who]] == telling.split()
    assert all(len(each) <= 1 and "\n" not in "".join(each) for each in messages.values())
    if cause is not None and "none of" in cause:  # one says why, the others that
        first, *others = (messages[who][0] for who in MAPS.split())
        assert re.search(cause, first) and all(each.endswith("no feature maps, as told above") for each in others)
    elif cause is not None:
        assert all(re.search(cause, messages[who][0]) for who in ("Projections", "FeatureEvolution"))
    if cause is not None and "not defined" in cause:
        for who in telling.split():
            assert f"(callbacks.{NAMES[who]}.rule=gradient, or {who}(rule='gradient'))" in messages[who][0]


def test_the_way_out_that_a_warning_names_draws_everything_and_warns_of_nothing(tmp_path, warned):
    rule = {"rule": "gradient"}

    train(
        tmp_path,
        timm_network("test_convnext"),
        *all_callbacks(projections=rule, feature_evolution=rule, occlusion_maps=rule),
    )

    assert not any(told(warned, who) for who in NAMES)
    stages = [f"stages.{number}" for number in range(4)]
    assert drawn(tmp_path, "projections") == drawn(tmp_path, "feature_evolution") == stages


def test_the_other_layers_that_a_warning_names_are_drawn(tmp_path, warned):
    network = timm_network("test_vit", layers=("patch_embed.proj",))

    train(tmp_path, network, *all_callbacks())

    assert drawn(tmp_path, "projections") == drawn(tmp_path, "feature_evolution") == ["patch_embed.proj"]
    assert [who for who in NAMES if told(warned, who)] == ["Diagnostics"]  # it ends in no activation


def test_channels_that_come_last_are_refused_where_they_were_named(tmp_path):
    for callback in (Projections(["stages.1"]), Diagnostics(["stages.1"]), OcclusionMaps(layer="stages.1")):
        with pytest.raises(ValueError, match=r"layer 'stages.1' gives \(N, h, w, C\), no feature maps"):
            train(tmp_path, timm_network("test_mambaout"), callback)


@pytest.mark.parametrize("make", [lambda: timm_network("test_vit"), without_convs], ids=["vit", "dense"])
def test_occlusion_of_a_network_without_maps_shows_probability_and_class_alone(tmp_path, monkeypatch, make):
    panels_drawn = []

    def recording(image, maps, **options):
        panels_drawn.append((maps, options))
        return occlusion_panel(image, maps, **options)

    monkeypatch.setattr("zfscope.callbacks.occlusion_maps.occlusion_panel", recording)
    network = make()
    side = SIDE if isinstance(network, nn.Sequential) else 64
    module = Module(network, Pictures(4, side=side), Pictures(4, side=side), lr=0.0)

    with pytest.warns(UserWarning, match="the panels come without the strongest map and its projection: none of"):
        fit(tmp_path, module, OcclusionMaps(images=1, size=10, stride=side - 10))

    ((maps, options),) = panels_drawn
    assert options["with_map"] is False and options["projection"] is None
    covered = module.validation.images[int(panels(tmp_path)[0].split("/")[1])].clone()
    covered[:, :10, -10:] = 0.0
    with torch.no_grad():
        expected = module.eval()(covered[None]).softmax(1)[0, maps.target]
    torch.testing.assert_close(maps.occlusion.probability[0, 1], expected)


def test_a_network_of_dense_layers_trains_with_all_callbacks(tmp_path, warned):
    fit(tmp_path, Module(without_convs()), *all_callbacks(), max_epochs=2)

    assert [len(told(warned, who)) for who in NAMES] == [1] * 5
    assert "no frequencies: the network has no conv layers" in told(warned, "Diagnostics")[0]
    assert {panel.split("/")[0] for panel in panels(tmp_path)} == {"occlusion"}


class WithoutForward(Module):
    forward = lightning.LightningModule.forward

    def training_step(self, batch, _):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.network(batch[0])


def test_a_module_that_cannot_be_called_trains_and_is_told_of(tmp_path, warned):
    fit(tmp_path, WithoutForward(), *all_callbacks(), max_epochs=2)

    for who in ("Projections", "FeatureEvolution", "OcclusionMaps"):
        (message,) = told(warned, who)
        assert "missing the required" in message and "\n" not in message


@pytest.mark.parametrize("who", ["Projections", "FeatureEvolution", "OcclusionMaps"])
def test_what_fails_while_drawing_ends_the_pictures_and_not_the_training(tmp_path, warned, monkeypatch, who):
    monkeypatch.setattr(f"zfscope.callbacks.{NAMES[who]}.show", lambda *_: 1 / 0)
    module = Module()

    fit(tmp_path, module, *all_callbacks(feature_evolution={"epochs": [1, 2, 3]}), max_epochs=3)

    assert module.global_step == 9
    assert told(warned, who) == [f"{who}: no pictures: ZeroDivisionError: division by zero"]


class Doubling(Module):
    """Validates each image and its mirror image at once."""

    def validation_step(self, batch, _):
        self(torch.cat([batch[0], batch[0].flip(3)]))


def test_layers_that_run_on_other_images_than_the_batch_holds_are_told_of(tmp_path, warned):
    module = Doubling()

    fit(tmp_path, module, Projections(), max_epochs=2)

    assert module.global_step == 6 and panels(tmp_path) == []
    assert any(
        "network.conv1 gave 8 maps for a batch of 4 images" in message for message in told(warned, "Projections")
    )


def test_a_stream_of_training_images_or_of_validation_images_is_told_of(tmp_path, warned):
    fit(tmp_path, Module(validation=Stream(), training=Stream()), FeatureEvolution(), OcclusionMaps(), FilterImages())

    assert "need a validation data set with dataset[index] and a length" in told(warned, "OcclusionMaps")[0]
    assert "the data set needs dataset[index] and a length" in told(warned, "FeatureEvolution")[0]
    assert len(panels(tmp_path)) == 1  # the filters


def test_items_in_which_no_image_is_found_are_told_of_with_their_keys(tmp_path, warned):
    data = Shaped(wrap=lambda image, label: {"scan": image, "finding": label})
    module = Taking(Body(), data, lambda batch: (batch["scan"], batch["finding"]))

    fit(tmp_path, module, *all_callbacks())

    for who in ("Projections", "FeatureEvolution", "OcclusionMaps"):
        (message,) = told(warned, who)
        assert "got dict with the keys scan, finding; image_of=" in message
    assert drawn(tmp_path, "filter_images") == ["conv1"]
