"""From a stored image to a network's input, at training and at evaluation time.

Every random choice is a function of (seed, epoch, index), so that a resumed run repeats an uninterrupted
one and the number of workers changes nothing.
Source: Zeiler & Fergus (2014), Sec. 3; Krizhevsky et al. (2012), Sec. 4.1 for crops, flips and colours.
"""

import random
from collections.abc import Callable

import numpy as np
import timm.data
import torch
from PIL import Image
from torch import Tensor

from zfscope.data.imageset import ImageSet
from zfscope.data.loader import ImageItems
from zfscope.data.spec import AugmentConfig
from zfscope.networks.preprocessing import Preprocessing


class TrainTransform:
    """A random view of a training image.

    ``colour_directions``, ``(3, 3)`` from ``Statistics``, are needed if ``augment.pca_colour`` is above 0.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        augment: AugmentConfig,
        seed: int,
        colour_directions: np.ndarray | None = None,
    ) -> None:
        if augment.pca_colour and colour_directions is None:
            raise ValueError("pca_colour needs the colour directions of the training set")
        self.augment, self.seed, self.colour_directions = augment, seed, colour_directions
        self.resize, self.crop = preprocessing.resize, preprocessing.crop
        self.canvas_kind = preprocessing.canvas_kind
        mean = preprocessing.mean.permute(1, 2, 0).numpy()
        self.mean = np.ascontiguousarray(np.broadcast_to(mean, (self.resize, self.resize, 3)))
        self.scale = preprocessing.scale.view(3).numpy()
        try:
            self.timm = self._timm_transform() if augment.policy == "timm" else None
        except AssertionError as error:  # how timm refuses
            policy = f"data.augment.auto_augment={augment.auto_augment}"
            raise ValueError(f"{policy}: {error}; write it as timm does, such as rand-m7-mstd0.5-inc1") from None

    def __call__(self, image: Image.Image, epoch: int, index: int) -> Tensor:
        """The view of image ``index`` in this epoch, ``(3, crop, crop)`` float32."""
        generator = np.random.default_rng((self.seed, epoch, index))
        if self.timm is not None:
            return self._timm_view(image, generator)
        view = self._view(image, generator)
        return torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))

    def _view(self, image: Image.Image, generator: np.random.Generator) -> np.ndarray:
        augment, side = self.augment, self.crop
        # Draw every number whether it is used or not: switching one option leaves the others' choices as they were.
        across, down, flip, flip_vertical, area, light, erase = generator.random(7)
        turns = int(generator.integers(4))
        colour = generator.normal(size=3)
        canvas = self.canvas_kind.draw(image)
        if augment.scale is None:
            left, top = (int(share * (self.resize - side + 1)) for share in (across, down))
            pixels = np.asarray(canvas)[top : top + side, left : left + side].astype(np.float32)
            mean = self.mean[top : top + side, left : left + side]
        else:
            smallest, largest = augment.scale
            extent = self.resize * np.sqrt(smallest + area * (largest - smallest))
            left, top = across * (self.resize - extent), down * (self.resize - extent)
            box = (left, top, left + extent, top + extent)
            pixels = np.asarray(canvas.resize((side, side), Image.Resampling.BILINEAR, box)).astype(np.float32)
            margin = (self.resize - side) // 2
            mean = self.mean[margin : margin + side, margin : margin + side]
        if augment.brightness:
            pixels *= 1 + augment.brightness * (2 * light - 1)
        if augment.pca_colour:
            pixels += self.colour_directions @ (augment.pca_colour * colour).astype(np.float32)
        pixels -= mean
        pixels *= self.scale
        if augment.flip and flip < 0.5:
            pixels = pixels[:, ::-1]
        if augment.flip_vertical and flip_vertical < 0.5:
            pixels = pixels[::-1]
        if augment.rotate90:
            pixels = np.rot90(pixels, turns)
        if erase < augment.erase:
            # A mean-grey (0) rectangle of 2 to 15 % of the view; Zhong et al. (2020), random erasing.
            height, width = (int(round(side * share)) for share in generator.uniform(0.15, 0.4, size=2))
            row, column = generator.integers(side - height + 1), generator.integers(side - width + 1)
            pixels = pixels.copy()
            pixels[row : row + height, column : column + width] = 0
        return pixels

    def _timm_transform(self):
        augment = self.augment
        return timm.data.create_transform(
            self.crop,
            is_training=True,
            scale=augment.scale or (0.08, 1.0),
            hflip=0.5 if augment.flip else 0.0,
            vflip=0.5 if augment.flip_vertical else 0.0,
            color_jitter=augment.brightness or None,
            auto_augment=augment.auto_augment,
            re_prob=augment.erase,
            interpolation="bilinear",
            mean=(0, 0, 0),
            std=(1, 1, 1),
        )

    def _timm_view(self, image: Image.Image, generator: np.random.Generator) -> Tensor:
        # timm draws from the three global generators; its choices still follow from (seed, epoch, index).
        number = int(generator.integers(2**32))
        random.seed(number)
        np.random.seed(number)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            pixels = self.timm(image) * 255
        margin = (self.resize - self.crop) // 2
        mean = self.mean[margin : margin + self.crop, margin : margin + self.crop]
        return (pixels - torch.from_numpy(mean).permute(2, 0, 1)) * torch.from_numpy(self.scale).view(3, 1, 1)


class Examples(ImageItems):
    """Images with labels and positions: ``(image (3, H, W), label, index)``.

    Keys are ``(epoch, index)`` where views are random, else the index alone.
    """

    def __init__(self, images: ImageSet, transform: Callable[..., Tensor], canvas: int) -> None:
        self.images, self.transform, self.canvas = images, transform, canvas
        self.labels = torch.from_numpy(images.labels)

    def nothing(self) -> tuple[Tensor, Tensor, Tensor]:
        """A batch without any image."""
        return torch.empty(0), self.labels[:0], torch.empty(0, dtype=torch.int64)

    def __getitem__(self, key: tuple[int, int] | int) -> tuple[Tensor, Tensor, int]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image = self.images.read(index, short_side=self.canvas)
        is_random = isinstance(self.transform, TrainTransform)
        view = self.transform(image, epoch, index) if is_random else self.transform(image)
        return view, self.labels[index], index
