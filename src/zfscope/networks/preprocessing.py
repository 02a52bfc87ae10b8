"""From an image to a network's input and back: resize, square, subtract the mean, scale, crop.

Source: Zeiler & Fergus (2014), Sec. 3: short side to 256, centre 256x256, minus the per-pixel mean,
sub-crops of 224x224. A network carries its own preprocessing, so members of an ensemble may differ.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
RESIZERS: dict[str, Callable[[np.ndarray, tuple[int, int], str], np.ndarray]] = {
    "pil": lambda image, size, way: np.asarray(Image.fromarray(image).resize(size, INTERPOLATIONS[way])),
    "torch": lambda image, size, way: _by_torch(image, size, way),
}
CROP_MODES = ("square", "center", "squash", "border")


class CanvasKind(NamedTuple):
    """How an image comes onto a square canvas of ``side`` pixels; networks that agree in it share their canvases.

    The modes are those of ``Preprocessing``; ``crop`` is the side of the network's input, which the rounding of
    ``center`` and ``border`` depends on, ``fill`` the colour of borders, grey levels 0-255.
    """

    side: int
    interpolation: str = "bilinear"
    crop_mode: str = "square"
    crop: int = 0
    fill: tuple[int, int, int] = (0, 0, 0)
    resizer: str = "pil"

    def draw(self, image: np.ndarray) -> np.ndarray:
        """The canvas ``(side, side, 3)`` of an image ``(H, W, 3)``, both uint8; perhaps a view of it."""
        size, (left, top) = self.placement(image.shape[1::-1])
        if image.shape[1::-1] != size:
            image = RESIZERS[self.resizer](image, size, self.interpolation)
        side, (width, height) = self.side, size
        if left <= 0 and top <= 0 and left + width >= side and top + height >= side:
            return image[-top : side - top, -left : side - left]
        canvas = np.empty((side, side, 3), np.uint8)
        canvas[:] = self.fill
        rows, columns = slice(max(top, 0), min(top + height, side)), slice(max(left, 0), min(left + width, side))
        canvas[rows, columns] = image[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        return canvas

    def placement(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Width and height of the resized image, and where its top left corner lies on the canvas, in pixels."""
        side, crop, mode = self.side, self.crop, self.crop_mode
        if mode == "squash":
            return (side, side), (0, 0)
        if mode == "border":
            width, height = (max(1, round(extent / (max(size) / side))) for extent in size)
        elif mode == "center":  # torchvision's Resize cuts the long side off
            width, height = (side if extent == min(size) else int(side * extent / min(size)) for extent in size)
        else:
            width, height = (max(side, round(extent * (side / min(size)))) for extent in size)
        if mode == "square":
            return (width, height), (-((width - side) // 2), -((height - side) // 2))
        # Where the input lies on the canvas, and the image in the input, each as timm rounds it.
        margin = round((side - crop) / 2)
        left, top = (
            margin + ((crop - extent) // 2 if extent < crop else -round((extent - crop) / 2))
            for extent in (width, height)
        )
        return (width, height), (left, top)


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its images: ``resize`` and ``crop`` are sides of the canvas and of the input, in pixels.

    Grey levels 0-255 minus ``mean``, per pixel ``(3, resize, resize)`` or per channel ``(3, 1, 1)``, times ``scale``,
    ``(3, 1, 1)``: 1 is the paper's (values within about ±128). ``interpolation`` is how an image is resized:
    ``bilinear`` or ``bicubic``, either antialiased. By ``crop_mode`` the canvas is ``square``: the short side resized,
    then the middle square, as in the paper; ``center``: the same, with timm's and torchvision's rounding; ``squash``:
    both sides resized; ``border``: the long side resized, and borders of the mean colour. ``resizer`` is whose resizing
    it is: ``pil``, as timm's and torchvision's own transforms use for images, or ``torch``, four times as fast, whose
    pixels differ by one grey level at most.
    """

    resize: int
    crop: int
    mean: Tensor
    scale: Tensor
    interpolation: str = "bilinear"
    crop_mode: str = "square"
    resizer: str = "pil"

    def __post_init__(self) -> None:
        side = self.mean.shape[-1]
        if self.mean.shape not in {(3, 1, 1), (3, self.resize, self.resize)}:
            raise ValueError(
                f"the mean image must be (3, 1, 1) or (3, {self.resize}, {self.resize}), but it is "
                f"{tuple(self.mean.shape)}; a mean of {side} px belongs to resize={side}"
            )
        if self.scale.shape != (3, 1, 1) or not bool((self.scale > 0).all() & self.scale.isfinite().all()):
            raise ValueError(f"scale must be three positive numbers (3, 1, 1), but it is {self.scale.tolist()}")
        if not bool(self.mean.isfinite().all()):
            raise ValueError("the mean image holds NaN or infinity; compute it anew")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, but is {self.interpolation!r}")
        if self.crop_mode not in CROP_MODES:
            raise ValueError(f"crop_mode must be one of {', '.join(CROP_MODES)}, but is {self.crop_mode!r}")
        if self.resizer not in RESIZERS:
            raise ValueError(f"resizer must be one of {', '.join(RESIZERS)}, but is {self.resizer!r}")
        if self.crop_mode == "border" and side != 1:
            raise ValueError("crop_mode=border fills with the mean colour: it needs a mean (3, 1, 1)")
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop must lie between 1 and resize={self.resize}, but it is {self.crop}")

    def __call__(self, image: Image.Image | np.ndarray | Tensor) -> Tensor:
        """The network's input, ``(3, crop, crop)`` float32, from the middle of an image (see ``canvas``)."""
        return self.normalise(centre_crop(self.canvas(image), self.crop))

    def normalised_canvas(self, image: Image.Image | np.ndarray | Tensor) -> Tensor:
        """The whole canvas, ``(3, resize, resize)`` float32, from which ten crops are cut."""
        return self.normalise(self.canvas(image))

    def canvas(self, image: Image.Image | np.ndarray | Tensor) -> Tensor:
        """An image on its square canvas, ``(3, resize, resize)`` uint8; for kinds of images see ``as_pixels``."""
        return as_tensor(self.canvas_kind.draw(as_pixels(image)))

    def normalise(self, canvas: Tensor) -> Tensor:
        """Subtract the mean and scale: grey levels ``(…, 3, resize, resize)`` to float32 of the same shape.

        Grey levels ``(…, 3, crop, crop)`` are those of the middle.
        """
        whole = canvas.shape[-1] == self.resize or self.mean.shape[-1] == 1
        mean = self.mean if whole else centre_crop(self.mean, self.crop)
        levels = canvas.to(torch.float32, copy=True)
        parts = [mean.to(canvas.device), self.scale.to(canvas.device)]
        if levels.ndim == 4 and levels.stride(1) == 1:  # channels last: ten times as fast where all lie alike
            parts = [part.expand(levels.shape[1:]).permute(1, 2, 0).contiguous().permute(2, 0, 1) for part in parts]
        return levels.sub_(parts[0]).mul_(parts[1])

    def unpreprocess(self, inputs: Tensor) -> Tensor:
        """Network inputs ``(…, 3, crop, crop)`` back as images, float, 0-255 clamped (centre crops)."""
        mean = self.mean if self.mean.shape[-1] == 1 else centre_crop(self.mean, self.crop)
        return (inputs / self.scale.to(inputs) + mean.to(inputs)).clamp(0, 255)

    @property
    def canvas_kind(self) -> CanvasKind:
        """What tells its canvases of an image from others."""
        if self.crop_mode in ("square", "squash"):
            return CanvasKind(self.resize, self.interpolation, self.crop_mode, resizer=self.resizer)
        fill = tuple(round(level) for level in self.mean.flatten().tolist()) if self.crop_mode == "border" else (0,) * 3
        return CanvasKind(self.resize, self.interpolation, self.crop_mode, self.crop, fill, self.resizer)

    def state(self) -> dict[str, Any]:
        """Tensors and numbers only, for a checkpoint."""
        values = {"resize": self.resize, "crop": self.crop, "mean": self.mean, "scale": self.scale}
        return values | {name: getattr(self, name) for name in ("interpolation", "crop_mode", "resizer")}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of ``state``."""
        ways = {name: str(state[name]) for name in ("interpolation", "crop_mode", "resizer") if name in state}
        return cls(int(state["resize"]), int(state["crop"]), state["mean"].float(), state["scale"].float(), **ways)


def as_pixels(image: Image.Image | np.ndarray | Tensor) -> np.ndarray:
    """``(H, W, 3)`` uint8 of a PIL image, a uint8 array ``(H, W, 3)`` or a uint8 tensor ``(3, H, W)``."""
    if isinstance(image, Image.Image):
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3:
        return image.permute(1, 2, 0).cpu().numpy()
    shape, kind = getattr(image, "shape", None), getattr(image, "dtype", type(image).__name__)
    raise TypeError(
        "an image must be a PIL image, a uint8 array (H, W, 3) or a uint8 tensor (3, H, W), "
        f"but it is {kind} {tuple(shape) if shape is not None else ''}".rstrip()
    )


def as_tensor(pixels: np.ndarray) -> Tensor:
    """A copy of pixels ``(H, W, 3)`` uint8 as ``(3, H, W)``."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def _by_torch(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    pixels = torch.from_numpy(np.require(image, requirements=("C", "W"))).permute(2, 0, 1)
    resized: Tensor = F.resize(pixels, [size[1], size[0]], InterpolationMode(interpolation), antialias=True)
    return resized.permute(1, 2, 0).numpy()


def centre_crop(images: Tensor, side: int) -> Tensor:
    """The middle ``side x side`` of images ``(…, H, W)``, as torchvision's CenterCrop takes it."""
    middle: Tensor = F.center_crop(images, [side, side])
    return middle


def ten_crops(canvases: Tensor, side: int) -> list[Tensor]:
    """Four corners and the centre of canvases ``(N, 3, H, W)``, then their mirror images: ten ``(N, 3, side, side)``.

    The order is that of ``torchvision.transforms.TenCrop``: the fifth is the centre.

    Source: Zeiler & Fergus (2014), Sec. 3.
    """
    return list(F.ten_crop(canvases, [side, side]))
