"""Any module, or a model of timm, as a network with named layers: traced by hooks."""

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from zfscope.networks.fields import probe_field
from zfscope.networks.geometry import ReceptiveField
from zfscope.networks.layers import conv_layers
from zfscope.networks.network import Network, Trace, count_parameters, watching
from zfscope.schema import about, nearest


class HookedNetwork(Network):
    """Any module that gives logits; its layers are some of its submodules, traced by hooks.

    The module, ``body``, stays as it is: it is only called, and hooks are on it only while ``trace`` runs. It gets a
    copy of the images, so that one that writes into its input changes nothing of the caller's. ``layers`` are paths of
    submodules; default: up to five of its stages (see ``stages``), else of its conv layers, spread evenly; of a module
    without either its dense layers.
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
        paths = _paths(body)
        if layers is None:
            blocks = [block for block in stages(body) if not _has_channels_last(body, paths, block)]
            names = blocks or _of_type(paths, nn.Conv2d) or _of_type(paths, nn.Linear)
            layers = [names[round(number * (len(names) - 1) / 4)] for number in range(5)] if len(names) > 5 else names
            if not layers:
                raise ValueError(f"{self._title()} has no conv layers; name the submodules to look into: layers=[…]")
        for layer in layers:
            if layer not in paths:
                raise ValueError(f"{self._title()} has no submodule {layer!r}; {nearest(layer, list(paths))}")
        self.layers = tuple(layers)
        self.channels_last = frozenset(layer for layer in layers if _has_channels_last(body, paths, layer))
        self._fields: dict[tuple[str, tuple[int, int, int]], ReceptiveField] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of preprocessed images ``(N, 3, H, W)``."""
        return self.body(images.clone())

    def map_module(self, layer: str) -> nn.Module:
        """The submodule of that name."""
        self.check_layer(layer)
        return _paths(self.body)[layer]

    def trace(self, images: Tensor, top: str | None = None) -> Trace:
        """Run the images once, through the whole network, and record the outputs of the layers; no switches."""
        trace, paths = Trace(images), _paths(self.body)

        def record(layer: str, output: Any) -> Any:
            if layer in trace.maps:
                raise ValueError(f"layer {layer!r} runs more than once in one pass; name a submodule that runs once")
            trace.maps[layer] = output
            # Many models overwrite activations in place (ReLU, += shortcut), so they go on with a copy.
            return output.clone() if isinstance(output, Tensor) else output

        with watching({layer: paths[layer] for layer in self.layers}, record):
            trace.logits = self(images)
        return trace

    def receptive_field(self, layer: str, image_size: int | tuple[int, int, int] | None = None) -> ReceptiveField:
        """The receptive field of one unit of a layer, measured once for each size of image.

        ``image_size`` is the height and width of images in colour, or the shape ``(C, H, W)`` of others.
        """
        image_size = image_size or self.image_size
        if image_size is None:
            raise ValueError("the receptive field depends on the size of the image: give image_size, in pixels")
        shape = (3, image_size, image_size) if isinstance(image_size, int) else image_size
        if (layer, shape) not in self._fields:
            self._fields[layer, shape] = probe_field(self, layer, shape)
        return self._fields[layer, shape]

    @property
    def conv_modules(self) -> dict[str, nn.Conv2d]:
        """The conv modules by their paths in the module."""
        return conv_layers(self.body)

    def summary(self) -> list[tuple[str, ...]]:
        """A row for each layer: name and parameters."""
        modules = ((layer, self.map_module(layer)) for layer in self.layers)
        return [(layer, "", "", "", f"{count_parameters(module):,}") for layer, module in modules]

    def _title(self) -> str:
        return type(self.body).__name__


class TimmNetwork(HookedNetwork):
    """A model that ``timm.list_models()`` names; its layers are timm's stages and the classifier, traced by hooks.

    With 0 classes it has no head: the layer in the classifier's place gives the features that a head would get.
    ``body`` is timm's model itself, where it is made already.
    """

    may_lack_head = True

    def __init__(
        self,
        name: str,
        num_classes: int,
        image_size: int,
        layers: tuple[str, ...] | None = None,
        body: nn.Module | None = None,
    ) -> None:
        if not timm.is_model(name):
            raise ValueError(f"model.name={name}: timm has no model {name!r}; {nearest(name, timm.list_models())}")
        self._name = name
        body = _timm_model(name, num_classes, image_size) if body is None else body
        if layers is None:
            stages = [str(info["module"]) for info in getattr(body, "feature_info", [])]
            paths = _paths(body)
            classifiers = _classifiers(body)
            if num_classes and not classifiers:
                raise ValueError(f"{type(body).__name__} has no classifier that timm names; choose another timm model")
            names = dict.fromkeys([*stages, *classifiers])  # crossvit names each of its stages twice
            layers = tuple(path for path in names if path in paths) or None
        with about("model.layers", f"[{','.join(layers or ())}]"):
            super().__init__(body, layers, num_classes=num_classes, image_size=image_size)

    @property
    def classifier_prefixes(self) -> tuple[str, ...]:
        """What the parameters of timm's classifier are called; empty where the network has no head."""
        return tuple(f"body.{path}." for path in _classifiers(self.body)) if self.num_classes else ()

    @property
    def layers_with_maps(self) -> tuple[str, ...]:
        """The layers that have feature maps; of a network without a head not what stands in the classifier's place."""
        layers = super().layers_with_maps
        return layers if self.num_classes else tuple(layer for layer in layers if layer not in _classifiers(self.body))

    def _title(self) -> str:
        return self._name


class TorchvisionNetwork(HookedNetwork):
    """One of torchvision's classifiers that is no chain of layers, such as ResNet or SqueezeNet, traced by hooks."""

    def __init__(self, name: str, num_classes: int, image_size: int, layers: tuple[str, ...] | None = None) -> None:
        if name not in torchvision_names():
            raise ValueError(
                f"model.name={name}: torchvision has no classifier {name!r}; {nearest(name, torchvision_names())}"
            )
        sized = {"vit": {"image_size": image_size}, "maxvit": {"input_size": (image_size, image_size)}}
        own = sized.get(name.partition("_")[0], {})
        make = partial(torchvision.models.get_model, name, weights=None, num_classes=num_classes, **own)
        self._name, body = name, _tried(make, name, image_size)
        with about("model.layers", f"[{','.join(layers or ())}]"):
            super().__init__(body, layers, num_classes=num_classes, image_size=image_size)

    @property
    def classifier_prefixes(self) -> tuple[str, ...]:
        """What the parameters of the last layer, which gives the classes, are called."""
        *_, path = (path for path, module in _paths(self.body).items() if isinstance(module, nn.Conv2d | nn.Linear))
        return (f"body.{path}.",)

    def _title(self) -> str:
        return self._name


@cache
def torchvision_names() -> list[str]:
    """The classifiers of torchvision; GoogLeNet, Inception and RegNet are left to timm."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if not name.startswith(("googlenet", "inception", "regnet"))]


def as_network(module: nn.Module, layers: Sequence[str] | None = None) -> Network:
    """A module as a Network: a Network itself, the ``network`` of a LightningModule, or any module wrapped as one.

    The module, which takes images ``(N, 3, H, W)``, stays as it is. ``layers`` are the submodules to wrap as layers;
    of a Network they are only checked. A wrapped module that is kept measures its receptive fields only once.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"a network must be a torch.nn.Module, but it is a {type(module).__name__}")
    module = getattr(module, "_orig_mod", module)
    inner = getattr(module, "network", None)
    inner = getattr(inner, "_orig_mod", inner)
    network = next((candidate for candidate in (module, inner) if isinstance(candidate, Network)), None)
    if network is None:
        return HookedNetwork(module, layers)
    for layer in layers or ():
        network.check_layer(layer)
    return network


def stages(body: nn.Module) -> list[str]:
    """The stages of a deep network: numbered siblings (``layer1`` … ``layer4``, ``stages.0`` …) that hold its convs.

    Each has two conv layers or more, and together they hold at least half of all. The outermost such siblings count;
    empty where there are none, as in a plain chain of layers.
    """
    paths = _paths(body)
    convs = _of_type(paths, nn.Conv2d)
    siblings: dict[str, list[str]] = {}
    for path in paths:
        if (numbered := re.fullmatch(r"(.*?)\d+", path)) and sum(conv.startswith(f"{path}.") for conv in convs) > 1:
            siblings.setdefault(numbered[1], []).append(path)
    for blocks in sorted(siblings.values(), key=lambda blocks: blocks[0].count(".")):
        inside = sum(conv.startswith(tuple(f"{block}." for block in blocks)) for conv in convs)
        if len(blocks) > 1 and 2 * inside >= len(convs):
            return blocks
    return []


def _timm_model(name: str, num_classes: int, image_size: int) -> nn.Module:
    pretrained = timm.get_pretrained_cfg(name)
    sized = pretrained is not None and pretrained.fixed_input_size
    make = partial(timm.create_model, name, num_classes=num_classes, **({"img_size": image_size} if sized else {}))
    return _tried(make, name, image_size, pretrained.input_size[-1] if pretrained is not None else None)


def _tried(make: Callable[[], nn.Module], name: str, image_size: int, own_size: int | None = None) -> nn.Module:
    """What ``make`` builds, tried with a blank image: which sizes a model takes is known only to its code.

    Raises:
        ValueError: If it takes no images of this size.
    """
    try:
        body = make()
        with torch.no_grad():
            body.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:
        others = own_size not in (None, image_size)
        way_out = f"; its own size is data.crop={own_size}, with data.resize as large or larger" if others else ""
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{name} takes no images of {image_size}x{image_size} pixels ({cause}){way_out}") from error
    return body.train()


def _of_type(paths: dict[str, nn.Module], kind: type[nn.Module]) -> list[str]:
    return [path for path, module in paths.items() if isinstance(module, kind)]


def _has_channels_last(body: nn.Module, paths: dict[str, nn.Module], layer: str) -> bool:
    """Whether timm says of the model that a submodule belongs to that its maps are ``(N, h, w, C)``."""
    parts = layer.split(".")
    owners = [body, *(paths[".".join(parts[:count])] for count in range(1, len(parts)))]
    last = any(getattr(owner, "output_fmt", None) == "NHWC" for owner in owners)
    return last and not isinstance(paths[layer], nn.Conv2d | nn.Linear)


def _paths(body: nn.Module) -> dict[str, nn.Module]:
    """Submodules by path, without the ``_orig_mod`` that torch.compile puts into it."""
    paths = ((path.split("."), module) for path, module in body.named_modules())
    plain = {".".join(part for part in parts if part != "_orig_mod"): module for parts, module in paths}
    return {path: module for path, module in plain.items() if path}


def _classifiers(body: nn.Module) -> tuple[str, ...]:
    """Path of a timm model's classifier; of a distilled one there are two, of an encoder none."""
    classifiers = body.get_classifier() if hasattr(body, "get_classifier") else ()
    classifiers = classifiers if isinstance(classifiers, tuple) else (classifiers,)
    return tuple(path for path, module in _paths(body).items() if any(module is one for one in classifiers))
