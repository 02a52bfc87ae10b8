"""NaN and infinity are refused by name: in weights, in images, in what comes out of a network."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def check_finite(network: nn.Module, images: Tensor | None = None) -> None:
    """Refuse weights and images that hold NaN or infinity; once in each call of a tool, before it computes.

    Raises:
        ValueError: Naming the tensor, see ``broken_tensor``.
    """
    name = broken_tensor(network)
    if name is not None:
        raise ValueError(
            f"the network's {name} holds NaN or infinity; load finite weights, as of an earlier checkpoint"
        )
    if images is not None and not _is_finite(images):
        raise ValueError("the images hold NaN or infinity; look at how they were read and prepared")


def check_result(values: Tensor, network: nn.Module, what: str) -> None:
    """Refuse a result that is not finite, of weights and images that are."""
    if not _is_finite(values):
        dtype = next((str(weight.dtype) for weight in network.parameters()), str(values.dtype)).removeprefix("torch.")
        raise ValueError(
            f"{what} hold NaN or infinity, though weights and images are finite: {dtype} may be too narrow for this "
            "network; use network.double()"
        )


def broken_tensor(network: nn.Module) -> str | None:
    """Name of the first parameter or buffer that holds NaN or infinity; None if there is none.

    Infinity is allowed in buffers that are no running statistics: they may be masks or limits.
    """
    buffers, extremes = dict(network.named_buffers()), {}
    tensors = {
        name: tensor
        for name, tensor in (dict(network.named_parameters()) | buffers).items()
        # Lazy weights are not there yet; torch compares no floats of 8 bits.
        if not is_lazy(tensor) and tensor.is_floating_point() and tensor.itemsize > 1 and tensor.numel()
    }
    for kind in {(tensor.device, tensor.dtype) for tensor in tensors.values()}:
        alike = {name: tensor for name, tensor in tensors.items() if (tensor.device, tensor.dtype) == kind}
        values = _extremes(*alike.values()).tolist()  # waits for a GPU once
        extremes |= dict(zip(alike, values, strict=True))
    for name in tensors:
        limits = name in buffers and "running_" not in name
        if any(math.isnan(value) or (math.isinf(value) and not limits) for value in extremes[name]):
            # As the module itself calls it: without what wrapping and compiling put before.
            return name.removeprefix("body.").replace("_orig_mod.", "")
    return None


def broken_entry(state: Any, name: str = "") -> str | None:
    """Name of the first tensor in nested mappings and lists that holds NaN or infinity; None if there is none."""
    if isinstance(state, Tensor):
        return None if not state.is_floating_point() or _is_finite(state) or _is_mask(state) else name
    pairs = state.items() if isinstance(state, Mapping) else enumerate(state) if isinstance(state, list | tuple) else ()
    names = (broken_entry(value, f"{name}.{key}" if name else str(key)) for key, value in pairs)
    return next((found for found in names if found is not None), None)


def first_broken_module(network: nn.Module, images: Tensor) -> str | None:
    """The first module, in the order of computing, whose output for ``images`` (N, 3, H, W) holds NaN or infinity."""
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and output.is_floating_point() and not _is_finite(output):
                found.append(name.removeprefix("body.").replace("_orig_mod.", ""))

        return hook

    leaves = [(name, module) for name, module in network.named_modules() if name and not [*module.children()]]
    handles = [module.register_forward_hook(look(name)) for name, module in leaves]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def are_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether no tensor, all of them on one device, holds NaN or infinity: a bool there, which waits for nothing.

    Sums tell, in the least time: NaN and infinity stay in them. Those of 16 bits are made in 32.
    """
    types = [torch.promote_types(tensor.dtype, torch.float32) for tensor in tensors]
    sums = [tensor.detach().sum(dtype=dtype) for tensor, dtype in zip(tensors, types, strict=True)]
    return torch.stack(sums).isfinite().all()


def broken_state(checkpoint: Mapping[str, Any]) -> str | None:
    """Name of the first weight, average or moment of a checkpoint that holds NaN or infinity; None if there is none."""
    parts = ("state_dict", "optimizer_states", "current_model_state")
    broken = broken_entry({name: checkpoint[name] for name in parts if name in checkpoint})
    return None if broken is None else broken.removeprefix("state_dict.network.")


def _is_mask(values: Tensor) -> bool:
    """Whether a tensor is made of 0 and infinity alone, as masks of attention are."""
    return bool((values.isinf() | (values == 0)).all()) and bool((values == 0).any())


def _extremes(*tensors: Tensor) -> Tensor:
    """Smallest and largest value of each, ``(N, 2)``, NaN if one is: a tenth of the time of ``isfinite().all()``."""
    return torch.stack([value for tensor in tensors for value in tensor.detach().aminmax()]).view(-1, 2)


def _is_finite(values: Tensor) -> bool:
    return not values.numel() or bool(_extremes(values).isfinite().all())
