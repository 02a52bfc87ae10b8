"""Boxes of parts, from a CSV or of the phantom's faces, as they come to lie in a network's input."""

import numpy as np
import pytest
import torch
from PIL import Image

from zfscope.data.parts import FACE_PARTS, aligned_faces, input_box, read_parts
from zfscope.data.sources.phantom import Phantom
from zfscope.data.sources.phantom_scene import draw
from zfscope.networks.preprocessing import Preprocessing

HEADER = "image,part,x0,y0,x1,y1"


def plain(resize, crop):
    """Inputs are grey levels: mean 0, scale 1."""
    return Preprocessing(resize, crop, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))


@pytest.mark.parametrize(
    ("size", "resize", "crop"),
    [((128, 128), 128, 112), ((100, 60), 60, 60), ((300, 401), 128, 112), ((53, 37), 64, 57), ((640, 481), 256, 224)],
    ids=["phantom", "wide", "tall", "enlarged", "photograph"],
)
def test_a_mapped_box_holds_the_rectangle_that_went_through_the_preprocessing(size, resize, crop):
    width, height = size
    box = (width // 2 - width // 8, height // 2 - height // 5, width // 2 + width // 6, height // 2 + height // 7)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255

    x0, y0, x1, y1 = input_box(box, size, plain(resize, crop))

    seen = plain(resize, crop)(pixels)[0] / 255
    inside = torch.zeros(crop, crop, dtype=torch.bool)
    inside[y0:y1, x0:x1] = True
    assert (seen[~inside] < 0.5).all()  # the resampling blurs an edge over its neighbours, by less than half
    assert (seen[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] > 0.97).all()
    assert inside.sum() <= (seen > 0.01).sum()
    if min(size) == resize:
        assert torch.equal(seen == 1, inside)


def write_csv(folder, text, sizes=None, encoding="utf-8"):
    for name, (width, height) in (sizes or {"a.png": (60, 40), "b.png": (60, 40)}).items():
        random = np.random.default_rng(len(name))
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    path = folder / "parts.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_csv_gives_images_as_the_network_sees_them_and_boxes_where_they_lie_there(tmp_path):
    text = (
        "y1, part ,x0,y0,x1,note,image\r\n"
        '20,nose,20,10,30,"a, b",a.png\r\n'
        "\r\n"
        "40,=1+1,10,30,50,,./b.png\r\n"
        "21.5,nose,20.5,10,30,x,b.png\r\n"
        "12,=1+1,0,2,14,,a.png\r\n"
    )
    path = write_csv(tmp_path, text, encoding="utf-8-sig")

    images = read_parts(path, plain(40, 36))

    assert [name.split("/")[-1] for name in images.names] == ["a.png", "b.png"]
    for name, image in zip(("a.png", "b.png"), images.inputs, strict=True):
        assert torch.equal(image, plain(40, 36)(Image.open(tmp_path / name)))
    # 60x40 px loses 10 px left and right, then 2 px on each side
    assert {part: boxes.tolist() for part, boxes in images.boxes.items()} == {
        "nose": [[8, 8, 18, 18], [8, 8, 18, 20]],
        "=1+1": [[0, 0, 2, 10], [0, 28, 36, 36]],
    }
    assert images.objects().tolist() == [[0, 0, 18, 18], [0, 8, 36, 36]]
    assert images.misalignment() == pytest.approx(np.sqrt((2 * 0.5**2 + 2 * (8.5**2 + 13.5**2)) / 4))


GOOD = f"{HEADER}\na.png,eye,20,10,30,20\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "parts.csv, line 1: no column image, part, x0, y0, x1, y1; .* names nothing"),
        ("image;part;x0\n", "line 1: no column image, .*names image;part;x0"),
        ("image,part,x0,y0,x1\n", "line 1: no column y1"),
        ("image,part,x0,y0,x1,y1,x0\n", "line 1: column x0 stands there twice; keep one"),
        (GOOD + "b.png,eye,1,2,3\n", "line 3: no y1; a row holds"),
        (GOOD + "b.png,,1,2,3,4\n", "line 3: no part"),
        (GOOD + "\nb.png,eye,left,10,30,20\n", "line 4: x0=left is no number"),
        (GOOD + "b.png,eye,20,nan,30,20\n", "line 3: y0=nan is no number"),
        (GOOD + "b.png,eye,20,10,inf,20\n", "line 3: x1=inf is no number"),
        (GOOD + "b.png,eye,20,10,61,20\n", r"line 3: the box \(20, 10, 61, 20\) .* image of 60x40 px; .* x1 <= 60"),
        (GOOD + "b.png,eye,-1,10,30,20\n", "line 3: the box .* outside the image of 60x40 px"),
        (GOOD + "b.png,eye,20,10,20,20\n", "line 3: the box .* is empty"),
        (GOOD + "b.png,eye,30,10,20,20\n", "line 3: the box .* is empty"),
        (GOOD + "b.png,eye,2,10,12,20\n", "line 3: the network sees the middle .* lies outside"),
        (GOOD + "b.png,eye,20,10,30,20\n./a.png,eye,1,1,9,9\n", "line 4: eye of ./a.png stands in line 2 already"),
        (GOOD + "c.png,eye,20,10,30,20\n", "line 3: cannot read the image .*c.png: there is no such file"),
        (GOOD + "parts.csv,eye,20,10,30,20\n", "line 3: cannot read the image .*: it is no image of a known format"),
        (GOOD + "b.png,eye,20,10,30,20\nb.png,nose,20,10,30,20\n", "parts.csv: nose has no box in a.png"),
        (GOOD, "parts.csv names 1 images; .* 2 or more"),
        (f"{HEADER}\n", "parts.csv names 0 images"),
        (GOOD + "b.png,random,20,10,30,20\n", "line 3: a part cannot be called 'random'"),
        (GOOD + "b.png,../eye,20,10,30,20\n", "line 3: a part cannot be called '../eye'"),
        (GOOD + '"b.png,eye,20,10,30,20\n', "line 3: unexpected end of data; mend the row"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused_with_its_line(tmp_path, text, message):
    path = write_csv(tmp_path, text)

    with pytest.raises(ValueError, match=message) as refusal:
        read_parts(path, plain(40, 36))

    assert "\n" not in str(refusal.value)


def test_a_csv_in_another_encoding_is_refused(tmp_path):
    path = write_csv(tmp_path, GOOD.replace("eye", "öga"), encoding="latin-1")

    with pytest.raises(ValueError, match=r"parts.csv is not UTF-8 \(byte 29\)"):
        read_parts(path, plain(40, 36))


@pytest.fixture(scope="module")
def phantom():
    """300 images of which only the faces are drawn."""
    images = np.zeros((300, 128, 128, 3), np.uint8)
    for index in range(0, 300, 10):
        images[index] = draw(0, "val", index).image
    return Phantom(images, 0, "val")


def test_the_faces_that_lie_most_alike_are_found_by_brute_force(phantom):
    preprocessing = plain(128, 96)

    faces = aligned_faces(phantom, preprocessing, 4)

    middles = {}
    for index in range(0, 300, 10):
        sample = draw(0, "val", index)
        boxes = np.array([sample.parts[part] for part in FACE_PARTS])
        hidden = any(sample.mask[y0:y1, x0:x1].mean() < 0.95 for x0, y0, x1, y1 in boxes)
        if boxes.min() >= 16 and boxes.max() <= 112 and not hidden:
            middles[index] = (boxes[:, :2] + boxes[:, 2:]) / 2
    far = {}
    for index, own in middles.items():
        distances = sorted((np.sqrt(((own - other) ** 2).sum()), number) for number, other in middles.items())[:4]
        far[index] = sum(distance for distance, _ in distances), [number for _, number in distances]
    chosen = min(far.values())[1]
    assert 4 < len(middles) < 30
    assert faces.names == tuple(f"phantom/val/{index}" for index in chosen)
    for number, index in enumerate(chosen):
        sample = draw(0, "val", index)
        pixels = torch.from_numpy(sample.image[16:112, 16:112]).permute(2, 0, 1).float()
        assert torch.equal(faces.inputs[number], pixels)
        for part, boxes in faces.boxes.items():
            assert boxes[number].tolist() == [edge - 16 for edge in sample.parts[part]]


def test_more_faces_than_there_are_is_refused_with_their_number(phantom):
    with pytest.raises(ValueError, match=r"31 faces were asked for, but \d+ of these 300 images"):
        aligned_faces(phantom, plain(128, 112), 31)
