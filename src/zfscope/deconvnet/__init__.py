"""Activations projected down to pixels. Source: Zeiler & Fergus (2014), Sec. 2.1."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zfscope.deconvnet.projection import project

__all__ = ["project"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from zfscope.deconvnet.projection import project

    return project


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
