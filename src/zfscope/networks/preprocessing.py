"""From an image to a network's input and back: resize, square, subtract the mean, scale, crop.

Source: Zeiler & Fergus (2014), Sec. 3: short side to 256, centre 256x256, minus the per-pixel mean,
sub-crops of 224x224. A network carries its own preprocessing, so members of an ensemble may differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as F

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its images: ``resize`` and ``crop`` are sides of the canvas and of the input, in pixels.

    Grey levels 0-255 minus ``mean``, per pixel ``(3, resize, resize)`` or per channel ``(3, 1, 1)``, times ``scale``,
    ``(3, 1, 1)``: 1 is the paper's (values within about ±128). The canvas is the middle square of the resized image;
    ``interpolation`` is how it is resized: ``bilinear`` or ``bicubic``, either antialiased.
    """

    resize: int
    crop: int
    mean: Tensor
    scale: Tensor
    interpolation: str = "bilinear"

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
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop must lie between 1 and resize={self.resize}, but it is {self.crop}")

    def __call__(self, image: Image.Image | np.ndarray | Tensor) -> Tensor:
        """The network's input, ``(3, crop, crop)`` float32, from the middle of an image (see ``canvas``)."""
        return centre_crop(self.normalised_canvas(image), self.crop)

    def normalised_canvas(self, image: Image.Image | np.ndarray | Tensor) -> Tensor:
        """The whole canvas, ``(3, resize, resize)`` float32, from which ten crops are cut."""
        return self.normalise(self.canvas(image))

    def canvas(self, image: Image.Image | np.ndarray | Tensor) -> Tensor:
        """An image on its square canvas, ``(3, resize, resize)`` uint8; for kinds of images see ``as_pil``."""
        return pil_to_tensor(square(as_pil(image), self.resize, self.interpolation))

    def normalise(self, canvas: Tensor) -> Tensor:
        """Subtract the mean and scale: grey levels ``(…, 3, resize, resize)`` to float32 of the same shape."""
        return (canvas.float() - self.mean.to(canvas.device)) * self.scale.to(canvas.device)

    def unpreprocess(self, inputs: Tensor) -> Tensor:
        """Network inputs ``(…, 3, crop, crop)`` back as images, float, 0-255 clamped (centre crops)."""
        mean = self.mean if self.mean.shape[-1] == 1 else centre_crop(self.mean, self.crop)
        return (inputs / self.scale.to(inputs) + mean.to(inputs)).clamp(0, 255)

    @property
    def canvas_kind(self) -> tuple[int, str]:
        """What tells its canvases of an image from others: their side, in pixels, and how they are resized."""
        return self.resize, self.interpolation

    def state(self) -> dict[str, Any]:
        """Tensors and numbers only, for a checkpoint."""
        values = {"resize": self.resize, "crop": self.crop, "mean": self.mean, "scale": self.scale}
        return values | {"interpolation": self.interpolation}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of ``state``."""
        sides = int(state["resize"]), int(state["crop"])
        interpolation = str(state.get("interpolation", "bilinear"))
        return cls(*sides, state["mean"].float(), state["scale"].float(), interpolation)


def as_pil(image: Image.Image | np.ndarray | Tensor) -> Image.Image:
    """An RGB PIL image from a PIL image, a uint8 array ``(H, W, 3)`` or a uint8 tensor ``(3, H, W)``."""
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return Image.fromarray(image)
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3:
        return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    shape, kind = getattr(image, "shape", None), getattr(image, "dtype", type(image).__name__)
    raise TypeError(
        "an image must be a PIL image, a uint8 array (H, W, 3) or a uint8 tensor (3, H, W), "
        f"but it is {kind} {tuple(shape) if shape is not None else ''}".rstrip()
    )


def square(image: Image.Image, side: int, interpolation: str = "bilinear") -> Image.Image:
    """The short side resized to ``side`` (antialiased), then the middle square."""
    if image.size == (side, side):
        return image
    width, height = image.size
    if min(width, height) != side:
        ratio = side / min(width, height)
        width, height = max(side, round(width * ratio)), max(side, round(height * ratio))
        image = image.resize((width, height), INTERPOLATIONS[interpolation])
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def pil_to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 ``(3, H, W)``."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def centre_crop(images: Tensor, side: int) -> Tensor:
    """The middle ``side x side`` of images ``(…, H, W)``, as torchvision's CenterCrop takes it."""
    return F.center_crop(images, [side, side])


def ten_crops(canvases: Tensor, side: int) -> list[Tensor]:
    """Four corners and the centre of canvases ``(N, 3, H, W)``, then their mirror images: ten ``(N, 3, side, side)``.

    The order is that of ``torchvision.transforms.TenCrop``: the fifth is the centre.

    Source: Zeiler & Fergus (2014), Sec. 3.
    """
    return list(F.ten_crop(canvases, [side, side]))
