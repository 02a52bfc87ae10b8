import csv
import io
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.fft import dctn, idctn

import zfscope.protocols.overlap
from tests.conftest import composed
from zfscope.analyses.overlap import chosen, overlap
from zfscope.analyses.spec import AnalyzeConfig
from zfscope.data.datamodule import ImageData, open_data
from zfscope.data.exclusions import without, write_exclusions
from zfscope.data.imageset import ArrayImages, FileImages, JoinedImages
from zfscope.data.spec import DataConfig
from zfscope.figures import Pair, overlap_sheet
from zfscope.protocols.overlap import Overlap, correlate, describe, description_size, find_overlap, mirror, thumbnail
from zfscope.schema import check

CPU = torch.device("cpu")


def photographs(count, seed=0, size=(180, 120)):
    """Random pictures with a photograph's spectrum, amplitudes falling as 1 / frequency, in colour."""
    random = np.random.default_rng(seed)
    width, height = size
    falling = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    falling[0, 0] = np.inf
    pictures = []
    for _ in range(count):
        waves = np.fft.fft2(random.standard_normal((3, height, width)) + random.standard_normal((1, height, width)))
        values = np.fft.ifft2(waves / falling).real
        grey = 128 + 45 * values / values.std()
        pictures.append(Image.fromarray(grey.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)))
    return pictures


def recompressed(image, quality=30):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


COPIES = {
    "recompressed": recompressed,
    "halved": lambda image: image.resize((90, 60)),
    "enlarged": lambda image: image.resize((311, 207), Image.Resampling.BICUBIC),
    "small and recompressed": lambda image: recompressed(image.resize((63, 42))),
    "grey": lambda image: image.convert("L"),
    "of another shape": lambda image: image.resize((150, 150)),
    "paler": lambda image: image.point(lambda value: round(40 + 0.7 * value)),
    "nearly black": lambda image: image.point(lambda value: round(0.02 * value)),
    "trimmed": lambda image: image.crop((2, 1, 178, 119)),
}


def write(root, pictures, classes=("cat", "dog")):
    """Class folders ``root/class/0.png`` …, the pictures dealt out in turn."""
    for number, picture in enumerate(pictures):
        folder = Path(root, classes[number % len(classes)])
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{number}.png")
    return root


def files(root, pictures, classes=("cat", "dog")):
    """The same as a set, in the order of the pictures."""
    write(root, pictures, classes)
    names = [f"{classes[n % len(classes)]}/{n}.png" for n in range(len(pictures))]
    return FileImages([f"{root}/{name}" for name in names], np.arange(len(names)) % len(classes), classes, root)


def described(pictures):
    return describe(torch.from_numpy(np.stack([thumbnail(picture.convert("RGB")) for picture in pictures])))


def counted(found):
    return {(int(i), int(j)) for i, j in found.pairs[found.same]}


def naive(first, second, threshold, margin, mirrored, flips):
    """All pairs that count, by loops over float64."""
    first, second = first.double().numpy(), second.double().numpy()
    alike = np.array([[a @ b for b in second] for a in first])
    if mirrored:
        alike = np.maximum(alike, np.array([[(a * flips) @ b for b in second] for a in first]))
    found = {}
    for i in range(len(first)):
        for j in range(len(second)):
            fourths = [sorted(others, reverse=True)[3:4] for others in (alike[i], alike[:, j])]
            fourth = max([0.0, *(value for values in fourths for value in values)])
            r = alike[i, j]
            if r >= threshold and (r > 1 - 4e-4 or (1 - fourth) / (1 - r) >= margin):
                found[i, j] = r
    return found


def test_a_scalar_product_is_the_correlation_of_filtered_thumbnails():
    grey = np.stack([thumbnail(picture) for picture in photographs(6)]).astype(np.float64)
    radius = np.hypot(np.arange(32)[:, None], np.arange(32)[None])
    weights = radius * np.exp(-((radius / 16) ** 4))
    weights[weights < 0.01 * weights.max()] = 0
    filtered = idctn(dctn(grey, axes=(1, 2), norm="ortho") * weights, axes=(1, 2), norm="ortho")

    ours = describe(torch.from_numpy(grey))

    np.testing.assert_allclose(ours @ ours.T, np.corrcoef(filtered.reshape(6, -1)), atol=1e-5)


def test_descriptions_are_mirrored_without_the_image():
    pictures = photographs(3, size=(67, 41))

    torch.testing.assert_close(
        mirror(described(pictures)), described([ImageOps.mirror(picture) for picture in pictures]), atol=2e-4, rtol=0
    )


@pytest.fixture(scope="module")
def lookalikes():
    """Descriptions that have much in common, copies among them: ``(22, D)`` and ``(26, D)``."""
    generator = torch.Generator().manual_seed(1)

    def noise(count, size=1.0):
        return size * torch.randn(count, description_size(), generator=generator)

    common = noise(1)
    first, second = noise(22) + 2 * common, noise(26) + 2 * common
    second[0:3] = first[0:3] + noise(3, 0.3)
    second[3:5] = first[3:5] + noise(2, 0.8)
    second[5:7] = first[5:7]
    second[9] = mirror(first[9:10] + noise(1, 0.2))
    second[11:14] = first[11] + noise(3, 0.2)  # as many copies as are found
    second[14:18] = first[14] + noise(4, 0.2)  # one too many, here and in the first set
    first[15:19] = second[19] + noise(4, 0.2)
    first[20], second[21] = noise(2)
    second[22] = first[20] + noise(1, 0.6)  # far nearer than others, yet no copy
    return tuple(each / each.norm(dim=1, keepdim=True) for each in (first, second))


@pytest.mark.parametrize("mirrored", [False, True], ids=["as they are", "mirrored"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (7, 5), (1000, 1000)])
def test_pairs_are_those_of_a_naive_loop_whatever_the_blocks(rows, columns, mirrored, lookalikes, monkeypatch):
    monkeypatch.setattr(zfscope.overlap, "_ROWS", 4)
    first, second = lookalikes
    flips = mirror(torch.ones(1, description_size()))[0].double().numpy()

    found = correlate(first.split(rows), second.numpy(), threshold=0.9, margin=3.0, mirrored=mirrored, columns=columns)

    expected = naive(first, second, 0.9, 3.0, mirrored, flips)
    assert {(0, 0), (5, 5), (11, 11), (11, 12), (11, 13)} <= set(expected)
    assert ((9, 9) in expected) == mirrored
    assert not {(14, 14), (15, 19), (20, 22)} & set(expected)
    assert counted(found) == set(expected)
    for (i, j), r in zip(found.pairs.tolist(), found.correlation, strict=True):
        if (i, j) in expected:
            assert r == pytest.approx(expected[i, j], abs=1e-5)
    assert (np.diff(found.correlation) <= 0).all()


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_planted_copies_are_found_and_no_others(change, tmp_path):
    pictures = photographs(24)
    first = files(tmp_path / "first", pictures)
    second = files(tmp_path / "second", [*photographs(20, seed=1), *map(change, pictures[3:9])])

    found = find_overlap(first, second)

    assert counted(found) == {(3 + n, 20 + n) for n in range(6)}
    assert found.correlation[~found.same].max() < 0.6


def test_mirrored_copies_are_found_where_asked_for(tmp_path):
    pictures = photographs(12, size=(181, 119))
    first = files(tmp_path / "first", pictures)
    planted = [recompressed(ImageOps.mirror(picture)) for picture in pictures[:4]]
    second = files(tmp_path / "second", [*photographs(10, seed=1), *planted])

    assert counted(find_overlap(first, second)) == set()
    assert counted(find_overlap(first, second, mirrored=True)) == {(n, 10 + n) for n in range(4)}


def test_where_all_images_are_alike_a_copy_must_stand_out(tmp_path):
    common = np.asarray(photographs(1, seed=7)[0]).astype(float)
    alike = [Image.blend(Image.fromarray(common.astype(np.uint8)), each, 0.15) for each in photographs(30, seed=3)]
    first = files(tmp_path / "first", alike[:15])
    second = files(tmp_path / "second", [*alike[15:], *map(recompressed, alike[:3])])

    by_threshold, by_both = (counted(find_overlap(first, second, margin=margin)) for margin in (1.0, 4.0))

    assert len(by_threshold) > 30
    assert by_both == {(0, 15), (1, 16), (2, 17)}


def test_any_number_of_copies_that_are_the_same_but_for_rounding_is_found(tmp_path):
    pictures = photographs(8)
    first = files(tmp_path / "first", [*pictures[:6], pictures[0], pictures[0]])
    rounded = [recompressed(pictures[0], quality) for quality in (95, 96, 97, 98, 99, 100)]
    second = files(tmp_path / "second", [pictures[6], *rounded, pictures[7]])

    found = counted(find_overlap(first, second))

    assert {i for i, _ in found} == {0, 6, 7}
    assert {j for _, j in found} <= set(range(1, 7))


@pytest.mark.parametrize("memory_gb", [1.0, 1e-6], ids=["in memory", "in a file"])
def test_which_set_is_held_and_where_changes_nothing(memory_gb, tmp_path, monkeypatch):
    pictures = photographs(12)
    first = files(tmp_path / "first", pictures)
    second = files(tmp_path / "second", [*photographs(3, seed=1), *map(recompressed, pictures[5:7])])
    kept = []
    memmap = np.memmap

    def watched(path, *rest, **options):
        kept.append((path.parent.parent, options["shape"]))
        return memmap(path, *rest, **options)

    monkeypatch.setattr(np, "memmap", watched)

    there = find_overlap(first, second, memory_gb=memory_gb, scratch=tmp_path)
    back = find_overlap(second, first, memory_gb=memory_gb, scratch=tmp_path)

    assert counted(there) == {(5, 3), (6, 4)} == {(i, j) for j, i in counted(back)}
    assert {tuple(pair) for pair in there.pairs[:, ::-1]} <= {(j, i) for i in range(12) for j in range(5)}
    assert kept == ([] if memory_gb == 1.0 else [(tmp_path, (5, description_size()))] * 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_memory_is_bounded_by_the_size_of_products(tmp_path, monkeypatch):
    made, keep = [], zfscope.protocols.overlap._keep

    def watched(best, alike, *rest):
        made.append(alike.numel())
        keep(best, alike, *rest)

    monkeypatch.setattr(zfscope.overlap, "_keep", watched)
    noise = np.random.default_rng(0).integers(0, 256, (1200, 8, 8), np.uint8)
    first, second = (ArrayImages(images, np.zeros(1200, int), "a", "set") for images in (noise, noise[::-1]))

    found = find_overlap(first, second, memory_gb=0.01)

    assert counted(found) >= {(n, 1199 - n) for n in range(1200)}
    assert 4 * max(made) <= 0.01e9 / 4


def test_images_of_one_grey_are_copies_of_nothing(tmp_path):
    plain = [Image.new("RGB", (40, 40), (grey,) * 3) for grey in (0, 0, 200)]
    first = files(tmp_path / "first", [*plain, *photographs(3)])
    second = files(tmp_path / "second", plain[:2])

    found = find_overlap(first, second)

    assert found.blank == (3, 2)
    assert find_overlap(second, first).blank == (2, 3)
    assert len(found.pairs) == 0


def test_a_set_without_images_has_nothing_in_common(tmp_path):
    images = files(tmp_path, photographs(2))

    with pytest.raises(ValueError, match="has no images, so they have none in common"):
        find_overlap(images, images.subset([]))


# Lists of images to leave out.


def test_keys_stay_when_the_folder_moves_and_no_two_are_alike(tmp_path):
    names = ["a/1.png", "#a/1.png", r"\x23a/1.png", "a/b\n.png", r"a/b\n.png", "a/\udcff.png", "a/\xa0.png", "a/ .png"]
    here, there = (FileImages([f"{root}/{name}" for name in names], [0] * 8, "a", root) for root in ("/one", "/two/x"))

    keys = [here.key(n) for n in range(8)]

    assert keys == [there.key(n) for n in range(8)]
    assert len(set(keys)) == 8 and keys[0] == "a/1.png"
    assert all(key.isprintable() and not key.startswith("#") for key in keys)


def test_listed_images_are_left_out_and_the_fingerprint_changes(tmp_path):
    names = ["cat/1.png", "cat/#2.png", "#dog/3.png", "#dog/4\n.png", "#dog/5.png"]
    images = FileImages([f"/data/{name}" for name in names], [0, 0, 1, 1, 1], ("cat", "#dog", "never seen"), "/data")
    write_exclusions(tmp_path / "exclude.txt", [images.key(n) for n in (1, 3, 4)], "why\nso")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
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
    write_exclusions(tmp_path / "list.txt", ["set/9", "set/1", "old/2"], "")

    with pytest.warns(UserWarning, match="2 of the 3 images listed in .*list.txt are not in this set: old/2, set/9"):
        left = without(images, tmp_path / "list.txt")

    assert len(left) == 3


def test_a_list_that_found_nothing_leaves_all(tmp_path):
    images = ArrayImages(np.zeros((2, 2, 2), np.uint8), [0, 1], ("a", "b"), "set")
    write_exclusions(tmp_path / "list.txt", [], "nothing was found")

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


# The analysis.


def analysed(folder, data, other, **asked):
    config = check(AnalyzeConfig, {"data": data, "analysis": {"name": "overlap", "other": other, **asked}})
    data = check(DataConfig, {**data, "batch_size": 1}, "data")
    folder.mkdir(exist_ok=True)
    return overlap(None, ImageData(open_data(data), data, None), config, CPU, folder)


def lines(path):
    return path.read_text().splitlines()


@pytest.fixture
def caltech_in_imagenet(tmp_path):
    """Three images of a Caltech-101 stand in an ImageNet's training set, another one in its validation set."""
    pictures = photographs(16)
    write(tmp_path / "imagenet" / "train", pictures[:12], ("n01440764", "n01443537"))
    write(tmp_path / "imagenet" / "val", pictures[12:], ("n01440764", "n01443537"))
    own = photographs(14, seed=1)
    planted = [COPIES["halved"](pictures[1]), recompressed(pictures[4]), recompressed(pictures[4], 50), pictures[13]]
    write(tmp_path / "caltech" / "101_ObjectCategories", [*own, *planted], ("=cat", "dog"))
    data = {"name": "imagenet", "root": str(tmp_path / "imagenet"), "num_workers": 0}
    return data, {"name": "caltech101", "root": str(tmp_path / "caltech"), "cache": None}


def test_the_list_takes_the_common_images_out_of_training(caltech_in_imagenet, tmp_path):
    data, other = caltech_in_imagenet

    found = analysed(tmp_path / "run", data, other)

    assert lines(tmp_path / "run" / "exclude.txt") == [
        "# images of imagenet/train that also stand in caltech101: correlation 0.9 or more, 4 times nearer than other "
        "images",
        "n01440764/4.png",
        "n01443537/1.png",
    ]
    values = {name.removeprefix("overlap/"): metric["value"] for name, metric in found.items()}
    assert values["images"] == 12 and values["other_images"] == 18
    assert values["pairs"] == 3 and values["duplicates"] == 2 and values["other_duplicates"] == 3
    assert values["excluded"] == 2 and values["highest_not_counted"] < 0.6 < 0.9 <= values["lowest_counted"]
    assert found["overlap/other_duplicates"]["paper"] == 44
    splits = open_data(check(DataConfig, {**data, "exclude": str(tmp_path / "run" / "exclude.txt")}))
    assert len(splits.train) == 10 and len(splits.val) == 4
    with Image.open(tmp_path / "run" / "figures" / "overlap.png") as figure:
        assert figure.width > 900
    with np.load(tmp_path / "run" / "arrays.npz") as arrays:
        assert arrays["same"].sum() == 3 and arrays["pairs"].shape == (len(arrays["nearer"]), 2)


def test_pairs_are_written_as_text_that_no_spreadsheet_computes(caltech_in_imagenet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "caltech" / "101_ObjectCategories")
    data, other = caltech_in_imagenet

    analysed(tmp_path / "run", data, other | {"name": "folder", "root": "."}, parts=["train", "train"])

    with open(tmp_path / "run" / "pairs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["second"] for row in rows) == ["'=cat/14.png", "'=cat/16.png", "dog/15.png"]
    assert all(row["first"].startswith(str(tmp_path)) and float(row["correlation"]) > 0.9 for row in rows)


def test_a_key_of_the_validation_folder_takes_no_training_image(caltech_in_imagenet, tmp_path):
    data, other = caltech_in_imagenet
    val, expected = tmp_path / "imagenet" / "val" / "n01443537", ["n01440764/4.png", "n01443537/1.png"]

    analysed(tmp_path / "both", data, other, parts=["train", "val"])  # two files of one key, both with a copy
    (val / "1.png").rename(val / "3.png")  # now with the key of a training image that has none
    found = analysed(tmp_path / "run", data, other, parts=["train", "val"])

    assert found["overlap/duplicates"]["value"] == 3
    assert lines(tmp_path / "both" / "exclude.txt")[1:] == expected
    assert lines(tmp_path / "run" / "exclude.txt")[1:] == expected
    assert "paper" not in found["overlap/other_duplicates"]


def test_images_of_a_carved_set_are_listed_whatever_their_part(tmp_path):
    pictures = photographs(20)
    write(tmp_path / "one", [*pictures, pictures[0]])
    write(tmp_path / "two", [*photographs(4, seed=1), *pictures[:8]])
    data, other = ({"name": "folder", "root": str(tmp_path / name)} for name in ("one", "two"))

    found = analysed(tmp_path / "run", data | {"num_workers": 0}, other, parts=["train", "val", "test"])

    expected = sorted(["cat/20.png", *(f"{('cat', 'dog')[n % 2]}/{n}.png" for n in range(8))])
    assert lines(tmp_path / "run" / "exclude.txt")[1:] == expected
    assert found["overlap/duplicates"]["value"] == 9 and found["overlap/other_duplicates"]["value"] == 8


def test_the_parts_of_one_set_are_compared_with_each_other(tmp_path):
    pictures = photographs(10)
    write(tmp_path / "data" / "train", pictures)
    write(tmp_path / "data" / "val", [*photographs(4, seed=1), recompressed(pictures[6])])
    data = {"name": "folder", "root": str(tmp_path / "data"), "num_workers": 0}

    found = analysed(tmp_path / "run", data, {"name": "folder", "root": str(tmp_path / "data" / "train" / "..")})

    assert found["overlap/pairs"]["value"] == 1
    assert lines(tmp_path / "run" / "exclude.txt")[1:] == ["cat/6.png"]
    with pytest.raises(ValueError, match=r"the data set itself, and analysis.parts=\[train,val\] leaves none"):
        analysed(tmp_path / "run", data, data, parts=["train", "val"])


def test_what_is_missing_is_said_in_one_line(caltech_in_imagenet, tmp_path):
    data, other = caltech_in_imagenet

    with pytest.raises(ValueError, match=r"analysis.other.name is missing; give it as analysis.other.name=…"):
        analysed(tmp_path / "run", data, {"name": None, "root": other["root"]})
    with pytest.raises(ValueError, match="analysis.other.rot='x': there is no such key"):
        analysed(tmp_path / "run", data, {**other, "rot": "x"})
    with pytest.raises(ValueError, match=r"analysis.parts=\[test\]: this data set has the parts train, val"):
        analysed(tmp_path / "run", data, other, parts=["test"])
    with pytest.raises(ValueError, match=r"analysis.parts=\[\]"):
        analysed(tmp_path / "run", data, other, parts=[])
    assert not list((tmp_path / "run").iterdir())


def test_images_of_one_grey_are_told(tmp_path):
    write(tmp_path / "one", [*photographs(6), *[Image.new("L", (30, 30), 9)] * 2])
    write(tmp_path / "two", photographs(6, seed=1))
    data, other = ({"name": "folder", "root": str(tmp_path / name)} for name in ("one", "two"))

    with pytest.warns(UserWarning, match="2 images of one/train\\+val\\+test are of one grey"):
        found = analysed(tmp_path / "run", data | {"num_workers": 0}, other, parts=["train", "val", "test"])

    assert found["overlap/pairs"]["value"] == 0 and found["overlap/lowest_counted"]["value"] is None
    assert len(lines(tmp_path / "run" / "exclude.txt")) == 1


def test_the_config_is_accepted_as_composed():
    overrides = "data.name=imagenet", "data.root=A", "analysis.other.name=caltech101", "analysis.other.root=B"

    config = check(AnalyzeConfig, composed("analysis=overlap", *overrides, name="analyze"))

    assert config.analysis.other == {"name": "caltech101", "root": "B"}
    assert config.analysis.model_dump(exclude={"other"}) == check(
        AnalyzeConfig, {"analysis": {"name": "overlap", "other": {}}}
    ).analysis.model_dump(exclude={"other"})


def test_workers_and_joined_sets_change_nothing(tmp_path):
    pictures = photographs(10)
    first = files(tmp_path / "first", pictures)
    halves = JoinedImages([first.subset(range(5, 10)), first.subset(range(5))])
    second = files(tmp_path / "second", [recompressed(pictures[2]), *photographs(4, seed=1)])

    whole, joined = find_overlap(first, second, num_workers=2), find_overlap(halves, second)

    assert counted(whole) == {(2, 0)} and counted(joined) == {(7, 0)}


def test_the_sheet_shows_both_images_of_a_pair_whole():
    red, blue = Image.new("RGB", (300, 100), "red"), Image.new("RGB", (20, 40), "blue")
    pair = Pair((red, blue), ("a/very/long/path/" * 9 + "end.png", "b.png"), 0.91234, math.inf)

    sheet = np.asarray(overlap_sheet([pair] * 5, [], "title", "legend").convert("RGB")).astype(int)
    empty = overlap_sheet([], [], "title", "legend")

    shown = [(np.abs(sheet - colour).sum(2) == 0).sum() for colour in ([255, 0, 0], [0, 0, 255])]
    assert shown == [5 * 136 * 45, 5 * 68 * 136]
    assert empty.height < sheet.shape[0]


def test_the_sheet_spreads_over_what_counts_and_begins_with_the_closest_of_the_rest():
    images = ArrayImages(np.zeros((20, 4, 4), np.uint8), np.zeros(20, int), "a", "set")
    pairs, falling = np.stack([np.arange(20)] * 2, axis=1), np.linspace(1, 0, 20, dtype=np.float32)
    found = Overlap(pairs, falling, np.ones(20, np.float32), falling > 0.6, (0, 0))

    same, others = chosen(images, images, found, 3)

    assert [pair.names[0] for pair in same] == ["set/0", "set/4", "set/7"]
    assert [pair.names[1] for pair in others] == ["set/8", "set/9", "set/10"]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_others_make_no_copy_of_what_is_not(count, tmp_path):
    first = files(tmp_path / "first", photographs(6))
    second = files(tmp_path / "second", photographs(count + 1, seed=1))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = find_overlap(first, second)

    assert counted(found) == set()
