"""The same bits whatever the number of threads: dense products are computed in one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

PRODUCTS = frozenset(
    [
        *(F.linear, F.bilinear, F.scaled_dot_product_attention, torch.matmul, torch.mm, torch.bmm, torch.addmm),
        *(torch.baddbmm, torch.einsum, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm, torch.Tensor.bmm),
    ]
)


class ProductsInOneThread(TorchFunctionMode):
    """Within this context dense layers and other products of matrices run in one thread of the CPU.

    Their libraries split a sum among threads, and round it otherwise for each number of them. Convolutions do not: of
    AlexNet, SqueezeNet, a ResNet, EfficientNet-Lite and ``zfnet_mini`` all layers were the same bits with 1 to 4
    threads.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func``, in one thread if it is a product."""
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            return func(*args, **(kwargs or {}))
        finally:
            torch.set_num_threads(threads)
