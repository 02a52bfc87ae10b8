"""Photographs and their copies, for the overlap of data sets."""

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from zfscope.data.imageset import FileImages


@cache
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
