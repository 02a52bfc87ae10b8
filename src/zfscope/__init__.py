"""A microscope for convnets, after Zeiler & Fergus, *Visualizing and Understanding Convolutional Networks*.

Source: https://arxiv.org/abs/1311.2901
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zfscope.networks.build import build_network
    from zfscope.networks.chain import ConvNet
    from zfscope.networks.checkpoints import load_network
    from zfscope.networks.fields import receptive_field

# Loaded at first use, so that the command line can refuse a typo before torch is imported.
_HOMES = {
    "ConvNet": "zfscope.networks.chain",
    "build_network": "zfscope.networks.build",
    "load_network": "zfscope.networks.checkpoints",
    "receptive_field": "zfscope.networks.fields",
}
__all__ = ["ConvNet", "build_network", "load_network", "receptive_field"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
