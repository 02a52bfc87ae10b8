"""The figures, one function each: tensors in, a PIL picture out. No plotting state is kept between calls."""

from importlib import import_module
from typing import Any

# Loaded at first use: importing this package loads neither torch nor matplotlib.
_HOMES = {
    "Pair": "overlap",
    "ablations_figure": "ledger",
    "correspondence_sheet": "correspondence",
    "diagnostics_sheet": "diagnostics",
    "embedding_figure": "embedding",
    "embedding_grid": "embedding",
    "ensemble_figure": "ensemble",
    "evolution_sheet": "sheets",
    "filter_sheet": "sheets",
    "invariance_figure": "invariance",
    "neighbours_figure": "embedding",
    "occlusion_panel": "occlusion",
    "overlap_sheet": "overlap",
    "probes_figure": "transfer",
    "projection_sheet": "sheets",
    "transfer_figure": "transfer",
    "transfers_figure": "ledger",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
