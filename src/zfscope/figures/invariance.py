"""Fig. 5: images that are shifted, scaled and turned, how far their features move, and whether the class stays."""

from collections.abc import Mapping, Sequence

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from zfscope.figures.canvas import GREY, clipped, drawn, entitle
from zfscope.images import grid, to_pil
from zfscope.invariance import Invariance

AXES = {
    "translation": "vertical translation, px (down: positive)",
    "scale": "scale",
    "rotation": "rotation, degrees (counter-clockwise)",
}
GAP = 4  # pixels around the example images


def invariance_figure(
    kinds: Sequence[Invariance],
    examples: Mapping[str, tuple[Tensor, Tensor]],
    shown: Tensor,
    names: Sequence[str],
    *,
    title: str = "",
) -> Image.Image:
    """Draw a row for each kind of transformation: example images, distances at each layer, probability.

    ``kinds`` are of the same images and layers, the low layer first; ``examples`` by kind some amounts ``(T,)`` and the
    images shown moved by them, uint8 ``(S, T, 3, h, w)``; ``shown (S,)`` says which, at most 10, and ``names`` their
    true classes. Distances in one row share their scale. A colour for each image shown, the mean over all images black,
    its standard deviation grey.

    Source: Zeiler & Fergus (2014), Fig. 5; mean and spread are ours.
    """
    counts = {len(shown), len(names), *(len(tiles) for _, tiles in examples.values())}
    if not kinds or len(counts) != 1 or not 1 <= len(shown) <= 10:
        raise ValueError(
            f"give 1 to 10 images to show, each with its name and examples, but they number {sorted(counts)}"
        )
    colours = [matplotlib.colormaps["tab10"](number) for number in range(len(shown))]
    layers = list(kinds[0].distances)
    count = len(kinds[0].distances[layers[0]])
    classes = [] if kinds[0].probability is None else ["probability of the true label"]
    curves = len(layers) + len(classes)
    figure = Figure(figsize=(4.6 + 3.2 * curves, 0.8 + 3.9 * len(kinds)), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.1)
    entitle(figure, title)
    places = figure.subplots(len(kinds), 1 + curves, squeeze=False, width_ratios=[1.4] + [1] * curves)
    for kind, axes in zip(kinds, places, strict=True):
        _draw_examples(axes[0], *examples[kind.kind], names, colours)
        axes[0].set_xlabel(AXES[kind.kind])
        distances = [kind.relative(layer) for layer in layers]
        highest = max(1.0, *(float(torch.maximum(d[shown].amax(0), d.mean(0) + d.std(0)).max()) for d in distances))
        probabilities = [kind.probability] if classes else []
        for axis, values in zip(axes[1:], [*distances, *probabilities], strict=True):
            _draw_curves(axis, kind, values, shown, colours)
        for axis in axes[1 : 1 + len(layers)]:
            axis.axhline(1, color=GREY, linewidth=0.8, linestyle=":", label="another image")
            axis.set_ylim(0, 1.05 * highest)
        if classes:
            axes[-1].set_ylim(0, 1)
        axes[1].set_ylabel("1: as far as another image")
    headings = ["some of the images", *(f"distance at {layer}" for layer in layers), *classes]
    for axis, letter, heading in zip(places[0], "abcdefghijkl", headings, strict=False):
        axis.set_title(f"({letter}) {heading}", fontsize=11)
    figure.legend(
        *places[0][1].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        title=f"colours: the images of (a); the rest over all {count:,} images",
    )
    return drawn(figure)


def _draw_examples(axis: Axes, amounts: Tensor, tiles: Tensor, names: Sequence[str], colours: Sequence[tuple]) -> None:
    """Tiles in a grid, a row for each image, with its name in its colour, and the amounts below."""
    rows, columns, _, height, width = tiles.shape
    axis.imshow(to_pil(grid(tiles.flatten(0, 1), columns, GAP)), interpolation="antialiased")
    names = [clipped(name, 11) for name in names]
    axis.set_yticks([GAP + row * (height + GAP) + height / 2 for row in range(rows)], names, rotation=90, va="center")
    axis.set_xticks(
        [GAP + column * (width + GAP) + width / 2 for column in range(columns)],
        [f"{amount:+g}" if amounts.min() < 0 and amount else f"{amount:g}" for amount in amounts.tolist()],
    )
    for label, colour in zip(axis.get_yticklabels(), colours, strict=True):
        label.set(color=colour, parse_math=False, fontweight="bold")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _draw_curves(axis: Axes, kind: Invariance, values: Tensor, shown: Tensor, colours: Sequence[tuple]) -> None:
    """Curves of the images shown, ``values (N, A)``, with mean and spread over all."""
    amounts, mean, spread = kind.amounts.numpy(), values.mean(0).numpy(), values.std(0).numpy()
    axis.fill_between(
        amounts, mean - spread, mean + spread, color="black", alpha=0.13, linewidth=0, label="standard deviation"
    )
    for curve, colour in zip(values[shown].numpy(), colours, strict=True):
        axis.plot(amounts, curve, color=colour, linewidth=1.2)
    axis.plot(amounts, mean, color="black", linewidth=2.5, label="mean")
    axis.set(xlim=(amounts.min(), amounts.max()), xlabel=AXES[kind.kind].partition(" (")[0])
    if kind.kind == "rotation":
        axis.set_xticks(range(0, 361, 90))
    axis.grid(alpha=0.25)
