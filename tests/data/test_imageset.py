"""Labelled images from files and arrays: labels, names, subsets, fingerprints, and what travels to a worker."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from zfscope.data.imageset import ArrayImages, FileImages, JoinedImages
from zfscope.data.reading import UnreadableImage


def noise(height=16, width=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixel(images, position=0):
    return images.read(position).getpixel((0, 0))


def test_a_subset_of_files_keeps_files_labels_and_names_together(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.new("L", (8, 8), i).save(path)
    images = FileImages(paths, np.array([0, 1, 0, 1, 0]), ["a", "b"], root=tmp_path)

    subset = images.subset([4, 1]).subset(np.array([False, True]))

    assert len(subset) == 1 and subset.labels.tolist() == [1]
    assert subset.name(0) == str(paths[1]) and pixel(subset) == (1, 1, 1)


def test_without_a_root_the_deepest_common_folder_is_taken(tmp_path):
    images = FileImages([tmp_path / "a/b/1.png", tmp_path / "a/c/2.png"], np.array([0, 1]), ["x", "y"])

    assert images.root == str(tmp_path / "a") and images.name(1) == str(tmp_path / "a/c/2.png")


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    def laid_out(root, last=b"123", names=("1.png", "2.png"), labels=(0, 1), classes=("a", "b")):
        root.mkdir(exist_ok=True)
        for name, data in zip(names, (b"12", last), strict=True):
            (root / name).write_bytes(data)
        return FileImages([root / name for name in names], np.array(labels), classes, root).fingerprint

    first = laid_out(tmp_path / "here")

    assert laid_out(tmp_path / "there") == first
    assert laid_out(tmp_path / "size", last=b"1234") != first
    assert laid_out(tmp_path / "name", names=("1.png", "3.png")) != first
    assert laid_out(tmp_path / "label", labels=(1, 0)) != first
    assert laid_out(tmp_path / "class", classes=("a", "c")) != first


def test_many_paths_are_held_and_pickled_compactly():
    names = [f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(20_000)]
    images = FileImages(names, np.arange(20_000) % 1000, [str(i) for i in range(1000)], root="/data/train")

    assert len(pickle.dumps(images)) < 50 * 20_000
    assert pickle.loads(pickle.dumps(images)).name(12_345) == "/data/train/" + names[12_345]


def test_array_images_are_read_from_grey_and_colour_and_named_by_their_place_in_the_array():
    grey = ArrayImages(noise()[..., 0][None].repeat(3, 0), np.array([0, 1, 0]), ["a", "b"], prefix="phantom/test")
    colour = ArrayImages(noise()[None], np.array([0]), ["a", "b"], prefix="x")

    assert np.array_equal(np.asarray(colour.read(0)), noise())
    assert np.array_equal(np.asarray(grey.read(1)), np.repeat(noise()[..., :1], 3, axis=2))
    assert grey.subset([2, 1]).subset([0]).name(0) == "phantom/test/2"
    assert grey.subset([2, 1]).labels.tolist() == [0, 1]


def test_the_fingerprint_of_an_array_follows_pixels_and_rows():
    pixels = noise(40, 16)[..., 0].reshape(40, 4, 4)
    images = ArrayImages(pixels, np.zeros(40, int), ["a"], prefix="x")
    changed = pixels.copy()
    changed[7, 0, 0] ^= 1

    assert ArrayImages(pixels.copy(), np.zeros(40, int), ["a"], prefix="x").fingerprint == images.fingerprint
    assert ArrayImages(changed, np.zeros(40, int), ["a"], prefix="x").fingerprint != images.fingerprint
    assert images.subset([0, 1]).fingerprint != images.subset([1, 0]).fingerprint


def test_a_memory_map_travels_to_a_worker_as_its_file_name_and_a_slice_of_one_as_its_pixels(tmp_path):
    np.save(tmp_path / "cache.npy", np.random.default_rng(0).integers(0, 256, (64, 64, 64), dtype=np.uint8))
    mapped = np.load(tmp_path / "cache.npy", mmap_mode="r")
    whole = ArrayImages(mapped, np.zeros(64, int), ["a"], prefix="x").subset([5, 63])
    part = ArrayImages(mapped[10:], np.zeros(54, int), ["a"], prefix="x")

    assert len(pickle.dumps(whole)) < 4000
    for images in (whole, part):
        again = pickle.loads(pickle.dumps(images))
        assert np.array_equal(np.asarray(again.read(1)), np.asarray(images.read(1)))
        assert again.fingerprint == images.fingerprint


@pytest.mark.parametrize(
    "labels",
    [np.array([0, 2]), np.array([-1, 0]), np.array([0.5, 1.0]), np.array([[0, 1, 0]] * 2), np.array([[0, 2]] * 2)],
    ids=["too large", "negative", "float", "three columns", "not 0 or 1"],
)
def test_labels_that_do_not_fit_the_classes_are_refused(labels):
    with pytest.raises(ValueError, match="labels for 2 classes must be"):
        FileImages(["a.png", "b.png"], labels, ["a", "b"], root="/data")


def test_numbers_of_images_and_labels_must_agree_and_arrays_be_uint8():
    with pytest.raises(ValueError, match="1 paths but 2 labels"):
        FileImages(["a.png"], np.array([0, 1]), ["a", "b"], root="/data")
    with pytest.raises(ValueError, match="3 images but 2 labels"):
        ArrayImages(np.zeros((3, 4, 4), np.uint8), np.array([0, 1]), ["a", "b"], prefix="x")
    with pytest.raises(ValueError, match="must be uint8 .* came as float64"):
        ArrayImages(np.zeros((2, 4, 4)), np.array([0, 1]), ["a", "b"], prefix="x")
    with pytest.raises(ValueError, match="a mask of 2 images"):
        ArrayImages(np.zeros((2, 4, 4), np.uint8), np.array([0, 1]), ["a", "b"], prefix="x").subset([True])


def test_a_name_may_hold_line_breaks_and_undecodable_bytes(tmp_path):
    path = tmp_path / os.fsdecode(b"a\nb\xff.jpg")
    images = FileImages([path], np.array([0]), ["thing"], root=tmp_path)

    assert images.path(0) == path and images.name(0) == str(tmp_path / r"a\nb\udcff.jpg")
    with pytest.raises(UnreadableImage, match=r"a\\nb\\udcff\.jpg: there is no such file"):
        images.read(0)


def test_keys_stay_when_the_folder_moves_and_no_two_are_alike():
    names = ["a/1.png", "#a/1.png", r"\x23a/1.png", "a/b\n.png", r"a/b\n.png", "a/\udcff.png", "a/\xa0.png", "a/ .png"]
    first, moved = (FileImages([f"{root}/{name}" for name in names], [0] * 8, "a", root) for root in ("/one", "/two/x"))

    keys = [first.key(n) for n in range(8)]

    assert keys == [moved.key(n) for n in range(8)]
    assert len(set(keys)) == 8 and keys[0] == "a/1.png"
    assert all(key.isprintable() and not key.startswith("#") for key in keys)


def coloured(count=12, start=0, classes=("a", "b", "c", "d")):
    pixels = np.arange(start, start + count, dtype=np.uint8)[:, None, None] + np.zeros((1, 4, 4), np.uint8)
    return ArrayImages(pixels, np.arange(count) % len(classes), classes, prefix=f"from{start}")


def test_some_classes_alone_keep_their_images_names_and_order_under_new_labels():
    images = coloured()

    chosen = images.only(["d", "b"])

    assert chosen.classes == ("b", "d")
    assert chosen.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert [chosen.name(i) for i in range(6)] == [f"from0/{n}" for n in (1, 3, 5, 7, 9, 11)]
    assert chosen.fingerprint != images.fingerprint
    assert images.classes == ("a", "b", "c", "d") and len(images) == 12
    with pytest.raises(ValueError, match=r"no class 'cat' in this data set; there are a, b, c, d"):
        images.only(["a", "cat"])


def test_some_classes_of_files_alone():
    images = FileImages([f"{n}.png" for n in range(6)], np.arange(6) % 3, ["x", "y", "z"], root="/data")

    chosen = images.only(["x", "z"]).subset([1, 2])

    assert chosen.labels.tolist() == [1, 0] and chosen.classes == ("x", "z")
    assert chosen.name(0) == "/data/2.png"


def test_of_images_with_several_labels_those_with_any_of_the_classes_stay():
    labels = np.array([[1, 0, 1], [0, 1, 0], [0, 1, 1]])
    images = FileImages(["0.png", "1.png", "2.png"], labels, ["x", "y", "z"], root="/data")

    chosen = images.only(["x", "z"])

    assert chosen.labels.tolist() == [[1, 1], [0, 1]]
    assert chosen.name(1) == "/data/2.png"


def test_joined_sets_read_as_one_behind_the_other_also_in_a_subset():
    joined = JoinedImages([coloured(5), coloured(4, start=100)])

    chosen = joined.subset([8, 0, 5]).subset([0, 2, 1])

    assert len(joined) == 9 and joined.labels.tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3]
    assert [pixel(chosen, position)[0] for position in range(3)] == [103, 100, 0]
    assert [chosen.name(i) for i in range(3)] == ["from100/3", "from100/0", "from0/0"]
    assert chosen.labels.tolist() == [3, 0, 0]
    assert len({joined.fingerprint, chosen.fingerprint, joined.subset([0, 5, 8]).fingerprint}) == 3


def test_only_sets_of_the_same_classes_are_joined():
    with pytest.raises(ValueError, match="only sets of the same classes can be joined"):
        JoinedImages([coloured(), coloured(classes=("a", "b", "d", "c"))])
