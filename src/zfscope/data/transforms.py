"""From a stored image to a network's input, at training and at evaluation time.

Every random choice is a function of (seed, epoch, index), so that a resumed run repeats an uninterrupted
one and the number of workers changes nothing.
Source: Zeiler & Fergus (2014), Sec. 3; Krizhevsky et al. (2012), Sec. 4.1 for crops, flips and colours.
"""

import random
from collections.abc import Callable, Sequence

import numpy as np
import timm.data
import torch
from PIL import Image
from torch import Tensor

from zfscope.data.imageset import ImageSet
from zfscope.data.loader import Fetched, ImageItems
from zfscope.data.reading import UnreadableImage
from zfscope.data.spec import AugmentConfig
from zfscope.networks.preprocessing import CanvasKind, Preprocessing, as_pixels


class TrainTransform:
    """A random view of a training image.

    ``seed`` is below 2**32; ``colour_directions``, ``(3, 3)`` from ``Statistics``, are needed if
    ``augment.pca_colour`` is above 0.
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
        # What is cut from: timm's recipe takes its views from the whole image.
        self.canvas_kind = None if augment.policy == "timm" else preprocessing.canvas_kind
        self.mean = preprocessing.mean.expand(3, self.resize, self.resize).contiguous()
        self.mirrored_mean = self.mean.flip(2)
        self.scale = None if bool((preprocessing.scale == 1).all()) else preprocessing.scale
        # Where all channels have one scale, it and a shift of colours take one pass.
        is_one = self.scale is not None and bool((self.scale == self.scale[0]).all())
        self._factor = float(self.scale[0]) if is_one and augment.pca_colour else None
        self._draws_more = bool(augment.rotate90 or augment.pca_colour or augment.erase)
        try:
            self.timm = self._timm_transform() if augment.policy == "timm" else None
        except AssertionError as error:  # how timm refuses
            policy = f"data.augment.auto_augment={augment.auto_augment}"
            raise ValueError(f"{policy}: {error}; write it as timm does, such as rand-m7-mstd0.5-inc1") from None

    def __call__(self, image: Image.Image | np.ndarray | Tensor, epoch: int, index: int) -> Tensor:
        """The view of image ``index`` in this epoch, ``(3, crop, crop)`` float32."""
        pixels = as_pixels(image)
        view = torch.empty(3, self.crop, self.crop)
        self.write(view, pixels if self.canvas_kind is None else self.canvas_kind.draw(pixels), epoch, index)
        return view

    def write(self, view: Tensor, canvas: np.ndarray, epoch: int, index: int) -> None:
        """Write the view of a canvas ``(resize, resize, 3)`` uint8 into ``(3, crop, crop)`` float32."""
        # default_rng((seed, epoch, index)) is the same, but takes a third of its time to look at the three.
        generator = np.random.Generator(np.random.PCG64(np.array((self.seed, epoch, index), np.uint32)))
        if self.timm is not None:
            view.copy_(self._timm_view(canvas, generator))
            return
        augment, side = self.augment, self.crop
        # Draw a number whether it is used or not: switching one option leaves the others' choices as they were.
        across, down, flip, flip_vertical, area, light, erase = generator.random(7).tolist()
        turns, colour = (int(generator.integers(4)), generator.normal(size=3)) if self._draws_more else (0, None)
        is_mirrored = augment.flip and flip < 0.5
        if augment.scale is None:
            left, top = (int(share * (self.resize - side + 1)) for share in (across, down))
            pixels = canvas[top : top + side, left : left + side]
        else:
            smallest, largest = augment.scale
            extent = self.resize * np.sqrt(smallest + area * (largest - smallest))
            left, top = across * (self.resize - extent), down * (self.resize - extent)
            box = (left, top, left + extent, top + extent)
            pixels = np.asarray(Image.fromarray(canvas).resize((side, side), Image.Resampling.BILINEAR, box))
            left = top = (self.resize - side) // 2
        pixels = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)
        if is_mirrored:  # bytes and mean, each by itself, sooner than the numbers of the view
            pixels, left = pixels.flip(2), self.resize - side - left
        mean = self.mirrored_mean if is_mirrored else self.mean
        view.copy_(pixels.double() * (1 + augment.brightness * (2 * light - 1)) if augment.brightness else pixels)
        if augment.pca_colour:
            size = augment.pca_colour * (self._factor or 1.0)
            shift = torch.from_numpy(self.colour_directions @ (size * colour).astype(np.float32)).view(3, 1, 1)
            if self._factor is None:
                view += shift
        view -= mean[:, top : top + side, left : left + side]
        if self._factor is not None:
            torch.add(shift, view, alpha=self._factor, out=view)
        elif self.scale is not None:
            view *= self.scale
        if augment.flip_vertical and flip_vertical < 0.5:
            view.copy_(view.flip(1))
        if augment.rotate90:
            view.copy_(view.rot90(turns, (1, 2)))
        if erase < augment.erase:
            # A mean-grey (0) rectangle of 2 to 15 % of the view; Zhong et al. (2020), random erasing.
            height, width = (int(round(side * share)) for share in generator.uniform(0.15, 0.4, size=2))
            row, column = generator.integers(side - height + 1), generator.integers(side - width + 1)
            view[:, row : row + height, column : column + width] = 0

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

    def _timm_view(self, image: np.ndarray, generator: np.random.Generator) -> Tensor:
        # timm draws from the three global generators; its choices still follow from (seed, epoch, index).
        number = int(generator.integers(2**32))
        random.seed(number)
        np.random.seed(number)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            pixels = self.timm(Image.fromarray(image)) * 255
        margin = (self.resize - self.crop) // 2
        view = pixels - self.mean[:, margin : margin + self.crop, margin : margin + self.crop]
        return view if self.scale is None else view * self.scale


class Examples(ImageItems):
    """Images with labels and positions: ``(image (3, H, W), label, index)``.

    Keys are ``(epoch, index)`` where views are random, else the index alone. ``transform`` is given an image on the
    canvas of a ``kind``.
    """

    def __init__(self, images: ImageSet, transform: Callable[..., Tensor], kind: CanvasKind) -> None:
        self.images, self.transform = images, transform
        self.is_random = isinstance(transform, TrainTransform)
        self.whole = self.is_random and transform.canvas_kind is None
        self.kind = kind
        self.labels = torch.from_numpy(images.labels)

    def nothing(self) -> tuple[Tensor, Tensor, Tensor]:
        """A batch without any image."""
        return torch.empty(0), self.labels[:0], torch.empty(0, dtype=torch.int64)

    def __getitem__(self, key: tuple[int, int] | int) -> tuple[Tensor, Tensor, int]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image = self._image(index)
        view = self.transform(image, epoch, index) if self.is_random else self.transform(image)
        return view, self.labels[index], index

    def fetch(self, keys: Sequence[tuple[int, int] | int]) -> Fetched:
        """A batch of random views, each written at its place."""
        if not self.is_random:
            return super().fetch(keys)
        views = torch.empty(len(keys), 3, self.transform.crop, self.transform.crop)
        read, unread = [], []
        for epoch, index in keys:
            try:
                self.transform.write(views[len(read)], self._image(index), epoch, index)
            except UnreadableImage as error:
                unread.append((index, str(error), error.cause))
            else:
                read.append(index)
        indices = torch.tensor(read, dtype=torch.int64)
        return Fetched((views[: len(read)], self.labels[indices], indices) if read else None, unread)

    def _image(self, index: int) -> np.ndarray:
        if self.whole:
            return self.images.pixels(index, self.kind.side)
        return self.images.canvas(index, self.kind)
