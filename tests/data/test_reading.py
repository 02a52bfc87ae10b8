"""One policy for odd image files: what is converted, what is refused and how that is told."""

import os
import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from zfscope.data import reading
from zfscope.data.reading import UnreadableImage, read_image, read_pixels


def saved(image, path, **options):
    image.save(path, **options)
    return path


def pixel(path, x=0, y=0):
    image = read_image(path)
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
    path = saved(Image.fromarray(noise()), tmp_path / f"a.{extension}", **options)

    assert np.array_equal(np.asarray(read_image(path)), noise())


def test_grey_is_repeated_in_three_channels(tmp_path):
    assert pixel(saved(Image.new("L", (9, 9), 77), tmp_path / "a.png")) == (77, 77, 77)


def test_cmyk_in_a_jpeg_becomes_rgb(tmp_path):
    path = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=95)

    assert pixel(path) == pytest.approx((255, 0, 0), abs=6)


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
    path = saved(image, tmp_path / "a.png")

    assert pixel(path, 0) == (128, 128, 128)
    assert pixel(path, 1) == (255, 0, 0)
    assert pixel(path, 2) == pytest.approx((64, 64, 64), abs=1)


@pytest.mark.parametrize("mode", ["P", "L", "LA"])
def test_the_other_ways_to_say_transparent_lie_on_grey_too(tmp_path, mode):
    image = Image.new(mode, (9, 9), (200, 0) if mode == "LA" else 3)
    if mode == "P":
        image.putpalette([10, 20, 30] * 256)
    path = saved(image, tmp_path / "a.png", **({} if mode == "LA" else {"transparency": 3}))

    assert pixel(path) == (128, 128, 128)


def test_a_palette_gives_its_colours(tmp_path):
    image = Image.new("P", (9, 9), 5)
    image.putpalette([value for i in range(256) for value in (i, 2 * i % 256, 7)])

    assert pixel(saved(image, tmp_path / "a.gif")) == (5, 10, 7)


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_16_bits_are_rescaled_and_not_cut_off(tmp_path, extension):
    values = np.array([[0, 257 * 100, 65535, 257 * 7 + 128, 257 * 7 + 129]] * 4, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{extension}", **({"format": "PPM"} if extension == "pgm" else {}))

    read = np.asarray(read_image(tmp_path / f"a.{extension}"))

    assert read[0, :, 0].tolist() == [0, 100, 255, 7, 8]


def test_float_pixels_are_refused_because_their_range_is_not_known(tmp_path):
    path = saved(Image.new("F", (9, 9), 0.5), tmp_path / "a.tif")

    with pytest.raises(UnreadableImage, match=r"a\.tif: its 32-bit pixels .* save it with 8 or 16 bits"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", {}), ("a.tif", {}), ("a.tif", {"compression": "tiff_lzw"}), ("a.webp", {"lossless": True})],
    ids=["png", "tiff", "tiff lzw", "webp"],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied_once(tmp_path, orientation, name, options):
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
    path = saved(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / name, exif=exif, **options)

    assert np.array_equal(np.asarray(read_image(path)), array)


def test_a_broken_exif_block_does_not_lose_the_image(tmp_path):
    path = saved(Image.new("RGB", (16, 16), (9, 9, 9)), tmp_path / "a.jpg", exif=b"Exif\0\0nonsense")

    assert pixel(path) == (9, 9, 9)


@pytest.mark.parametrize("short_side", [None, 40])
def test_the_exif_orientation_of_a_jpeg_is_applied_also_when_it_is_decoded_smaller(tmp_path, short_side):
    upright = np.zeros((200, 120, 3), np.uint8)
    upright[:100] = 255  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    path = saved(stored, tmp_path / "a.jpg", exif=exif, quality=95)

    image = read_image(path, short_side)

    assert image.size == ((120, 200) if short_side is None else (60, 100))
    halves = np.asarray(image, float).reshape(2, -1).mean(1)
    assert halves == pytest.approx([255, 0], abs=3)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_of_an_animation_the_first_frame_is_read_with_a_warning(tmp_path, name):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    lossless = {"lossless": True} if name == "a.webp" else {}
    path = saved(frames[0], tmp_path / name, save_all=True, append_images=frames[1:], **lossless)

    with pytest.warns(UserWarning, match="only the first frame"):
        assert pixel(path) == (255, 0, 0)


def test_more_than_50_megapixels_are_refused_before_decoding(tmp_path):
    path = tmp_path / "huge.png"

    for width in (8000, 100_000):  # over our limit; over the one at which PIL raises by itself
        path.write_bytes(png_header(width, 8000))
        with warnings.catch_warnings(), pytest.raises(UnreadableImage, match=r"huge\.png: .*more than 50 megapixels"):
            warnings.simplefilter("ignore")
            read_image(path)


def test_a_strip_of_1_by_5000_is_refused_and_one_of_1_by_50_is_not(tmp_path):
    with pytest.raises(UnreadableImage, match="5000x1 px is longer than 50 : 1"):
        read_image(saved(Image.new("L", (5000, 1)), tmp_path / "a.png"))

    assert read_image(saved(Image.new("L", (1, 50)), tmp_path / "b.png")).size == (1, 50)


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
        read_image(path)

    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("replace the file or remove it")


def test_names_with_line_breaks_or_undecodable_bytes_are_escaped_in_messages(tmp_path):
    path = tmp_path / os.fsdecode(b"a\nb\xff.jpg")
    path.write_bytes(b"")

    with pytest.raises(UnreadableImage, match=r"a\\nb\\udcff\.jpg") as raised:
        read_image(path)

    assert "\n" not in str(raised.value)
    str(raised.value).encode()


def test_an_unreadable_image_can_be_built_anew_from_its_text_as_a_dataloader_does_with_that_of_a_worker(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")

    with pytest.raises(UnreadableImage) as raised:
        read_image(tmp_path / "photo.jpg")

    text = f"Caught UnreadableImage in DataLoader worker process 0.\n{raised.value}"
    assert str(UnreadableImage(text)) == text
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


JPEGS = {
    "colour": {},
    "progressive": {"progressive": True},
    "subsampled": {"subsampling": 2},
    "not subsampled": {"subsampling": 0},
    "kept in RGB": {"keep_rgb": True},
    "grey": {"mode": "L"},
    "ink": {"mode": "CMYK"},
    "as it was taken": {"orientation": 1},
    "mirrored": {"orientation": 2},
    "upside down": {"orientation": 3},
    "turned": {"orientation": 6},
    "odd": {"size": (37, 53)},
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_has_the_pixels_that_pillow_gives_it(tmp_path, kind, monkeypatch):
    options = dict(JPEGS[kind])
    width, height = options.pop("size", (64, 48))
    exif = Image.Exif()
    exif[0x0112] = options.pop("orientation", 1)
    image = Image.fromarray(noise(height, width)).convert(options.pop("mode", "RGB"))
    path = saved(image, tmp_path / "a.jpg", quality=90, exif=exif, **options)
    fast, seen = reading._fast_jpeg, []
    monkeypatch.setattr(reading, "_fast_jpeg", lambda image: seen.append(fast(image)) or seen[-1])

    pixels = read_pixels(path)
    monkeypatch.setattr(reading, "_fast_jpeg", lambda image: None)

    assert np.array_equal(pixels, read_pixels(path))
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, np.asarray(read_image(path)))
    assert (seen[0] is None) == (kind == "ink")


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
def test_a_truncated_jpeg_is_refused_in_pillow_s_words(tmp_path, kept):
    path = saved(Image.fromarray(noise(64, 64)), tmp_path / "a.jpg", quality=90)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])

    with pytest.raises(UnreadableImage, match="image file is truncated"):
        read_pixels(path)


@pytest.mark.parametrize("size", [(1000, 700), (700, 1000), (1023, 1025)])
def test_a_jpeg_is_decoded_smaller_but_never_below_the_short_side_wanted(tmp_path, size):
    path = saved(Image.new("RGB", size), tmp_path / "a.jpg")

    for wanted in (50, 87, 88, 128, 175, 176, 349, 350, 351, 700, 5000):
        short = min(read_image(path, short_side=wanted).size)
        assert short >= min(wanted, *size)
        assert short <= 2 * wanted or short <= -(-min(size) // 8)  # the next step down would have been too small
    assert read_image(path).size == size


def test_a_smaller_decoding_shows_the_same_picture(tmp_path):
    smooth = Image.fromarray(noise(4, 6)).resize((960, 640), Image.Resampling.BICUBIC)
    path = saved(smooth, tmp_path / "a.jpg", quality=95)

    small = read_image(path, short_side=160)

    assert small.size == (240, 160)
    expected = np.asarray(smooth.resize((240, 160), Image.Resampling.BOX), float)
    assert np.abs(np.asarray(small, float) - expected).mean() < 2


def grey_tiff(path, rows, bits, white_is_zero):
    """A TIFF of 12 or 16 bits, written by hand: one strip, not compressed, little-endian."""
    if bits == 16:
        strip = b"".join(struct.pack("<H", value) for row in rows for value in row)
    else:  # two samples in three bytes, the high bits first
        pairs = [(row[i], row[i + 1]) for row in rows for i in range(0, len(row), 2)]
        strip = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    entries = [
        (256, 4, len(rows[0])), (257, 4, len(rows)), (258, 3, bits), (259, 3, 1), (262, 3, 0 if white_is_zero else 1),
        (273, 4, 8), (277, 3, 1), (278, 4, len(rows)), (279, 4, len(strip)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in entries
    )
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory + b"\0\0\0\0")
    return path


@pytest.mark.parametrize(("bits", "white_is_zero"), [(12, False), (16, False), (16, True)])
def test_grey_levels_of_a_tiff_are_those_that_it_means(tmp_path, bits, white_is_zero):
    white = 2**bits - 1
    rows = [[0, white // 5, white // 2, white]]

    levels = [pixel(grey_tiff(tmp_path / "a.tif", rows, bits, white_is_zero), x)[0] for x in range(4)]

    expected = [255 * value / white for value in rows[0]]
    assert levels == pytest.approx([255 - value for value in expected] if white_is_zero else expected, abs=0.51)


def test_a_transparent_level_of_a_16_bit_png_is_the_background(tmp_path):
    values = np.array([[0, 30000, 65535]], dtype=np.uint16)
    path = saved(Image.fromarray(values), tmp_path / "a.png", transparency=30000)

    assert [pixel(path, x)[0] for x in range(3)] == [0, 128, 255]
