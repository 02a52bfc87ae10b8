"""When to look during training, and where the pictures go; the only room that knows W&B.

Any ``lightning.Trainer`` of any LightningModule takes these callbacks: ``Trainer(callbacks=[FilterImages()])``.
"""

from importlib import import_module
from typing import Any

# Loaded at first use: the command line names callbacks before it needs torch.
_HOMES = {
    "Diagnostics": "diagnostics",
    "FeatureEvolution": "feature_evolution",
    "FilterImages": "filter_images",
    "FilterRenorm": "filter_renorm",
    "OcclusionMaps": "occlusion_maps",
    "Projections": "projections",
    "When": "when",
    "build_logger": "loggers",
    "finish": "loggers",
    "show": "panel",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
