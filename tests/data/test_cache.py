"""Decoded images: the same bits as from the files, found again by what files hold, and never half written."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch

from tests.conftest import quick_first, write_folders
from zfscope.data import cache as module
from zfscope.data import imageset
from zfscope.data.cache import CanvasCache, fill, refresh
from zfscope.data.datamodule import ImageData, open_data
from zfscope.data.loader import Fetched, ImageItems, Loader
from zfscope.data.order import TrainBatches
from zfscope.data.quarantine import collecting
from zfscope.data.spec import AugmentConfig, DataConfig
from zfscope.data.transforms import Examples, TrainTransform
from zfscope.files import CannotWrite
from zfscope.networks.preprocessing import CanvasKind, Preprocessing
from zfscope.schema import check

SIDE, CROP = 24, 20
KIND = CanvasKind(SIDE, resizer="torch")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CANVASES", 16)
    write_folders(tmp_path / "images", {"train": 40, "val": 6, "test": 5}, ("cat", "dog"), side=33)
    return tmp_path


def config(home, **more):
    values = {
        "name": "folder",
        "root": str(home / "images"),
        "cache": str(home / "cache"),
        "resize": SIDE,
        "crop": CROP,
    }
    return check(DataConfig, values | {"batch_size": 8, "num_workers": 0, "resizer": "torch"} | more, "data")


def filled(home, num_workers=0, **more):
    splits = open_data(config(home, **more))
    with collecting(splits):
        fill(splits, home / "cache", KIND, num_workers)
    return splits


def files(home):
    """Names and contents of the files of canvases."""
    return {path.name: path.read_bytes() for path in (home / "cache").rglob("*.canvases")}


def decoded(monkeypatch):
    """The files that are decoded from here on."""
    names, original = [], imageset.read_pixels

    def noting(path, short_side=None, content=None):
        names.append(path)
        return original(path, short_side, content)

    monkeypatch.setattr(imageset, "read_pixels", noting)
    return names


# --- the same bits ---

VIEWS = {
    "standard": {},
    "jitter": {"pca_colour": 0.1, "brightness": 0.3},
    "all": {"scale": (0.4, 1.0), "erase": 0.6, "rotate90": True, "flip_vertical": True},
}


@pytest.mark.parametrize("num_workers", [0, 3])
@pytest.mark.parametrize("views", VIEWS)
def test_batches_are_those_of_the_files_bit_for_bit(home, views, num_workers):
    generator = torch.Generator().manual_seed(0)
    mean = 255 * torch.rand(3, SIDE, SIDE, generator=generator)
    preprocessing = Preprocessing(SIDE, CROP, mean, torch.full((3, 1, 1), 0.02), resizer="torch")
    colours = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    transform = TrainTransform(preprocessing, AugmentConfig(**VIEWS[views]), 5, colours)

    def batches(images, **readers):
        order = TrainBatches(len(images), 8, 1, lambda: 4)
        return list(Loader(Examples(images, transform, KIND), batch_sampler=order, **readers))

    plain = batches(open_data(config(home)).train)
    cached = batches(filled(home).train, threads=num_workers)

    assert len(plain) == len(cached) == 10
    for one, other in zip(plain, cached, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_canvases_of_subsets_are_those_of_the_files(home, part, monkeypatch):
    plain, cached = getattr(open_data(config(home)), part), getattr(filled(home), part)
    names = decoded(monkeypatch)

    for images in (cached, cached.subset([3, 1]), cached.subset(cached.labels == 1), cached.only(("cat", "dog"))):
        for index in range(len(images)):
            there = [plain.name(number) for number in range(len(plain))].index(images.name(index))
            assert np.array_equal(images.canvas(index, KIND), KIND.draw(plain.pixels(there)))
        assert len(cached.subset([])) == 0
    assert len(names) == 2 * len(plain) + 2 + sum(plain.labels == 1)  # by this test alone


def test_another_kind_of_canvas_is_drawn_from_the_file(home):
    other = CanvasKind(SIDE + 1)
    plain, cached = open_data(config(home)).val, filled(home).val

    assert np.array_equal(cached.canvas(2, other), plain.canvas(2, other))


def test_a_change_of_a_canvas_stays_out_of_the_file(home):
    images = filled(home).val
    before = files(home)

    images.canvas(0, KIND)[:] = 0

    assert files(home) == before
    assert pickle.loads(pickle.dumps(images)).canvas(0, KIND).any()


# --- one pass, and none where all is known ---


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_is_read_and_decoded_once_whatever_the_number_of_processes(home, num_workers, monkeypatch):
    filled(home)
    reference = files(home)
    for path in (home / "cache").rglob("*"):
        path.unlink() if path.is_file() else None
    names = decoded(monkeypatch)

    filled(home, num_workers)

    assert files(home) == reference
    if not num_workers:
        assert len(names) == len(set(names)) == 80  # the other parts hold copies of some of them
        names.clear()
        filled(home)
        assert not names


def test_what_changed_or_is_new_is_decoded_and_nothing_else(home, monkeypatch):
    filled(home)
    before, (changed, other, *_) = files(home), sorted((home / "images/train/cat").iterdir())
    changed.write_bytes(other.read_bytes() + b"\0")
    names = decoded(monkeypatch)

    splits = filled(home)

    assert names == [changed]
    assert before.items() < files(home).items()
    place = [splits.train.name(index) for index in range(80)].index(str(changed))
    assert np.array_equal(splits.train.canvas(place, KIND), KIND.draw(imageset.read_pixels(changed)))


def test_a_moved_folder_and_another_split_find_their_canvases(home, monkeypatch):
    filled(home)
    (home / "images").rename(home / "elsewhere")
    names = decoded(monkeypatch)

    splits = filled(home, root=str(home / "elsewhere" / "train"))  # parts are carved out of it

    assert not names and (splits.val.stored.rows >= 0).all()


def test_an_image_that_cannot_be_read_is_left_out_and_the_others_stored(home):
    bad = sorted((home / "images/train/dog").iterdir())[7]
    bad.write_bytes(bad.read_bytes()[:200])

    with pytest.warns(UserWarning, match=f"1 of the 80 training images is left out, .*dog/{bad.name}"):
        splits = filled(home)

    assert (splits.train.stored.rows < 0).sum() == 1
    assert list(splits.train.quarantine.causes) == [f"dog/{bad.name}".encode()]


# --- kills, damage, full disks ---

FILLING = """
import sys, time
from tests.data import test_cache
from zfscope.data import cache, imageset
cache.CANVASES = 16
original = imageset.read_pixels
def slow(path, short_side=None, content=None):
    with open(sys.argv[1] + "/decoded", "a") as file:
        file.write(f"{path}\\n")
    time.sleep(0.004)
    return original(path, short_side, content)
imageset.read_pixels = slow
from pathlib import Path
test_cache.filled(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("moment", quick_first(range(10), 2))
def test_a_fill_that_was_killed_goes_on_to_the_same_bytes_and_decodes_only_what_was_open(home, moment):
    filled(home)
    whole = files(home)
    for path in (home / "cache").rglob("*"):
        path.unlink() if path.is_file() else None
    command = [sys.executable, "-c", FILLING, str(home)]
    killed = subprocess.Popen(command)
    wanted = 4 + 8 * moment  # of 80
    while killed.poll() is None and len(noted(home)) < wanted:
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    first = noted(home)
    (home / "decoded").unlink()

    subprocess.run(command, check=True)

    assert files(home) == whole
    again = set(noted(home)) & set(first)
    assert len(first) >= wanted and len(again) < 16 + module._BATCH, (len(first), len(again))


def noted(home):
    path = home / "decoded"
    return path.read_text().splitlines() if path.exists() else []


def test_a_file_that_was_cut_short_is_not_read_and_what_it_held_is_decoded_again(home):
    filled(home)
    whole = files(home)
    path = sorted((home / "cache").rglob("*.canvases"))[1]
    path.write_bytes(path.read_bytes()[:-100])

    splits = filled(home)

    assert (splits.train.stored.rows >= 0).all()
    (new,) = files(home).keys() - whole.keys()
    assert files(home)[new] == whole[path.name]
    assert refresh(splits, home / "cache", KIND) == [path]
    assert files(home).keys() == {*whole, new} - {path.name}


def test_a_changed_byte_is_found(home):
    filled(home)
    canvases = CanvasCache(home / "cache", KIND)
    assert list(canvases.damaged()) == []
    content = bytearray(canvases.files[2].read_bytes())
    content[5] ^= 1
    canvases.files[2].write_bytes(content)

    assert list(CanvasCache(home / "cache", KIND).damaged()) == [canvases.files[2]]


def test_what_does_not_fit_on_the_disk_is_refused_before_anything_is_decoded(home, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    names = decoded(monkeypatch)

    with pytest.raises(CannotWrite, match=r"data\.cache_images=true: 80 training images and .* would take 0\.0 GB in"):
        filled(home)

    assert not names and not files(home)


def test_timm_s_views_are_refused(home):
    with pytest.raises(ValueError, match=r"cache_images=true keeps the middle .*policy=timm takes its views"):
        config(home, cache_images=True, augment={"policy": "timm"})


def test_threads_read_what_is_stored_and_processes_what_is_not(home):
    preprocessing = Preprocessing(SIDE, CROP, torch.zeros(3, 1, 1), torch.ones(3, 1, 1), resizer="torch")
    plain, cached = open_data(config(home, num_workers=2)), filled(home)

    def readers(splits, **more):
        return ImageData(splits, config(home, **more), preprocessing).readers(splits.train)

    assert readers(plain, num_workers=2) == {"num_workers": 2, "persistent_workers": True}
    assert readers(cached, num_workers="auto") == {"threads": 1}
    assert readers(cached, num_workers=3) == {"threads": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert len(next(iter(ImageData(cached, config(home), preprocessing).canvases(cached.val, 5)))[0]) == 5


class Numbers(ImageItems):
    """Batches of their keys; of number 13 none can be made."""

    def __init__(self, images):
        self.images, self.made = images, []

    def fetch(self, keys):
        if 13 in keys:
            raise ValueError("number 13 cannot be made")
        self.made.append(keys)
        return Fetched(torch.tensor(keys), [])


def own_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_threads_give_batches_in_order_and_an_error_in_its_place(home):
    items = Numbers(open_data(config(home)).train)
    batches = iter(Loader(items, batch_sampler=[[n] for n in range(20)], threads=3))

    assert [next(batches).item() for _ in range(13)] == list(range(13))
    with pytest.raises(ValueError, match="number 13 cannot be made"):
        next(batches)
    assert [batch.item() for batch in batches] == list(range(14, 20))
    assert next(batches, None) is None


def test_an_error_of_the_order_of_images_reaches_the_run(home):
    def order():
        yield [1]
        raise RuntimeError("the order has no end")

    batches = iter(Loader(Numbers(open_data(config(home)).train), batch_sampler=order(), threads=2))

    assert next(batches).item() == 1
    with pytest.raises(RuntimeError, match="the order has no end"):
        next(batches)


def test_threads_make_a_few_batches_ahead_and_end_with_their_iterator(home):
    items = Numbers(open_data(config(home)).train)
    batches = iter(Loader(items, batch_sampler=[[n] for n in range(14, 99)], threads=2))

    next(batches)
    until = time.monotonic() + 10
    while len(items.made) < 6 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)

    assert len(items.made) == 6 and len(own_threads()) == 2
    del batches
    assert not own_threads()
