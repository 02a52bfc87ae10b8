"""Contrast normalisation across feature maps, and the RMS radius of convolution filters.

Source: Zeiler & Fergus (2014), Sec. 3 (filter renormalisation) and Fig. 3 (contrast normalisation); the normalisation's
formula and constants are those of Krizhevsky, Sutskever & Hinton (2012), Sec. 3.3.
"""

import math
import re
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

# Values in one block, per thread: small enough for a block's work arrays to stay in cache, where the speed comes from.
BLOCK_CPU = 2**19
BLOCK_GPU = 2**24  # on a GPU the bound is on the extra memory


def contrast_norm(maps: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> Tensor:
    """Divide each activation by the energy of its neighbours: the same place in adjacent feature maps.

    ``out[i] = maps[i] / (k + alpha / size * sum(maps[j] ** 2 for j in window(i))) ** beta``, the window running from
    ``i - size // 2`` to ``i + (size - 1) // 2``; maps beyond the first and the last count as zero. Equal to
    ``torch.nn.LocalResponseNorm``, several times faster, and it keeps only ``maps`` for the gradient. Half precision is
    computed in float32 and returned in half precision.

    Args:
        maps: Feature maps, shape ``(N, C, ...)``, any memory format; the result has the same format.
        size: Number of adjacent maps in a window.
        alpha: Weight of the window's mean square (not of its sum, as in cuda-convnet).
        beta: Exponent; 0.75 is the fast case.
        k: Constant that keeps the divisor above zero.

    Raises:
        ValueError: If ``maps`` has no axis of maps or a constant is out of its range.
        TypeError: If ``maps`` is not floating point.

    Source: Krizhevsky et al. (2012), Sec. 3.3: k=2, n=5, alpha=1e-4, beta=0.75. The formula printed there sums; their
    code averages, and so do we.
    """
    if has_torch_function_unary(maps):
        return handle_torch_function(contrast_norm, (maps,), maps, size, alpha, beta, k)
    if maps.ndim < 2:
        raise ValueError(f"maps must have shape (N, C, ...), but came with shape {tuple(maps.shape)}; add a batch axis")
    if not maps.is_floating_point():
        raise TypeError(f"maps must be floating point, but are {maps.dtype}; convert them with .float()")
    _check_constants(size, alpha, beta, k)
    if torch.compiler.is_compiling():  # compilers fuse the plain formula, but would unroll the loop over blocks
        return _plain_contrast_norm(maps, size, alpha, beta, k)
    return _ContrastNorm.apply(maps, size, alpha, beta, k)


class ContrastNorm(nn.Module):
    """``contrast_norm`` as a layer, with the arguments of ``torch.nn.LocalResponseNorm`` and AlexNet's values."""

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__()
        _check_constants(size, alpha, beta, k)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise ``maps``, shape ``(N, C, ...)``."""
        return contrast_norm(maps, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        """Show the constants when the network is printed."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


def last_windows(switches: Tensor, size: int) -> Tensor:
    """Which pooling windows are the last, in row-major order, to point at their maximum; bool ``(N, C, h, w)``.

    Where 3x3 windows overlap at stride 2, about half of them share a maximum with another. Unpooling that overwrites
    keeps the value of the last one. ``switches`` holds the flat index ``row * size + column`` of each window's maximum,
    ``(N, C, h, w)``; ``size`` is the height and width of the map below the pool.
    """
    flat = switches.flatten(2)
    order = torch.arange(flat.shape[2], device=flat.device).expand_as(flat)
    last = order.new_full((*flat.shape[:2], size * size), -1).scatter_reduce_(2, flat, order, "amax")
    return (last.gather(2, flat) == order).view_as(switches)


def filter_rms(weight: Tensor) -> Tensor:
    """Root mean square of each filter's weights ``(C, ...)``: ``(C,)``, NaN where a filter holds one.

    Half-precision weights give float32.

    Source: Zeiler & Fergus (2014), Sec. 3. Taking it over all ``k * k * C_in`` weights of a filter is our reading.
    """
    if weight.ndim < 2:
        raise ValueError(f"weight must have shape (C, ...), one filter per row, but its shape is {tuple(weight.shape)}")
    flat = weight.flatten(1)
    return torch.linalg.vector_norm(flat, dim=1, dtype=_precision(weight)) / math.sqrt(max(1, flat.shape[1]))


@torch.no_grad()
def rescale_filters_(weight: Tensor, radius: float) -> Tensor:
    """Rescale, in place, each filter whose RMS exceeds ``radius`` to that RMS, without waiting for the device.

    Args:
        weight: Filters, shape ``(C, ...)``. A filter that holds NaN stays as it is, so that the NaN is noticed.
        radius: Largest RMS allowed, above 0, in the units of the weights.

    Returns:
        Which filters were rescaled, bool ``(C,)``.

    Raises:
        ValueError: If ``radius`` is not a finite number above 0.

    Source: Zeiler & Fergus (2014), Sec. 3: radius 1e-1, for inputs in about [-128, 128].
    """
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be a finite number above 0 (the paper's is 0.1), but is {radius}")
    rms = filter_rms(weight)
    # A margin for rounding: a filter that was just rescaled to the radius must not count as above it.
    above = rms > radius * (1 + 4 * torch.finfo(weight.dtype).eps)
    factors = torch.where(above, radius / rms, 1.0).to(weight.dtype)
    weight.mul_(factors.view(-1, *[1] * (weight.ndim - 1)))
    return above


def conv_layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Find the conv layers of any model by name: ``conv1`` where only one has that name, else the module's path."""
    named = ((path.replace("_orig_mod.", ""), module) for path, module in model.named_modules())
    paths = {path: module for path, module in named if isinstance(module, nn.Conv2d)}
    short = {path: next((part for part in path.split(".") if re.fullmatch(r"conv\d\w*", part)), path) for path in paths}
    uses = Counter(short.values())
    return {short[path] if uses[short[path]] == 1 else path: module for path, module in paths.items()}


class _ContrastNorm(torch.autograd.Function):
    """Forward and closed-form gradient of ``contrast_norm``, block by block.

    With ``s`` the bracket of the formula and ``g`` the gradient from above, the gradient is
    ``g * s**-beta - 2 * alpha * beta / size * maps * windows'(g * maps * s**-(beta + 1))``, where ``windows'`` sums
    over the mirrored window. The sums are shifted additions: measured fastest (a banded 1x1 convolution costs two to
    three times as much), and unlike a running sum they lose no digits and keep a NaN within its window.
    """

    @staticmethod
    def forward(ctx, maps, size, alpha, beta, k):
        ctx.save_for_backward(maps)
        ctx.constants = size, alpha, beta, k
        maps = _dense(maps)
        normalised = torch.empty_like(maps)
        blocks, work = _blocks(size, maps, normalised)
        before = size // 2
        for block, out in blocks:
            channels = block.shape[1]
            padded, sums, spare = (array[: len(block)] for array in work)
            block = block.to(padded.dtype)
            torch.mul(block, block, out=padded[:, before : before + channels])
            scale, _ = _powers(_window_sums(padded, size, sums), alpha / size, beta, k, spare)
            torch.mul(block, scale[:, :channels], out=out)
        return normalised

    @staticmethod
    def backward(ctx, above):
        (maps,) = ctx.saved_tensors
        size, alpha, beta, k = ctx.constants
        if torch.is_grad_enabled():  # create_graph=True: work in place would break the graph of the second derivative
            out = _plain_contrast_norm(maps, size, alpha, beta, k)
            return *torch.autograd.grad(out, maps, above, create_graph=True), None, None, None, None
        maps = _dense(maps)
        gradient = torch.empty_like(maps)
        above = torch.empty_like(maps).copy_(above) if above.stride() != maps.stride() else above
        blocks, work = _blocks(size, maps, gradient, above)
        before, after = size // 2, (size - 1) // 2
        mirrored = torch.zeros_like(work[0])
        for block, out, g in blocks:
            channels = block.shape[1]
            padded, sums, spare = (array[: len(block)] for array in work)
            block, g = block.to(padded.dtype), g.to(padded.dtype)
            torch.mul(block, block, out=padded[:, before : before + channels])
            scale, inverse = _powers(_window_sums(padded, size, sums), alpha / size, beta, k, spare)
            direct = scale[:, :channels].mul_(g)
            torch.mul(direct, block, out=mirrored[: len(block), after : after + channels])
            mirrored[: len(block), after : after + channels].mul_(inverse[:, :channels])
            through = _window_sums(mirrored[: len(block)], size, sums)[:, :channels]
            torch.addcmul(direct, block, through, value=-2 * alpha * beta / size, out=out)
        return gradient, None, None, None, None


def _blocks(size: int, *tensors: Tensor) -> tuple[zip, list[Tensor]]:
    """Cut tensors of one layout into blocks ``(rows, C, inner)``; make three work arrays, ``size - 1`` maps longer."""
    rows = [_rows(tensor) for tensor in tensors]
    count, channels, inner = rows[0].shape
    values = BLOCK_CPU * torch.get_num_threads() if rows[0].device.type == "cpu" else BLOCK_GPU
    step = max(1, min(count, values // max(1, channels * inner)))
    work = [
        torch.zeros(step, channels + size - 1, inner, dtype=_precision(tensors[0]), device=tensors[0].device)
        for _ in range(3)
    ]
    return zip(*(tensor.split(step) for tensor in rows), strict=True), work


def _rows(tensor: Tensor) -> Tensor:
    """View dense maps as ``(N, C, positions)``, or as ``(N * positions, C, 1)`` where the maps' axis is innermost."""
    if tensor.is_contiguous():
        return tensor.flatten(2) if tensor.ndim > 2 else tensor.unsqueeze(2)
    return tensor.movedim(1, -1).flatten(0, -2).unsqueeze(2)


def _dense(maps: Tensor) -> Tensor:
    """Return ``maps`` itself if it is dense in memory, in contiguous or channels-last order, else a contiguous copy."""
    return maps if maps.movedim(1, -1).is_contiguous() else maps.contiguous()


def _window_sums(padded: Tensor, size: int, out: Tensor) -> Tensor:
    """Sum ``size`` adjacent maps of ``padded``, ``(rows, C + size - 1, inner)``; the first ``C`` of ``out`` are valid.

    All rows are added as one flat array, whatever the layout: sums across the end of a row land in maps beyond ``C``.
    """
    flat, inner = padded.view(-1), padded.shape[2]
    length = flat.numel() - (size - 1) * inner
    sums = out.view(-1)[:length]
    if size == 1:
        sums.copy_(flat)
    else:
        torch.add(flat[:length], flat[inner : inner + length], out=sums)
    for shift in range(2, size):
        sums.add_(flat[shift * inner : shift * inner + length])
    return out


def _powers(sums: Tensor, weight: float, beta: float, k: float, spare: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``s ** -beta`` in ``spare`` and ``1 / s`` in ``sums``, with ``s = k + weight * sums``."""
    s = sums.mul_(weight).add_(k)
    if beta == 0.75:  # pow costs more than all the rest together
        root = s.rsqrt_()
        torch.sqrt(root, out=spare).mul_(root)
        return spare, root.mul_(root)
    torch.pow(s, -beta, out=spare)
    return spare, s.reciprocal_()


def _plain_contrast_norm(maps: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """``contrast_norm`` in ordinary operations, for compilers and second derivatives."""
    values = maps.to(_precision(maps))
    padded = F.pad(values * values, [0, 0] * (maps.ndim - 2) + [size // 2, (size - 1) // 2])
    sums = sum(padded.narrow(1, shift, maps.shape[1]) for shift in range(size))
    return (values * (k + alpha / size * sums).pow(-beta)).to(maps.dtype)


def _precision(tensor: Tensor) -> torch.dtype:
    """Give the precision to compute in: float32 for half precision, else the tensor's own."""
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype


def _check_constants(size: int, alpha: float, beta: float, k: float) -> None:
    """Refuse constants of contrast normalisation that have no meaning."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number of maps, at least 1, but is {size!r}")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha must be a finite number, at least 0, but is {alpha}")
    if not math.isfinite(beta):
        raise ValueError(f"beta must be a finite number, but is {beta}")
    if not (math.isfinite(k) and k > 0):
        raise ValueError(f"k must be a finite number above 0, or all-zero maps would be divided by zero, but is {k}")
