"""The phantom as a data set: the cache, and how hard it is for simple methods."""

import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.feature import hog
from sklearn.linear_model import RidgeClassifier
from sklearn.svm import LinearSVC
from torch.nn import functional as F

from tests.conftest import composed
from zfscope import build_network
from zfscope.data.loader import Loader
from zfscope.data.sources import phantom, phantom_scene
from zfscope.data.sources.phantom import open_phantom
from zfscope.data.sources.phantom_objects import CLASSES
from zfscope.data.sources.phantom_scene import SIZE, draw
from zfscope.data.transforms import Examples
from zfscope.networks.preprocessing import CanvasKind


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    for images in open_phantom(folder, sizes=(60, 20, 40)).parts.values():
        images.ready()
    return folder


def test_the_data_set_holds_what_draw_draws(cache):
    splits = open_phantom(cache, sizes=(60, 20, 40))

    assert [len(images) for images in (splits.train, splits.val, splits.test)] == [60, 20, 40]
    for split, images in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        sample = draw(0, split, 13)
        assert images.classes == CLASSES
        assert np.bincount(images.labels).tolist() == [len(images) // 10] * 10
        assert images.labels[13] == sample.label
        assert np.asarray(images.read(13)).tobytes() == sample.image.tobytes()
        assert images.mask(13).tobytes() == sample.mask.tobytes()
        assert images.parts(13) == sample.parts
        assert images.name(13) == f"phantom/{split}/13"


def test_the_drawings_are_those_of_all_measured_figures():
    """Each class as it was drawn on 2026-11-30, six times, smaller: another drawing would move every number."""
    drawn = [sheet_of(draw(0, "train", index).image) for index in range(60)]
    expected = np.asarray(Image.open(Path(__file__).with_name("phantom.png"))).astype(int)

    rows = [np.concatenate(drawn[first : first + 10], axis=1) for first in range(0, 60, 10)]
    assert abs(np.concatenate(rows) - expected).max() <= 2  # processors round differently


def test_a_part_outside_the_image_has_a_box_without_pixels():
    canvas, corners = phantom_scene._Canvas(Image.new("RGB", (SIZE, SIZE))), np.array([[0.0, 0], [9, 0], [9, 9]])

    for move, box in (((-20, 5), (0, 5, 0, 15)), ((SIZE + 3, 5), (SIZE, 5, SIZE, 15)), ((5, -20), (5, 0, 15, 0))):
        assert canvas.add([(corners + move, (9, 9, 9))]) == box


def sheet_of(image):
    """Means over blocks of 8 pixels."""
    return image.reshape(16, 8, 16, 8, 3).mean((1, 3)).round().astype(int)


def test_a_subset_keeps_the_ground_truth_of_its_images(cache):
    images = open_phantom(cache, sizes=(60, 20, 40)).test.subset([31, 7])

    assert np.asarray(images.read(1)).tobytes() == draw(0, "test", 7).image.tobytes()
    assert images.parts(1) == draw(0, "test", 7).parts
    assert images.mask(0).tobytes() == draw(0, "test", 31).mask.tobytes()


def test_a_worker_gets_the_file_and_not_its_bytes(cache):
    images = open_phantom(cache, sizes=(60, 20, 40)).train

    sent = pickle.dumps(images)

    assert len(sent) < 10_000
    assert np.asarray(pickle.loads(sent).read(3)).tobytes() == np.asarray(images.read(3)).tobytes()


def test_the_second_call_draws_nothing(cache, monkeypatch):
    monkeypatch.setattr(phantom, "draw", lambda *args: pytest.fail("drawn again"))

    assert open_phantom(cache, sizes=(60, 20, 40)).train.read(0).size == (128, 128)


def test_nothing_is_drawn_before_an_image_is_looked_at_and_then_its_part_alone(tmp_path):
    splits = open_phantom(tmp_path / "cache", sizes=(2, 1, 1))

    known = splits.test.classes, len(splits.train), splits.train.subset([1]).labels.tolist(), splits.val.name(0)

    assert known == (CLASSES, 2, [1], "phantom/val/0")
    assert not (tmp_path / "cache").exists()
    splits.train.subset([1]).read(0)
    assert [path.name for path in sorted((tmp_path / "cache").glob("*.npy"))] == ["phantom-v4-seed0-train-2.npy"]


def test_images_are_drawn_once_before_processes_read_them(tmp_path, monkeypatch):
    drawn, draw_into = [], phantom._draw_into
    monkeypatch.setattr(phantom, "_draw_into", lambda *work: drawn.append(os.getpid()) or draw_into(*work))
    images = open_phantom(tmp_path, sizes=(8, 1, 1)).train

    batches = Loader(Examples(images, torch.tensor, CanvasKind(128)), num_workers=2)
    read = [int(index) for _, _, index in batches]

    assert read == [*range(8)] and drawn == [os.getpid()]


def test_a_process_that_wants_the_images_meanwhile_waits_and_draws_none(tmp_path, monkeypatch):
    first, second = (open_phantom(tmp_path, sizes=(3, 1, 1)).train for _ in range(2))
    drawn, draw_into = [], phantom._draw_into
    began = threading.Event()

    def slow(*work):
        drawn.append(work)
        began.set()
        time.sleep(0.3)
        draw_into(*work)

    monkeypatch.setattr(phantom, "_draw_into", slow)
    other = threading.Thread(target=first.ready)
    other.start()
    began.wait()

    second.ready()
    other.join()

    assert len(drawn) == 1
    assert np.array_equal(np.asarray(first.images), np.asarray(second.images))
    assert not list(tmp_path.glob("*.lock"))


@pytest.mark.slow  # starting two processes takes longer than all other tests together
def test_several_processes_draw_the_same_images_as_one(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(phantom, "IMAGES_WORTH_PROCESSES", 1)

    splits = open_phantom(tmp_path, sizes=(60, 20, 40))

    alone = open_phantom(cache, sizes=(60, 20, 40))
    assert np.array_equal(splits.train.images, alone.train.images)
    assert splits.test.fingerprint == alone.test.fingerprint


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: np.save(path, np.zeros((2, 64, 64, 3), np.uint8)),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
        lambda path: path.with_suffix(".crc32").write_bytes(b"\xff"),
    ],
    ids=["cut off", "other images", "flipped bit", "checksum lost"],
)
def test_a_damaged_file_is_drawn_again_with_one_line(tmp_path, damage):
    whole = np.array(open_phantom(tmp_path, sizes=(2, 1, 1)).train.images)
    (path,) = tmp_path.glob("*train*.npy")
    damage(path)

    with pytest.warns(UserWarning, match=r"-train-2\.npy is damaged; its images are drawn anew") as told:
        again = np.array(open_phantom(tmp_path, sizes=(2, 1, 1)).train.images)

    assert np.array_equal(again, whole) and len(told) == 1


def test_a_file_drawn_before_checksums_were_kept_is_not_drawn_again(tmp_path, monkeypatch):
    open_phantom(tmp_path, sizes=(2, 1, 1)).train.read(0)
    for path in tmp_path.glob("*.crc32"):
        path.unlink()
    monkeypatch.setattr(phantom, "draw", lambda *args: pytest.fail("drawn again"))

    assert open_phantom(tmp_path, sizes=(2, 1, 1)).train.read(0).size == (128, 128)


def test_an_interrupted_call_leaves_no_file(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(phantom, "draw", interrupted)

    with pytest.raises(KeyboardInterrupt):
        open_phantom(tmp_path, sizes=(2, 1, 1)).train.read(0)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_for_the_images_is_refused_before_they_are_drawn(tmp_path, monkeypatch):
    class Usage:
        free = 100_000

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)

    with pytest.raises(
        OSError, match=r"data\.cache=.*cache needs 0 MB, and 0 MB are free; free space or choose another"
    ):
        open_phantom(tmp_path / "cache", sizes=(2, 1, 1))
    assert not (tmp_path / "cache").exists()


def test_seeds_and_sizes_have_files_of_their_own(tmp_path):
    first = open_phantom(tmp_path, seed=0, sizes=(2, 1, 1))
    second = open_phantom(tmp_path, seed=1, sizes=(3, 1, 1))

    assert first.train.fingerprint != second.train.fingerprint
    assert len(open_phantom(tmp_path, seed=0, sizes=(2, 1, 1)).train) == 2


def test_sizes_that_are_no_three_numbers_are_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"three numbers of images, 1 or more each, not \(60, 0, 40\)"):
        open_phantom(tmp_path / "cache", sizes=(60, 0, 40))
    assert not (tmp_path / "cache").exists()


# How hard it is. The bounds of the whole set are slow to check; the small ones catch a class that gives itself away.


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return open_phantom(tmp_path_factory.mktemp("few"), sizes=(120, 10, 60))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return open_phantom(tmp_path_factory.mktemp("whole"), sizes=(6000, 10, 1000))


def pixel_accuracy(splits):
    def pixels(images):
        return np.stack([np.asarray(image) for image in map(half_size, images)]).reshape(len(images), -1) / 64.0 - 2

    def half_size(image):
        return Image.fromarray(image).reduce(2)

    ridge = RidgeClassifier(alpha=1e4).fit(pixels(splits.train.images), splits.train.labels)
    return ridge.score(pixels(splits.test.images), splits.test.labels)


def hog_accuracy(splits, cell):
    def gradients(images):
        return np.stack([of(Image.fromarray(image)) for image in images])

    def of(image):
        return hog(np.asarray(image.convert("L")), pixels_per_cell=(cell, cell), cells_per_block=(2, 2))

    machine = LinearSVC(C=0.02, tol=0.01, max_iter=200).fit(gradients(splits.train.images), splits.train.labels)
    return machine.score(gradients(splits.test.images), splits.test.labels)


def test_few_images_teach_linear_pixels_and_gradients_little(few):
    assert pixel_accuracy(few) < 0.3
    assert hog_accuracy(few, cell=16) < 0.5


@pytest.mark.slow
def test_a_linear_classifier_on_pixels_stays_under_30_percent(whole):
    assert pixel_accuracy(whole) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("cell", [8, 16])
def test_gradient_histograms_and_a_linear_machine_stay_under_60_percent(whole, cell):
    assert hog_accuracy(whole, cell) < 0.6


@pytest.mark.slow
def test_the_mini_network_stays_under_60_percent_when_patches_of_16_pixels_are_shuffled(whole):
    config = composed("model=zfnet_mini")
    torch.manual_seed(0)
    network = build_network(config["model"], len(CLASSES), 112).to(memory_format=torch.channels_last)
    images, labels = torch.tensor(whole.train.images), torch.tensor(whole.train.labels)
    mean, std = images[::20].float().mean((0, 1, 2)), images[::20].float().std()
    steps = 25 * len(images) // 64
    optimiser = torch.optim.SGD(network.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.03, total_steps=steps, cycle_momentum=False)

    def inputs(batch):
        row, column = torch.randint(0, 17, (2,)).tolist()
        crops = shuffled(batch)[:, row : row + 112, column : column + 112]
        return ((crops.float() - mean) / std).permute(0, 3, 1, 2)

    for _ in range(steps):
        batch = torch.randint(0, len(images), (64,))
        loss = F.cross_entropy(network(inputs(images[batch])), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()

    network.eval()
    with torch.no_grad():
        answers = torch.cat([network(inputs(batch)).argmax(1) for batch in torch.tensor(whole.test.images).split(100)])
    assert (answers == torch.tensor(whole.test.labels)).float().mean() < 0.6


def shuffled(images):
    """Each image's 64 patches of 16x16 pixels in an order of its own."""
    count = len(images)
    patches = images.reshape(count, 8, 16, 8, 16, 3).transpose(2, 3).reshape(count, 64, 16, 16, 3)
    order = torch.rand(count, 64).argsort(dim=1)
    patches = patches[torch.arange(count)[:, None], order]
    return patches.reshape(count, 8, 8, 16, 16, 3).transpose(2, 3).reshape(count, 128, 128, 3)


def test_shuffling_moves_patches_and_keeps_their_pixels():
    images = torch.arange(2 * 128 * 128 * 3).reshape(2, 128, 128, 3)

    moved = shuffled(images)

    assert not torch.equal(moved, images)
    for before, after in zip(images, moved, strict=True):
        corners = {before[16 * r, 16 * c, 0].item(): before[16 * r :, 16 * c :][:16, :16] for r, c in np.ndindex(8, 8)}
        for r, c in np.ndindex(8, 8):
            patch = after[16 * r :, 16 * c :][:16, :16]
            assert torch.equal(patch, corners.pop(patch[0, 0, 0].item()))
