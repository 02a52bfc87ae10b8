"""A map of images by a network's features, and how many of an image's nearest neighbours share its class, by layer.

Source: t-SNE of images by convnet codes, as Karpathy (2014) drew of ImageNet; the neighbours, against pixels and
against random weights, are ours.
"""

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Subset

from zfscope.analyses.fresh import fresh_network
from zfscope.analyses.question import Metric, Question, Result, at_most, percent
from zfscope.console import console, counting, progress
from zfscope.data.imageset import ImageSet
from zfscope.data.loader import Loader
from zfscope.deconvnet.winners import as_pictures, random_order
from zfscope.embedding import (
    chance_of_same_class,
    embed,
    grid_of,
    inner_products,
    principal_components,
    same_class_share,
    tells_apart,
)
from zfscope.figures import embedding_figure, embedding_grid, neighbours_figure
from zfscope.figures.embedding import mean_and_error
from zfscope.invariance import low_and_high
from zfscope.networks.finite import check_finite
from zfscope.networks.network import Network
from zfscope.networks.ranks import by_first, end_passes, is_first, own_batches, shared
from zfscope.networks.threads import ProductsInOneThread
from zfscope.protocols.features import BLOCK, PIXELS, FeatureTable, write_tables

WIDTH = 1600  # pixels, about, of the grid of images
TILES = 24, 128  # the smallest and largest side of an image in it


def analyse(question: Question) -> Result:
    """``<layer>/same_class`` and ``<layer>/same_class_random_weights``, ``pixels/same_class`` and ``chance``, percent.

    They are means over draws of different images, each with random weights of its own: the same architecture, built
    anew. Of the last layer ``over_pixels`` and ``over_random_weights`` are differences within draws. ``arrays.npz``
    holds ``indices``, ``labels`` and ``draws (N,)``; ``components (N, K)``, ``places (N, 2)`` and ``grid (rows,
    columns)``, positions among these images, of the map; ``layers (L,)``, ``network`` and ``random_weights (L,
    draws)``, ``pixels (draws,)``.
    """
    options, network, images = question.options, question.network, question.images
    layers = options.layers or network.layers
    map_layer = options.layer or (low_and_high(network)[1] if len(network.layers) > 1 else network.layers[0])
    for layer in (*layers, map_layer):
        network.check_layer(layer)
    if images.labels.ndim != 1:
        raise ValueError("analysis=embedding needs images with one label each; these have several")
    check_finite(network)
    random_network(question, 0)  # one that cannot be built is refused before images are read
    indices, tiles = draw_images(question, images)
    draws = np.array_split(np.arange(len(indices)), draws_of(question, len(indices)))
    labels = images.labels[indices]

    scratch = question.folder / ".embedding.0.tmp"
    try:
        shares, pixels, map_tables = neighbours_by_layer(question, images, indices, draws, layers, map_layer, scratch)
        products = inner_products(joined(map_tables), len(indices))
    finally:
        if is_first():
            shutil.rmtree(scratch, ignore_errors=True)
    if not tells_apart(products):
        raise ValueError(f"layer {map_layer!r} gives the same features for all images; name another: analysis.layer=…")
    if len(indices) > 500:  # neither can be counted while it runs
        told = f"t-SNE and grid of {len(indices):,} images: {len(indices) / 60:.0f} s or more"
        console.print(told, markup=False, highlight=False)
    components, variance = principal_components(products)
    places = embed(components)
    cells = grid_of(places)

    chance = 100 * float(np.mean([chance_of_same_class(labels[draw]) for draw in draws]))
    title = f"{question.title}: {len(indices):,} {question.part} images of {question.data.config.name}"
    size = f"{len(draws)} draws of {len(draws[-1]):,}" if len(draws) > 1 else "one draw"
    with_layer = f"{title}, features of {map_layer}"
    shown, names = cells.ravel(), images.classes
    figures = {
        "embedding": embedding_figure(places, labels, names, title=with_layer),
        "embedding_grid": embedding_grid(
            tiles[torch.from_numpy(shown)], *cells.shape, labels[shown], names, title=with_layer
        ),
        "neighbours": neighbours_figure(
            layers, shares, pixels, chance=chance, neighbours=options.neighbours, title=f"{title}, {size}"
        ),
    }
    arrays = {
        "indices": indices,
        "labels": labels,
        "draws": np.repeat(np.arange(len(draws)), [len(draw) for draw in draws]),
        "components": components,
        "places": places,
        "grid": cells,
        "layers": np.array(layers),
        "pixels": pixels,
        **shares,
    }
    metrics = metrics_of(layers, shares, pixels) | {"chance": percent(chance)}
    notes = [
        *told_curve(layers, shares, pixels, f"{options.neighbours} nearest neighbours, {size}"),
        f"map: {components.shape[1]} principal components of {map_layer} hold {100 * variance:.0f} % of its variance; "
        f"{cells.size:,} of {len(indices):,} images are in the grid",
    ]
    return Result(metrics, arrays, figures, notes=notes)


def draw_images(question: Question, images: ImageSet) -> tuple[np.ndarray, Tensor]:
    """A random order of so many images that can be read: indices ``(N,)``, and uint8 tiles ``(N, 3, h, w)``."""
    options, network = question.options, question.network
    count = at_most(options.images, len(images), "analysis.images")
    columns = count // max(1, int(np.sqrt(count)))
    side = int(np.clip(WIDTH // columns, *TILES))
    order = random_order(len(images), options.seed).tolist()
    examples, tile_of = question.inputs(images), {}

    def tiles(batch: tuple[Tensor, Tensor, Tensor]) -> tuple[list[int], np.ndarray]:
        inputs, _, numbers = batch
        pictures = as_pictures(network, inputs).float()
        pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True).clamp(0, 255)
        return numbers.tolist(), pictures.round().to(torch.uint8).numpy()

    indices: list[int] = []
    with counting("Reading", count) as step:
        while order and len(indices) < count:  # again for images that take the place of those that cannot be read
            wanted = count - len(indices)
            drawn, order = order[:wanted], order[wanted:]
            own = own_batches(len(drawn), options.batch_size)
            loader = Loader(Subset(examples, drawn), **own, num_workers=question.data.num_workers)
            for numbers, pictures in shared(loader, tiles, loader):
                tile_of.update(zip(numbers, pictures, strict=True))
                step(len(numbers))
            known = by_first(lambda: set(tile_of))
            indices += [index for index in drawn if index in known]
    found = [tile_of[index] for index in indices] if is_first() else []
    return np.array(indices), torch.from_numpy(np.array(found))


def draws_of(question: Question, count: int) -> int:
    """As many draws as are asked for, or as ``count`` images make with enough of them for their neighbours."""
    options = question.options
    least = options.neighbours + 1
    if count < least:
        raise ValueError(
            f"neighbours={options.neighbours} needs {least} images or more, but there are {count} of "
            f"{question.part}; give fewer neighbours, or another part (analysis.part=…)"
        )
    if count // least < options.draws:
        most = count // least
        text = f"{count} images make {most} draw{'s' * (most > 1)} of {least} or more"
        warnings.warn(f"analysis.draws={options.draws}, but {text}", stacklevel=3)
    return min(options.draws, count // least)


def neighbours_by_layer(
    question: Question,
    images: ImageSet,
    indices: np.ndarray,
    draws: Sequence[np.ndarray],
    layers: Sequence[str],
    map_layer: str,
    scratch: Path,
) -> tuple[dict[str, np.ndarray], np.ndarray, list[FeatureTable]]:
    """Shares of neighbours in the same class, percent, and the tables of the map's layer, one of each draw.

    Shares are ``(L, draws)`` for ``network`` and ``random_weights``, and ``(draws,)`` for the pixels. Features lie in
    ``scratch``, those of one draw at a time.
    """
    options, network = question.options, question.network
    shares = {way: np.full((len(layers), len(draws)), np.nan) for way in ("network", "random_weights")}
    pixels, map_tables = np.full(len(draws), np.nan), []

    def tables(model: Network, names: Sequence[str], number: int, way: str) -> dict[str, FeatureTable]:
        batches = question.data.centre_crops(images.subset(indices[draws[number]]), options.batch_size)
        targets = {name: scratch / f"{number}_{way}_{place}.f32" for place, name in enumerate(dict.fromkeys(names))}
        with ProductsInOneThread():
            return write_tables(model, batches, targets, question.device, "hydra.run.dir")

    def share(table: FeatureTable, labels: np.ndarray) -> float:
        products = inner_products((block for _, block in table.blocks()), table.count)
        return 100 * same_class_share(products, labels, options.neighbours)

    with counting("Draws", 2 * len(draws)) as step:
        for number, draw in enumerate(draws):
            labels = images.labels[indices[draw]]
            for way in shares:
                trained = way == "network"
                model = network if trained else random_network(question, number)
                found = tables(model, [*layers, map_layer, PIXELS] if trained else layers, number, way)
                if not is_first():
                    continue
                for row, layer in enumerate(layers):
                    shares[way][row, number] = share(found[layer], labels)
                if trained:
                    pixels[number] = share(found[PIXELS], labels)
                    map_tables.append(found.pop(map_layer))
                for table in found.values():
                    if table not in map_tables:
                        table.path.unlink()
                step()
    end_passes()
    return shares, pixels, map_tables


def random_network(question: Question, number: int) -> Network:
    """The checkpoint's architecture with random weights, by the seed and the number of the draw."""
    seed = question.options.seed + number
    return fresh_network(question.checkpoint, question.run, question.network, seed)


def joined(tables: Sequence[FeatureTable]) -> Iterator[np.ndarray]:
    """Blocks of columns of several tables of one layer, the images one behind the other."""
    blocks = zip(*(table.blocks() for table in tables), strict=True)
    for parts in progress(blocks, "Inner products", -(-tables[0].width // BLOCK)):
        yield np.concatenate([block for _, block in parts])


def metrics_of(layers: Sequence[str], shares: Mapping[str, np.ndarray], pixels: np.ndarray) -> dict[str, Metric]:
    """Means over draws, with their standard deviation and values; None where a layer tells no images apart."""
    metrics = {"pixels/same_class": _over_draws(pixels)}
    for row, layer in enumerate(layers):
        metrics[f"{layer}/same_class"] = _over_draws(shares["network"][row])
        metrics[f"{layer}/same_class_random_weights"] = _over_draws(shares["random_weights"][row])
    for name, others in (("over_pixels", pixels), ("over_random_weights", shares["random_weights"][-1])):
        metrics[f"{layers[-1]}/{name}"] = _over_draws(shares["network"][-1] - others, "points")
    return metrics


def told_curve(
    layers: Sequence[str], shares: Mapping[str, np.ndarray], pixels: np.ndarray, about: str
) -> Iterator[str]:
    """The curve by layer as lines of text, with standard errors over draws."""
    width = max(len(name) for name in ("pixels", *layers))
    yield f"in the class of their image, % and standard error ({about}):"
    yield f"  {'':{width}}  {'trained':>12}  {'random weights':>14}"
    yield f"  {'pixels':{width}}  {_with_error(pixels):>12}"
    for row, layer in enumerate(layers):
        trained, random = (_with_error(shares[way][row]) for way in ("network", "random_weights"))
        yield f"  {layer:{width}}  {trained:>12}  {random:>14}"
    over = [_with_error(shares["network"][-1] - others) for others in (pixels, shares["random_weights"][-1])]
    if "dead" not in over:
        yield f"{layers[-1]} lies {over[0]} points above pixels, {over[1]} above random weights"


def _over_draws(values: np.ndarray, unit: str = "%") -> Metric:
    known = values[np.isfinite(values)]
    spread = float(known.std(ddof=1)) if len(known) > 1 else None
    mean = float(known.mean()) if len(known) else None
    return {"value": mean, "unit": unit, "spread": spread, "values": known.tolist()}


def _with_error(values: np.ndarray) -> str:
    (mean,), (error,) = mean_and_error(values[None])
    if not np.isfinite(mean):
        return "dead"
    return f"{mean:.1f}" + (f" ± {error:.1f}" if np.isfinite(error) else "")
