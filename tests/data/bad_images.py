"""Kinds of image files that cannot be read, or are odd, and data sets with some of them."""

import os
import shutil

import numpy as np
import torch
from lightning.pytorch import Trainer
from PIL import Image

from tests.conftest import composed
from tests.data.test_reading import png_header
from zfscope.data.datamodule import ImageData, open_data
from zfscope.data.quarantine import (
    check_images,
    collecting,
)
from zfscope.data.spec import DataConfig
from zfscope.networks.preprocessing import Preprocessing
from zfscope.schema import check

SIDE = 24
FRAMES = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue")]
UPRIGHT = Image.Exif()
UPRIGHT[0x0112] = 6


def cut(path):
    path.write_bytes(path.read_bytes()[:700])


def saved(image, **options):
    return lambda path: image.save(path, **options)


def replaced(make):
    """A kind that cannot be written over a file."""

    def change(path):
        path.unlink()
        make(path)

    return change


def forbidden(path):
    if os.geteuid():
        path.chmod(0)
    else:  # root reads what nobody may: a link to itself is as unreadable
        replaced(lambda path: path.symlink_to(path.name))(path)


QUARANTINED = {
    "zero bytes": (lambda path: path.write_bytes(b""), "it is empty (0 bytes)"),
    "truncated": (cut, "truncated"),
    "html": (lambda path: path.write_text("<!DOCTYPE html>404"), "it holds HTML or XML, not an image"),
    "above 50 megapixels": (lambda path: path.write_bytes(png_header(9000, 9000)), "more than 50 megapixels"),
    "1x5000": (saved(Image.new("L", (1, 5000)), format="PNG"), "1x5000 px is longer than 50 : 1"),
    "dangling link": (replaced(lambda path: path.symlink_to("gone.jpg")), "a link to gone.jpg, which does not exist"),
    "unreadable": (forbidden, "no permission to read it" if os.geteuid() else "link"),
    "noise": (lambda path: path.write_bytes(os.urandom(500)), "no image of a known format"),
}
CONVERTED = {
    "cmyk": saved(Image.new("CMYK", (SIDE, SIDE), (9, 200, 30, 40)), format="JPEG"),
    "grey": saved(Image.new("L", (SIDE, SIDE), 77), format="JPEG"),
    "palette": saved(Image.new("P", (SIDE, SIDE), 7), format="PNG"),
    "alpha": saved(Image.new("RGBA", (SIDE, SIDE), (9, 9, 9, 0)), format="PNG"),
    "16 bits": saved(Image.fromarray(np.full((SIDE, SIDE), 40_000, np.uint16)), format="PNG"),
    "turned": saved(Image.new("RGB", (30, SIDE)), format="JPEG", exif=UPRIGHT),
    "animated": saved(FRAMES[0], format="GIF", save_all=True, append_images=FRAMES[1:]),
    "same in train and test": lambda path: shutil.copy(path.parents[2] / "test/cat/0.jpg", path),
    "fifo": replaced(os.mkfifo),  # never becomes an image of the set
}


def opened(home):
    return open_data(check(DataConfig, {"name": "folder", "root": str(home / "images")}))


def checked(home, num_workers=0):
    splits = opened(home)
    with collecting(splits):
        check_images(splits, home / "cache", SIDE, num_workers)
    return splits


def break_some(home, count, make=QUARANTINED["zero bytes"][0], part="train", first=0):
    names = sorted((home / "images" / part).glob("*/*.jpg"))
    broken = [names[(first + 7 * number) % len(names)] for number in range(count)]
    for path in broken:
        make(path)
    return broken


def module_of(splits, num_workers=0, position=0, batch_size=8, seed=3):
    sizes = {"resize": SIDE, "crop": 20, "batch_size": batch_size, "num_workers": num_workers}
    config = check(DataConfig, {**composed()["data"], **sizes})
    prepare = Preprocessing(SIDE, 20, torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 0.02))
    data = ImageData(splits, config, prepare, seed)
    data.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=True)
    data.done = position
    return data
