"""NaN and infinity are refused by name: in weights, in images, in what comes out of a network."""

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
    named = [(name, tensor, False) for name, tensor in network.named_parameters()]
    named += [(name, tensor, "running_" not in name) for name, tensor in network.named_buffers()]
    flags: dict[str, Tensor] = {}
    for name, tensor, limits in named:
        # Lazy weights are not there yet; torch compares no floats of 8 bits.
        if is_lazy(tensor) or not tensor.is_floating_point() or tensor.itemsize == 1 or not tensor.numel():
            continue
        extremes = _extremes(tensor)
        flags[name] = extremes.isnan().any() if limits else ~extremes.isfinite().all()
    if not flags:
        return None
    device = next(iter(flags.values())).device
    broken = torch.stack([flag.to(device) for flag in flags.values()]).tolist()  # waits for a GPU once
    name = next((name for name, flag in zip(flags, broken, strict=True) if flag), None)
    # As the module itself calls it: without what wrapping and compiling put before.
    return name and name.removeprefix("body.").replace("_orig_mod.", "")


def _extremes(values: Tensor) -> Tensor:
    """Smallest and largest value, both NaN if one is: a tenth of the time of ``isfinite().all()``."""
    return torch.stack(values.detach().aminmax())


def _is_finite(values: Tensor) -> bool:
    return not values.numel() or bool(_extremes(values).isfinite().all())
