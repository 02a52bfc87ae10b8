"""Convnets as chains of named layers.

A layer is conv -> ReLU -> [max pool] -> [contrast norm]; AlexNet's norm stands before its pool.
Source: Zeiler & Fergus (2014), Fig. 3; paddings follow from its map sizes.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from zfscope.networks.geometry import ReceptiveField, Step, check_chain, field_of, steps_of
from zfscope.networks.layers import ContrastNorm
from zfscope.networks.network import Network, Trace, count_parameters, run_to
from zfscope.networks.spec import ContrastConfig, ConvLayer, DenseLayer, InitConfig


class ConvNet(Network):
    """A chain of named layers, each an ``nn.Sequential`` of conv, relu, pool and norm by name.

    Args:
        layers: Specification of each layer by name, bottom to top; the last is the classifier.
        num_classes: Units of the last layer.
        image_size: Height and width of the input, in pixels; the first dense layer is sized by it.
        contrast: Constants of the contrast normalisation.
        init: How the weights start.

    Raises:
        ValueError: If a kernel is larger than its map, groups do not divide the maps, or no dense layer ends the chain.

    Source: Zeiler & Fergus (2014), Sec. 3 and Fig. 3.
    """

    has_switches = True
    num_classes: int  # of a chain both numbers are known
    image_size: int

    def __init__(
        self,
        layers: Mapping[str, ConvLayer | DenseLayer],
        *,
        num_classes: int,
        image_size: int,
        contrast: ContrastConfig | None = None,
        init: InitConfig | None = None,
    ) -> None:
        super().__init__(num_classes, image_size)
        contrast, init = contrast or ContrastConfig(), init or InitConfig()
        names = list(layers)
        if not names or not isinstance(layers[names[-1]], DenseLayer):
            raise ValueError("a network ends in a dense layer whose units are the classes, such as fc8")
        self.layers = tuple(names)
        self.spec = dict(layers)
        steps = [(step.layer, step.kind) for step in steps_of(layers)]
        self.sizes = dict(zip(steps, check_chain(layers, image_size), strict=True))

        channels = 3
        flat: int | None = None
        for name, spec in layers.items():
            if isinstance(spec, ConvLayer):
                if flat is not None:
                    raise ValueError(f"{name} filters maps, but a dense layer stands below it")
                module = _conv_layer(spec, channels, contrast)
                channels = spec.maps
            else:
                if flat is None:
                    flat = channels * (self._top_size() ** 2)
                last = name == names[-1]
                units = num_classes if last else spec.units
                if units is None:
                    raise ValueError(f"{name}.units is missing; only the last layer takes the classes' number")
                module = _dense_layer(flat, units, spec.dropout, last)
                flat = units
            self.add_module(name, module)
        self.initialise(init)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of preprocessed images ``(N, 3, H, W)``."""
        self.check_images(images)
        maps = images
        for name in self.layers:
            maps = self._enter(name, maps)
            maps = getattr(self, name)(maps)
        return maps

    def map_module(self, layer: str) -> nn.Module:
        """The pool of a layer that has one, else its ReLU; of the last layer its filtering."""
        self.check_layer(layer)
        parts = dict(self.get_submodule(layer).named_children())
        return next(parts[part] for part in ("pool", "relu", "linear") if part in parts)

    def run_up_to(self, images: Tensor, layers: Sequence[str]) -> None:
        """Run up to the highest of ``layers``, and nothing above it."""
        run_to(self, images, max(layers, key=self.layers.index))

    def receptive_field(self, layer: str, image_size: int | None = None) -> ReceptiveField:
        """The receptive field of one unit of a layer's feature map, which is the pooled one where the layer pools."""
        return field_of(self.steps(layer))

    def field_below_pool(self, layer: str, image_size: int | None = None) -> ReceptiveField:
        """The receptive field of the conv unit that a switch points to; of a dense unit the image."""
        self.check_layer(layer)
        if isinstance(self.spec[layer], DenseLayer):
            return ReceptiveField(self.image_size, 0, 0)
        steps = self.steps(layer)
        return field_of(steps[:-1] if steps[-1].kind == "pool" else steps)

    @property
    def layers_with_maps(self) -> tuple[str, ...]:
        """The conv layers."""
        return tuple(layer for layer, spec in self.spec.items() if isinstance(spec, ConvLayer))

    @property
    def map_sizes(self) -> list[int]:
        """Height of the map above each filtering and pooling, bottom to top."""
        return list(self.sizes.values())

    def summary(self) -> list[tuple[str, ...]]:
        """A row for each layer: name, filters, map sizes, receptive field / stride, parameters."""
        rows: list[tuple[str, ...]] = []
        for name, spec in self.spec.items():
            filters, sizes, fields = str(getattr(spec, "units", "") or self.num_classes), "", ""
            if isinstance(spec, ConvLayer):
                filters = f"{spec.maps} of {spec.kernel_size}x{spec.kernel_size} / {spec.stride}"
                unit, pooled = self.field_below_pool(name), self.receptive_field(name)
                sizes, fields = str(self.sizes[name, "conv"]), f"{unit.size} / {unit.stride}"
                if spec.pool is not None:
                    sizes += f" -> {self.sizes[name, 'pool']}"
                    fields += f", pooled {pooled.size} / {pooled.stride}"
            rows.append((name, filters, sizes, fields, f"{count_parameters(getattr(self, name)):,}"))
        return rows

    def steps(self, layer: str) -> list[Step]:
        """The filterings and poolings up to a layer's feature map; a dense layer sees whole maps."""
        self.check_layer(layer)
        below = self.layers[: self.layers.index(layer) + 1]
        steps = [step for step in steps_of(self.spec) if step.layer in below]
        if isinstance(self.spec[layer], DenseLayer):
            steps.append(Step(layer, "conv", self._top_size(), 1))
        return steps

    def initialise(self, init: InitConfig) -> None:
        """Draw all weights anew, from torch's generator; biases become 0.

        Source: Zeiler & Fergus (2014), Sec. 3: weights "10^-2" (read as N(0, 0.01^2)), biases 0.
        At the small fan-in of a small network 0.01 vanishes: He et al. (2015), N(0, 2 / fan in).
        """
        weighted = [module for module in self.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        for number, module in enumerate(weighted):
            fan_in = module.weight[0].numel()
            std = init.std if init.scheme == "normal" else math.sqrt(2.0 / fan_in)
            nn.init.normal_(module.weight, 0.0, std * (init.first if number == 0 else 1.0))
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def trace(self, images: Tensor, top: str | None = None) -> Trace:
        """Run the images ``(N, 3, H, W)`` up to the layer ``top``; record feature maps, switches and logits."""
        self.check_images(images)
        top = self.layers[-1] if top is None else top
        trace = Trace(images)
        maps = images
        for name in self.layers:
            maps = self._enter(name, maps)
            for part, module in getattr(self, name).named_children():
                if part == "pool":
                    trace.widths[name] = maps.shape[3]
                    maps, trace.switches[name] = F.max_pool2d(
                        maps, module.kernel_size, module.stride, ceil_mode=module.ceil_mode, return_indices=True
                    )
                else:
                    maps = module(maps)
                if part in ("relu", "pool", "linear"):
                    trace.maps[name] = maps
            if name == top:
                break
        if top == self.layers[-1]:
            trace.logits = maps
        return trace

    def _enter(self, name: str, maps: Tensor) -> Tensor:
        return maps.flatten(1) if isinstance(self.spec[name], DenseLayer) and maps.ndim > 2 else maps

    def check_images(self, images: Tensor) -> None:
        """Refuse images of another shape than the chain's."""
        expected = (3, self.image_size, self.image_size)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"images must be (N, {', '.join(map(str, expected))}), but they are {tuple(images.shape)}")

    def _top_size(self) -> int:
        return list(self.sizes.values())[-1] if self.sizes else self.image_size


def _conv_layer(spec: ConvLayer, channels: int, contrast: ContrastConfig) -> nn.Sequential:
    layer = nn.Sequential()
    conv = nn.Conv2d(channels, spec.maps, spec.kernel_size, spec.stride, spec.padding, groups=spec.groups)
    layer.add_module("conv", conv)
    layer.add_module("relu", nn.ReLU())
    norm = ContrastNorm(contrast.size, contrast.alpha, contrast.beta, contrast.k)
    if spec.norm == "before_pool":
        layer.add_module("norm", norm)
    if spec.pool is not None:
        layer.add_module("pool", nn.MaxPool2d(spec.pool.kernel_size, spec.pool.stride, ceil_mode=spec.pool.ceil_mode))
    if spec.norm == "after_pool":
        layer.add_module("norm", norm)
    return layer


def _dense_layer(inputs: int, units: int, dropout: float, last: bool) -> nn.Sequential:
    layer = nn.Sequential()
    layer.add_module("linear", nn.Linear(inputs, units))
    if not last:
        layer.add_module("relu", nn.ReLU())
        layer.add_module("dropout", nn.Dropout(dropout))
    return layer
