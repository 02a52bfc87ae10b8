"""Error by number of networks averaged; the paper has a table (2)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from zfscope.figures.canvas import DASHED, GREY, RED, clipped, drawn, entitle, open_axes

LINE, DOTS = "#0b5fa5", "#8fb4d6"
HEADINGS = {
    "top1_error": "top-1 error, %",
    "top5_error": "top-5 error, %",
    "mean_average_precision": "mean average precision, %",
}


def ensemble_figure(
    subsets: Sequence[tuple[int, ...]], errors: Mapping[str, np.ndarray], names: Sequence[str], *, title: str = ""
) -> Image.Image:
    """Draw a panel for each error: every subset of the members as a dot, the mean of each size as a line.

    Errors are in percent by name (``top1_error``, ``top1_error_ten_crops``, …), ``(S,)`` for S subsets, each the
    positions of its members. Single members have their ``names`` beside them; a ring is the whole ensemble; dashed, the
    best member.

    Source: Zeiler & Fergus (2014), Table 2 has these numbers; all subsets and the drawing are ours.
    """
    figure = Figure(figsize=(1.0 + 5.2 * len(errors), 4.8), dpi=120, layout="constrained")
    entitle(figure, title, 11)
    panels = figure.subplots(1, len(errors), squeeze=False)[0]
    for axes, (name, values) in zip(panels, errors.items(), strict=True):
        name = name.removesuffix("_ten_crops")
        axes.set(ylabel=HEADINGS[name], xlabel="networks averaged")
        _draw(axes, subsets, np.asarray(values), names, np.max if name == "mean_average_precision" else np.min)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    return drawn(figure)


def _draw(
    axes: Axes,
    subsets: Sequence[tuple[int, ...]],
    values: np.ndarray,
    names: Sequence[str],
    best: Callable[[np.ndarray], float],
) -> None:
    sizes = np.array([len(subset) for subset in subsets])
    places = sizes.astype(float)
    for size in range(2, len(names)):  # side by side, so that equal errors do not hide one another
        places[sizes == size] += np.linspace(-0.25, 0.25, np.count_nonzero(sizes == size))
    axes.scatter(places, values, 18, color=DOTS, linewidths=0, label="a subset", zorder=2)
    means = [values[sizes == size].mean() for size in range(1, len(names) + 1)]
    axes.plot(range(1, len(names) + 1), means, color=LINE, linewidth=2, label="mean over subsets", zorder=3)
    axes.scatter([len(names)], means[-1:], 90, facecolors="none", edgecolors=RED, linewidths=1.8, label="all", zorder=4)
    singles = {subsets[row][0]: values[row] for row in np.flatnonzero(sizes == 1)}
    level = best(np.array(list(singles.values())))
    dashes = {"color": GREY, "linewidth": 0.9, "linestyle": DASHED}
    axes.plot([1, len(names) + 0.4], [level, level], label="best member", zorder=1, **dashes)
    most = len(names) + 0.5
    axes.set_xlim(min(0.2, (0.9 - 0.22 * most) / 0.78), most)  # names stand left of 0.9, in 22 % of the width
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xticks([tick for tick in axes.get_xticks() if 1 <= tick <= len(names)])
    low, high = axes.get_ylim()
    least = 0.038 * (high - low)  # names of members with nearly the same error stand one above the other
    height = -np.inf
    for number, value in sorted(singles.items(), key=lambda item: item[1]):
        height = max(value, height + least)
        name = clipped(names[number], 12, end=True)
        axes.text(0.9, height, name, ha="right", va="center", fontsize=8, color=GREY, parse_math=False)
    axes.set_ylim(low, max(high, height + least))
    open_axes(axes)
    axes.grid(axis="y", alpha=0.25)
