"""Lists of images to leave out of a training set."""

import warnings

import numpy as np
import pytest

from zfscope.data.exclusions import exclusion_list, without
from zfscope.data.imageset import ArrayImages, FileImages


def write(path, keys, comment):
    path.write_text(exclusion_list(keys, comment), encoding="utf-8")


def test_listed_images_are_left_out_and_the_fingerprint_changes(tmp_path):
    names = ["cat/1.png", "cat/#2.png", "#dog/3.png", "#dog/4\n.png", "#dog/5.png"]
    images = FileImages([f"/data/{name}" for name in names], [0, 0, 1, 1, 1], ("cat", "#dog", "never seen"), "/data")
    write(tmp_path / "exclude.txt", [images.key(n) for n in (1, 3, 4)], "why\nso")

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        left = without(images, tmp_path / "exclude.txt")

    assert [left.key(n) for n in range(len(left))] == ["cat/1.png", r"\x23dog/3.png"]
    assert left.labels.tolist() == [0, 1]
    assert left.fingerprint != images.fingerprint


def test_a_list_from_another_editor_is_read(tmp_path):
    images = ArrayImages(np.zeros((4, 2, 2), np.uint8), [0, 0, 1, 1], ("a", "b"), "set")
    (tmp_path / "list.txt").write_bytes("\ufeffset/1\r\n\r\n# a remark\r\nset/2".encode())

    left = without(images, tmp_path / "list.txt")

    assert [left.name(n) for n in range(2)] == ["set/0", "set/3"]


def test_names_that_are_not_in_the_set_are_counted(tmp_path):
    images = ArrayImages(np.zeros((4, 2, 2), np.uint8), [0, 0, 1, 1], ("a", "b"), "set")
    write(tmp_path / "list.txt", ["set/9", "set/1", "old/2"], "")

    with pytest.warns(UserWarning, match="2 of the 3 images listed in .*list.txt are not in this set: old/2, set/9"):
        left = without(images, tmp_path / "list.txt")

    assert len(left) == 3


def test_a_list_that_found_nothing_leaves_all(tmp_path):
    images = ArrayImages(np.zeros((2, 2, 2), np.uint8), [0, 1], ("a", "b"), "set")
    write(tmp_path / "list.txt", [], "nothing was found")

    with pytest.warns(UserWarning, match="lists no image; all stay"):
        assert len(without(images, tmp_path / "list.txt")) == 2


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "there is no list of images .*list.txt; analysis=overlap writes one"),
        (b"", ValueError, "list of images .*list.txt is empty"),
        (b"\n\n", ValueError, "is empty"),
        (b"set/1\nset/\xff\n", ValueError, "line 2 of .*list.txt is not UTF-8"),
        (b"set/1\nset/2\x00\n", ValueError, "line 2 of .*list.txt is no name of an image: set/2.x00; "),
        (b"# other\nother/1\nother/2\n", ValueError, "none of the 2 images .* in this set, .* called like set/0"),
        (b"set/1\nset/2\nset/3\n", ValueError, "lists all images of class b; "),
    ],
    ids=["missing", "empty", "blank lines", "not UTF-8", "binary", "of another set", "a whole class"],
)
@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
def test_a_list_that_does_not_fit_is_refused_in_one_line(content, error, message, several, tmp_path):
    labels = [[1, 0], [1, 0], [0, 1], [0, 1]] if several else [0, 0, 1, 1]
    images = ArrayImages(np.zeros((4, 2, 2), np.uint8), np.array(labels), ("a", "b"), "set")
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)

    with pytest.raises(error, match=message) as refused:
        without(images, tmp_path / "list.txt")

    assert "\n" not in str(refused.value)


def test_a_folder_is_no_list(tmp_path):
    images = ArrayImages(np.zeros((2, 2, 2), np.uint8), [0, 1], ("a", "b"), "set")

    with pytest.raises(ValueError, match="cannot read the list of images .*: Is a directory; .* exclude.txt"):
        without(images, tmp_path)
