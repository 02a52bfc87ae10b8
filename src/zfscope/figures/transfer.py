"""Fig. 9: accuracy by training images per class, pretrained against from scratch; Table 7: accuracy by layer."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from zfscope.figures.canvas import GREY, drawn, entitle, open_axes

COLOURS = {
    "pretrained": "#0b5fa5",
    "scratch": "#c65d00",
    "random_weights": GREY,
    "svm": "#0b5fa5",
    "softmax": "#c65d00",
    "svm_random_weights": "#7fb2dc",
    "softmax_random_weights": "#f0a86b",
}
NAMES = {
    "pretrained": "pretrained, layers frozen",
    "scratch": "from scratch",
    "random_weights": "random weights, layers frozen",
    "svm": "linear SVM",
    "softmax": "softmax",
    "svm_random_weights": "linear SVM, random weights",
    "softmax_random_weights": "softmax, random weights",
}


def transfer_figure(
    sizes: Sequence[int], accuracies: Mapping[str, np.ndarray], *, chance: float | None = None, title: str = ""
) -> Image.Image:
    """Draw a curve for each way of learning: mean over folds, one standard deviation, every fold as a dot.

    ``sizes`` are training images per class, ascending; ``accuracies`` percent by way (``pretrained``, ``scratch``,
    ``random_weights``), ``(S, folds)``, whose folds may differ in number; ``chance`` is the accuracy of guessing, in
    percent.

    Source: Zeiler & Fergus (2014), Fig. 9; spread and dots are ours.
    """
    return _curves(list(sizes), accuracies, chance, title, "training images per class", [f"{size}" for size in sizes])


def probes_figure(
    layers: Sequence[str], accuracies: Mapping[str, np.ndarray], *, chance: float | None = None, title: str = ""
) -> Image.Image:
    """Draw a curve for each classifier: accuracy by layer, ``(L, folds)`` in percent; the paper has a table (7)."""
    return _curves(list(range(len(layers))), accuracies, chance, title, "features of layer", list(layers))


def _curves(
    places: list[float],
    accuracies: Mapping[str, np.ndarray],
    chance: float | None,
    title: str,
    label: str,
    ticks: list[str],
) -> Image.Image:
    figure = Figure(figsize=(7.2, 5.0), dpi=120, layout="constrained")
    axis = figure.subplots()
    entitle(figure, title)
    beside = 0.006 * (places[-1] - places[0] or 1)  # error bars side by side rather than one upon the other
    for number, (way, scores) in enumerate(accuracies.items()):
        shifted = [place + (2 * number + 1 - len(accuracies)) * beside for place in places]
        mean, spread = scores.mean(1), scores.std(1, ddof=1) if scores.shape[1] > 1 else np.zeros(len(scores))
        folds = f"{scores.shape[1]} fold" + "s" * (scores.shape[1] > 1)
        style = {"color": COLOURS[way], "marker": "o", "capsize": 4, "linewidth": 2}
        axis.errorbar(shifted, mean, spread, label=f"{NAMES[way]} ({folds})", **style)
        for place, row in zip(shifted, scores, strict=True):
            axis.plot([place] * len(row), row, ".", color=COLOURS[way], alpha=0.5, markersize=5)
    if chance is not None:
        axis.axhline(chance, color=GREY, linestyle=":", label=f"chance, {chance:.3g} %")
    axis.set_xticks(places, ticks)
    axis.set_xlabel(label)
    axis.set_ylabel("mean accuracy per class, %")
    highest = max(float(scores.max()) for scores in accuracies.values())
    axis.set_ylim(0, min(100.0, 1.1 * highest) if highest > 0 else 1)
    axis.grid(axis="y", color="#e4e4e4")
    axis.set_axisbelow(True)
    open_axes(axis)
    axis.legend(frameon=False, loc="best")
    return drawn(figure)
