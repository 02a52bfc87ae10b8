"""Map sizes and receptive fields, from the (kernel, stride, padding) of the steps on the way up.

Source: Zeiler & Fergus (2014), Fig. 3, whose sizes 110/55/26/13/13/13/13/6 need pooling in ceil mode.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from zfscope.networks.spec import ConvLayer, DenseLayer


@dataclass(frozen=True)
class Step:
    """One filtering or pooling: ``kind`` is "conv" or "pool", sizes in cells of the map below."""

    layer: str
    kind: str
    kernel_size: int
    stride: int
    padding: int = 0
    ceil_mode: bool = False

    def out_size(self, size: int) -> int:
        """Height (or width) of the map above one of ``size`` cells; below 1 if the kernel does not fit."""
        span = size + 2 * self.padding - self.kernel_size
        if span < 0:
            return 0
        out = -(-span // self.stride) + 1 if self.ceil_mode else span // self.stride + 1
        # PyTorch drops a last window that would start in the padding to the right.
        if self.ceil_mode and (out - 1) * self.stride >= size + self.padding:
            out -= 1
        return out


@dataclass(frozen=True)
class ReceptiveField:
    """What one unit sees, in pixels: unit ``i`` sees ``offset + i * stride`` … ``+ size`` (half-open).

    A negative offset reaches into the padding, left of the image.
    """

    size: int
    stride: int
    offset: int

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """The pixels that the unit at ``(row, column)`` sees, half-open ``(x0, y0, x1, y1)``; may overhang."""
        x, y = self.offset + column * self.stride, self.offset + row * self.stride
        return x, y, x + self.size, y + self.size


def field_of(steps: Iterable[Step]) -> ReceptiveField:
    """Receptive field of a unit above these steps, counted from the pixels up."""
    size, stride, offset = 1, 1, 0
    for step in steps:
        size += (step.kernel_size - 1) * stride
        offset -= step.padding * stride
        stride *= step.stride
    return ReceptiveField(size, stride, offset)


def map_sizes(steps: Sequence[Step], image_size: int) -> list[int]:
    """Height (= width) of the map above each step.

    Raises:
        ValueError: If a kernel is larger than its padded map, with the sizes on the way up.
    """
    sizes: list[int] = []
    size = image_size
    trace = f"image {image_size}"
    for step in steps:
        out = step.out_size(size)
        name = step.layer if step.kind == "conv" else f"{step.layer}'s pool"
        if out < 1:
            padded = f" ({size + 2 * step.padding} with padding)" if step.padding else ""
            raise ValueError(
                f"the {step.kernel_size}x{step.kernel_size} kernel of {name} is larger than its map of {size}x{size}"
                f"{padded}: {trace}; use a smaller kernel or stride, or a larger data.crop"
            )
        size = out
        trace += f" -> {name} {size}"
        sizes.append(size)
    return sizes


def sizes_in_words(steps: Sequence[Step], image_size: int) -> str:
    """The sizes on the way up, for messages: ``image 28 -> conv1 12 -> conv1's pool 6``."""
    names = [step.layer if step.kind == "conv" else f"{step.layer}'s pool" for step in steps]
    sizes = map_sizes(steps, image_size)
    return " -> ".join([f"image {image_size}", *(f"{name} {size}" for name, size in zip(names, sizes, strict=True))])


def steps_of(layers: Mapping[str, ConvLayer | DenseLayer]) -> Iterator[Step]:
    """The filterings and poolings of a chain of layers, from the pixels up."""
    for name, spec in layers.items():
        if isinstance(spec, ConvLayer):
            yield Step(name, "conv", spec.kernel_size, spec.stride, spec.padding)
            if spec.pool is not None:
                yield Step(name, "pool", spec.pool.kernel_size, spec.pool.stride, 0, spec.pool.ceil_mode)


def check_chain(layers: Mapping[str, ConvLayer | DenseLayer], image_size: int) -> list[int]:
    """Map sizes above each step of a chain; refused are kernels that do not fit and groups that do not divide."""
    channels = 3
    for name, spec in layers.items():
        if isinstance(spec, ConvLayer):
            if channels % spec.groups or spec.maps % spec.groups:
                raise ValueError(
                    f"{name}.groups={spec.groups} must divide the {channels} maps below and the {spec.maps} maps "
                    f"of {name}"
                )
            channels = spec.maps
    return map_sizes(list(steps_of(layers)), image_size)


def values_of(
    layers: Mapping[str, ConvLayer | DenseLayer], image_size: int, classes: int
) -> tuple[dict[str, int], dict[str, int]]:
    """How many numbers a chain holds: weights by layer, and activations of one image by filtering."""
    steps = [(step.layer, step.kind) for step in steps_of(layers)]
    sizes = dict(zip(steps, check_chain(layers, image_size), strict=True))
    weights, activations = {}, {}
    channels, size = 3, image_size
    for name, spec in layers.items():
        if isinstance(spec, ConvLayer):
            weights[name] = spec.maps * (channels // spec.groups * spec.kernel_size**2 + 1)
            activations[name] = spec.maps * sizes[name, "conv"] ** 2
            channels, size = spec.maps, sizes.get((name, "pool"), sizes[name, "conv"])
        else:
            units = spec.units or classes
            weights[name] = units * (channels * size**2 + 1)
            activations[name] = units
            channels, size = units, 1
    return weights, activations
