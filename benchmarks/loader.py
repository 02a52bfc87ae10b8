"""Training batches from JPEG files of 500 x 375 px, against torchvision's ImageFolder; one process, one thread.

    OMP_NUM_THREADS=1 python benchmarks/loader.py [--images 512] [--rounds 5] [--pca 0.1] [--cold 8192]

Both sides end in normalised float32 batches of 64 x 3 x 224 x 224: resized to 256, cropped at random, mirrored at
random. ImageFolder has Resize, RandomCrop, RandomHorizontalFlip, ToTensor and Normalize on Pillow's images, as
torchvision's own recipe has; zfscope subtracts a mean image. "pil" and "torch" are ``data.resizer``, "cache" is
``data.cache_images`` with its pages in memory. Images a second of CPU, medians of rounds in turns, and ratios of these,
as JSON. The files are photographs of scikit-image.

"cache, grey levels" leaves the differences to the mean as they are (``model.input_scale=1``), as ZFNet takes them; the
others scale them too. With ``--pca`` both sides shift colours at random.

"waiting" is the share of its time that a consumer waits which sleeps as long as 4,000 images a second allow, while one
thread makes its batches, of an epoch that has begun. With ``--cold N`` that many decoded images are read whose pages
were dropped: images a second on the clock, one thread, and how many of that size the disk gives to plain reads of one
at a time, in the same order.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from zfscope.data.cache import CANVASES, CanvasCache, fill
from zfscope.data.imageset import FileImages, ImageSet, Stored
from zfscope.data.loader import Loader
from zfscope.data.order import TrainBatches
from zfscope.data.spec import AugmentConfig
from zfscope.data.splits import Splits
from zfscope.data.transforms import Examples, TrainTransform
from zfscope.networks.devices import keep_memory
from zfscope.networks.preprocessing import CanvasKind, Preprocessing

RESIZE, CROP, BATCH = 256, 224, 64
FRESH = 8  # batches that are made in memory which the kernel has yet to clear
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


def image_folder(folder: Path, pca: float) -> DataLoader:
    steps = [transforms.Resize(RESIZE), transforms.RandomCrop(CROP), transforms.RandomHorizontalFlip()]
    steps.append(transforms.ToTensor())
    if pca:  # as in Krizhevsky et al. (2012); torchvision has none
        steps.append(lambda view: view + (torch.eye(3) @ (pca * torch.randn(3))).view(3, 1, 1))
    steps.append(transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return DataLoader(ImageFolder(folder, transforms.Compose(steps)), BATCH, shuffle=True)


def own_loader(images: ImageSet, resizer: str, pca: float, threads: int = 0, scale: float = 1 / 60) -> Loader:
    mean = torch.full((3, RESIZE, RESIZE), 110.0)
    preprocessing = Preprocessing(RESIZE, CROP, mean, torch.full((3, 1, 1), scale), resizer=resizer)
    views = TrainTransform(preprocessing, AugmentConfig(pca_colour=pca), 0, np.eye(3, dtype=np.float32))
    batches = TrainBatches(len(images), BATCH, 0, lambda: 0)
    return Loader(Examples(images, views, preprocessing.canvas_kind), batch_sampler=batches, threads=threads)


def stored(images: FileImages, place: Path) -> FileImages:
    """The same images, decoded."""
    fill(Splits(images, images.subset([0])), place, CanvasKind(RESIZE, resizer="torch"), 0)
    return images


def share_of_waiting(batches: Loader, rate: float = 4000.0) -> float:
    """Of the time that a consumer of so many images a second takes, after the first batches, whose memory is fresh."""
    waited, iterator = 0.0, iter(batches)
    count, since = [len(next(iterator)[0]) for _ in range(FRESH)][-1], time.perf_counter()
    while True:
        time.sleep(count / rate)
        before = time.perf_counter()
        batch = next(iterator, None)
        took = time.perf_counter() - before
        if batch is None:
            return waited / (before - since)
        count, waited = len(batch[0]), waited + took
        del batch  # before the next is waited for


def from_disk(place: Path, count: int) -> dict[str, float]:
    """Images a second, on the clock, from files of canvases whose pages were dropped, and of plain reads."""
    kind = CanvasKind(RESIZE, resizer="torch")
    canvases = CanvasCache(place, kind)
    canvases.folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    hashes = random.integers(1, 256, (count, 8), dtype=np.uint8)
    for first in range(0, count, CANVASES):
        own = hashes[first : first + CANVASES]
        canvases.append(torch.from_numpy(random.integers(0, 256, (len(own), 3, RESIZE, RESIZE), dtype=np.uint8)), own)
    images = FileImages([f"{number}.jpg" for number in range(count)], np.arange(count) % 10, tuple("abcdefghij"), place)
    rates = {}
    for name in ("cache", "plain reads", "cache again", "plain reads again"):
        canvases = CanvasCache(place, kind)
        images.stored = Stored(canvases, canvases.rows(hashes))
        for path in canvases.files:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        batches, since = own_loader(images, "torch", 0.0), time.perf_counter()
        if name.startswith("cache"):
            for _ in batches:
                pass
        else:
            files = [os.open(path, os.O_RDONLY) for path in canvases.files]
            for batch in batches.batch_sampler:
                for _, index in batch:
                    row = int(images.stored.rows[index])
                    os.pread(files[row // CANVASES], 3 * RESIZE**2, (row % CANVASES) * 3 * RESIZE**2)
        rates[name] = len(batches) * BATCH / (time.perf_counter() - since)
    return rates


def images_a_second(batches: Iterable) -> float:
    start, count = time.process_time(), 0
    for batch in batches:
        assert batch[0].dtype == torch.float32 and batch[0].shape[1:] == (3, CROP, CROP)
        count += len(batch[0])
    return count / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pca", type=float, default=0.0)
    parser.add_argument("--cold", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()  # as train.py does; it serves both sides
    with tempfile.TemporaryDirectory() as place:
        images = photographs(Path(place), options.images)
        ways = {"ImageFolder": image_folder(Path(place), options.pca)}
        ways |= {resizer: own_loader(images, resizer, options.pca) for resizer in ("pil", "torch")}
        decoded = stored(images.subset(range(len(images))), Path(place, "cache"))
        ways["cache"] = own_loader(decoded, "torch", options.pca)
        ways["cache, grey levels"] = own_loader(decoded, "torch", options.pca, scale=1.0)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, batches in ways.items():
                rates[name].append(images_a_second(batches))
        ahead = own_loader(decoded.subset([*range(len(decoded))] * 8), "torch", options.pca, threads=1)
        waiting = [share_of_waiting(ahead) for _ in range(options.rounds)]
        cold = from_disk(Path(place, "cold"), options.cold) if options.cold else {}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        f"reading, {name}{', jitter' * bool(options.pca)}": [
            round(each, 2) for each in sorted(np.divide(rates[name], rates["ImageFolder"]).tolist())
        ]
        for name in ways
        if name != "ImageFolder"
    }
    found = {"images a second": {name: round(rate) for name, rate in medians.items()}, "ratios": ratios}
    found |= {"waiting": waiting, "cold": {n: round(rate) for n, rate in cold.items()}}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
