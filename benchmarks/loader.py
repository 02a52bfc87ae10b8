"""Training batches from JPEG files of 500 x 375 px, against torchvision's ImageFolder; one process, one thread.

    OMP_NUM_THREADS=1 python benchmarks/loader.py [--images 256] [--rounds 5] [--pca 0.1]

Both sides end in normalised float32 batches of 64 x 3 x 224 x 224: resized to 256, cropped at random, mirrored at
random. ImageFolder has Resize, RandomCrop, RandomHorizontalFlip, ToTensor and Normalize on Pillow's images, as
torchvision's own recipe has; zfscope subtracts a mean image. "pil" and "torch" are ``data.resizer``. Images a second of
CPU, medians of rounds in turns, and ratios of these, as JSON. The files are photographs of scikit-image.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from projections import ROOT
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from zfscope.data.imageset import FileImages, ImageSet
from zfscope.data.loader import Loader
from zfscope.data.order import TrainBatches
from zfscope.data.spec import AugmentConfig
from zfscope.data.transforms import Examples, TrainTransform
from zfscope.networks.preprocessing import Preprocessing

sys.path.insert(0, str(ROOT))
from zfscope.training.run import keep_memory  # noqa: E402

RESIZE, CROP, BATCH = 256, 224, 64
SHOWN = (skimage.data.astronaut, skimage.data.chelsea, skimage.data.coffee, skimage.data.rocket)


def photographs(folder: Path, count: int) -> FileImages:
    """Parts of photographs, each another one, 33 to 56 kB."""
    random, paths = np.random.default_rng(0), []
    pictures = [Image.fromarray(show()).resize((800, 600), Image.Resampling.BICUBIC) for show in SHOWN]
    for number in range(count):
        left, top = random.integers(0, 301), random.integers(0, 226)
        paths.append(folder / "abcdefghij"[number % 10] / f"{number}.jpg")
        paths[-1].parent.mkdir(exist_ok=True)
        pictures[number % len(pictures)].crop((left, top, left + 500, top + 375)).save(paths[-1], quality=90)
    return FileImages(paths, np.arange(count) % 10, tuple("abcdefghij"))


def image_folder(folder: Path) -> DataLoader:
    steps = [transforms.Resize(RESIZE), transforms.RandomCrop(CROP), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    return DataLoader(ImageFolder(folder, transforms.Compose(steps)), BATCH, shuffle=True)


def own_loader(images: ImageSet, resizer: str, pca: float) -> Loader:
    mean = torch.full((3, RESIZE, RESIZE), 110.0)
    preprocessing = Preprocessing(RESIZE, CROP, mean, torch.full((3, 1, 1), 1 / 60), resizer=resizer)
    views = TrainTransform(preprocessing, AugmentConfig(pca_colour=pca), 0, np.eye(3, dtype=np.float32))
    batches = TrainBatches(len(images), BATCH, 0, lambda: 0)
    return Loader(Examples(images, views, preprocessing.canvas_kind), batch_sampler=batches)


def images_a_second(batches: Iterable) -> float:
    start, count = time.process_time(), 0
    for batch in batches:
        assert batch[0].dtype == torch.float32 and batch[0].shape[1:] == (3, CROP, CROP)
        count += len(batch[0])
    return count / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pca", type=float, default=0.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()  # as train.py does; it serves both sides
    with tempfile.TemporaryDirectory() as place:
        images = photographs(Path(place), options.images)
        ways = {"ImageFolder": image_folder(Path(place))}
        ways |= {resizer: own_loader(images, resizer, options.pca) for resizer in ("pil", "torch")}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, batches in ways.items():
                rates[name].append(images_a_second(batches))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        name: [round(each, 2) for each in sorted(np.divide(rates[name], rates["ImageFolder"]).tolist())]
        for name in ways
        if name != "ImageFolder"
    }
    print(json.dumps({"images a second": {n: round(v) for n, v in medians.items()}, "times ImageFolder": ratios}))


if __name__ == "__main__":
    main()
