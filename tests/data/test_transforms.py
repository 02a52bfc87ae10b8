"""Views of training images: what may happen to them, and that it follows from seed, epoch and index."""

import numpy as np
import pytest
import torch
from PIL import Image

from zfscope.data.spec import AugmentConfig
from zfscope.data.statistics import Statistics
from zfscope.data.transforms import TrainTransform
from zfscope.networks.preprocessing import Preprocessing, centre_crop

PLAIN = AugmentConfig(flip=False)


def preprocessing(resize=16, crop=12, per_pixel=True):
    generator = torch.Generator().manual_seed(0)
    mean = torch.rand(3, resize, resize, generator=generator) * 255 if per_pixel else torch.full((3, 1, 1), 100.0)
    return Preprocessing(resize, crop, mean, torch.full((3, 1, 1), 0.02))


def picture(side=16, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def test_a_training_view_is_one_of_the_crops_of_the_normalised_canvas():
    prepare, image = preprocessing(), picture()
    canvas = prepare.normalise(prepare.canvas(image))
    crops = [canvas[:, top : top + 12, left : left + 12] for top in range(5) for left in range(5)]

    found = set()
    for epoch in range(200):
        view = TrainTransform(prepare, PLAIN, seed=0)(image, epoch, 3)
        matches = [number for number, crop in enumerate(crops) if torch.allclose(view, crop, atol=1e-4)]
        assert len(matches) == 1
        found.add(matches[0])

    assert found == set(range(25))


def test_flips_and_turns_give_the_eight_symmetries_of_a_view():
    prepare, image = preprocessing(16, 16), picture()
    canvas = prepare.normalise(prepare.canvas(image))
    eight = [torch.rot90(each, turns, (1, 2)) for each in (canvas, canvas.flip(2)) for turns in range(4)]
    transform = TrainTransform(prepare, AugmentConfig(flip=True, flip_vertical=True, rotate90=True), seed=1)

    views = [transform(image, epoch, 0) for epoch in range(100)]

    found = {next(i for i, each in enumerate(eight) if torch.allclose(each, view, atol=1e-4)) for view in views}
    assert found == set(range(8))


def test_the_view_is_a_function_of_seed_epoch_and_index():
    augment = AugmentConfig(scale=(0.5, 1.0), brightness=0.3, erase=0.5, rotate90=True)
    transform = TrainTransform(preprocessing(), augment, seed=4)

    once, again = transform(picture(), 2, 7), transform(picture(), 2, 7)

    torch.testing.assert_close(once, again, rtol=0, atol=0)
    others = [transform(picture(), 3, 7), transform(picture(), 2, 8)]
    others.append(TrainTransform(preprocessing(), augment, seed=5)(picture(), 2, 7))
    assert not any(torch.equal(once, other) for other in others)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_numpy_s_default_generator_of_seed_epoch_and_index_chooses(seed):
    prepare, image = preprocessing(), picture()
    canvas = prepare.normalise(prepare.canvas(image))

    for epoch, index in ((0, 0), (1, 70_000), (2**20, 3)):
        across, down, flip = np.random.default_rng((seed, epoch, index)).random(7)[:3]
        left, top = int(across * 5), int(down * 5)
        crop = canvas[:, top : top + 12, left : left + 12]
        view = TrainTransform(prepare, AugmentConfig(), seed)(image, epoch, index)
        torch.testing.assert_close(view, crop.flip(2) if flip < 0.5 else crop)


def test_a_scale_of_one_leaves_the_difference_to_the_mean_as_it_is():
    prepare, image = preprocessing(), picture()
    grey = Preprocessing(16, 12, prepare.mean, torch.ones(3, 1, 1))

    for augment in (AugmentConfig(), AugmentConfig(policy="timm")):
        scaled, plain = (TrainTransform(way, augment, seed=2)(image, 1, 5) for way in (prepare, grey))
        torch.testing.assert_close(plain * 0.02, scaled)


def test_brightness_multiplies_grey_levels_before_the_mean_is_subtracted():
    prepare, image = preprocessing(16, 16), picture()
    grey = prepare.canvas(image).float()

    view = TrainTransform(prepare, AugmentConfig(flip=False, brightness=0.5), seed=0)(image, 0, 0)

    factor = ((view / prepare.scale + prepare.mean) / grey)[grey > 50]
    assert factor.std() < 1e-4
    assert 0.5 <= factor.mean() <= 1.5
    assert abs(float(factor.mean()) - 1) > 1e-3


def test_erasing_sets_one_rectangle_to_the_mean():
    prepare = preprocessing(40, 40)
    transform = TrainTransform(prepare, AugmentConfig(flip=False, erase=0.999), seed=0)
    white = Image.fromarray(np.full((40, 40, 3), 255, np.uint8))

    erased = (transform(white, 0, 0) == 0).all(dim=0)

    rows, columns = erased.any(1).nonzero().flatten(), erased.any(0).nonzero().flatten()
    area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    assert int(erased.sum()) == int(area)
    assert 0.15**2 * 0.9 <= float(area) / 1600 <= 0.4**2 * 1.1


def test_colour_jitter_shifts_all_pixels_along_the_principal_directions():
    direction = torch.tensor([1.0, 2.0, 3.0]) / 14**0.5
    statistics = Statistics(torch.zeros(3, 16, 16), 1.0, 0.04 * torch.outer(direction, direction))
    prepare, image = preprocessing(16, 16), picture()
    transform = TrainTransform(prepare, AugmentConfig(flip=False, pca_colour=0.1), 0, statistics.colour_directions())
    still = TrainTransform(prepare, PLAIN, 0)

    shifts = torch.stack([(transform(image, e, 0) - still(image, e, 0)) / prepare.scale for e in range(300)])

    assert float(shifts.std(dim=(2, 3)).max()) < 1e-3
    along = shifts.mean(dim=(2, 3)) @ direction
    torch.testing.assert_close(shifts.mean(dim=(2, 3)), along[:, None] * direction, rtol=1e-3, atol=1e-3)
    # One eigenvalue, 0.04 on a scale 0-1: standard deviation 0.1 * 0.04 * 255 grey levels.
    assert float(along.std()) == pytest.approx(0.1 * 0.04 * 255, rel=0.15)


@pytest.mark.parametrize(
    "scale", [[1.0, 1.0, 1.0], [0.25, 0.25, 0.25], [0.5, 1.0, 0.25]], ids=["none", "one", "by channel"]
)
def test_a_shift_of_colours_is_added_to_the_levels_before_they_are_scaled(scale):
    mean, directions = torch.full((3, 16, 16), 100.0), np.diag([30.0, 20.0, 10.0]).astype(np.float32)
    scale = torch.tensor(scale).view(3, 1, 1)
    augment = AugmentConfig(flip=False, pca_colour=0.1)
    unscaled = TrainTransform(Preprocessing(16, 16, mean, torch.ones(3, 1, 1)), augment, 0, directions)
    scaled = TrainTransform(Preprocessing(16, 16, mean, scale), augment, 0, directions)

    for epoch in range(3):
        levels = unscaled(picture(16), epoch, 5)
        assert float((levels - levels.round()).abs().max()) > 1e-3  # shifted, each channel by its own part of a level
        torch.testing.assert_close(scaled(picture(16), epoch, 5), levels * scale, rtol=1e-6, atol=1e-5)


def test_timms_recipe_follows_from_seed_epoch_and_index_too():
    augment = AugmentConfig(policy="timm", auto_augment="rand-m9-mstd0.5", brightness=0.4, erase=0.25)
    transform = TrainTransform(preprocessing(32, 24), augment, seed=0)

    views = [transform(picture(32), epoch, index) for epoch, index in ((0, 0), (0, 1), (1, 0), (0, 0))]

    torch.testing.assert_close(views[0], views[3], rtol=0, atol=0)
    assert views[0].shape == (3, 24, 24)
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_timms_views_of_a_mean_image_are_zero():
    grey = Image.fromarray(np.full((32, 32, 3), 100, np.uint8))
    transform = TrainTransform(preprocessing(32, 24, per_pixel=False), AugmentConfig(policy="timm"), seed=0)

    assert float(transform(grey, 0, 0).abs().max()) < 0.02


def test_the_centre_view_is_the_middle_of_the_canvas():
    prepare, image = preprocessing(), picture(20)

    centre, canvas = prepare(image), prepare.normalised_canvas(image)

    torch.testing.assert_close(centre, centre_crop(canvas, 12))
    torch.testing.assert_close(centre, prepare(image))


def test_colour_jitter_without_statistics_is_refused():
    with pytest.raises(ValueError, match="pca_colour needs the colour directions"):
        TrainTransform(preprocessing(), AugmentConfig(pca_colour=0.1), 0)
