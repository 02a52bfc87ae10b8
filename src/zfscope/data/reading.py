"""One policy for reading image files: what is converted, what is refused. Pixels are always 8-bit RGB.

Source: the paper says nothing about reading files; all policies here are our choice.
"""

import io
import os
import stat
import warnings

import numpy as np
from PIL import Image
from simplejpeg import decode_jpeg

from zfscope.schema import printable

MAX_PIXELS = 50_000_000
MAX_ASPECT = 50  # 1x5000 px with its short side at 256 would be 256 x 1,280,000
BACKGROUND = (128, 128, 128)  # behind transparent pixels: near the mean image, so it says next to nothing to a network
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
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
    """An image that cannot be used; the message is one line with path, cause and way out, ``cause`` the cause alone.

    ``index`` is its position in a set, where a loader has met it.
    """

    index = -1

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)  # alone: a process of torch's loaders makes the error anew from its text
        self.cause = cause


class _Refused(Exception):
    """A file that our own policy refuses; its text is the cause."""


def read_image(path: str | os.PathLike, short_side: int | None = None) -> Image.Image:
    """Decode one file to 8-bit RGB, see `read_pixels`."""
    image = _read(path, short_side)
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def read_pixels(path: str | os.PathLike, short_side: int | None = None, content: bytes | None = None) -> np.ndarray:
    """Decode one file to 8-bit RGB, ``(H, W, 3)`` uint8.

    Grey is repeated, CMYK converted, 16-bit values divided by 257; transparent pixels lie on grey 128; the EXIF
    orientation is applied; of an animated image the first frame is taken, with a warning. Where the caller will need
    only ``short_side`` pixels along the short side, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is no
    smaller.

    JPEGs in colour or grey that are decoded at their full size are given to simplejpeg, which takes two thirds of the
    time of Pillow and gives the same pixels; what it refuses, and all else, is Pillow's. ``content`` is what the file
    holds, if it was read already.

    Raises:
        UnreadableImage: If the file is missing, empty, truncated, no image, or refused: more than 50 megapixels (before
            decoding), sides more than 50 : 1, 32-bit pixels whose range is not known.
    """
    return np.asarray(_read(path, short_side, content))


def _read(path: str | os.PathLike, short_side: int | None, content: bytes | None = None) -> Image.Image | np.ndarray:
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):  # opening a FIFO would wait for ever
            raise _Refused("it is not a regular file")
        if state.st_size == 0:
            raise _Refused("it is empty (0 bytes)")
        with Image.open(io.BytesIO(content) if content else path, formats=_FORMATS) as image:
            _check_size(*image.size)
            if short_side is not None:
                image.draft(None, (short_side, short_side))
            if image.format in ("GIF", "PNG", "WEBP") and getattr(image, "is_animated", False):
                warnings.warn("animated images: only the first frame of each is read", stacklevel=2)
            pixels = _fast_jpeg(image)
            if pixels is None:
                image.load()  # Pillow turns a TIFF while it loads it, and then takes the orientation away
            orientation = _orientation(image)
            if pixels is not None and orientation not in _UPRIGHT:
                return pixels
            image = _to_rgb(image) if pixels is None else Image.fromarray(pixels)
        return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError and more
        cause = _cause(path, error)
        raise unreadable(path, cause) from error


def _fast_jpeg(image: Image.Image) -> np.ndarray | None:
    """The pixels of a JPEG that Pillow has opened; None where they are for Pillow to decode, or to refuse."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or image.decoderconfig[:1] not in ((), (1,)):
        return None
    image.fp.seek(0)
    try:
        pixels = decode_jpeg(image.fp.read())
    except ValueError:
        return None
    return pixels if pixels.shape == (image.height, image.width, 3) else None


def unreadable(path: str | os.PathLike, cause: str) -> UnreadableImage:
    """The error of an image, by its path and the cause."""
    return UnreadableImage(f"cannot read the image {printable(path)}: {cause}; replace the file or remove it", cause)


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
        return Image.fromarray(_grey_levels(values.astype(np.int64), image)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def _grey_levels(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """8-bit levels of 12- or 16-bit ones, which Pillow gives as they stand in the file, whatever they mean there."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    white = 2 ** min(tags.get(258, (16,))[0], 16) - 1  # bits of a sample
    levels = (values * 255 + white // 2) // white
    if tags.get(262) == 0:  # white is zero
        levels = 255 - levels
    transparent = image.info.get("transparency")  # of a PNG: one level that is not shown
    if isinstance(transparent, int):
        levels = np.where(values == transparent, BACKGROUND[0], levels)
    return levels.astype(np.uint8)


def _cause(path: str | os.PathLike, error: Exception) -> str:
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
