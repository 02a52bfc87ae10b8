"""Occlusion maps. Source: Zeiler & Fergus (2014), Sec. 4.2, Fig. 7."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zfscope.occlusion.maps import Occlusion, occlude

__all__ = ["Occlusion", "occlude"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from zfscope.occlusion import maps

    return getattr(maps, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
