"""A map of images: which lie near each other in a network's features, in two dimensions, and who their neighbours are.

All of it follows from the inner products of the features of all pairs of images (the Gram matrix), so that features may
be as wide as they are: they pass by in blocks of columns, and ``(N, N)`` numbers stay.

Source: van der Maaten & Hinton (2008), "Visualizing data using t-SNE", for the two dimensions; maps of ImageNet by
convnet codes, with an image in each cell of a grid, are Karpathy's (2014). The measures are our choice.
"""

from collections.abc import Iterable

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

COMPONENTS = 50  # principal components that t-SNE starts from
PERPLEXITY = 30  # about how many neighbours t-SNE keeps near


def inner_products(blocks: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Inner products of the centred features of all pairs of images, ``(N, N)`` float64.

    ``blocks`` are columns of the features, ``(N, width)`` each, in any order; ``count`` is N.
    """
    products = np.zeros((count, count))
    for block in blocks:
        columns = block.astype(np.float64)
        columns -= columns.mean(0)
        products += columns @ columns.T
    return products


def tells_apart(products: np.ndarray) -> bool:
    """Whether features differ between images and are finite; those of a dead layer are the same for all."""
    return bool(np.isfinite(products).all() and np.trace(products) > 0)


def nearest(products: np.ndarray, count: int) -> np.ndarray:
    """The nearest other images of each, nearest first, by Euclidean distance: ``(N, count)`` positions.

    Of two that are equally far the one with the lower position comes first.
    """
    if not 1 <= count < len(products):
        raise ValueError(f"neighbours={count} must lie between 1 and {len(products) - 1}, one less than the images")
    lengths = np.diag(products)
    distances = lengths[:, None] + lengths - 2 * products
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1, kind="stable")[:, :count]


def same_class_share(products: np.ndarray, labels: np.ndarray, neighbours: int) -> float:
    """How many of the nearest neighbours have the class of their image, 0 to 1, over all images.

    NaN where the features tell no images apart.
    """
    if not tells_apart(products):
        return float("nan")
    return float((labels[nearest(products, neighbours)] == labels[:, None]).mean())


def chance_of_same_class(labels: np.ndarray) -> float:
    """The share to expect of neighbours drawn at random from the other images, 0 to 1."""
    counts = np.unique(labels, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))


def principal_components(products: np.ndarray, most: int = COMPONENTS) -> tuple[np.ndarray, float]:
    """Where images lie along the first principal components, and the share of the variance that these hold.

    ``(N, K)`` float64 with K at most ``most``, N - 1 and the rank of the features, largest variance first. The sign of
    a component, which is arbitrary, is such that its largest value is positive.
    """
    count = len(products)
    with threadpool_limits(1):  # as many threads, as many roundings
        values, vectors = eigh(products, subset_by_index=(max(0, count - most), count - 1))
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > 1e-10 * values[0]
    scores = vectors[:, kept] * np.sqrt(values[kept])
    largest = scores[np.abs(scores).argmax(0), np.arange(scores.shape[1])]
    return scores * np.sign(largest), float(values[kept].sum() / np.trace(products))


def embed(components: np.ndarray) -> np.ndarray:
    """Two dimensions by t-SNE, ``(N, 2)`` float32: near images stay near, far ones lie anywhere else.

    It starts from the first two components, and runs in one thread: nothing is drawn at random, and any number of
    threads gives the same bits.
    """
    count = len(components)
    start = np.zeros((count, 2), np.float32)
    start[:, : components.shape[1]] = components[:, :2] / components[:, 0].std() * 1e-4
    perplexity = min(PERPLEXITY, (count - 1) / 3)
    with threadpool_limits(1):
        tsne = TSNE(perplexity=perplexity, init=start, random_state=0, n_jobs=1)
        places: np.ndarray = tsne.fit_transform(components.astype(np.float32))
    return places


def grid_of(places: np.ndarray) -> np.ndarray:
    """Which image stands in each cell of a grid: ``(rows, columns)`` positions, the top row first.

    Cells cover the square around ``places (N, 2)``, whose second number grows upwards. Every cell gets an image of its
    own, such that the squared distances between images and their cells are least in sum. Rows and columns are as near
    as N allows; fewer images than a row are left over.
    """
    count = len(places)
    rows = int(np.sqrt(count))
    columns = count // rows
    low, high = places.min(0), places.max(0)
    scaled = (places - low) / np.where(high > low, high - low, 1)
    across, up = (np.arange(columns) + 0.5) / columns, 1 - (np.arange(rows) + 0.5) / rows
    cost = (scaled[:, 0] - np.tile(across, rows)[:, None]) ** 2 + (scaled[:, 1] - np.repeat(up, columns)[:, None]) ** 2
    images: np.ndarray = linear_sum_assignment(cost)[1]
    return images.reshape(rows, columns)
