"""The phantom: drawn images with known ground truth, a calibration target as in medical imaging.

Ten classes of composed objects lie at random position, scale and rotation, in random colours and light, over cluttered
backgrounds. The classes share their parts (eyes, wheels, leaves, spikes, bars, discs), and the parts of other objects
lie scattered in every background, so that only the *arrangement* of parts tells the classes apart. For every image the
mask of the object and the boxes of its parts are known, which no set of photographs offers.

Every image is a pure function of (seed, split, index), drawn with numpy and Pillow.

Source: not in the paper; a stand-in for ImageNet that needs no download. All of it is our choice.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zfscope.data.imageset import ArrayImages, Splits

VERSION = 4  # part of the cached files' names: raise it with every change that alters a pixel
SIZE = 128
SPLITS = ("train", "val", "test")
CLASSES = ("face", "dog", "cat", "owl", "rabbit", "fish", "car", "bicycle", "clock", "flower")

_FINE = 3  # shapes are drawn at three times the size, then averaged
_CHUNK = 50  # images drawn by a worker at a time
_WORTH_PROCESSES = 600  # images; fewer are drawn sooner than processes start

Colour = tuple[int, int, int]
Shape = tuple[np.ndarray, Colour]  # corners (K, 2) as x to the right, y down; colour
Part = list[Shape]


@dataclass(frozen=True)
class Sample:
    """One image and all that is known about it.

    Attributes:
        image: ``(128, 128, 3)`` uint8, RGB.
        label: Position in `CLASSES`.
        mask: ``(128, 128)`` bool, true for each pixel in which any of the object is seen.
        parts: Box of each part by name, half-open ``(x0, y0, x1, y1)`` in pixels: the smallest that holds the whole
            part, also where other parts or an occluder lie in front, clipped to the image. ``right_eye`` is the
            animal's own right eye, on the left of an upright image.
    """

    image: np.ndarray
    label: int
    mask: np.ndarray
    parts: dict[str, tuple[int, int, int, int]]


class Phantom(ArrayImages):
    """The drawn images of one split, with the ground truth of each.

    Args:
        images: ``(N, 128, 128, 3)`` uint8, in the order of `draw`'s index.
        seed: The seed they were drawn with.
        split: ``train``, ``val`` or ``test``.
    """

    def __init__(self, images: np.ndarray, seed: int, split: str):
        super().__init__(images, np.arange(len(images)) % len(CLASSES), CLASSES, f"phantom/{split}")
        self.seed = seed
        self.split = split

    def mask(self, index: int) -> np.ndarray:
        """Where the object is seen in image ``index``, ``(128, 128)`` bool; drawn anew, a few milliseconds."""
        return draw(self.seed, self.split, int(self._rows[index])).mask

    def parts(self, index: int) -> dict[str, tuple[int, int, int, int]]:
        """Boxes of the object's parts in image ``index``, see `Sample`; drawn anew, a few milliseconds."""
        return draw(self.seed, self.split, int(self._rows[index])).parts


def open_phantom(
    cache: str | os.PathLike, seed: int = 0, sizes: Sequence[int] = (6000, 1000, 4000), processes: int = 2
) -> Splits:
    """The phantom as a data set; drawn on the first call, about a minute on two cores, then mapped from the cache.

    Args:
        cache: Folder for the drawn images, 540 MB; made if missing.
        seed: 0 or more; another seed gives other images of the same kind.
        sizes: Numbers of training, validation and test images.
        processes: How many processes draw.

    Returns:
        The three splits, classes balanced to within one image.

    Raises:
        ValueError: If ``seed`` or ``sizes`` is out of range.
        OSError: If the cache cannot be written.
    """
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"sizes of the phantom must be three numbers of images, 1 or more each, not {tuple(sizes)}")
    _check_seed(seed)
    paths = {
        split: Path(cache) / f"phantom-v{VERSION}-seed{seed}-{split}-{size}.npy"
        for split, size in zip(SPLITS, sizes, strict=True)
    }
    missing = {split: size for split, size in zip(SPLITS, sizes, strict=True) if _mapped(paths[split], size) is None}
    if missing:
        _fill({paths[split]: (seed, split, size) for split, size in missing.items()}, processes)
    phantoms = []
    for split, size in zip(SPLITS, sizes, strict=True):
        images = _mapped(paths[split], size)
        if images is None:
            raise OSError(f"the drawn images {paths[split]} cannot be read back; give the phantom another cache folder")
        phantoms.append(Phantom(images, seed, split))
    return Splits(*phantoms)


def draw(seed: int, split: str, index: int) -> Sample:
    """Draw one image of the phantom, a pure function of its arguments.

    Args:
        seed: 0 or more.
        split: ``train``, ``val`` or ``test``.
        index: 0 or more; image ``index`` shows class ``index % 10``.

    Returns:
        The image with its ground truth.

    Raises:
        ValueError: If an argument is out of range.
    """
    _check_seed(seed)
    if split not in SPLITS:
        raise ValueError(f"no split {split!r} of the phantom; the splits are {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"an index of the phantom must be 0 or more, but is {index}")
    random = np.random.default_rng((seed, SPLITS.index(split), index))
    label = index % len(CLASSES)

    canvas = _Canvas(_background(random))
    for _ in range(random.integers(1, 4)):
        _scatter(canvas, random)
    radius = random.uniform(25, 53)
    parts = _turned(_BUILDERS[CLASSES[label]](random), random.normal(0, 0.22), random)
    parts = _placed_inside(parts, radius, random)
    canvas.begin_object()
    boxes = {name: canvas.add(part) for name, part in parts.items()}
    _occlude(canvas, random, parts)
    image, mask = canvas.finish()
    return Sample(_photographed(image, random), label, mask, boxes)


def sheet(rows: int = 3, seed: int = 0) -> Image.Image:
    """A picture of the phantom: a column per class, ``rows`` validation images of each, below them one more with its
    ground truth, the background dimmed outside the mask and a box around every part.
    """
    count, strip = len(CLASSES), 14
    picture = Image.new("RGB", (count * SIZE, (rows + 1) * SIZE + strip), "white")
    pen = ImageDraw.Draw(picture)
    for index in range((rows + 1) * count):
        row, column = divmod(index, count)
        sample = draw(seed, "val", index)
        x, y = column * SIZE, row * SIZE + strip
        dimmed = np.where(sample.mask[..., None], sample.image, sample.image // 3)
        picture.paste(Image.fromarray(sample.image if row < rows else dimmed), (x, y))
        if row == rows:
            for x0, y0, x1, y1 in sample.parts.values():
                pen.rectangle((x + x0, y + y0, x + x1 - 1, y + y1 - 1), outline=(255, 230, 0))
        elif row == 0:
            pen.text((x + 3, 1), CLASSES[sample.label], fill="black")
    return picture


# Drawing: shapes are polygons in a canvas three times as fine as the image


class _Canvas:
    def __init__(self, background: Image.Image):
        self._image = background.resize((SIZE * _FINE, SIZE * _FINE), Image.Resampling.NEAREST)
        self._pen = ImageDraw.Draw(self._image)
        self._mask = Image.new("L", self._image.size)
        self._mask_pen = ImageDraw.Draw(self._mask)
        self._ink = 0

    def begin_object(self) -> None:
        """What is added from now on belongs to the object."""
        self._ink = 255

    def begin_occluders(self) -> None:
        """What is added from now on hides the object."""
        self._ink = 0

    def add(self, part: Part) -> tuple[int, int, int, int]:
        """Draw a part given in pixels, and return its half-open box in pixels, clipped to the image."""
        low, high = [], []
        for points, colour in part:
            # Whole numbers, because Pillow then fills exactly up to and with its corners, and the box is exact.
            corners = np.rint(points * _FINE).astype(int)
            corner_list = corners.ravel().tolist()
            self._pen.polygon(corner_list, fill=colour)
            self._mask_pen.polygon(corner_list, fill=self._ink)
            low.append(corners.min(axis=0))
            high.append(corners.max(axis=0))
        x0, y0 = (np.min(low, axis=0) // _FINE).clip(0, SIZE).tolist()
        x1, y1 = (np.max(high, axis=0) // _FINE + 1).clip(0, SIZE).tolist()
        return x0, y0, x1, y1

    def finish(self) -> tuple[Image.Image, np.ndarray]:
        return self._image.reduce(_FINE), np.asarray(self._mask.reduce(_FINE)) > 0


def _background(random: np.random.Generator) -> Image.Image:
    """Smooth colour at several scales, with or without stripes; ``SIZE`` square."""
    field = np.zeros((SIZE, SIZE, 3), dtype=np.float32)
    for cells, weight in ((3, 60.0), (9, 30.0), (30, 20.0)):
        coarse = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32)
        field += weight * random.uniform(0.3, 1.0) * (fine / 127.5 - 1)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    for _ in range(random.integers(0, 3)):
        angle, period = random.uniform(0, np.pi), random.uniform(5, 28)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period))
        field += random.uniform(6, 22) * wave[..., None] * random.uniform(-1, 1, 3)
    field += random.uniform(70, 185, 3)
    return Image.fromarray(field.clip(0, 255).astype(np.uint8))


def _scatter(canvas: _Canvas, random: np.random.Generator) -> None:
    """Draw the parts of some object, of any class, but each at a place and angle of its own."""
    parts = _BUILDERS[CLASSES[random.integers(len(CLASSES))]](random)
    radius = random.uniform(25, 53)
    names = list(parts)
    for which in random.permutation(len(names)):
        part = parts[names[which]]
        middle = _middle(part)
        angle = random.uniform(-np.pi, np.pi)
        canvas.add(_moved(part, -middle, radius * random.uniform(0.7, 1.2), angle, random.uniform(-4, SIZE + 4, 2)))


def _occlude(canvas: _Canvas, random: np.random.Generator, parts: dict[str, Part]) -> None:
    """Draw a few single small parts of any classes over the object."""
    canvas.begin_occluders()
    corners = np.concatenate([points for part in parts.values() for points, _ in part])
    low, high = corners.min(axis=0), corners.max(axis=0)
    for _ in range(random.integers(0, 5)):
        others = _BUILDERS[CLASSES[random.integers(len(CLASSES))]](random)
        part = others[list(others)[random.integers(len(others))]]
        extent = max(np.ptp(points, axis=0).max() for points, _ in part)
        size = float((high - low).max()) * random.uniform(0.15, 0.38) / extent
        place = low + (high - low) * random.random(2)
        canvas.add(_moved(part, -_middle(part), size, random.uniform(-np.pi, np.pi), place))


def _photographed(image: Image.Image, random: np.random.Generator) -> np.ndarray:
    """Light that falls unevenly, lost contrast, blur and noise."""
    image = image.filter(ImageFilter.GaussianBlur(random.uniform(0, 0.9)))
    pixels = np.asarray(image, dtype=np.float32)
    light = random.integers(0, 256, (3, 3), dtype=np.uint8)
    light = np.asarray(Image.fromarray(light).resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32)
    pixels = pixels * (1 + random.uniform(0, 0.45) * (light / 127.5 - 1))[..., None]
    middle = random.uniform(90, 165, 3).astype(np.float32)
    pixels = middle + random.uniform(0.5, 1.0) * (pixels - middle)
    pixels += random.uniform(2, 10) * random.standard_normal(pixels.shape, dtype=np.float32)
    return np.rint(pixels).clip(0, 255).astype(np.uint8)


def _turned(parts: dict[str, Part], angle: float, random: np.random.Generator) -> dict[str, Part]:
    """The object turned in the plane and seen from a little aside: squeezed along one axis and sheared."""
    squeeze, shear = random.uniform(0.8, 1.2), random.uniform(-0.15, 0.15)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    view = np.array([[squeeze, 0.0], [shear, 1.0]])
    return {name: [(points @ view @ turn, colour) for points, colour in part] for name, part in parts.items()}


def _placed_inside(parts: dict[str, Part], radius: float, random: np.random.Generator) -> dict[str, Part]:
    """The object in pixels, its longer half side about ``radius`` and all of it inside the image."""
    corners = np.concatenate([points for part in parts.values() for points, _ in part])
    low, high = corners.min(axis=0), corners.max(axis=0)
    scale = 2 * radius / (high - low).max()
    room = SIZE - 2 - scale * (high - low)
    shift = 1 + room * random.random(2) - scale * low
    return {name: [(points * scale + shift, colour) for points, colour in part] for name, part in parts.items()}


def _moved(part: Part, first: np.ndarray, scale: float, angle: float, shift: np.ndarray) -> Part:
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return [((points + first) @ turn * scale + shift, colour) for points, colour in part]


def _middle(part: Part) -> np.ndarray:
    corners = np.concatenate([points for points, _ in part])
    return (corners.min(axis=0) + corners.max(axis=0)) / 2


# Pieces: what the parts of all classes are made of, in units of about half an object


def _circle(corners: int) -> np.ndarray:
    angles = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


_CIRCLE = _circle(28)


def _oval(x: float, y: float, width: float, height: float, colour: Colour, angle: float = 0.0) -> Shape:
    """An ellipse of half axes ``width`` and ``height``; the angle is clockwise, in radians."""
    return _rotated(_CIRCLE * (width, height), angle) + (x, y), colour


def _disc(x: float, y: float, width: float, height: float, colour: Colour, angle: float = 0.0) -> Part:
    """An ellipse with a dark edge."""
    edge = 0.05
    return [
        _oval(x, y, width, height, _darker(colour), angle),
        _oval(x, y, width - edge, height - edge, colour, angle),
    ]


def _bar(x0: float, y0: float, x1: float, y1: float, width: float, colour: Colour) -> Shape:
    """A straight stroke from one point to another."""
    along = np.array([x1 - x0, y1 - y0])
    across = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-6) * (width / 2)
    ends = np.array([[x0, y0], [x1, y1]])
    return np.concatenate([ends + across, (ends - across)[::-1]]), colour


def _plate(x0: float, y0: float, x1: float, y1: float, colour: Colour, lean: float = 0.0) -> Part:
    """A box with a dark edge; ``lean`` narrows its upper side."""
    outer = np.array([[x0 + lean, y0], [x1 - lean, y0], [x1, y1], [x0, y1]])
    middle = outer.mean(axis=0)
    inner = middle + (outer - middle) * (1 - 0.1 / np.ptp(outer, axis=0))
    return [(outer, _darker(colour)), (inner, colour)]


def _eye(x: float, y: float, size: float, iris: Colour) -> Part:
    """Dark edge, white, iris, pupil and a glint; ``size`` is half its width."""
    return [
        _oval(x, y, size, 0.85 * size, (35, 25, 25)),
        _oval(x, y, 0.85 * size, 0.7 * size, (240, 238, 232)),
        _oval(x, y, 0.58 * size, 0.58 * size, iris),
        _oval(x, y, 0.32 * size, 0.32 * size, (15, 12, 15)),
        _oval(x - 0.18 * size, y - 0.2 * size, 0.13 * size, 0.13 * size, (255, 255, 255)),
    ]


def _wheel(x: float, y: float, size: float, rim: Colour, random: np.random.Generator) -> Part:
    """A tyre, a rim and spokes."""
    first = random.uniform(0, np.pi)
    spokes = [first + k * np.pi / 3 for k in range(3)]
    return [
        _oval(x, y, size, size, (35, 34, 38)),
        _oval(x, y, 0.76 * size, 0.76 * size, rim),
        *(
            _bar(
                x - 0.76 * size * np.cos(a),
                y - 0.76 * size * np.sin(a),
                x + 0.76 * size * np.cos(a),
                y + 0.76 * size * np.sin(a),
                0.1 * size,
                (60, 58, 62),
            )
            for a in spokes
        ),
        _oval(x, y, 0.2 * size, 0.2 * size, (45, 44, 48)),
    ]


def _leaf(x: float, y: float, angle: float, length: float, width: float, colour: Colour) -> Part:
    """An ear, a petal, a wing or a fin: an oval that starts at a point and grows in a direction."""
    way = np.array([np.cos(angle), np.sin(angle)])
    middle = np.array([x, y]) + way * length / 2
    return [
        *_disc(*middle, length / 2, width / 2, colour, angle),
        _oval(*(middle + 0.05 * length * way), 0.3 * length, 0.26 * width, _lighter(colour), angle),
    ]


def _spike(x: float, y: float, angle: float, length: float, width: float, colour: Colour) -> Part:
    """An ear, a tuft, a beak or a tail: a triangle on a base at a point, its tip in a direction."""
    triangle = np.array([[0.0, -width / 2], [length, 0.0], [0.0, width / 2]])
    middle = np.array([length / 3, 0.0])
    return [
        (_rotated(triangle, angle) + (x, y), _darker(colour)),
        (_rotated((triangle - middle) * 0.82 + middle, angle) + (x, y), colour),
        (_rotated((triangle - middle) * 0.45 + middle, angle) + (x, y), _lighter(colour)),
    ]


def _mouth(x: float, y: float, width: float, bend: float, colour: Colour) -> Part:
    """A curved stroke, thick in its middle."""
    t = np.linspace(-1, 1, 9)
    upper = np.stack([x + width * t, y + bend * (1 - t**2)], axis=1)
    lower = np.stack([x + width * t, y + bend * (1 - t**2) + 0.09 * (1.05 - t**2)], axis=1)
    return [(np.concatenate([upper, lower[::-1]]), colour)]


def _rotated(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


def _colour(random: np.random.Generator) -> Colour:
    """Any colour that is neither very dark nor very pale; all classes draw from the same ones."""
    grey = random.uniform(95, 205)
    return tuple((grey + random.uniform(-1, 1, 3) * 50).clip(0, 255).astype(int).tolist())


def _darker(colour: Colour) -> Colour:
    return tuple(int(0.5 * value) for value in colour)


def _lighter(colour: Colour) -> Colour:
    return tuple(int(value + 0.45 * (255 - value)) for value in colour)


# Classes: the parts of one object, back to front; ``j`` shifts or stretches a part a little


def _jitter(random: np.random.Generator) -> Callable[[float], float]:
    return lambda spread=0.05: float(random.uniform(-spread, spread))


def _face(random: np.random.Generator) -> dict[str, Part]:
    j, skin, iris = _jitter(random), _colour(random), _colour(random)
    eyes, size, brow = -0.22 + j(), 0.19 + j(0.03), _darker(_colour(random))
    mouth = (150 + int(j(50)), 45, 50)
    return {
        "head": _disc(0, 0, 0.74 + j(), 0.95, skin),
        "right_brow": [_bar(-0.5, eyes - 0.27 + j(), -0.14, eyes - 0.29 + j(), 0.08, brow)],
        "left_brow": [_bar(0.5, eyes - 0.27 + j(), 0.14, eyes - 0.29 + j(), 0.08, brow)],
        "right_eye": _eye(-0.32 + j(), eyes, size, iris),
        "left_eye": _eye(0.32 + j(), eyes, size, iris),
        "nose": _spike(0, 0.25 + j(), -np.pi / 2, 0.36 + j(), 0.28 + j(), _darker(skin)),
        "mouth": _mouth(0, 0.52 + j(), 0.32 + j(), 0.1 + j(0.12), mouth),
    }


def _dog(random: np.random.Generator) -> dict[str, Part]:
    j, fur, ear, iris = _jitter(random), _colour(random), _colour(random), _colour(random)
    eyes, size = -0.2 + j(), 0.18 + j(0.03)
    droop = 0.35 + j(0.15)
    return {
        "head": _disc(0, 0, 0.7 + j(), 0.8, fur),
        "right_ear": _leaf(-0.5, -0.55, np.pi / 2 + droop, 1.05 + j(0.15), 0.42 + j(), ear),
        "left_ear": _leaf(0.5, -0.55, np.pi / 2 - droop, 1.05 + j(0.15), 0.42 + j(), ear),
        "right_eye": _eye(-0.28 + j(), eyes, size, iris),
        "left_eye": _eye(0.28 + j(), eyes, size, iris),
        "muzzle": _disc(0, 0.37, 0.36 + j(), 0.3 + j(), _lighter(fur)),
        "nose": [_oval(0, 0.25 + j(), 0.16 + j(0.03), 0.11, (40, 30, 32))],
        "mouth": _mouth(0, 0.47 + j(0.03), 0.22 + j(), 0.07, (90, 40, 45)),
    }


def _cat(random: np.random.Generator) -> dict[str, Part]:
    j, fur, ear, iris = _jitter(random), _colour(random), _colour(random), _colour(random)
    eyes, size, whiskers = -0.1 + j(), 0.2 + j(0.03), _darker(_colour(random))
    spread = 0.3 + j(0.15)
    return {
        "right_ear": _spike(-0.4, -0.4, -np.pi / 2 - spread, 0.72 + j(0.1), 0.55 + j(), ear),
        "left_ear": _spike(0.4, -0.4, -np.pi / 2 + spread, 0.72 + j(0.1), 0.55 + j(), ear),
        "head": _disc(0, 0.08, 0.78 + j(), 0.7, fur),
        "right_eye": _eye(-0.32 + j(), eyes, size, iris),
        "left_eye": _eye(0.32 + j(), eyes, size, iris),
        "right_whiskers": [_bar(-0.2, 0.32, -0.95, y + j(), 0.045, whiskers) for y in (0.2, 0.42)],
        "left_whiskers": [_bar(0.2, 0.32, 0.95, y + j(), 0.045, whiskers) for y in (0.2, 0.42)],
        "nose": _spike(0, 0.15, np.pi / 2, 0.17, 0.24 + j(), (165, 85, 95)),
        "mouth": _mouth(0, 0.42 + j(0.03), 0.2 + j(), 0.07, (90, 40, 45)),
    }


def _owl(random: np.random.Generator) -> dict[str, Part]:
    j, body, wing, iris = _jitter(random), _colour(random), _colour(random), _colour(random)
    eyes, size, beak = -0.38 + j(), 0.22 + j(0.03), _colour(random)
    return {
        "right_tuft": _spike(-0.38, -0.68, -np.pi / 2 - 0.35 + j(0.15), 0.42 + j(), 0.34 + j(), body),
        "left_tuft": _spike(0.38, -0.68, -np.pi / 2 + 0.35 + j(0.15), 0.42 + j(), 0.34 + j(), body),
        "body": _disc(0, 0.05, 0.66 + j(), 0.92, body),
        "belly": _disc(0, 0.48, 0.38 + j(), 0.42, _lighter(body)),
        "right_wing": _leaf(-0.56, -0.15, np.pi / 2 + 0.05 + j(0.1), 0.95 + j(0.1), 0.36 + j(), wing),
        "left_wing": _leaf(0.56, -0.15, np.pi / 2 - 0.05 + j(0.1), 0.95 + j(0.1), 0.36 + j(), wing),
        "right_eye": _eye(-0.27 + j(0.03), eyes, size, iris),
        "left_eye": _eye(0.27 + j(0.03), eyes, size, iris),
        "beak": _spike(0, -0.28 + j(0.03), np.pi / 2, 0.36 + j(), 0.22 + j(0.03), beak),
    }


def _rabbit(random: np.random.Generator) -> dict[str, Part]:
    j, fur, ear, iris = _jitter(random), _colour(random), _colour(random), _colour(random)
    eyes, size = 0.25 + j(), 0.17 + j(0.03)
    spread = 0.2 + j(0.18)
    return {
        "right_ear": _leaf(-0.24, 0.0, -np.pi / 2 - spread, 1.1 + j(0.1), 0.36 + j(), ear),
        "left_ear": _leaf(0.24, 0.0, -np.pi / 2 + spread, 1.1 + j(0.1), 0.36 + j(), ear),
        "head": _disc(0, 0.38, 0.64 + j(), 0.6, fur),
        "right_eye": _eye(-0.28 + j(), eyes, size, iris),
        "left_eye": _eye(0.28 + j(), eyes, size, iris),
        "nose": _spike(0, 0.45, np.pi / 2, 0.15, 0.22 + j(0.03), (165, 85, 95)),
        "mouth": _mouth(0, 0.64, 0.18 + j(), 0.06, (90, 40, 45)),
        "teeth": _plate(-0.1, 0.72, 0.1, 0.9, (235, 232, 220)),
    }


def _fish(random: np.random.Generator) -> dict[str, Part]:
    j, body, fin, iris = _jitter(random), _colour(random), _colour(random), _colour(random)
    parts = {
        "tail": _spike(0.98, 0.0, np.pi + j(0.2), 0.6, 0.75 + j(0.1), fin),
        "upper_fin": _spike(0.05 + j(), -0.3, -np.pi / 2 + 0.4 + j(0.2), 0.45 + j(), 0.5 + j(), fin),
        "body": _disc(-0.15, 0, 0.8, 0.48 + j(0.08), body),
        "side_fin": _leaf(-0.05, 0.1 + j(), 0.45 + j(0.3), 0.45 + j(), 0.26 + j(), fin),
        "eye": _eye(-0.55 + j(0.03), -0.12 + j(0.03), 0.17 + j(0.03), iris),
        "mouth": _mouth(-0.74, 0.13, 0.13, 0.05, (120, 45, 50)),
    }
    return _mirrored(parts, random)


def _car(random: np.random.Generator) -> dict[str, Part]:
    j, body, roof, rim = _jitter(random), _colour(random), _colour(random), _colour(random)
    glass, size, middle = _lighter(_colour(random)), 0.25 + j(0.03), j(0.12)
    parts = {
        "cabin": _plate(-0.55 + middle, -0.5 + j(), 0.5 + middle, 0.02, body, lean=0.18),
        "window": _plate(-0.36 + middle, -0.39, 0.31 + middle, -0.05, glass, lean=0.1),
        "body": _plate(-1, -0.02, 1, 0.42, roof if random.random() < 0.3 else body, lean=0.05),
        "lamp": _disc(-0.87, 0.12, 0.11, 0.1, (235, 225, 160)),
        "front_wheel": _wheel(-0.55 + j(), 0.42, size, rim, random),
        "rear_wheel": _wheel(0.55 + j(), 0.42, size, rim, random),
    }
    return _mirrored(parts, random)


def _bicycle(random: np.random.Generator) -> dict[str, Part]:
    j, frame, rim = _jitter(random), _darker(_colour(random)), _lighter(_colour(random))
    size = 0.42 + j(0.04)
    crank, seat, head = (-0.02 + j(), 0.3), (0.2 + j(), -0.38 + j()), (-0.42, -0.42 + j())
    joints = [(*seat, *crank), (*crank, *head), (*head, *seat), (*crank, 0.56, 0.3), (*seat, 0.56, 0.3)]
    parts = {
        "front_wheel": _wheel(-0.58, 0.3, size, rim, random),
        "rear_wheel": _wheel(0.56, 0.3, size, rim, random),
        "frame": [_bar(*ends, 0.085, frame) for ends in joints],
        "fork": [_bar(*head, -0.58, 0.3, 0.085, frame), _bar(*head, head[0] + 0.05, -0.62, 0.085, frame)],
        "handlebar": [_bar(-0.56, -0.6, -0.25, -0.66, 0.1, (50, 45, 48))],
        "saddle": [_oval(seat[0] + 0.03, -0.46, 0.2, 0.075, (50, 45, 48))],
    }
    return _mirrored(parts, random)


def _clock(random: np.random.Generator) -> dict[str, Part]:
    rim, dial, hand = _colour(random), _lighter(_lighter(_colour(random))), _darker(_darker(_colour(random)))
    hour, minute = random.uniform(0, 2 * np.pi, 2)
    ticks = [k * np.pi / 6 for k in range(12)]
    return {
        "case": _disc(0, 0, 0.95, 0.95, rim),
        "dial": [
            _oval(0, 0, 0.78, 0.78, dial),
            *(_bar(*(0.6 * _way(a)), *(0.73 * _way(a)), 0.07, hand) for a in ticks),
        ],
        "hour_hand": [_bar(*(-0.1 * _way(hour)), *(0.38 * _way(hour)), 0.12, hand)],
        "minute_hand": [_bar(*(-0.12 * _way(minute)), *(0.58 * _way(minute)), 0.08, hand)],
        "hub": [_oval(0, 0, 0.09, 0.09, hand)],
    }


def _flower(random: np.random.Generator) -> dict[str, Part]:
    j, petal, heart, stem = _jitter(random), _colour(random), _colour(random), _darker(_colour(random))
    count, first = int(random.integers(5, 8)), random.uniform(0, 2 * np.pi)
    angles = [first + 2 * np.pi * k / count for k in range(count)]
    parts = {"stem": [_bar(0, -0.2, j(0.15), 1.0, 0.11, stem)]}
    parts["leaf"] = _leaf(0.02, 0.72, -0.5 + j(0.2), 0.55 + j(), 0.26 + j(), _lighter(stem))
    for k, angle in enumerate(angles, start=1):
        parts[f"petal_{k}"] = _leaf(0, -0.35, angle, 0.62 + j(), 0.4 + j(), petal)
    parts["heart"] = _disc(0, -0.35, 0.2 + j(0.03), 0.2, heart)
    return _mirrored(parts, random)


_BUILDERS = {
    "face": _face,
    "dog": _dog,
    "cat": _cat,
    "owl": _owl,
    "rabbit": _rabbit,
    "fish": _fish,
    "car": _car,
    "bicycle": _bicycle,
    "clock": _clock,
    "flower": _flower,
}


def _way(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)])


def _mirrored(parts: dict[str, Part], random: np.random.Generator) -> dict[str, Part]:
    """The object as it is, or facing the other way."""
    if random.random() < 0.5:
        return parts
    return {name: [(points * (-1, 1), colour) for points, colour in part] for name, part in parts.items()}


# The cache: one .npy file per split, mapped by whoever reads it


def _mapped(path: Path, size: int) -> np.ndarray | None:
    """The cached images; None if they are missing or damaged."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return images if images.shape == (size, SIZE, SIZE, 3) and images.dtype == np.uint8 else None


def _fill(wanted: dict[Path, tuple[int, str, int]], processes: int) -> None:
    """Draw each split ``(seed, split, size)`` into its file, in several processes where that is worth their start."""
    total = sum(size for _, _, size in wanted.values())
    columns = TextColumn("drawing the phantom"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with contextlib.ExitStack() as stack:
        draw_chunks = map
        # A daemonic process may have no children.
        if processes > 1 and total >= _WORTH_PROCESSES and not multiprocessing.current_process().daemon:
            context = multiprocessing.get_context("spawn")
            draw_chunks = stack.enter_context(ProcessPoolExecutor(processes, mp_context=context)).map
        progress = stack.enter_context(Progress(*columns, transient=True))
        task = progress.add_task("", total=total)
        for path, (seed, split, size) in wanted.items():
            work = [(seed, split, start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK)]
            with _written(path, (size, SIZE, SIZE, 3)) as images:
                for (_, _, start, stop), chunk in zip(work, draw_chunks(_draw_images, work), strict=True):
                    images[start:stop] = chunk
                    progress.advance(task, stop - start)


@contextlib.contextmanager
def _written(path: Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """An array on disk that gets its name when it is complete: a run killed before leaves none under that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".npy", dir=path.parent)
    os.close(handle)
    try:
        images = np.lib.format.open_memmap(beside, mode="w+", dtype=np.uint8, shape=shape)
        yield images
        images.flush()
        os.chmod(beside, 0o644)  # mkstemp's files are for their owner only; a cache may be shared
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)


def _draw_images(work: tuple[int, str, int, int]) -> np.ndarray:
    seed, split, start, stop = work
    return np.stack([draw(seed, split, index).image for index in range(start, stop)])


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"the seed of the phantom must be 0 or more, but is {seed}")
