"""NaN and infinity in a training, told before they reach the weights."""

from collections.abc import Iterable

import torch
from torch import Tensor

from zfscope.networks.finite import are_finite


class Watch:
    """Looks at the gradients of each step: on a CPU before the step is made; on a GPU, where it would wait, one later.

    There the answer is copied while the next step is computed: what one look finds was asked by the one before.
    """

    def __init__(self) -> None:
        self._asked: tuple[Tensor, torch.cuda.Event] | None = None

    def finds(self, tensors: Iterable[Tensor]) -> bool:
        """Whether one of these tensors, or on a GPU one of the last call's, holds NaN or infinity."""
        tensors = list(tensors)
        finite = are_finite(tensors)
        if finite.device.type != "cuda":
            return not bool(finite)
        earlier, answer = self._asked, torch.empty((), dtype=torch.bool, pin_memory=True)
        answer.copy_(finite, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._asked = answer, copied
        if earlier is None:
            return False
        answer, copied = earlier
        copied.synchronize()
        return not bool(answer)
