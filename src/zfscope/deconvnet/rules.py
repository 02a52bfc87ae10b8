"""Rules for the way down by autograd: what a ReLU and a contrast normalisation do to a gradient.

The backward pass of a network is its deconvnet but for the ReLU, whose gradient looks at the signal that went up where
the deconvnet rectifies the one that comes down, and the contrast normalisation, which the deconvnet skips. Both are
replaced here while a network runs; filters, pools and sums are what autograd makes of them.
Source: Zeiler & Fergus (2014), Sec. 2.1; Springenberg et al. (2015), "Striving for simplicity", Fig. 1 (guided).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from zfscope.networks.layers import _ContrastNorm, contrast_norm
from zfscope.networks.network import uncompiled

Rule = Literal["deconvnet", "guided", "gradient"]
WAY_OUT = "rule='gradient' takes any network"
_words = str.split

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


@contextmanager
def backward_rule(rule: Rule) -> Iterator[None]:
    """Have whatever runs inside send its gradients down by a rule; outputs stay the same, to the bit.

    ``deconvnet``: the gradient is rectified at each ReLU, and passes contrast normalisation unchanged.
    ``guided``: it is rectified and stops where the ReLU's input was not above 0 (ReLU6: or not below 6).
    ``gradient``: as autograd has it.

    All forms of ReLU count: modules, functions, methods, in place, reused; ReLU6, ``hardtanh(0, …)``, ``clamp(min=0)``.
    What is not linear and has no rule is refused when it is called: another activation (GELU, sigmoid, softmax, …), a
    product of two maps, a normalisation by the maps' own statistics, a scripted module. Two things cannot be seen from
    here: autograd functions written in Python, which ``AutogradDeconvnet`` refuses, and masks made from detached maps.

    Source: Zeiler & Fergus (2014), Sec. 2.1; that the normalisation is skipped is our reading.
    """
    check_rule(rule)
    if rule == "gradient":
        yield
        return

    def refuse_scripted(module: nn.Module, _inputs: Any) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(refusal(f"the scripted module {script_name(module)}", rule))

    hook = register_module_forward_pre_hook(refuse_scripted)
    try:
        with uncompiled(), _RuleMode(rule):
            yield
    finally:
        hook.remove()


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
        rest = {key: value for key, value in kwargs.items() if key != "input"}
        high = _rectifies(plain, *args[1:], **rest)
        if high is not None:
            maps = kwargs.get("input", args[0] if args else None)
            in_place = (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace", False)
            return _Rectified.apply(maps, lambda x: func(x, *args[1:], **rest), in_place, self.rule == "guided", high)
        if func is contrast_norm or plain == "local_response_norm":
            return self._normalise(func, *args, **kwargs)
        if plain in _COMPARISONS:
            raise ValueError(refusal(f"a mask made from the maps ({plain})", self.rule))
        before = {node for maps in inputs for node in (maps.grad_fn, maps._base.grad_fn if maps._is_view() else None)}
        factors = sum(1 for maps in inputs if not maps.is_leaf or not isinstance(maps, nn.Parameter))
        output = func(*args, **kwargs)
        after = [maps.grad_fn for maps in _graded([output, *inputs])]
        check_graph([node for node in after if node not in before], before, self.rule, plain, factors)
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


def _graded(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among values and lists of values that a gradient goes through."""
    for value in values:
        if isinstance(value, Tensor):
            if value.requires_grad:
                yield value
        elif isinstance(value, list | tuple):
            yield from _graded(value)


def check_graph(nodes: list[Any], known: set[Any], rule: Rule, name: str | None = None, factors: int = 0) -> None:
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
                raise ValueError(refusal(name or kind, rule))
            if product or (kind == "Div" and _factors(below[1:], kind)):
                raise ValueError(refusal(f"{name or kind} of two things that come from the image", rule))
            if getattr(node, "_saved_training", False):
                raise ValueError(refusal(f"{name or kind} by the batch's own statistics", rule))
        waiting += [edge for edge in below if edge is not None]


def _factors(below: list[Any], kind: str) -> list[Any]:
    """The factors of a product that no parameter is: those are leaves that gather gradients."""
    return [edge for edge in below[_PRODUCTS[kind]] if edge is not None and not _is_parameter(edge)]


def _is_parameter(node: Any) -> bool:
    """Whether a node is a parameter, as it stands or transposed (in a linear layer)."""
    while type(node).__name__ in ("TBackward0", "TransposeBackward0"):
        node = node.next_functions[0][0]
    return isinstance(getattr(node, "variable", None), nn.Parameter)


def refusal(what: str, rule: Rule) -> str:
    """The message for an operation that a rule is not defined for."""
    return f"the rule {rule!r} is not defined for {what}; {WAY_OUT}"


def script_name(module: nn.Module) -> str:
    """The class of a scripted module."""
    return getattr(module, "original_name", type(module).__name__)


def check_rule(rule: str) -> None:
    """Refuse a rule that does not exist."""
    if rule not in get_args(Rule):
        raise ValueError(f"no rule {rule!r}; the rules are {', '.join(get_args(Rule))}")
