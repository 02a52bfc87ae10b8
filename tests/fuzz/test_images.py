"""Image files, cut off, with other headers or with flipped bits: read, or refused in one line."""

import io
import struct
import warnings

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.cases import counts, refusal, try_cases
from zfscope.data.reading import UnreadableImage, read_image

# Endings and how Pillow writes them; the modes that each can hold.
KINDS = {
    "jpg": [("JPEG", {}, ["RGB", "L", "CMYK"]), ("JPEG", {"progressive": True}, ["RGB"])],
    "png": [("PNG", {}, ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])],
    "gif": [("GIF", {}, ["P", "L", "RGB"])],
    "tif": [
        ("TIFF", {}, ["RGB", "L", "CMYK", "I;16", "F", "1"]),
        ("TIFF", {"compression": "tiff_lzw"}, ["RGB"]),
        ("TIFF", {"compression": "jpeg"}, ["RGB"]),
        ("TIFF", {"compression": "tiff_deflate"}, ["L"]),
    ],
    "bmp": [("BMP", {}, ["RGB", "L", "1", "P"])],
    "webp": [("WEBP", {}, ["RGB", "RGBA"]), ("WEBP", {"lossless": True}, ["RGB"])],
    "ppm": [("PPM", {}, ["RGB", "L", "1", "I;16"])],
}
VALUES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def wholes() -> list[tuple[str, bytes]]:
    """A small file of each kind and mode, and animations."""
    pixels = np.random.default_rng(0).integers(0, 256, (19, 23, 3), dtype=np.uint8)
    files = []
    for ending, variants in KINDS.items():
        for kind, options, modes in variants:
            for mode in modes:
                grey = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else None
                file = io.BytesIO()
                (grey or Image.fromarray(pixels).convert(mode)).save(file, kind, **options)
                files.append((ending, file.getvalue()))
    frames = [Image.fromarray(pixels // part) for part in (1, 2)]
    for ending, kind in (("gif", "GIF"), ("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF")):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        files.append((ending, file.getvalue()))
    return files


@st.composite
def damaged(draw) -> tuple[str, bytes]:
    """A file with one to four faults, most of them in its header."""
    ending, whole = draw(st.sampled_from(WHOLES))
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.one_of(st.integers(0, min(len(content), 120)), st.integers(0, len(content))))
        fault = draw(st.sampled_from(["cut", "bytes", "number", "number", "remove", "repeat"]))
        if fault == "cut":
            del content[place:]
        elif fault == "bytes":
            new = draw(st.binary(min_size=1, max_size=8))
            content[place : place + len(new)] = new
        elif fault == "number":
            layout = draw(st.sampled_from([">H", "<H", ">I", "<I", "B"]))
            size = struct.calcsize(layout)
            content[place : place + size] = struct.pack(layout, draw(st.sampled_from(VALUES)) % 256**size)
        elif fault == "remove":
            del content[place : place + draw(st.integers(1, 16))]
        else:
            content[place:place] = content[place : place + draw(st.integers(1, 64))]
    return draw(st.sampled_from([ending, ending, ending, "jpg", "png", "tif"])), bytes(content)


@st.composite
def headers(draw) -> tuple[str, bytes]:
    """A text header of a PPM, or a PNG's, with sizes of any kind."""
    side = st.one_of(st.integers(0, 30), st.sampled_from([10**5, 2**31 - 1, 2**32, 10**30, -1]))
    width, height = draw(side), draw(side)
    if draw(st.booleans()):
        kind, most = draw(st.sampled_from(["P1", "P2", "P3", "P4", "P5", "P6", "Pf", "PF", "P7", "P9"])), draw(side)
        text = f"{kind}\n{width} {height}\n{most}\n".encode()
        return "ppm", text + draw(st.one_of(st.binary(max_size=50), st.just(b"1 2 300 x -4 " * 9)))
    body = struct.pack(">II", width % 2**32, height % 2**32) + draw(st.binary(min_size=5, max_size=5))
    return "png", b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + body + draw(st.binary(max_size=40))


WHOLES = wholes()
FILES = st.one_of(damaged(), damaged(), damaged(), headers(), st.tuples(st.sampled_from(sorted(KINDS)), st.binary()))


@pytest.fixture
def check_file(tmp_path):
    def check(case):
        ending, content = case
        path = tmp_path / f"image.{ending}"
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of animations, and Pillow's of damaged files
            told = refusal(read, path, errors=UnreadableImage)
        assert told is None or (str(path) in told and told.endswith("; replace the file or remove it"))
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_bytes() == content
        path.unlink()

    return check


def read(path):
    for short_side in (None, 8):
        image = read_image(path, short_side)
        assert image.mode == "RGB" and min(image.size) > 0


@counts(60, 3000)
def test_an_image_file_is_read_or_refused_in_one_line(check_file, record_property, count):
    try_cases(record_property, count, FILES, check_file)
