"""Drawing one image of the phantom: determinism and exact ground truth."""

import hashlib

import numpy as np
import pytest

from tests.conftest import quick_first
from zfscope.data.sources import phantom_scene
from zfscope.data.sources.phantom_objects import CLASSES
from zfscope.data.sources.phantom_scene import SIZE, SPLITS, draw


@pytest.fixture
def bare(monkeypatch):
    """Images as they come from the canvas: no light, blur, noise or occluders, so that a pixel shows who painted it."""
    monkeypatch.setattr(phantom_scene, "photographed", lambda image, random: np.asarray(image))
    monkeypatch.setattr(phantom_scene, "occlude", lambda canvas, random, parts: None)


def recoloured(part):
    # Shifted by half the range: even one ninth of a pixel changes visibly, whatever the colour was.
    return [(points, tuple((value + 128) % 256 for value in colour)) for points, colour in part]


def object_changed(monkeypatch, split, index, change):
    """The image and its twin whose object went through ``change``; the scattered parts stay as they are."""
    plain = draw(0, split, index)
    turned = phantom_scene.turned
    with monkeypatch.context() as patch:
        patch.setattr(phantom_scene, "turned", lambda *args: change(turned(*args)))
        return plain, draw(0, split, index)


def differing(one, other):
    return (one.image.astype(int) != other.image.astype(int)).any(axis=2)


def box_of(pixels):
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def test_the_same_arguments_draw_the_same_bytes():
    first, again = draw(3, "val", 17), draw(3, "val", 17)

    assert first.image.tobytes() == again.image.tobytes()
    assert first.mask.tobytes() == again.mask.tobytes()
    assert first.parts == again.parts


@pytest.mark.parametrize("other", [(4, "val", 17), (3, "test", 17), (3, "val", 27)], ids=["seed", "split", "index"])
def test_another_seed_split_or_index_draws_another_image(other):
    assert np.abs(draw(3, "val", 17).image.astype(int) - draw(*other).image).mean() > 10


def test_drawing_leaves_the_global_random_state_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].tobytes()

    draw(0, "train", 5)

    assert np.random.get_state()[1].tobytes() == before


def test_no_two_images_of_a_split_or_of_different_splits_are_equal():
    digests = {hashlib.sha256(draw(0, s, i).image.tobytes()).digest() for s in SPLITS for i in range(20)}

    assert len(digests) == 60


@pytest.mark.parametrize("label", quick_first(range(len(CLASSES)), 4), ids=CLASSES)
def test_the_mask_is_where_the_image_changes_with_the_object(label, bare, monkeypatch):
    index = 30 + label
    plain, other = object_changed(
        monkeypatch, "train", index, lambda parts: {name: recoloured(part) for name, part in parts.items()}
    )

    assert plain.label == label
    assert plain.mask.sum() > 300
    assert np.array_equal(plain.mask, differing(plain, other))


@pytest.mark.parametrize("label", quick_first(range(len(CLASSES)), 4), ids=CLASSES)
def test_the_box_of_every_part_holds_exactly_the_pixels_it_paints(label, bare, monkeypatch):
    index = 50 + label
    for name, box in draw(0, "train", index).parts.items():

        def on_top(parts, name=name):
            return {other: part for other, part in parts.items() if other != name} | {name: parts[name]}

        def recoloured_on_top(parts, name=name, on_top=on_top):
            return on_top(parts) | {name: recoloured(parts[name])}

        _, one = object_changed(monkeypatch, "train", index, on_top)
        _, other = object_changed(monkeypatch, "train", index, recoloured_on_top)

        assert box == box_of(differing(one, other)), name


def test_an_occluder_takes_its_pixels_from_the_mask_but_leaves_the_boxes(monkeypatch):
    monkeypatch.setattr(phantom_scene, "photographed", lambda image, random: np.asarray(image))
    hidden = unchanged = 0
    for index in range(20):
        seen = draw(0, "train", index)
        with monkeypatch.context() as patch:
            patch.setattr(phantom_scene, "occlude", lambda canvas, random, parts: None)
            whole = draw(0, "train", index)

        changed = differing(seen, whole)
        assert seen.parts == whole.parts
        assert not (seen.mask & ~whole.mask).any()
        hidden += int((whole.mask & ~seen.mask).sum())
        unchanged += int((whole.mask & ~seen.mask & ~changed).sum())

    assert hidden > 500
    assert unchanged < 0.01 * hidden  # an occluder may have the very colour that it covers


def test_a_face_has_its_right_eye_on_the_left_and_its_mouth_below():
    def middle(box):
        return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2

    for index in range(0, 200, len(CLASSES)):
        parts = draw(1, "train", index).parts
        head, right, left = parts["head"], middle(parts["right_eye"]), middle(parts["left_eye"])

        assert {"head", "right_eye", "left_eye", "nose", "mouth"} <= parts.keys()
        assert head[0] < right[0] < left[0] < head[2]
        assert head[1] < max(right[1], left[1]) < middle(parts["mouth"])[1] < head[3]


def test_the_whole_object_lies_inside_the_image():
    for index in range(60):
        boxes = np.array(list(draw(0, "test", index).parts.values()))

        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= SIZE).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()


def test_classes_are_balanced_and_share_the_kinds_of_their_parts():
    eyes = [name for name in CLASSES if any("eye" in part for part in draw(0, "val", CLASSES.index(name)).parts)]
    wheels = [name for name in CLASSES if any("wheel" in part for part in draw(0, "val", CLASSES.index(name)).parts)]

    assert [draw(0, "val", index).label for index in range(30)] == list(range(10)) * 3
    assert eyes == ["face", "dog", "cat", "owl", "rabbit", "fish"]
    assert wheels == ["car", "bicycle"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, "train", 0), "seed of the phantom must be 0 or more, but is -1"),
        ((0, "tests", 0), "no split 'tests' of the phantom; the splits are train, val, test"),
        ((0, "train", -1), "index of the phantom must be 0 or more, but is -1"),
    ],
)
def test_draw_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments)
