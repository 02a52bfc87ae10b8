import os
import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from zfscope.data.imageset import ArrayImages, FileImages, JoinedImages
from zfscope.data.reading import UnreadableImage
from zfscope.data.sources.folders import find_folder
from zfscope.data.splits import Splits, stratified_split
from zfscope.schema import listed, printable


def one(path):
    return FileImages([path], np.array([0]), ["thing", "other"], root=path.parent)


def saved(image, path, **options):
    image.save(path, **options)
    return one(path)


def pixel(images, x=0, y=0):
    image = images.read(0)
    assert image.mode == "RGB"
    return image.getpixel((x, y))


def noise(height=16, width=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_header(width, height):
    """A PNG that declares this size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("extension", ["png", "bmp", "ppm", "tif", "webp"])
def test_a_lossless_file_is_read_value_by_value(tmp_path, extension):
    options = {"lossless": True} if extension == "webp" else {}
    images = saved(Image.fromarray(noise()), tmp_path / f"a.{extension}", **options)

    assert np.array_equal(np.asarray(images.read(0)), noise())


def test_grey_is_repeated_in_three_channels(tmp_path):
    assert pixel(saved(Image.new("L", (9, 9), 77), tmp_path / "a.png")) == (77, 77, 77)


def test_cmyk_in_a_jpeg_becomes_rgb(tmp_path):
    images = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=95)

    assert pixel(images) == pytest.approx((255, 0, 0), abs=6)


def test_a_png_named_jpeg_is_read_as_what_it_is(tmp_path):
    assert pixel(saved(Image.new("RGB", (9, 9), (1, 2, 3)), tmp_path / "n02105855_2933.JPEG", format="PNG")) == (
        1,
        2,
        3,
    )


def test_transparent_pixels_lie_on_grey_128_and_half_transparent_ones_between(tmp_path):
    image = Image.new("RGBA", (9, 9), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    images = saved(image, tmp_path / "a.png")

    assert pixel(images, 0) == (128, 128, 128)
    assert pixel(images, 1) == (255, 0, 0)
    assert pixel(images, 2) == pytest.approx((64, 64, 64), abs=1)


@pytest.mark.parametrize("mode", ["P", "L", "LA"])
def test_the_other_ways_to_say_transparent_lie_on_grey_too(tmp_path, mode):
    image = Image.new(mode, (9, 9), (200, 0) if mode == "LA" else 3)
    if mode == "P":
        image.putpalette([10, 20, 30] * 256)
    images = saved(image, tmp_path / "a.png", **({} if mode == "LA" else {"transparency": 3}))

    assert pixel(images) == (128, 128, 128)


def test_a_palette_gives_its_colours(tmp_path):
    image = Image.new("P", (9, 9), 5)
    image.putpalette([value for i in range(256) for value in (i, 2 * i % 256, 7)])

    assert pixel(saved(image, tmp_path / "a.gif")) == (5, 10, 7)


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_16_bits_are_rescaled_and_not_cut_off(tmp_path, extension):
    values = np.array([[0, 257 * 100, 65535, 257 * 7 + 128]] * 4, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{extension}", **({"format": "PPM"} if extension == "pgm" else {}))

    read = np.asarray(one(tmp_path / f"a.{extension}").read(0))

    assert read[0, :, 0].tolist() == [0, 100, 255, 7]


def test_float_pixels_are_refused_because_their_range_is_not_known(tmp_path):
    images = saved(Image.new("F", (9, 9), 0.5), tmp_path / "a.tif")

    with pytest.raises(UnreadableImage, match=r"a\.tif: its 32-bit pixels .* save it with 8 or 16 bits"):
        images.read(0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path, orientation):
    upright = Image.fromarray(noise(6, 9))
    # What a camera stores so that this tag brings the upright image back; written out by hand, not by PIL's names.
    array = np.asarray(upright)
    stored = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.transpose(1, 0, 2),
        6: np.rot90(array),
        7: array[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(array, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    images = saved(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / "a.png", exif=exif)

    assert np.array_equal(np.asarray(images.read(0)), array)


def test_a_broken_exif_block_does_not_lose_the_image(tmp_path):
    images = saved(Image.new("RGB", (16, 16), (9, 9, 9)), tmp_path / "a.jpg", exif=b"Exif\0\0nonsense")

    assert pixel(images) == (9, 9, 9)


def test_of_an_animation_the_first_frame_is_read_with_a_warning(tmp_path):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    images = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])

    with pytest.warns(UserWarning, match="only the first frame"):
        assert pixel(images) == (255, 0, 0)


def test_more_than_50_megapixels_are_refused_before_decoding(tmp_path):
    path = tmp_path / "huge.png"

    for width in (8000, 100_000):  # over our limit; over the one at which PIL raises by itself
        path.write_bytes(png_header(width, 8000))
        with warnings.catch_warnings(), pytest.raises(UnreadableImage, match=r"huge\.png: .*more than 50 megapixels"):
            warnings.simplefilter("ignore")
            one(path).read(0)


def test_a_strip_of_1_by_5000_is_refused_and_one_of_1_by_50_is_not(tmp_path):
    with pytest.raises(UnreadableImage, match="5000x1 px is longer than 50 : 1"):
        saved(Image.new("L", (5000, 1)), tmp_path / "a.png").read(0)

    assert saved(Image.new("L", (1, 50)), tmp_path / "b.png").read(0).size == (1, 50)


def cut(path):
    Image.fromarray(noise(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:1500])


FAULTS = {
    "empty": (lambda path: path.write_bytes(b""), r"it is empty \(0 bytes\)"),
    "truncated": (cut, "truncated"),
    "html": (lambda path: path.write_text("\n<!DOCTYPE html><html>404</html>"), "it holds HTML or XML, not an image"),
    "noise": (lambda path: path.write_bytes(b"\x01\x02" * 99), "no image of a known format"),
    "missing": (lambda path: None, "there is no such file"),
    "dangling link": (lambda path: path.symlink_to("gone.jpg"), r"a link to gone\.jpg, which does not exist"),
    "fifo": (os.mkfifo, "it is not a regular file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unreadable_file_is_named_in_one_line_with_cause_and_way_out(tmp_path, fault):
    path = tmp_path / "photo.jpg"
    make, cause = FAULTS[fault]
    make(path)

    with pytest.raises(UnreadableImage, match=cause) as raised:
        one(path).read(0)

    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("replace the file or remove it")


def test_names_with_line_breaks_or_undecodable_bytes_are_escaped_in_messages(tmp_path):
    path = tmp_path / os.fsdecode(b"a\nb\xff.jpg")
    path.write_bytes(b"")

    with pytest.raises(UnreadableImage, match=r"a\\nb\\udcff\.jpg") as raised:
        one(path).read(0)

    assert "\n" not in str(raised.value)
    assert one(path).path(0) == path  # the name itself survives
    str(raised.value).encode()


def test_an_unreadable_image_can_be_built_anew_from_its_text_as_a_dataloader_does_with_that_of_a_worker(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")

    with pytest.raises(UnreadableImage) as raised:
        one(tmp_path / "photo.jpg").read(0)

    text = f"Caught UnreadableImage in DataLoader worker process 0.\n{raised.value}"
    assert str(UnreadableImage(text)) == text
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@pytest.mark.parametrize("size", [(1000, 700), (700, 1000), (1023, 1025)])
def test_a_jpeg_is_decoded_smaller_but_never_below_the_short_side_wanted(tmp_path, size):
    images = saved(Image.new("RGB", size), tmp_path / "a.jpg")

    for wanted in (50, 87, 88, 128, 175, 176, 349, 350, 351, 700, 5000):
        short = min(images.read(0, short_side=wanted).size)
        assert short >= min(wanted, *size)
        assert short <= 2 * wanted or short <= -(-min(size) // 8)  # the next step down would have been too small
    assert images.read(0).size == size


def test_a_smaller_decoding_shows_the_same_picture(tmp_path):
    smooth = Image.fromarray(noise(4, 6)).resize((960, 640), Image.Resampling.BICUBIC)
    images = saved(smooth, tmp_path / "a.jpg", quality=95)

    small = images.read(0, short_side=160)

    assert small.size == (240, 160)
    expected = np.asarray(smooth.resize((240, 160), Image.Resampling.BOX), float)
    assert np.abs(np.asarray(small, float) - expected).mean() < 2


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


def test_splits_share_their_classes():
    def images(*classes):
        return ArrayImages(np.zeros((1, 4, 4), np.uint8), np.array([0]), classes, prefix="x")

    with pytest.raises(ValueError, match="train and test have different classes"):
        Splits(images("a", "b"), images("a", "b"), images("b", "a"))


@pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 1 / 3, 0.9, 0.999])
def test_a_stratified_split_takes_the_fraction_of_every_stratum_and_leaves_no_image_out(fraction):
    strata = np.random.default_rng(0).permutation(np.repeat([3, 7, 8, 100], [1, 2, 31, 966]))

    stay, carved = stratified_split(strata, fraction, seed=1)

    assert sorted([*stay, *carved]) == list(range(1000))
    for stratum in (3, 7, 8, 100):
        count, total = (strata[carved] == stratum).sum(), (strata == stratum).sum()
        assert abs(count - fraction * total) <= 1
        assert count < total  # one always stays
        assert count >= (fraction > 0 and total > 1)


def test_a_stratified_split_carves_the_fraction_of_the_whole_to_the_nearest_image():
    strata = np.repeat(np.arange(8), [588, 920, 117, 178, 56, 50, 313, 402])  # the solar cells

    assert len(stratified_split(strata, 0.25, seed=0)[1]) == 656  # rounding each stratum would give 657


def test_a_stratified_split_is_a_function_of_the_seed_only():
    strata = np.repeat([0, 1], 10)

    # These positions were written down once: no version of numpy may change them, nor draws made before.
    np.random.seed(99)
    assert stratified_split(strata, 0.3, seed=5)[1].tolist() == [2, 5, 9, 12, 15, 16]
    assert stratified_split(strata, 0.3, seed=6)[1].tolist() != [2, 5, 9, 12, 15, 16]


def test_a_fraction_or_seed_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"below 1, but is 1\.0"):
        stratified_split(np.zeros(4, int), 1.0, seed=0)
    with pytest.raises(ValueError, match=r"in 0\.\.4294967295, but is -1"):
        stratified_split(np.zeros(4, int), 0.5, seed=-1)


def test_find_folder_fetches_only_what_is_not_there_and_says_where_it_looked(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    with pytest.raises(FileNotFoundError, match=f"no toys found; looked in {a}, {b}; buy some"):
        find_folder([a, b], what="toys", how="buy some")

    assert find_folder([a, b], "toys", "buy some", fetch=b.mkdir) == b
    assert find_folder([a, b], "toys", "buy some", fetch=lambda: pytest.fail("fetched again")) == b

    def broken():
        raise RuntimeError("Error downloading\nx")

    with pytest.raises(OSError, match=r"could not download toys: Error downloading\\nx; buy some"):
        find_folder([a], "toys", "buy some", fetch=broken)


def test_names_in_messages_are_short_and_printable():
    assert listed("abcdefg") == "a, b, c, d, e and 2 more"
    assert printable("dog\tsé") == "dog\\tsé"


def coloured(count=12, start=0, classes=("a", "b", "c", "d")):
    pixels = np.arange(start, start + count, dtype=np.uint8)[:, None, None] + np.zeros((1, 4, 4), np.uint8)
    return ArrayImages(pixels, np.arange(count) % len(classes), classes, prefix=f"from{start}")


def test_some_classes_alone_keep_their_images_names_and_order_under_new_labels():
    images = coloured()

    some = images.only(["d", "b"])

    assert some.classes == ("b", "d")
    assert some.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert [some.name(i) for i in range(6)] == [f"from0/{n}" for n in (1, 3, 5, 7, 9, 11)]
    assert some.fingerprint != images.fingerprint
    assert images.classes == ("a", "b", "c", "d") and len(images) == 12
    with pytest.raises(ValueError, match=r"no class 'cat' in this data set; there are a, b, c, d"):
        images.only(["a", "cat"])


def test_some_classes_of_files_alone():
    images = FileImages([f"{n}.png" for n in range(6)], np.arange(6) % 3, ["x", "y", "z"], root="/data")

    some = images.only(["x", "z"]).subset([1, 2])

    assert some.labels.tolist() == [1, 0] and some.classes == ("x", "z")
    assert some.name(0) == "/data/2.png"


def test_of_images_with_several_labels_those_with_any_of_the_classes_stay():
    labels = np.array([[1, 0, 1], [0, 1, 0], [0, 1, 1]])
    images = FileImages(["0.png", "1.png", "2.png"], labels, ["x", "y", "z"], root="/data")

    some = images.only(["x", "z"])

    assert some.labels.tolist() == [[1, 1], [0, 1]]
    assert some.name(1) == "/data/2.png"


def test_joined_sets_read_as_one_behind_the_other_also_in_a_subset():
    joined = JoinedImages([coloured(5), coloured(4, start=100)])

    some = joined.subset([8, 0, 5]).subset([0, 2, 1])

    assert len(joined) == 9 and joined.labels.tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3]
    assert [pixel_of.read(i).getpixel((0, 0))[0] for pixel_of, i in ((some, 0), (some, 1), (some, 2))] == [103, 100, 0]
    assert [some.name(i) for i in range(3)] == ["from100/3", "from100/0", "from0/0"]
    assert some.labels.tolist() == [3, 0, 0]
    assert len({joined.fingerprint, some.fingerprint, joined.subset([0, 5, 8]).fingerprint}) == 3


def test_only_sets_of_the_same_classes_are_joined():
    with pytest.raises(ValueError, match="only sets of the same classes can be joined"):
        JoinedImages([coloured(), coloured(classes=("a", "b", "d", "c"))])


def test_each_part_of_a_data_set_can_be_changed():
    splits = Splits(coloured(), coloured(8), None, carved=True)

    changed = splits.each(lambda images: images.only(["a", "c"]))

    assert [len(part) for part in changed.parts.values()] == [6, 4]
    assert changed.carved and changed.test is None
