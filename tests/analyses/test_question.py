"""Metrics as analyses write them."""

import numpy as np
import pytest

from zfscope.analyses.question import over_folds


def test_over_folds_a_metric_is_their_mean_with_the_standard_deviation_of_two_or_more():
    assert over_folds(np.array([10.0, 13.0])) == {
        "value": 11.5, "unit": "%", "spread": pytest.approx(4.5**0.5), "values": [10.0, 13.0]
    }  # fmt: skip
    assert over_folds(np.array([10.0]), paper=12.0) == {
        "value": 10.0, "unit": "%", "spread": None, "values": [10.0], "paper": 12.0
    }  # fmt: skip
