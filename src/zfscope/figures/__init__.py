"""The figures, one function each: tensors in, a PIL picture out. No plotting state is kept between calls."""

from zfscope.figures.correspondence import correspondence_sheet
from zfscope.figures.diagnostics import diagnostics_sheet
from zfscope.figures.invariance import invariance_figure
from zfscope.figures.occlusion import occlusion_panel
from zfscope.figures.sheets import evolution_sheet, filter_sheet, projection_sheet

__all__ = [
    "correspondence_sheet",
    "diagnostics_sheet",
    "evolution_sheet",
    "filter_sheet",
    "invariance_figure",
    "occlusion_panel",
    "projection_sheet",
]
