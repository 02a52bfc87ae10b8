"""Images as timm's evaluation prepares them: its transform is the oracle."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from zfscope.data.parts import input_box
from zfscope.data.spec import AugmentConfig
from zfscope.data.transforms import TrainTransform
from zfscope.networks.preprocessing import CROP_MODES, INTERPOLATIONS, CanvasKind, Preprocessing
from zfscope.networks.timm_weights import preprocessing

SIZES = [(50, 37), (37, 50), (61, 60), (48, 48), (100, 33), (31, 101), (20, 20)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(size):
    rng = np.random.default_rng(size[0])
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def prepared(crop, share, interpolation="bicubic", crop_mode="center"):
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return Preprocessing(int(crop / share), crop, mean, 1 / std, interpolation, crop_mode)


def grey_levels(inputs, expected):
    """The largest difference, in grey levels of 0-255."""
    return float(((inputs - expected).abs() * 255 * torch.tensor(STD).view(3, 1, 1)).max())


@pytest.mark.parametrize("share", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_inputs_are_those_of_timm_s_evaluation(mode, interpolation, share):
    ways = {"interpolation": interpolation, "crop_mode": mode}

    for size in SIZES:
        for crop in (28, 33):
            expected = create_transform((3, crop, crop), mean=MEAN, std=STD, crop_pct=share, **ways)(picture(size))
            assert grey_levels(prepared(crop, share, **ways)(picture(size)), expected) < 0.01, (size, crop)


def test_every_pretrained_model_of_timm_is_prepared_as_timm_does_or_refused():
    shown, refused, tried = picture((300, 200)), {}, {}
    for name in timm.list_models(pretrained=True):
        config = timm.get_pretrained_cfg(name)
        try:
            own = preprocessing(f"timm/{name}", config)
        except ValueError as error:
            refused[name] = str(error)
            continue
        data = resolve_data_config(pretrained_cfg=config.to_dict())
        key = data["crop_mode"], data["interpolation"], data["crop_pct"], data["input_size"], data["mean"]
        if tried.setdefault(key, name) is name and (len(tried) < 20 or data["crop_mode"] == "border"):
            difference = (own(shown) - create_transform(**data)(shown)).abs() / own.scale
            assert difference.max() < 0.01, name

    assert {key[:2] for key in tried} == {
        *((mode, interpolation) for mode in ("center", "squash") for interpolation in INTERPOLATIONS),
        ("border", "bicubic"),
    }
    assert sorted(name for name, why in refused.items() if "1024 x 768; only squares" in why) == [
        f"vit_{size}_patch16_sapiens2.fb" for size in ("5b", "base", "giant", "huge", "large")
    ]
    assert sorted(name for name, why in refused.items() if "in a black frame" in why) == [
        f"volo_{size}.sail_in1k" for size in ("d4_448", "d5_448", "d5_512")
    ]
    assert len(refused) == 8


@pytest.mark.parametrize("mode", CROP_MODES)
def test_a_crop_mode_comes_back_from_a_state(mode):
    own = prepared(28, 0.9, crop_mode=mode)

    again = Preprocessing.from_state(own.state())

    assert again.canvas_kind == own.canvas_kind
    assert torch.equal(again(picture((50, 37))), own(picture((50, 37))))


def test_a_state_from_before_crop_modes_is_the_paper_s_square():
    state = prepared(28, 0.9).state()
    del state["crop_mode"]

    assert Preprocessing.from_state(state).canvas_kind == CanvasKind(31, "bicubic", "square")


def test_a_crop_mode_that_is_not_known_or_has_no_one_colour_is_refused():
    with pytest.raises(ValueError, match="crop_mode must be one of square, center, squash, border, but is 'fit'"):
        prepared(28, 0.9, crop_mode="fit")
    with pytest.raises(ValueError, match=r"crop_mode=border fills with the mean colour: it needs a mean \(3, 1, 1\)"):
        Preprocessing(8, 8, torch.zeros(3, 8, 8), torch.ones(3, 1, 1), crop_mode="border")


@pytest.mark.parametrize("mode", CROP_MODES)
@pytest.mark.parametrize("size", [(60, 40), (41, 60)])
def test_a_box_of_the_image_is_found_in_the_input(mode, size):
    black = np.zeros((size[1], size[0], 3), np.uint8)
    black[12:24, 16:32] = 255
    own = Preprocessing(40, 36, torch.zeros(3, 1, 1), torch.ones(3, 1, 1), "bilinear", mode)

    x0, y0, x1, y1 = input_box((16, 12, 32, 24), size, own)

    rows, columns = np.nonzero(own(black)[0].numpy() > 127)
    seen = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert np.abs(np.subtract(seen, (x0, y0, x1, y1))).max() <= 1


def test_training_views_are_cut_from_the_same_canvas():
    own = prepared(28, 1.0, crop_mode="squash")
    augment = AugmentConfig(flip=False, scale=None, brightness=0, pca_colour=0)

    view = TrainTransform(own, augment, seed=0)(picture((50, 37)), 0, 0)

    torch.testing.assert_close(view, own(picture((50, 37))))
