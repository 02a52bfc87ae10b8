"""One policy for reading image files: what is converted, what is refused. Pixels are always 8-bit RGB.

Source: the paper says nothing about reading files; all policies here are our choice.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from zfscope.schema import printable

MAX_PIXELS = 50_000_000

MAX_ASPECT = 50  # 1x5000 px with its short side at 256 would be 256 x 1,280,000

BACKGROUND = (128, 128, 128)  # behind transparent pixels: near the mean image, so it says next to nothing to a network

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(OSError):
    """An image that cannot be used; the message is one line with path, cause and way out."""


class _Refused(Exception):
    """A file that our own policy refuses; its text is the cause."""


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _Refused(f"{width}x{height} px is more than {MAX_PIXELS // 1_000_000} megapixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise _Refused(f"{width}x{height} px is longer than {MAX_ASPECT} : 1")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF block is no reason to lose the image
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image.convert("I") if image.mode.startswith("I") else image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise _Refused("its 32-bit pixels have no known range; save it with 8 or 16 bits")
        return Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def _cause(path: Path, error: Exception) -> str:
    if os.path.islink(path) and not os.path.exists(path):
        return f"it is a link to {printable(os.readlink(path))}, which does not exist"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS // 1_000_000} megapixels"
    if isinstance(error, Image.UnidentifiedImageError):
        with open(path, "rb") as file:
            markup = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
        return "it holds HTML or XML, not an image" if markup else "it is no image of a known format, or is damaged"
    return printable(str(error)) or type(error).__name__
