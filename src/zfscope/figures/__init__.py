"""The figures, one function each: tensors in, a PIL picture out. No plotting state is kept between calls."""

from zfscope.figures.correspondence import correspondence_sheet
from zfscope.figures.diagnostics import diagnostics_sheet
from zfscope.figures.ensemble import ensemble_figure
from zfscope.figures.invariance import invariance_figure
from zfscope.figures.ledger import ablations_figure
from zfscope.figures.occlusion import occlusion_panel
from zfscope.figures.overlap import Pair, overlap_sheet
from zfscope.figures.sheets import evolution_sheet, filter_sheet, projection_sheet
from zfscope.figures.transfer import probes_figure, transfer_figure

__all__ = [
    "Pair",
    "ablations_figure",
    "correspondence_sheet",
    "diagnostics_sheet",
    "ensemble_figure",
    "evolution_sheet",
    "filter_sheet",
    "invariance_figure",
    "occlusion_panel",
    "overlap_sheet",
    "probes_figure",
    "projection_sheet",
    "transfer_figure",
]
