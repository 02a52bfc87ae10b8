"""Fig. 9 and Table 7 as curves: what the axes and the legend say."""

import numpy as np
import pytest

from zfscope.figures import transfer


@pytest.fixture
def axes(monkeypatch):
    """The axes of the figure that is drawn next, before it becomes pixels."""
    kept = []
    monkeypatch.setattr(transfer, "drawn", lambda figure: kept.extend(figure.axes))
    return kept


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_curves_of_transfer_lie_over_training_images_per_class(axes):
    accuracy = {"pretrained": np.full((2, 3), 60.0), "scratch": np.full((2, 1), 30.0)}

    transfer.transfer_figure([6, 15], accuracy, chance=10.0, title="RUN to caltech101")

    assert axes[0].get_xlabel() == "training images per class"
    assert axes[0].get_ylabel() == "mean accuracy per class, %"
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["6", "15"]
    assert legend(axes[0]) == ["chance, 10 %", "pretrained, layers frozen (3 folds)", "from scratch (1 fold)"]


def test_the_curves_of_probes_lie_over_layers(axes):
    transfer.probes_figure(["conv1", "fc7"], {"svm": np.full((2, 2), 60.0)}, title="RUN")

    assert axes[0].get_xlabel() == "features of layer"
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["conv1", "fc7"]
    assert legend(axes[0]) == ["linear SVM (2 folds)"]
