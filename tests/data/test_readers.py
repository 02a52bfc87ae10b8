"""Processes that read images: their end and their standstill are told in one line, with the image."""

import gc
import multiprocessing
import os
import re
import signal
import tempfile
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

from tests.conftest import quick_first, tiny_images
from zfscope.data import readers
from zfscope.data.imageset import ArrayImages
from zfscope.data.loader import Loader
from zfscope.data.readers import LoaderEnded
from zfscope.networks.checkpoints import read_checkpoint

STARTS = quick_first([method for method in ("fork", "spawn") if method in multiprocessing.get_all_start_methods()], 1)


class Images(Dataset):
    """Numbers that stand for images; ``at`` one of them the process does something else."""

    def __init__(self, count, at=(), act=None):
        self.images = ArrayImages(*tiny_images(count), classes="abc", prefix="tiny")
        self.at, self.act = at, act

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.at:
            self.act()
        return index


def kill_oneself():
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_for_ever():
    time.sleep(1000)


def loop_for_ever():
    while True:
        pass


def rest():
    time.sleep(0.4)


def leave():
    os._exit(3)


def read_all(images, **options):
    torch.set_num_threads(1)
    return [batch.tolist() for batch in Loader(images, batch_size=2, **options)]


@pytest.fixture
def short_waits(monkeypatch):
    """A second and a half in place of fifty."""
    monkeypatch.setattr(readers, "SECONDS_WITHOUT_IMAGE", 1.5)
    monkeypatch.setattr(readers, "POLL", 0.25)


@pytest.mark.parametrize("method", STARTS)
@pytest.mark.parametrize("act", [kill_oneself, leave])
def test_a_process_that_is_killed_is_told_with_the_image_that_it_read(short_waits, method, act):
    cause = {kill_oneself: "SIGKILL", leave: "exit code 3"}[act]

    with pytest.raises(LoaderEnded) as caught:
        read_all(Images(20, {7}, act), num_workers=2, multiprocessing_context=method)

    assert str(caught.value) == (
        f"a process that reads images was ended ({cause}) while it read tiny/7; if the memory was used up, use fewer "
        "such processes or none: data.num_workers=0"
    )


@pytest.mark.parametrize("act", [sleep_for_ever, loop_for_ever])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_process_that_hangs_is_told_with_the_image_that_it_reads(short_waits, act, persistent):
    since = time.monotonic()

    with pytest.raises(LoaderEnded, match=r"no image came for \d+ s, the processes .* hang at tiny/5; look at"):
        read_all(Images(20, {5}, act), num_workers=2, persistent_workers=persistent)

    assert time.monotonic() - since < 8


def test_control_without_the_watch_a_process_that_hangs_is_waited_for(monkeypatch):
    monkeypatch.setattr(readers, "SECONDS_WITHOUT_IMAGE", float("inf"))
    monkeypatch.setattr(readers, "POLL", 0.25)
    child = os.fork()
    if child == 0:
        os.setsid()
        with suppress(BaseException):
            read_all(Images(20, {5}, sleep_for_ever), num_workers=2)
        os._exit(0)
    time.sleep(4)

    ended, _ = os.waitpid(child, os.WNOHANG)

    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert ended == 0


def test_processes_that_hang_between_two_images_are_told(short_waits, monkeypatch):
    monkeypatch.setattr(readers, "SECONDS_WITHOUT_READING", 3.0)

    with pytest.raises(LoaderEnded, match=r"no image came for \d+ s, and no process that reads them is at one; data"):
        list(Loader(Images(20), batch_size=2, num_workers=2, collate_fn=lambda items: sleep_for_ever()))


def test_all_images_at_which_processes_hang_are_told(short_waits):
    with pytest.raises(LoaderEnded, match="hang at tiny/0, tiny/2;"):
        read_all(Images(20, {0, 2}, sleep_for_ever), num_workers=2)


def test_an_image_of_a_subset_is_told_by_its_own_name(short_waits):
    with pytest.raises(LoaderEnded, match="while it read tiny/17;"):
        read_all(Subset(Images(20, {17}, kill_oneself), [3, 4, 17, 5]), num_workers=1)


def test_a_slow_loader_goes_on_where_each_image_comes_in_time(short_waits):
    """A batch takes twice as long as a standstill may last."""
    images = Images(8, range(8), rest)

    batches = [batch.tolist() for batch in Loader(images, batch_size=8, num_workers=1)]

    assert batches == [list(range(8))]


def test_a_run_that_does_not_want_a_batch_for_long_has_not_waited_for_it(short_waits):
    batches = iter(Loader(Images(40), batch_size=2, num_workers=2))
    next(batches)

    time.sleep(2.5)

    assert len(list(batches)) == 19


@pytest.fixture
def long_temporary_folder(tmp_path, monkeypatch):
    """Where a socket's path is longer than any system takes."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)
    return folder


@pytest.mark.parametrize("method", STARTS)
def test_images_come_also_where_the_path_of_temporary_files_is_too_long_for_sockets(long_temporary_folder, method):
    images = read_all(Images(20), num_workers=2, multiprocessing_context=method)

    assert sorted(sum(images, [])) == list(range(20))
    assert tempfile.gettempdir() == str(long_temporary_folder)
    assert list(long_temporary_folder.iterdir()) == []


@pytest.mark.parametrize("persistent", [False, True])
def test_a_batch_that_a_process_cannot_send_is_told_with_the_cause(
    short_waits, long_temporary_folder, monkeypatch, persistent
):
    monkeypatch.setattr(readers, "_shorten_sockets", lambda: None)

    with pytest.raises(LoaderEnded) as caught:
        read_all(Images(20), num_workers=2, persistent_workers=persistent)

    assert str(caught.value) == (
        "a process that reads images could not send a batch (OSError: AF_UNIX path too long); data.num_workers=0 reads "
        "images without such processes"
    )


class Unsendable:
    """A batch whose error is a page in a script of four bytes a character."""

    def __reduce__(self):
        raise ValueError("\U0001d51e" * 5000)


@pytest.mark.parametrize(
    ("batch", "cause"), [(lambda: 0, r"\w+: .*lambda.*"), (Unsendable(), r"ValueError: \U0001d51e+.*")]
)
def test_so_is_one_that_cannot_be_pickled(short_waits, batch, cause):
    with pytest.raises(LoaderEnded, match=rf"could not send a batch \({cause}\); data.num_workers=0 reads"):
        list(Loader(Images(20), batch_size=2, num_workers=2, collate_fn=lambda items: batch))


def test_an_error_of_an_image_stays_as_it_is(short_waits):
    def broken():
        raise ValueError("tiny/7 is cut off")

    with pytest.raises(ValueError, match="tiny/7 is cut off"):
        read_all(Images(20, {7}, broken), num_workers=2)


def test_batches_that_are_left_in_a_cycle_are_collected_without_waiting_for_their_processes():
    batches = iter(Loader(Images(40), batch_size=2, num_workers=2))
    next(batches)
    cycle = [batches]
    cycle.append(cycle)
    del batches, cycle
    since = time.monotonic()

    gc.collect()

    assert time.monotonic() - since < 4  # torch: 5 s for each


def test_a_copy_of_batches_in_a_forked_process_ends_nothing():
    batches = iter(Loader(Images(40), batch_size=2, num_workers=2))
    next(batches)
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            batches.__del__()
            code = 0
        os._exit(code)

    assert os.waitpid(child, 0)[1] == 0
    assert len(list(batches)) == 19


@pytest.mark.parametrize("persistent", [False, True])
def test_an_error_of_an_image_ends_the_processes_at_once_and_the_loader_can_be_read_again(persistent):
    def broken_once():
        if not broken.is_set():
            broken.set()
            raise ValueError

    broken, before = multiprocessing.Event(), set(multiprocessing.active_children())
    loader = Loader(Images(20, {7}, broken_once), batch_size=2, num_workers=2, persistent_workers=persistent)
    batches = iter(loader)

    with pytest.raises(ValueError):
        list(batches)

    assert set(multiprocessing.active_children()) <= before
    assert torch.cat(list(loader)).tolist() == list(range(20))


def test_a_process_that_is_killed_while_the_run_computes_does_not_end_its_step(short_waits):
    """torch's own handler raises wherever the run is."""
    batches = iter(Loader(Images(400), batch_size=2, num_workers=2, persistent_workers=True))
    next(batches)
    os.kill(batches._workers[0].pid, signal.SIGKILL)

    for _ in range(20):
        time.sleep(0.02)

    with pytest.raises(LoaderEnded, match=r"was ended \(SIGKILL\)"):
        list(batches)


def test_a_process_that_is_killed_between_two_epochs_is_told(short_waits):
    loader = Loader(Images(8), batch_size=2, num_workers=2, persistent_workers=True)
    list(loader)
    os.kill(loader._iterator._workers[1].pid, signal.SIGKILL)

    with pytest.raises(LoaderEnded, match=r"was ended \(SIGKILL\) between two images"):
        list(loader)


def test_batches_are_those_of_torchs_loader():
    images = Images(21)

    for options in ({"num_workers": 0}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}):
        loader = Loader(images, batch_size=4, **options)
        for _ in range(2):
            assert np.concatenate([batch.numpy() for batch in loader]).tolist() == list(range(21))
        assert loader.dataset is images


# --- the command ---


WORKERS = ("data.num_workers=2", "evaluate.enabled=false", "checkpoints.epochs=[]")


def own(tiny):
    return [override for override in tiny if not override.startswith("data.num_workers")]


def spoilt(monkeypatch, part, act, after):
    """Once ``after`` images of a part were read by its processes, the next of them does something else."""
    original, count = readers._Noted._read, multiprocessing.get_context("fork").Value("i", 0)

    def read(self, key):
        if isinstance(key, tuple) == (part == "train"):
            with count.get_lock():
                count.value += 1
                now = count.value == after
            if now:
                self.images.transform = lambda *_: act()
        return original(self, key)

    monkeypatch.setattr(readers._Noted, "_read", read)


# By part the image, of all that its processes read, at which one of them is spoilt: in the second epoch, in the first.
PLACES = (("train", 30), ("val", 20), ("train", 7), ("val", 7))


@pytest.mark.parametrize(
    "case", quick_first([(*place, act) for place in PLACES for act in (kill_oneself, sleep_for_ever)], 1)
)
def test_a_training_whose_process_is_killed_or_hangs_ends_in_one_line_and_goes_on_exactly(
    command, tiny, tmp_path, monkeypatch, short_waits, case
):
    part, after, act = case
    command("train", *own(tiny), *WORKERS, "hydra.run.dir=whole")
    with monkeypatch.context() as patch:
        spoilt(patch, part, act, after)
        code, _, err = command("train", *own(tiny), *WORKERS, "hydra.run.dir=run")

    assert (code, len(err.splitlines())) == (2, 1), err
    told = {
        kill_oneself: r"was ended \(SIGKILL\) while it read ",
        sleep_for_ever: "the processes that read them hang at ",
    }
    assert re.search(told[act] + rf".*images/{part}/\w+/\d+.jpg; ", err)
    if (part, after) == ("train", 7):  # before a step, or after one
        return
    assert err.endswith("; what was saved is whole: go on with python train.py resume=run\n")
    assert command("train", "resume=run")[0] == 0
    weights = [read_checkpoint(tmp_path / run / "checkpoints/last.ckpt")["state_dict"] for run in ("run", "whole")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
