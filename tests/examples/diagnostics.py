"""Networks for diagnostics."""

import torch

from zfscope.diagnostics import Diagnosis, filter_frequencies
from zfscope.figures import diagnostics_sheet


def drawn(**given):
    weight = torch.randn(40, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    ranges = {"conv1": torch.stack([torch.arange(40.0).sub(20).clamp_min(0), torch.zeros(40)])}
    parts = {
        **{"ranges": ranges, "first": "conv1", "filters": weight, "stride": 2},
        **{"frequencies": filter_frequencies(weight, 2), "missing": "why not"},
    }
    return diagnostics_sheet([Diagnosis("outputs/RUN", **{**parts, **given})])
