"""Hashes of what images hold: what is read when, what an index is worth, and what changed or stands in two parts."""

import hashlib
import os
import shutil
import time
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from tests.conftest import tiny_images
from zfscope.data import contents
from zfscope.data.contents import check_unchanged, content_hashes, contents_digest, warn_of_repeats
from zfscope.data.imageset import ArrayImages, FileImages, JoinedImages
from zfscope.data.splits import Splits


@pytest.fixture(autouse=True)
def no_warning_unless_expected():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.fixture
def settled(monkeypatch):
    """Files of this test may be trusted although they were written a moment ago."""
    monkeypatch.setattr(contents, "NOT_SETTLED", 0)
    return lambda: time.sleep(0.02)  # until the clock of the file system has gone on


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are read."""
    names, read = [], contents._hash_file

    def note(path):
        names.append(os.path.basename(os.fsdecode(path)))
        return read(path)

    monkeypatch.setattr(contents, "_hash_file", note)
    return names


def put(folder, count=6):
    """Files ``0.png`` … of 8 bytes each, which no test decodes."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(b"image %02d" % number)
    return opened(folder, count)


def opened(folder, count=6):
    return FileImages([f"{n}.png" for n in range(count)], np.arange(count) % 2, ["a", "b"], root=folder)


def expected(folder, count=6):
    digests = [hashlib.sha256((folder / f"{n}.png").read_bytes()).digest()[:8] for n in range(count)]
    return np.array([list(digest) for digest in digests], dtype=np.uint8)


def test_a_hash_is_of_the_bytes_and_files_that_did_not_change_are_read_once(tmp_path, settled, reads):
    images = put(tmp_path / "images")
    settled()

    first, again = content_hashes(images, tmp_path / "cache"), content_hashes(images, tmp_path / "cache")

    assert_array_equal(first, expected(tmp_path / "images"))
    assert_array_equal(again, first)
    assert sorted(reads) == [f"{n}.png" for n in range(6)]


def test_a_copied_folder_is_read_once_more_and_holds_the_same(tmp_path, settled, reads):
    first = content_hashes(put(tmp_path / "images"), tmp_path / "cache")
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    settled()

    copies = [content_hashes(opened(tmp_path / "copy"), tmp_path / "cache") for _ in range(2)]

    assert len(reads) == 12
    for copy in copies:
        assert_array_equal(copy, first)


def written_in_place(path):
    path.write_bytes(b"another!")


def written_in_place_with_its_old_time(path):
    state = path.stat()
    path.write_bytes(b"another!")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def replaced_by_a_file_of_the_same_time(path):
    other = path.with_name("other")
    other.write_bytes(b"another!")
    shutil.copystat(path, other)
    os.replace(other, path)


@pytest.mark.parametrize(
    "change", [written_in_place, written_in_place_with_its_old_time, replaced_by_a_file_of_the_same_time]
)
def test_a_file_that_changed_under_its_name_and_size_is_read_again_alone(tmp_path, settled, reads, change):
    images = put(tmp_path / "images")
    before, digest = content_hashes(images, tmp_path), contents_digest(images, tmp_path)
    reads.clear()
    settled()

    change(tmp_path / "images/4.png")
    after = content_hashes(images, tmp_path)

    assert reads == ["4.png"]
    assert np.flatnonzero((before != after).any(1)).tolist() == [4]
    assert_array_equal(after, expected(tmp_path / "images"))
    assert contents_digest(images, tmp_path) != digest
    assert opened(tmp_path / "images").fingerprint == images.fingerprint  # it goes by names and sizes


def test_a_file_that_changed_within_a_tick_of_the_clock_is_noticed(tmp_path, monkeypatch):
    images, now = put(tmp_path / "images"), time.time_ns()
    monkeypatch.setattr(contents, "_state", lambda path: (8, now, now, 7))  # a clock that stands still
    content_hashes(images, tmp_path)

    (tmp_path / "images/4.png").write_bytes(b"another!")

    assert_array_equal(content_hashes(images, tmp_path), expected(tmp_path / "images"))


def test_of_a_sample_no_more_is_read_but_what_is_known_is_kept_and_watched(tmp_path, settled, reads):
    images = put(tmp_path / "images")
    known = np.zeros(6, bool)
    known[[0, 2, 5]] = True

    sampled = content_hashes(images, tmp_path, most=3)
    read_for_the_sample = sorted(reads)
    content_hashes(images.subset([1]), tmp_path)  # another part of the same folder
    settled()
    (tmp_path / "images/1.png").write_bytes(b"another!")
    later = content_hashes(images, tmp_path, most=3)

    assert read_for_the_sample == ["0.png", "2.png", "5.png"]
    assert sampled.any(1).tolist() == known.tolist()
    known[1] = True
    assert_array_equal(later, expected(tmp_path / "images") * known[:, None])


def test_what_cannot_be_read_has_no_hash_and_is_not_waited_for(tmp_path):
    images = put(tmp_path / "images")
    for number in range(3):
        (tmp_path / f"images/{number}.png").unlink()
    os.mkfifo(tmp_path / "images/0.png")
    (tmp_path / "images/1.png").symlink_to("nowhere")

    hashes = content_hashes(images, tmp_path)

    assert hashes.any(1).tolist() == [False] * 3 + [True] * 3


def test_each_image_of_an_array_has_its_hash_also_in_a_subset_or_joined_to_files(tmp_path):
    pixels, labels = tiny_images(6, side=4)
    arrays, files = ArrayImages(pixels, labels % 2, ["a", "b"], "tiny"), put(tmp_path / "images")
    joined = JoinedImages([arrays, files]).subset([7, 5, 0])

    hashes = content_hashes(arrays, tmp_path)

    assert bytes(hashes[5]) == hashlib.sha256(pixels[5].tobytes()).digest()[:8]
    assert_array_equal(content_hashes(arrays.subset([5, 0]), tmp_path), hashes[[5, 0]])
    assert_array_equal(content_hashes(joined, tmp_path), [expected(tmp_path / "images")[1], hashes[5], hashes[0]])


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def other_columns(path):
    np.savez(path, names=np.array([b"0.png"]), states=np.zeros((1, 3), int), hashes=np.zeros((1, 8), np.uint8))


@pytest.mark.parametrize("damage", [cut_off, other_columns, lambda path: path.write_bytes(b"")])
def test_a_damaged_index_is_made_anew_with_one_line(tmp_path, settled, damage):
    images = put(tmp_path / "images")
    content_hashes(images, tmp_path)
    (index,) = tmp_path.glob("contents_*.npz")
    damage(index)
    settled()

    with pytest.warns(UserWarning, match=r"contents_\w+\.npz is damaged; the images are read again"):
        again = content_hashes(images, tmp_path)

    assert_array_equal(again, expected(tmp_path / "images"))
    assert_array_equal(content_hashes(images, tmp_path), again)  # and without a warning


def test_a_flipped_bit_anywhere_in_an_index_changes_no_hash(tmp_path, settled):
    images = put(tmp_path / "images")
    content_hashes(images, tmp_path)
    (index,) = tmp_path.glob("contents_*.npz")
    whole = index.read_bytes()
    settled()

    for position in range(0, len(whole), 11):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        index.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_array_equal(content_hashes(images, tmp_path), expected(tmp_path / "images"))


def splits_of(root):
    parts = {part: put(root / part) for part in ("train", "val", "test")}
    for number, part in enumerate(parts):
        for path in (root / part).iterdir():
            path.write_bytes(b"%d" % number + path.read_bytes()[1:])
    return Splits(**parts)


def recorded(found):
    return {part: torch.from_numpy(found[part].copy()) for part in ("train", "val")}


@pytest.mark.parametrize(("part", "called"), [("train", "training"), ("val", "validation")])
def test_a_run_goes_on_with_equal_images_only_and_changed_ones_are_named(tmp_path, part, called):
    splits = splits_of(tmp_path)
    earlier = recorded(contents.contents_of(splits, tmp_path))
    check_unchanged(earlier, "last.ckpt", splits, contents.contents_of(splits, tmp_path))
    for number in (1, 2, 4, 5):
        (tmp_path / part / f"{number}.png").write_bytes(b"another!")
    (tmp_path / "test/0.png").write_bytes(b"another!")  # no part of the training

    with pytest.raises(ValueError, match="images changed since") as raised:
        check_unchanged(earlier, "last.ckpt", splits, contents.contents_of(splits, tmp_path))

    first = ", ".join(str(tmp_path / part / f"{number}.png") for number in (1, 2, 4))
    assert str(raised.value) == (
        f"the {called} images changed since last.ckpt was written, 4 of 6: {first} and 1 more; put the old ones back, "
        "or start a new run with weights=last.ckpt"
    )


def test_a_checkpoint_without_hashes_and_an_image_that_was_not_read_are_no_reason_to_refuse(tmp_path):
    splits = splits_of(tmp_path)
    earlier = recorded(contents.contents_of(splits, tmp_path / "cache", most=3))
    (tmp_path / "train/1.png").write_bytes(b"another!")
    now = contents.contents_of(splits, tmp_path / "cache")

    check_unchanged(None, "last.ckpt", splits, now)
    check_unchanged(earlier, "last.ckpt", splits, now)
    (tmp_path / "train/0.png").unlink()  # the reader of images names it
    check_unchanged(earlier, "last.ckpt", splits, contents.contents_of(splits, tmp_path / "cache"))

    (tmp_path / "train/2.png").write_bytes(b"another!")
    with pytest.raises(ValueError, match=r"training images changed since last\.ckpt was written, 1 of 6: .*/2\.png"):
        check_unchanged(earlier, "last.ckpt", splits, contents.contents_of(splits, tmp_path / "cache"))


def test_another_number_of_images_is_left_to_the_fingerprint(tmp_path):
    splits = splits_of(tmp_path)
    now = contents.contents_of(splits, tmp_path / "cache")

    check_unchanged({"train": torch.ones(5, 8, dtype=torch.uint8)}, "last.ckpt", splits, now)


@pytest.mark.parametrize(
    ("one", "other", "called"),
    [("train", "test", "test images also stand among the training"), ("val", "test", "among the validation"),
     ("train", "val", "6 validation images also stand among the training")],
)  # fmt: skip
def test_images_that_stand_in_two_parts_are_counted_with_a_warning(tmp_path, one, other, called):
    splits = splits_of(tmp_path)
    shutil.copy(tmp_path / one / "5.png", tmp_path / other / "2.png")
    shutil.copy(tmp_path / one / "3.png", tmp_path / other / "4.png")

    with pytest.warns(UserWarning, match=called) as told:
        warn_of_repeats(splits, contents.contents_of(splits, tmp_path / "cache"))

    assert len(told) == 1
    text = str(told[0].message)
    assert text.startswith("2 of the 6 ")
    assert text.endswith(f"such as {tmp_path}/{other}/2.png, which is {tmp_path}/{one}/5.png")


def test_images_that_stand_in_one_part_or_were_not_read_are_no_repeats(tmp_path):
    splits = splits_of(tmp_path)
    shutil.copy(tmp_path / "train/0.png", tmp_path / "train/5.png")
    for part in ("train", "test"):
        (tmp_path / part / "3.png").unlink()

    warn_of_repeats(splits, contents.contents_of(splits, tmp_path / "cache"))
