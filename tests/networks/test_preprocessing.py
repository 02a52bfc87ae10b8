import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import functional as F

from zfscope.networks.preprocessing import (
    INTERPOLATIONS,
    RESIZERS,
    CanvasKind,
    Preprocessing,
    as_pixels,
    as_tensor,
    centre_crop,
    ten_crops,
)


def photograph(width, height, seed=0):
    """Noise, so that no two places are equal."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def gradient(width, height):
    """Red grows to the right, green downwards: a pixel's colour tells where it was."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.dstack([red, green, 0 * red]).round().astype(np.uint8))


def square(image, side, resizer="pil"):
    return CanvasKind(side, resizer=resizer).draw(np.asarray(image))


def per_channel(resize=40, crop=32):
    mean = torch.tensor([120.0, 110.0, 100.0]).view(3, 1, 1)
    scale = torch.tensor([0.5, 1.0, 0.25]).view(3, 1, 1)
    return Preprocessing(resize, crop, mean, scale)


def per_pixel(resize=40, crop=32):
    mean = 255 * torch.rand(3, resize, resize, generator=torch.Generator().manual_seed(0))
    return Preprocessing(resize, crop, mean, torch.ones(3, 1, 1))


# --- ten crops ---


def test_ten_crops_are_the_corners_the_centre_and_their_mirror_images():
    canvases = torch.arange(2 * 3 * 6 * 8, dtype=torch.float32).view(2, 3, 6, 8)

    crops = ten_crops(canvases, 4)

    five = [
        canvases[..., :4, :4],
        canvases[..., :4, -4:],
        canvases[..., -4:, :4],
        canvases[..., -4:, -4:],
        canvases[..., 1:5, 2:6],
    ]
    assert len(crops) == 10 and all(crop.shape == (2, 3, 4, 4) for crop in crops)
    for crop, expected in zip(crops[:5], five, strict=True):
        assert torch.equal(crop, expected)
    mirrored = canvases.flip(-1)
    for crop, top, left in zip(crops[5:], [0, 0, 2, 2, 1], [0, 4, 0, 4, 2], strict=True):
        assert torch.equal(crop, mirrored[..., top : top + 4, left : left + 4])


def test_ten_crops_come_in_torchvision_s_order():
    canvas = torch.rand(1, 3, 11, 11, generator=torch.Generator().manual_seed(0))

    crops = ten_crops(canvas, 6)

    expected = torch.stack(torchvision.transforms.TenCrop(6)(canvas))
    assert torch.equal(torch.stack(crops), expected)


def test_fifth_crop_is_what_the_network_sees_with_one_crop():
    preprocessing, image = per_pixel(), photograph(60, 50)

    crops = ten_crops(preprocessing.normalise(preprocessing.canvas(image))[None], preprocessing.crop)

    assert torch.equal(crops[4][0], preprocessing(image))


# --- the square canvas ---


@pytest.mark.parametrize("resizer", RESIZERS)
@pytest.mark.parametrize(
    "size", [(40, 40), (80, 40), (40, 81), (41, 57), (333, 500), (500, 375), (17, 23), (1, 3), (40, 41), (39, 400)]
)
def test_canvas_is_square_whatever_the_size(size, resizer):
    assert square(photograph(*size), 40, resizer).shape == (40, 40, 3)


def test_image_of_the_right_size_is_not_touched():
    pixels = np.asarray(photograph(40, 40))

    assert np.shares_memory(CanvasKind(40).draw(pixels), pixels)


def test_middle_is_kept_where_nothing_is_resized():
    image = photograph(57, 40)

    canvas = square(image, 40)

    assert np.array_equal(canvas, np.asarray(image)[:, 8:48])


@pytest.mark.parametrize("size", [(301, 200), (200, 301), (999, 333)])
def test_aspect_is_kept_and_the_middle_shown(size):
    width, height = size
    short = min(size)

    canvas = square(gradient(*size), 100).astype(float)

    # The colours at the borders tell which pixels of the image stand there: the middle square, as wide as high.
    for channel, length, axis in ((0, width, 0), (1, height, 1)):
        values = canvas[..., channel].mean(axis)
        first, last = 255 * (length - short) / 2 / length, 255 * (length + short) / 2 / length
        assert values[0] == pytest.approx(first, abs=3)
        assert values[-1] == pytest.approx(last, abs=3)


def test_canvas_is_torchvision_s_resize_and_centre_crop():
    image = photograph(301, 200)

    canvas = as_tensor(square(image, 100))

    expected = F.pil_to_tensor(F.center_crop(F.resize(image, 100), 100)).int()
    assert (canvas.int() - expected).abs().float().mean() < 1  # they round the long side down


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(301, 200), (500, 375), (41, 57), (640, 90)])
def test_both_resizers_agree_to_one_grey_level(size, interpolation):
    pixels = np.asarray(photograph(*size))

    one, other = (CanvasKind(64, interpolation, resizer=resizer).draw(pixels).astype(int) for resizer in RESIZERS)

    assert np.abs(one - other).max() <= 1 and (one != other).mean() < 0.3


def test_a_resizer_comes_back_from_a_state_and_is_pil_s_in_one_from_before():
    own = Preprocessing(40, 32, torch.zeros(3, 1, 1), torch.ones(3, 1, 1), resizer="torch")
    state = own.state()

    assert Preprocessing.from_state(state).canvas_kind == own.canvas_kind
    del state["resizer"]
    assert Preprocessing.from_state(state).resizer == "pil"
    with pytest.raises(ValueError, match="resizer must be one of pil, torch, but is 'opencv'"):
        Preprocessing(40, 32, torch.zeros(3, 1, 1), torch.ones(3, 1, 1), resizer="opencv")


# --- kinds of images ---


@pytest.mark.parametrize("size", [(64, 48), (40, 40)])
def test_pil_array_and_tensor_give_the_same_input(size):
    image = photograph(*size)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    preprocessing = per_channel()

    inputs = preprocessing(image)

    assert inputs.dtype == torch.float32
    assert inputs.shape == (3, 32, 32)
    assert torch.equal(preprocessing(array), inputs)
    assert torch.equal(preprocessing(tensor), inputs)
    assert torch.equal(preprocessing(array[:, ::-1]), preprocessing(tensor.flip(2)))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb(mode):
    image = photograph(40, 40).convert(mode)

    assert np.array_equal(as_pixels(image), np.asarray(image.convert("RGB")))
    assert per_channel().canvas(image).shape == (3, 40, 40)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (np.zeros((40, 40, 3), dtype=np.float32), r"float32 \(40, 40, 3\)"),
        (np.zeros((40, 40), dtype=np.uint8), r"uint8 \(40, 40\)"),
        (np.zeros((3, 40, 40), dtype=np.uint8), r"uint8 \(3, 40, 40\)"),
        (np.zeros((40, 40, 4), dtype=np.uint8), r"uint8 \(40, 40, 4\)"),
        (torch.zeros(3, 40, 40), r"torch.float32 \(3, 40, 40\)"),
        (torch.zeros(40, 40, 3, dtype=torch.uint8), r"torch.uint8 \(40, 40, 3\)"),
        (torch.zeros(1, 3, 40, 40, dtype=torch.uint8), r"torch.uint8 \(1, 3, 40, 40\)"),
        ("dog.jpg", "str$"),
        (None, "NoneType$"),
    ],
)
def test_anything_else_is_refused_by_kind(image, kind):
    with pytest.raises(TypeError, match=f"must be a PIL image, a uint8 array .*but it is {kind}"):
        per_channel()(image)


# --- mean and scale ---


def test_mean_per_channel_is_subtracted_then_scaled():
    image = np.full((40, 40, 3), (130, 100, 180), dtype=np.uint8)

    inputs = per_channel()(image)

    assert torch.equal(inputs[:, 0, 0], torch.tensor([5.0, -10.0, 20.0]))
    assert torch.equal(inputs, inputs[:, :1, :1].expand(3, 32, 32))


def test_mean_per_pixel_is_subtracted_where_the_pixel_is():
    preprocessing, image = per_pixel(), photograph(40, 40)

    inputs = preprocessing(image)

    for row, column in [(0, 0), (31, 0), (7, 20)]:
        grey = torch.from_numpy(np.asarray(image)[row + 4, column + 4].astype(np.float32))
        torch.testing.assert_close(inputs[:, row, column], grey - preprocessing.mean[:, row + 4, column + 4])


@pytest.mark.parametrize("preprocessing", [per_channel(), per_pixel()], ids=["per channel", "per pixel"])
def test_unpreprocess_inverts(preprocessing):
    images = [photograph(40, 40, seed) for seed in range(2)]

    back = preprocessing.unpreprocess(torch.stack([preprocessing(image) for image in images]))

    expected = torch.stack([centre_crop(as_tensor(np.asarray(image)), 32) for image in images])
    torch.testing.assert_close(back, expected.float(), rtol=0, atol=1e-3)
    assert torch.equal(back.round().byte(), expected)
    torch.testing.assert_close(preprocessing.unpreprocess(preprocessing(images[0])), back[0])


def test_unpreprocess_clamps_to_grey_levels():
    back = per_channel().unpreprocess(torch.tensor([-1e4, 0.0, 1e4]).view(3, 1, 1).expand(3, 32, 32))

    assert back.unique().tolist() == [0, 110, 255]


@pytest.mark.parametrize("preprocessing", [per_channel(), per_pixel()], ids=["per channel", "per pixel"])
def test_state_goes_there_and_back(preprocessing, tmp_path):
    torch.save(preprocessing.state(), tmp_path / "state.pt")

    back = Preprocessing.from_state(torch.load(tmp_path / "state.pt", weights_only=True))

    assert (back.resize, back.crop) == (40, 32)
    assert torch.equal(back.mean, preprocessing.mean)
    assert torch.equal(back.scale, preprocessing.scale)
    assert torch.equal(back(photograph(50, 60)), preprocessing(photograph(50, 60)))


# --- impossible settings ---


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        ((3, 32, 32), r"must be \(3, 1, 1\) or \(3, 40, 40\), but it is \(3, 32, 32\)"),
        ((1, 1, 1), r"but it is \(1, 1, 1\)"),
        ((40, 40), r"but it is \(40, 40\)"),
    ],
)
def test_mean_of_another_shape_is_refused(mean, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(40, 32, torch.zeros(mean), torch.ones(3, 1, 1))


@pytest.mark.parametrize(
    "scale", [torch.zeros(3, 1, 1), -torch.ones(3, 1, 1), torch.ones(3), torch.full((3, 1, 1), torch.nan)]
)
def test_scale_that_is_not_three_positive_numbers_is_refused(scale):
    with pytest.raises(ValueError, match=r"scale must be three positive numbers \(3, 1, 1\)"):
        Preprocessing(40, 32, torch.zeros(3, 1, 1), scale)


@pytest.mark.parametrize("crop", [0, 41])
def test_crop_outside_the_canvas_is_refused(crop):
    with pytest.raises(ValueError, match=f"crop must lie between 1 and resize=40, but it is {crop}"):
        Preprocessing(40, crop, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))


@pytest.mark.parametrize("prepare", [per_channel(), per_pixel()], ids=["mean by channel", "mean by pixel"])
@pytest.mark.parametrize("side", [32, 40], ids=["middles", "canvases"])
def test_a_batch_is_normalised_to_the_same_bits_however_it_lies_in_memory(prepare, side):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8))
    last = centre_crop(pixels.permute(0, 3, 1, 2), side)

    found = prepare.normalise(last)

    assert torch.equal(found, torch.stack([prepare.normalise(image.contiguous()) for image in last]))
    assert found.is_contiguous(memory_format=torch.channels_last)
