"""Drawing one image of the phantom: background, object, distractors, occluders, camera."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from zfscope.data.sources.phantom_objects import BUILDERS, CLASSES
from zfscope.data.sources.phantom_shapes import Part

SIZE = 128
SPLITS = ("train", "val", "test")
_FINE = 3  # shapes are drawn at three times the size, then averaged


@dataclass(frozen=True)
class Sample:
    """One image and all that is known about it."""

    image: np.ndarray  # (128, 128, 3) uint8, RGB
    label: int  # position in `CLASSES`
    mask: np.ndarray  # (128, 128) bool, true for each pixel in which any of the object is seen
    # Box of each part by name, half-open (x0, y0, x1, y1) in pixels: the smallest that holds the whole part, also where
    # others lie in front, clipped to the image. `right_eye` is the animal's own, on the left of an upright image.
    parts: dict[str, tuple[int, int, int, int]]


def draw(seed: int, split: str, index: int) -> Sample:
    """Draw image ``index`` of a split of the phantom, which shows class ``index % 10``; a pure function."""
    check_seed(seed)
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
    parts = turned(BUILDERS[CLASSES[label]](random), random.normal(0, 0.22), random)
    parts = _placed_inside(parts, radius, random)
    canvas.ink = 255
    boxes = {name: canvas.add(part) for name, part in parts.items()}
    occlude(canvas, random, parts)
    image, mask = canvas.finish()
    return Sample(photographed(image, random), label, mask, boxes)


class _Canvas:
    def __init__(self, background: Image.Image):
        self._image = background.resize((SIZE * _FINE, SIZE * _FINE), Image.Resampling.NEAREST)
        self._pen = ImageDraw.Draw(self._image)
        self._mask = Image.new("L", self._image.size)
        self._mask_pen = ImageDraw.Draw(self._mask)
        self.ink = 0  # of the mask: 255 while what is added belongs to the object

    def add(self, part: Part) -> tuple[int, int, int, int]:
        """Draw a part given in pixels, and return its half-open box in pixels, clipped to the image."""
        low, high = [], []
        for points, colour in part:
            # Whole numbers, because Pillow then fills exactly up to and with its corners, and the box is exact.
            corners = np.rint(points * _FINE).astype(int)
            corner_list = corners.ravel().tolist()
            self._pen.polygon(corner_list, fill=colour)
            self._mask_pen.polygon(corner_list, fill=self.ink)
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
    parts = BUILDERS[CLASSES[random.integers(len(CLASSES))]](random)
    radius = random.uniform(25, 53)
    names = list(parts)
    for which in random.permutation(len(names)):
        part = parts[names[which]]
        middle = _middle(part)
        angle = random.uniform(-np.pi, np.pi)
        canvas.add(_moved(part, -middle, radius * random.uniform(0.7, 1.2), angle, random.uniform(-4, SIZE + 4, 2)))


def occlude(canvas: _Canvas, random: np.random.Generator, parts: dict[str, Part]) -> None:
    """Draw a few single small parts of any classes over the object."""
    canvas.ink = 0
    corners = np.concatenate([points for part in parts.values() for points, _ in part])
    low, high = corners.min(axis=0), corners.max(axis=0)
    for _ in range(random.integers(0, 5)):
        others = BUILDERS[CLASSES[random.integers(len(CLASSES))]](random)
        part = others[list(others)[random.integers(len(others))]]
        extent = max(np.ptp(points, axis=0).max() for points, _ in part)
        size = float((high - low).max()) * random.uniform(0.15, 0.38) / extent
        place = low + (high - low) * random.random(2)
        canvas.add(_moved(part, -_middle(part), size, random.uniform(-np.pi, np.pi), place))


def photographed(image: Image.Image, random: np.random.Generator) -> np.ndarray:
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


def turned(parts: dict[str, Part], angle: float, random: np.random.Generator) -> dict[str, Part]:
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


def check_seed(seed: int) -> None:
    """Refuse a negative seed of the phantom."""
    if seed < 0:
        raise ValueError(f"the seed of the phantom must be 0 or more, but is {seed}")
