"""Convnets as chains of named layers, and the trace that one forward pass leaves.

A layer is conv -> ReLU -> [max pool] -> [contrast norm]; AlexNet's norm stands before its pool.
Source: Zeiler & Fergus (2014), Fig. 3; paddings follow from its map sizes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from zfscope.config import ContrastConfig, ConvLayer, DenseLayer, InitConfig, ModelConfig, PoolConfig, check, nearest
from zfscope.geometry import Step, map_sizes
from zfscope.layers import ContrastNorm, conv_layers
from zfscope.preprocessing import Preprocessing


@dataclass
class Trace:
    """What one forward pass leaves behind for looking.

    Attributes:
        images: The network inputs, ``(N, 3, H, W)``.
        maps: Feature maps by layer: after the pool where there is one, else after the ReLU
            ``(N, C, h, w)``; fc6, fc7 after their ReLU ``(N, units)``; fc8: the logits.
        switches: For a layer that pools, where each maximum was: the flat index
            ``row * W + column`` in the map below the pool, ``(N, C, h, w)``.
        logits: ``(N, num_classes)``.
    """

    images: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)
    switches: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


class Network(nn.Module):
    """A classifier with named layers that tools can look into.

    Attributes:
        layers: The names, in order.
        classes: The classes' names, if known.
        preprocessing: How its images are prepared, if known.
        num_classes: Number of classes; None if that is not known.
        image_size: Height and width of the input, in pixels; None if that is not known.
    """

    layers: tuple[str, ...]

    def __init__(self, num_classes: int | None = None, image_size: int | None = None) -> None:
        super().__init__()
        if any(number is not None and number < 1 for number in (num_classes, image_size)):
            raise ValueError(f"num_classes and image_size must be 1 or more, but are {num_classes} and {image_size}")
        self.num_classes = num_classes
        self.image_size = image_size
        self.classes: tuple[str, ...] | None = None
        self.preprocessing: Preprocessing | None = None

    def trace(self, images: Tensor) -> Trace:
        """Run the images once and keep what looking needs."""
        raise NotImplementedError

    def map_module(self, layer: str) -> nn.Module:
        """The submodule whose output is the layer's feature map; ``forward`` calls it once.

        Args:
            layer: A name from ``layers``.

        Raises:
            ValueError: If there is no such layer.
        """
        raise NotImplementedError

    def features(self, images: Tensor, layer: str) -> Tensor:
        """The feature maps of one layer, as in ``Trace.maps``.

        Args:
            images: Preprocessed images, ``(N, 3, H, W)``.
            layer: A name from ``layers``.

        Raises:
            ValueError: If there is no such layer.
        """
        self.check_layer(layer)
        return self.trace(images).maps[layer]

    def preprocess(self, image: Image.Image | np.ndarray | Tensor) -> Tensor:
        """The input ``(3, crop, crop)`` for one image: PIL, uint8 array (H, W, 3) or uint8 tensor (3, H, W)."""
        return self._preprocessing()(image)

    def unpreprocess(self, inputs: Tensor) -> Tensor:
        """Inputs ``(…, 3, crop, crop)`` back as images, float 0-255."""
        return self._preprocessing().unpreprocess(inputs)

    @property
    def classes_layer(self) -> str:
        """How the names of the parameters of the classes' layer begin: the ones that another data set has anew."""
        return f"{self.layers[-1]}."

    def check_layer(self, layer: str) -> None:
        """Refuse a name that is no layer, with the list of those that are."""
        if layer not in self.layers:
            raise ValueError(f"no layer {layer!r}; the layers are {', '.join(self.layers)}")

    def _preprocessing(self) -> Preprocessing:
        if self.preprocessing is None:
            raise ValueError("this network has no preprocessing yet; load_network sets it from a checkpoint")
        return self.preprocessing


class ConvNet(Network):
    """A chain of named layers, each an ``nn.Sequential`` of conv, relu, pool and norm by name.

    Args:
        layers: Specification of each layer by name, bottom to top; the last is the classes' layer.
        num_classes: Units of the last layer.
        image_size: Height and width of the input, in pixels; the first dense layer is sized by it.
        contrast: Constants of the contrast normalisation.
        init: How the weights start.

    Raises:
        ValueError: If a kernel is larger than its map (with the sizes on the way up), groups do not
            divide the maps, or the chain has no dense layer at its end.

    Source: Zeiler & Fergus (2014), Sec. 3 and Fig. 3.
    """

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
        self.sizes = dict(zip(self._step_names(), map_sizes(list(self.all_steps()), image_size), strict=True))

        channels = 3
        flat: int | None = None
        for name, spec in layers.items():
            if isinstance(spec, ConvLayer):
                if flat is not None:
                    raise ValueError(f"{name} filters maps, but a dense layer stands below it")
                module = _conv_layer(name, spec, channels, contrast)
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

    def features(self, images: Tensor, layer: str) -> Tensor:
        """The feature maps of one layer, as in ``Trace.maps``; nothing above it is computed."""
        self.check_layer(layer)
        return self.trace(images, top=layer).maps[layer]

    def map_module(self, layer: str) -> nn.Module:
        """The pool of a layer that has one, else its ReLU; of the last layer its filtering."""
        self.check_layer(layer)
        parts = dict(getattr(self, layer).named_children())
        return next(parts[part] for part in ("pool", "relu", "linear") if part in parts)

    def steps(self, layer: str) -> list[Step]:
        """The filterings and poolings up to a layer's feature map; a dense layer sees whole maps.

        Raises:
            ValueError: If there is no such layer.
        """
        self.check_layer(layer)
        steps = []
        for step in self.all_steps():
            if self.layers.index(step.layer) > self.layers.index(layer):
                break
            steps.append(step)
        if isinstance(self.spec[layer], DenseLayer):
            steps.append(Step(layer, "conv", self._top_size(), 1))
        return steps

    def all_steps(self) -> Iterator[Step]:
        """The filterings and poolings of the whole chain, from the pixels up."""
        for name, spec in self.spec.items():
            if isinstance(spec, ConvLayer):
                yield Step(name, "conv", spec.kernel_size, spec.stride, spec.padding)
                if spec.pool is not None:
                    yield Step(name, "pool", spec.pool.kernel_size, spec.pool.stride, 0, spec.pool.ceil_mode)

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
            nn.init.zeros_(module.bias)

    def trace(self, images: Tensor, top: str | None = None) -> Trace:
        """Run the images once and keep feature maps, switches and logits (see ``Trace``).

        Args:
            images: Preprocessed images, ``(N, 3, H, W)``.
            top: The last layer that is computed; default: all of them.
        """
        self.check_images(images)
        top = self.layers[-1] if top is None else top
        trace = Trace(images)
        maps = images
        for name in self.layers:
            maps = self._enter(name, maps)
            for part, module in getattr(self, name).named_children():
                if part == "pool":
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

    def _step_names(self) -> list[tuple[str, str]]:
        return [(step.layer, step.kind) for step in self.all_steps()]

    def _top_size(self) -> int:
        return list(self.sizes.values())[-1] if self.sizes else self.image_size


class HookedNetwork(Network):
    """Any module that gives logits; its layers are some of its submodules, traced by hooks.

    The module itself stays as it is: it is only called, and hooks are on it only while ``trace`` runs.

    Args:
        body: Takes images ``(N, 3, H, W)``.
        layers: Paths of submodules to look into; default: up to five of the conv layers, spread evenly.
        num_classes: Number of classes, if known.
        image_size: Height and width of the input in pixels, if known.

    Raises:
        ValueError: If there is no such submodule, or none is named and there are no conv layers.
    """

    def __init__(
        self,
        body: nn.Module,
        layers: Sequence[str] | None = None,
        *,
        num_classes: int | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__(num_classes, image_size)
        self.body = body
        self.training = body.training
        if layers is None:
            layers = _spread(_conv_paths(body), 5)
            if not layers:
                raise ValueError(f"{self._title()} has no conv layers; name the submodules to look into: layers=[…]")
        paths = _paths(body)
        for layer in layers:
            if layer not in paths:
                raise ValueError(f"{self._title()} has no submodule {layer!r}; {nearest(layer, list(paths))}")
        self.layers = tuple(layers)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of preprocessed images ``(N, 3, H, W)``."""
        return self.body(images)

    def map_module(self, layer: str) -> nn.Module:
        """The submodule of that name."""
        self.check_layer(layer)
        return _paths(self.body)[layer]

    def trace(self, images: Tensor) -> Trace:
        """Run the images once and keep the outputs of the named submodules; switches stay empty.

        Raises:
            ValueError: If a layer's submodule runs several times in one pass: which of its maps, nobody said.
        """
        trace = Trace(images)
        paths = _paths(self.body)

        def keep(layer: str, output: Any) -> Any:
            if layer in trace.maps:
                raise ValueError(f"layer {layer!r} runs more than once in one pass; name a submodule that runs once")
            trace.maps[layer] = output
            # The model goes on with a copy: many overwrite in place (ReLU, += shortcut) what was kept here.
            return output.clone() if isinstance(output, Tensor) else output

        with ExitStack() as stack:
            stack.enter_context(uncompiled())
            for layer in self.layers:
                hook = paths[layer].register_forward_hook(
                    lambda _module, _inputs, output, layer=layer: keep(layer, output)
                )
                stack.callback(hook.remove)
            trace.logits = self(images)
        return trace

    def _title(self) -> str:
        return type(self.body).__name__


class TimmNetwork(HookedNetwork):
    """A timm model by name; its layers are the stages that timm names, traced by hooks.

    Args:
        name: A name that ``timm.list_models()`` knows.
        num_classes: Number of classes.
        image_size: Height and width of the input, in pixels.
        layers: Names of submodules to look into; default: timm's stages and the classifier.

    Raises:
        ValueError: If timm has no such model, or the model no such submodule.
    """

    def __init__(self, name: str, num_classes: int, image_size: int, layers: tuple[str, ...] | None = None) -> None:
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}; {nearest(name, timm.list_models())}")
        self._name = name
        pretrained = timm.get_pretrained_cfg(name)
        sized = pretrained is not None and pretrained.fixed_input_size
        body = timm.create_model(name, num_classes=num_classes, **({"img_size": image_size} if sized else {}))
        if layers is None:
            stages = [str(info["module"]) for info in getattr(body, "feature_info", [])]
            paths = _paths(body)
            layers = tuple(path for path in [*stages, _classifier(body)] if path in paths)
        super().__init__(body, layers, num_classes=num_classes, image_size=image_size)

    @property
    def classes_layer(self) -> str:
        """How the names of the parameters of timm's classifier begin."""
        return f"body.{_classifier(self.body)}."

    def _title(self) -> str:
        return self._name


def network_of(module: nn.Module, layers: Sequence[str] | None = None) -> Network:
    """The network to look into: a Network itself, the ``network`` of a LightningModule, or any module wrapped as one.

    Args:
        module: Whatever takes images ``(N, 3, H, W)``; it stays as it is.
        layers: Names of the layers that the caller will look into. For a Network they are only checked.

    Raises:
        ValueError: If there is no such layer.
    """
    module = getattr(module, "_orig_mod", module)
    inner = getattr(module, "network", None)
    inner = getattr(inner, "_orig_mod", inner)
    network = next((each for each in (module, inner) if isinstance(each, Network)), None)
    if network is None:
        return HookedNetwork(module, layers)
    for layer in layers or ():
        network.check_layer(layer)
    return network


def run_to(network: Network, images: Tensor, layer: str) -> Any:
    """The output of a layer's module as ``forward`` makes it, and nothing above it.

    Where a module runs several times in a pass, the first time counts.

    Args:
        network: Any network.
        images: Network inputs, ``(N, 3, H, W)``.
        layer: A name from its ``layers``.

    Raises:
        ValueError: If there is no such layer, or its module never runs.
    """
    reached: list[Any] = []

    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        reached.append(output)
        raise _Reached

    hook = network.map_module(layer).register_forward_hook(stop)
    try:
        with uncompiled():
            network.forward(images)
    except _Reached:
        return reached[0]
    finally:
        hook.remove()
    raise ValueError(f"layer {layer!r} does not run when the network does; choose another layer")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards, also after an exception, each submodule is again in the mode that it had."""
    modes = [(each, each.training) for each in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for each, training in modes:
            each.training = training


_eager, _eager_holders = ExitStack(), 0


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled code as ordinary code inside: it would not see hooks and rules that came after it.

    Several may hold this at a time and let go in any order, as callbacks do.
    """
    global _eager_holders
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and loading the compiler takes seconds
        yield
        return
    if _eager_holders == 0:
        _eager.enter_context(torch.compiler.set_stance("force_eager"))
    _eager_holders += 1
    try:
        yield
    finally:
        _eager_holders -= 1
        if _eager_holders == 0:
            _eager.close()


def build_network(config: ModelConfig | Mapping[str, Any], num_classes: int, image_size: int) -> Network:
    """Build the network that ``conf/model`` describes, with fresh weights from torch's generator.

    Args:
        config: The ``model`` group: as composed by Hydra, as a dict, or checked.
        num_classes: Number of classes.
        image_size: Height and width of the network's input, in pixels.

    Returns:
        A network in training mode.

    Raises:
        ValueError: For an unknown key, an impossible value or a kernel larger than its map.
    """
    if not isinstance(config, ModelConfig):
        config = check(ModelConfig, config)
    if config.source == "timm":
        return TimmNetwork(config.name, num_classes, image_size, config.layers)
    chain = torchvision_chain(config.name) if config.source == "torchvision" else config.chain
    return ConvNet(chain, num_classes=num_classes, image_size=image_size, contrast=config.contrast, init=config.init)


def torchvision_chain(name: str) -> dict[str, ConvLayer | DenseLayer]:
    """Torchvision's AlexNet or a VGG, read off its modules as a chain of named layers.

    VGG's layers are ``conv1_1``, ``conv1_2``, … by block. torchvision's adaptive average pool is the
    identity at 224 px and is left out; its dropout stands before a layer, ours after the one below.

    Args:
        name: ``alexnet``, ``vgg11``, ``vgg13``, ``vgg16`` or ``vgg19``.

    Raises:
        ValueError: For any other name.
    """
    names = ["alexnet", "vgg11", "vgg13", "vgg16", "vgg19"]
    if name not in names:
        raise ValueError(f"torchvision's {name!r} is no chain of conv, ReLU and pool; those are {', '.join(names)}")
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    chain: dict[str, ConvLayer | DenseLayer] = {}
    block, number = 1, 0
    for module in model.features:
        if isinstance(module, nn.Conv2d):
            number += 1
            layer = f"conv{number}" if name == "alexnet" else f"conv{block}_{number}"
            chain[layer] = ConvLayer(
                maps=module.out_channels,
                kernel_size=module.kernel_size[0],
                stride=module.stride[0],
                padding=module.padding[0],
                groups=module.groups,
            )
        elif isinstance(module, nn.MaxPool2d):
            layer = list(chain)[-1]
            pool = PoolConfig(kernel_size=module.kernel_size, stride=module.stride, ceil_mode=module.ceil_mode)
            chain[layer] = chain[layer].model_copy(update={"pool": pool})
            if name != "alexnet":
                block, number = block + 1, 0
    chain["fc6"] = DenseLayer(units=4096, dropout=0.5)
    chain["fc7"] = DenseLayer(units=4096, dropout=0.5)
    chain["fc8"] = DenseLayer()
    return chain


def _conv_layer(name: str, spec: ConvLayer, channels: int, contrast: ContrastConfig) -> nn.Sequential:
    if channels % spec.groups or spec.maps % spec.groups:
        raise ValueError(
            f"{name}.groups={spec.groups} must divide the {channels} maps below and the {spec.maps} maps of {name}"
        )
    layer = nn.Sequential()
    layer.add_module(
        "conv", nn.Conv2d(channels, spec.maps, spec.kernel_size, spec.stride, spec.padding, groups=spec.groups)
    )
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


class _Reached(BaseException):
    """A layer was computed: what ends the pass; no handler of ordinary errors may swallow it."""


def _paths(body: nn.Module) -> dict[str, nn.Module]:
    """Submodules by path, without the word that torch.compile puts into it."""
    paths = {
        ".".join(part for part in path.split(".") if part != "_orig_mod"): each for path, each in body.named_modules()
    }
    return {path: each for path, each in paths.items() if path}


def _conv_paths(body: nn.Module) -> list[str]:
    convs = {id(each) for each in conv_layers(body).values()}
    return [path for path, each in _paths(body).items() if id(each) in convs]


def _spread(names: Sequence[str], count: int) -> tuple[str, ...]:
    """At most ``count`` of the names, the first and the last among them."""
    if len(names) <= count:
        return tuple(names)
    return tuple(names[round(number * (len(names) - 1) / (count - 1))] for number in range(count))


def _classifier(body: nn.Module) -> str:
    """Path of a timm model's classifier."""
    classifier = body.get_classifier()
    path = next((path for path, each in _paths(body).items() if each is classifier), None)
    if path is None:
        raise ValueError(f"{type(body).__name__} has no single classifier; choose another timm model")
    return path
