"""When to look during training, and where the pictures go; the only room that knows W&B.

Any ``lightning.Trainer`` of any LightningModule takes these callbacks: ``Trainer(callbacks=[FilterImages()])``.
"""

from zfscope.callbacks.diagnostics import Diagnostics
from zfscope.callbacks.feature_evolution import FeatureEvolution
from zfscope.callbacks.filter_images import FilterImages
from zfscope.callbacks.filter_renorm import FilterRenorm
from zfscope.callbacks.loggers import build_logger, finish
from zfscope.callbacks.occlusion_maps import OcclusionMaps
from zfscope.callbacks.panel import show
from zfscope.callbacks.projections import Projections
from zfscope.callbacks.when import When

__all__ = [
    "Diagnostics",
    "FeatureEvolution",
    "FilterImages",
    "FilterRenorm",
    "OcclusionMaps",
    "Projections",
    "When",
    "build_logger",
    "finish",
    "show",
]
