"""The rule by which a layer's activations go down with ``auto``: what lies between them and the image decides.

The deconvnet's picture of an image comes from its switches, the places of the maxima. Where a strided convolution or an
average pool lies above the pools, or there are none, it draws about the same for every image, and guided
backpropagation is taken, whose picture comes from the ReLUs too.

Sources: Zeiler & Fergus (2014), Sec. 2.1; Springenberg et al. (2015), "Striving for simplicity", Sec. 4; Nie et al.
(2018), "A theoretical explanation for perplexing behaviors of backpropagation-based visualizations".
"""

import weakref
from typing import Final, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from zfscope.deconvnet.chain import Unpooling
from zfscope.deconvnet.rules import Rule
from zfscope.networks.chain import ConvNet
from zfscope.networks.network import Network, evaluating, run_to, uncompiled
from zfscope.networks.spec import ConvLayer

Choice = Literal["auto", "deconvnet", "guided", "gradient"]

_MAX_POOLS = ("MaxPool2DWithIndices", "MaxPool2D", "MkldnnMaxPool2D", "AdaptiveMaxPool2D", "FractionalMaxPool2D")
_AVERAGES = ("AvgPool2D", "AdaptiveAvgPool2D", "MkldnnAdaptiveAvgPool2D", "Mean")
_BELOW: Final = "below"  # no max pool between the layer and the image
_LayerRule = Literal["deconvnet", "guided", "below"]

# What was found of a network's layers.
_found: weakref.WeakKeyDictionary[Network, dict[str, _LayerRule]] = weakref.WeakKeyDictionary()


def rule_for(network: Network, layer: str, images: Tensor, rule: Choice = "auto", unpooling: Unpooling = "sum") -> Rule:
    """The rule for a layer; ``auto`` is ``deconvnet`` or ``guided``, any other ``rule`` is itself.

    ``deconvnet`` if a max pool lies on the way down with no strided convolution and no average pool between it and the
    layer, else ``guided``; layers below all max pools take the rule of those right above the first. ``images`` are
    network inputs ``(N, C, H, W)``, of which one runs once for each layer. An ``unpooling`` of ``overwrite`` is one of
    the deconvnet.
    """
    check_choice(rule)
    if rule != "auto":
        return rule
    if unpooling != "sum":
        return "deconvnet"
    found = _look(network, layer, images)
    if found == _BELOW:
        return "deconvnet" if _has_max_pool(network, images) else "guided"
    return found


def told(network: Network, layer: str, images: Tensor, rule: Choice = "auto", unpooling: Unpooling = "sum") -> str:
    """What a title says of the rule that a layer is drawn by: nothing of the deconvnet."""
    own = rule_for(network, layer, images, rule, unpooling)
    return "" if own == "deconvnet" else f", rule {own}"


def check_choice(rule: str) -> None:
    """Refuse a rule that does not exist."""
    if rule not in get_args(Choice):
        raise ValueError(f"no rule {rule!r}; the rules are {', '.join(get_args(Choice))}")


def _look(network: Network, layer: str, images: Tensor) -> _LayerRule:
    if isinstance(network, ConvNet):
        return _of_chain(network, layer)
    known = _found.setdefault(network, {})
    if layer not in known:
        known[layer] = _of_graph(*_graph(network, layer, images[:1]))
    return known[layer]


def _of_chain(network: ConvNet, layer: str) -> _LayerRule:
    reduced = False
    for name in reversed(network.layers[: network.layers.index(layer) + 1]):
        spec = network.spec[name]
        if not isinstance(spec, ConvLayer):
            continue
        if spec.pool is not None:
            return "guided" if reduced else "deconvnet"
        reduced = reduced or spec.stride > 1
    return _BELOW


def _has_max_pool(network: Network, images: Tensor) -> bool:
    """Whether there is a max pool anywhere between the image and what a network gives."""
    if isinstance(network, ConvNet):
        return any(isinstance(spec, ConvLayer) and spec.pool is not None for spec in network.spec.values())
    known = _found.setdefault(network, {})
    if "" not in known:
        try:
            known[""] = _of_graph(*_graph(network, None, images[:1]))
        except Exception:  # foreign modules above the layer may raise anything where gradients are asked for
            known[""] = _BELOW
    return known[""] != _BELOW


def _graph(network: Network, layer: str | None, images: Tensor) -> list[Node | None]:
    """The last operations that made a layer's output, or the network's; without those that are not of the image."""
    with torch.inference_mode(False), torch.enable_grad(), evaluating(network), uncompiled():
        leaf = network.as_input(images.clone() if images.is_inference() else images.detach()).requires_grad_()
        output = network(leaf) if layer is None else run_to(network, leaf, layer)
    return [part.grad_fn for part in tree_leaves(output) if isinstance(part, Tensor)]


def _of_graph(*nodes: Node | None) -> _LayerRule:
    """Walks down: first without passing what reduces maps but a max pool, then everywhere."""
    waiting, seen = list(nodes), set[Node]()
    reducing: list[Node] = []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        kind = _kind(node)
        if kind in _MAX_POOLS:
            return "deconvnet"
        if _reduces(node, kind):
            reducing.append(node)
        else:
            waiting += [below for below, _ in node.next_functions]
    while reducing:
        node = reducing.pop()
        if _kind(node) in _MAX_POOLS:
            return "guided"
        below = [below for below, _ in node.next_functions if below is not None and below not in seen]
        seen.update(below)
        reducing += below
    return _BELOW


def _kind(node: Node) -> str:
    return node.name().removeprefix("torch::autograd::").partition("Backward")[0]


def _reduces(node: Node, kind: str) -> bool:
    if kind in ("Convolution", "ConvolutionOverrideable", "SlowConv2D", "CudnnConvolution"):
        return any(stride > 1 for stride in getattr(node, "_saved_stride", ()))
    return kind in _AVERAGES
