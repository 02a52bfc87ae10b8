"""Activations carried down to pixels by autograd, for networks that are no chain of named layers.

The backward pass of a network is its deconvnet but for the ReLU, whose gradient looks at the signal that went up where
the deconvnet rectifies the one that comes down, and the contrast normalisation, which the deconvnet skips. Both are
replaced here while a network runs; filters, pools and sums are what autograd makes of them.
Source: Zeiler & Fergus (2014), Sec. 2.1; Springenberg et al. (2015), "Striving for simplicity", Fig. 1 (guided).
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from zfscope.networks.chain import ConvNet
from zfscope.networks.layers import _ContrastNorm, contrast_norm
from zfscope.networks.network import Network, evaluating, run_to, uncompiled

Rule = Literal["deconvnet", "guided", "gradient"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Backward nodes of operations that are linear in the maps, or choose among them as max pooling does.
_LINEAR = _words("""
    AccumulateGrad CopySlices CopyBackwards Clone Copy Alias ToCopy Contiguous View UnsafeView ReshapeAlias
    Reshape AsStrided Expand Repeat Squeeze Unsqueeze Permute Transpose T Unfold Slice Select Narrow Split
    SplitWithSizes Chunk UnsafeSplit Unbind Cat Stack Index IndexSelect Gather Flip Roll Diagonal ConstantPadNd
    ReflectionPad1D ReflectionPad2D ReplicationPad1D ReplicationPad2D Im2Col Col2Im PixelShuffle PixelUnshuffle
    ChannelShuffle NativeChannelShuffle Add Sub Rsub Neg Mul Div Mm Mv Bmm Addmm Addmv Baddbmm Linear
    Convolution ConvolutionOverrideable CudnnConvolution MkldnnConvolution MiopenConvolution MpsConvolution
    SlowConv2D ThnnConv2D Sum Mean Cumsum NativeBatchNorm CudnnBatchNorm MiopenBatchNorm BatchNormWithUpdate
    MaskedFill Where AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D
    UpsampleNearest2D UpsampleNearestExact2D UpsampleBilinear2D UpsampleBilinear2DAa UpsampleBicubic2D
    UpsampleBicubic2DAa MaxPool2DWithIndices MaxPool3DWithIndices MaxPool2D MkldnnMaxPool2D AdaptiveMaxPool2D
    FractionalMaxPool2D Max Amax
""")

# Of these at most one factor may come from the image; the slots of the factors.
_PRODUCTS = {"Mul": slice(0, 2), "Div": slice(0, 2), "Mm": slice(0, 2), "Mv": slice(0, 2), "Bmm": slice(0, 2)} | {
    name: slice(0, 2) for name in _LINEAR if "Conv" in name or name == "Linear"
}

_PRODUCTS |= {"Addmm": slice(1, 3), "Addmv": slice(1, 3), "Baddbmm": slice(1, 3)}

_PRODUCTS |= {name: slice(0, 3) for name in _LINEAR if "BatchNorm" in name}

# What may be written in place into a part of a tensor: autograd keeps no node of it that could be read.
_INTO_PARTS = _words("add sub mul div neg copy setitem zero fill masked_fill")

# Masks made by hand, as in maps * (maps > 0): without a gradient of their own they leave no trace.
_COMPARISONS = _words("gt lt ge le eq ne greater less greater_equal less_equal not_equal heaviside")

# Layers known to run once in a pass, by network.
_runs_once: weakref.WeakKeyDictionary[Network, set[str]] = weakref.WeakKeyDictionary()


@contextmanager
def backward_rule(rule: Rule) -> Iterator[None]:
    """Have whatever runs inside send its gradients down by a rule; outputs stay the same, to the bit.

    ``deconvnet``: the gradient is rectified at each ReLU, and passes contrast normalisation unchanged.
    ``guided``: it is rectified and stops where the ReLU's input was not above 0 (ReLU6: or not below 6).
    ``gradient``: as autograd has it.

    All forms of ReLU count: modules, functions, methods, in place, reused; ReLU6, ``hardtanh(0, …)``, ``clamp(min=0)``.
    What is not linear and has no rule is refused when it is called. Two things cannot be seen from here:
    autograd functions written in Python, which ``project_backward`` refuses, and masks made from detached maps.

    Args:
        rule: One of the three.

    Raises:
        ValueError: For another rule; inside, under the first two: for another activation (GELU, sigmoid, softmax, …),
            a product of two maps, a normalisation by the maps' own statistics, a scripted module.

    Source: Zeiler & Fergus (2014), Sec. 2.1, rectification and filtering. That the normalisation is
    skipped is our reading.
    """
    _check_rule(rule)
    if rule == "gradient":
        yield
        return

    def refuse_scripted(module: nn.Module, _inputs: Any) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(_refusal(f"the scripted module {_script_name(module)}", rule))

    hook = register_module_forward_pre_hook(refuse_scripted)
    try:
        with uncompiled(), _RuleMode(rule):
            yield
    finally:
        hook.remove()


def project_backward(
    network: Network,
    images: Tensor,
    layer: str,
    maps: Tensor,
    positions: Tensor | None = None,
    *,
    rule: Rule = "deconvnet",
) -> Tensor:
    """Carry one activation of each image down to its pixels by autograd.

    The seed is the activation's own value, all others of the layer are zero. Nothing above the layer is computed, and
    the network is left as it was: mode, gradients, ``requires_grad``, hooks and torch's random numbers.

    Args:
        network: Any network; see ``networks.hooked.as_network``.
        images: Network inputs, ``(N, 3, H, W)``.
        layer: A name from ``network.layers``.
        maps: Which feature map of each image, ``(N,)``.
        positions: Where, ``(row, column)`` in cells of the feature map, ``(N, 2)``; None for each map's strongest
            activation. For layers without places (``(N, C)``): None or zeros.
        rule: See ``backward_rule``.

    Returns:
        Projections ``(N, 3, H, W)``, in the dtype of the images.

    Raises:
        ValueError: If there is no such layer, it has no feature maps or runs more than once, a map or position is
            not in it, or the network holds something that the rule is not defined for.

    Source: Zeiler & Fergus (2014), Sec. 2.1.
    """
    _check_rule(rule)
    network.check_layer(layer)
    maps, positions = _check_places(images, maps, positions)
    if rule != "gradient":
        for path, module in network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise ValueError(_refusal(f"the scripted module {path or _script_name(module)!r}", rule))
    device = images.device
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=_rng_type(device)),
        evaluating(network),
        _frozen(network),
        uncompiled(),
    ):
        # A tensor from inference mode cannot take part in autograd; a leaf must not be written to in place.
        leaf = (images.clone() if images.is_inference() else images.detach()).requires_grad_()
        _check_runs_once(network, leaf, layer)
        with backward_rule(rule):
            output = run_to(network, leaf.clone(), layer)
            activations = _places(output, layer, maps, positions)
            if not output.requires_grad:
                raise ValueError(f"layer {layer!r} is cut off from the image: no gradient comes down from it")
            if rule != "gradient":
                _check_nodes([output.grad_fn], set(), rule)
            seed = torch.zeros_like(output)
            seed[activations] = output.detach()[activations]
            (projections,) = torch.autograd.grad(output, leaf, seed)
    return projections


class _RuleMode(TorchFunctionMode):
    """Gives ReLU and contrast normalisation their rule at each call, and lets only linear operations pass besides."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(_graded([*args, *kwargs.values()]))
        if not inputs or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        plain = name.strip("_")
        high = _rectifies(plain, *args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
        if high is not None:
            maps = kwargs.get("input", args[0] if args else None)
            in_place = _in_place(name) or kwargs.get("inplace", False)
            rest = {key: value for key, value in kwargs.items() if key != "input"}
            return _Rectified.apply(maps, lambda x: func(x, *args[1:], **rest), in_place, self.rule == "guided", high)
        if func is contrast_norm or plain == "local_response_norm":
            return self._normalise(func, *args, **kwargs)
        if plain in _COMPARISONS:
            raise ValueError(_refusal(f"a mask made from the maps ({plain})", self.rule))
        before = {node for each in inputs for node in (each.grad_fn, each._base.grad_fn if each._is_view() else None)}
        factors = sum(1 for each in inputs if not each.is_leaf or not isinstance(each, nn.Parameter))
        output = func(*args, **kwargs)
        after = [each.grad_fn for each in _graded([output, *inputs])]
        _check_nodes([node for node in after if node not in before], before, self.rule, plain, factors)
        return output

    def _normalise(self, func: Callable, maps: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        if self.rule == "deconvnet":
            return _Passed.apply(maps, lambda x: func(x, size, alpha, beta, k))
        return contrast_norm(maps, size, alpha, beta, k)  # torch's in one node, which the check of the graph knows


class _Rectified(torch.autograd.Function):
    """A ReLU, or one that ends at ``high``, whose gradient is rectified on the way down."""

    @staticmethod
    def forward(ctx, maps, relu, in_place, guided, high):
        if in_place:
            ctx.mark_dirty(maps)
        output = relu(maps)
        # A mask rather than the output: what comes next may overwrite that in place.
        ctx.mask = (output > 0) & (output < high) if guided else None
        return maps if in_place else output

    @staticmethod
    @once_differentiable
    def backward(ctx, above):
        below = above.clamp(min=0)
        return below if ctx.mask is None else below * ctx.mask, None, None, None, None


class _Passed(torch.autograd.Function):
    """Any function of the maps whose gradient passes as if it were the identity."""

    @staticmethod
    def forward(ctx, maps, function):
        output = function(maps)
        return output.clone() if output is maps else output

    @staticmethod
    @once_differentiable
    def backward(ctx, above):
        return above, None


def _rectifies(name: str, *args: Any, **kwargs: Any) -> float | None:
    """Where the rectification that a call makes ends (infinity for ReLU); None if it makes none."""
    low, high = {"relu": (0, torch.inf), "relu6": (0, 6)}.get(name, (None, None))
    if name == "hardtanh":
        low, high = [*args, *[-1.0, 1.0][len(args) :]][:2]
        low, high = kwargs.get("min_val", low), kwargs.get("max_val", high)
    elif name in ("clamp", "clip"):
        low, high = [*args, None, None][:2]
        low, high = kwargs.get("min", low), kwargs.get("max", high)
        high = torch.inf if high is None else high
    elif name == "clamp_min":
        low, high = kwargs.get("min", args[0] if args else None), torch.inf
    elif name == "threshold":
        below, value = [*args, None, None][:2]
        below, value = kwargs.get("threshold", below), kwargs.get("value", value)
        low, high = (0, torch.inf) if _number(below) == 0 and _number(value) == 0 else (None, None)
    return float(high) if _number(low) == 0 and _number(high) is not None and high > 0 else None


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _graded(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among values and lists of values that a gradient goes through."""
    for value in values:
        if isinstance(value, Tensor):
            if value.requires_grad:
                yield value
        elif isinstance(value, list | tuple):
            yield from _graded(value)


def _check_nodes(nodes: list[Any], known: set[Any], rule: Rule, name: str | None = None, factors: int = 0) -> None:
    """Walk the graph down from ``nodes`` to those that are known, and refuse what is neither linear nor ours."""
    ours = tuple(function._backward_cls for function in (_Rectified, _Passed, _ContrastNorm))
    waiting, seen = [node for node in nodes if node is not None], set(known)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        below = [edge for edge, _ in node.next_functions]
        if not isinstance(node, ours):
            kind = re.sub(r"Backward\d*$", "", node.name().removeprefix("torch::autograd::"))
            product = kind in _PRODUCTS and sum(edge is not None for edge in _factors(below, kind)) > 1
            if kind == "CopySlices" and name is not None:
                product = name in ("mul", "div") and factors > 1
                kind = kind if name in _INTO_PARTS else name
            if isinstance(node, torch.autograd.function.BackwardCFunction) or kind not in _LINEAR:
                raise ValueError(_refusal(name or kind, rule))
            if product or (kind == "Div" and _factors(below[1:], kind)):
                raise ValueError(_refusal(f"{name or kind} of two things that come from the image", rule))
            if getattr(node, "_saved_training", False):
                raise ValueError(_refusal(f"{name or kind} by the batch's own statistics", rule))
        waiting += [edge for edge in below if edge is not None]


def _factors(below: list[Any], kind: str) -> list[Any]:
    """The factors of a product that no parameter is: those are leaves that gather gradients."""
    return [edge for edge in below[_PRODUCTS[kind]] if edge is not None and not _is_parameter(edge)]


def _is_parameter(node: Any) -> bool:
    """Whether a node is a parameter, as it stands or transposed (in a linear layer)."""
    while type(node).__name__ in ("TBackward0", "TransposeBackward0"):
        node = node.next_functions[0][0]
    return isinstance(getattr(node, "variable", None), nn.Parameter)


def _refusal(what: str, rule: Rule) -> str:
    return f"the rule {rule!r} is not defined for {what}; rule='gradient' takes any network"


def _script_name(module: nn.Module) -> str:
    return getattr(module, "original_name", type(module).__name__)


def _check_rule(rule: str) -> None:
    if rule not in get_args(Rule):
        raise ValueError(f"no rule {rule!r}; the rules are {', '.join(get_args(Rule))}")


def _check_places(images: Tensor, maps: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Maps and positions as int64 tensors beside the images, with the shapes that they must have."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be floating point (N, 3, H, W), but are {images.dtype} {tuple(images.shape)}")
    count = len(images)
    checked = []
    for title, value, shape in [("maps", maps, (count,)), ("positions", positions, (count, 2))]:
        if value is not None:
            value = torch.as_tensor(value)
            if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool or value.shape != shape:
                raise ValueError(
                    f"{title} must be whole numbers {shape} for {count} images, but are {value.dtype} "
                    f"{tuple(value.shape)}"
                )
            value = value.to(images.device, torch.int64)
        checked.append(value)
    return tuple(checked)


def _places(output: Any, layer: str, maps: Tensor, positions: Tensor | None) -> tuple[Tensor, ...]:
    """The index of each image's activation in the layer's output."""
    if not isinstance(output, Tensor) or output.ndim not in (2, 4) or len(output) != len(maps):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"layer {layer!r} has no feature maps (N, C, h, w) or (N, C): its output is {shape}")
    images, channels = torch.arange(len(maps), device=maps.device), output.shape[1]
    wrong = maps[(maps < 0) | (maps >= channels)].tolist()
    if wrong:
        raise ValueError(f"map {wrong[0]} is not in layer {layer!r}, whose maps are 0 to {channels - 1}")
    height, width = output.shape[2:] if output.ndim == 4 else (1, 1)
    if positions is None:
        strongest = output.detach().reshape(*output.shape[:2], -1)[images, maps].argmax(1)
        positions = torch.stack([strongest // width, strongest % width], 1)
    outside = ((positions < 0) | (positions >= positions.new_tensor([height, width]))).any(1)
    if outside.any():
        row, column = positions[outside][0].tolist()
        raise ValueError(f"position ({row}, {column}) is outside layer {layer!r}, whose maps are {height}x{width}")
    return (images, maps) if output.ndim == 2 else (images, maps, *positions.unbind(1))


@torch.no_grad()
def _check_runs_once(network: Network, images: Tensor, layer: str) -> None:
    """Refuse a layer whose module runs several times in one pass: which of its maps is meant, nobody said."""
    known = _runs_once.setdefault(network, set())
    if isinstance(network, ConvNet) or layer in known:
        return
    runs: list[None] = []
    hook = network.map_module(layer).register_forward_hook(lambda _module, _inputs, _output: runs.append(None))
    try:
        network.forward(images[:1].clone())
    finally:
        hook.remove()
    if len(runs) > 1:
        raise ValueError(f"layer {layer!r} runs more than once in one pass; name a submodule that runs once")
    known.add(layer)


@contextmanager
def _frozen(network: Network) -> Iterator[None]:
    """No parameter needs a gradient inside: only what comes from the image does, and less is kept."""
    needed = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in needed:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in needed:
            parameter.requires_grad_(True)


def _rng_type(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type
