"""The atlas: all feature maps of a network as a folder of pages, read from disk without a server."""

from typing import Any

__all__ = ["write"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from zfscope.atlas.public import write

    return write


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
