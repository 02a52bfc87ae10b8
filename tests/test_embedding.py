"""The map of images and its neighbours, against scikit-learn, brute force and cases worked by hand."""

import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from zfscope.embedding import (
    chance_of_same_class,
    embed,
    grid_of,
    inner_products,
    nearest,
    principal_components,
    same_class_share,
    tells_apart,
)
from zfscope.networks.threads import ProductsInOneThread


def features(count=60, width=300, seed=0, offset=0.0):
    return (np.random.RandomState(seed).standard_normal((count, width)) + offset).astype(np.float32)


def blocks(values, width=37):
    return (values[:, first : first + width] for first in range(0, values.shape[1], width))


@pytest.mark.parametrize("offset", [0.0, 1000.0], ids=["centred", "far from 0"])
@pytest.mark.parametrize("neighbours", [1, 10, 59])
def test_the_nearest_images_are_those_of_scikit_learn(neighbours, offset):
    values = features(offset=offset)

    positions = nearest(inner_products(blocks(values), 60), neighbours)

    searched = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(values.astype(np.float64))
    assert np.array_equal(positions, searched.kneighbors(return_distance=False))


def test_the_share_in_the_same_class_is_that_of_a_naive_loop():
    values, labels = features(), np.arange(60) % 7

    share = same_class_share(inner_products(blocks(values), 60), labels, 10)

    own = 0
    for image in range(60):
        distances = [np.linalg.norm(values[image].astype(np.float64) - other) for other in values]
        order = [other for other in np.argsort(distances) if other != image]
        own += sum(labels[other] == labels[image] for other in order[:10])
    assert share == own / 600


def test_images_that_are_the_same_stay_neighbours_by_position():
    values = np.array([[0.0], [5.0], [0.0], [0.0], [5.5]], np.float32)

    assert nearest(inner_products([values], 5), 2).tolist() == [[2, 3], [4, 0], [0, 3], [0, 2], [1, 0]]


@pytest.mark.parametrize("neighbours", [0, 60])
def test_as_many_neighbours_as_images_are_refused(neighbours):
    with pytest.raises(ValueError, match=f"neighbours={neighbours} must lie between 1 and 59"):
        nearest(inner_products(blocks(features()), 60), neighbours)


def test_a_layer_that_gives_the_same_for_all_images_has_no_share():
    values = np.full((12, 40), 0.1, np.float32)
    broken = features(12)
    broken[3, 4] = np.nan

    for dead in (values, broken):
        products = inner_products(blocks(dead), 12)
        assert not tells_apart(products)
        assert np.isnan(same_class_share(products, np.zeros(12, int), 3))


def test_chance_is_the_mean_share_over_all_pairs_of_two_images():
    labels = np.array([0, 0, 0, 1, 1, 2])

    pairs = list(itertools.permutations(labels, 2))

    assert chance_of_same_class(labels) == pytest.approx(np.mean([one == other for one, other in pairs]))
    assert chance_of_same_class(np.zeros(5, int)) == 1


@pytest.mark.parametrize(("count", "width"), [(60, 300), (80, 20), (9, 300)], ids=["wide", "narrow", "few images"])
def test_components_are_those_of_scikit_learn_but_for_the_sign(count, width):
    values = features(count, width)
    values[:, :5] *= 4

    scores, variance = principal_components(inner_products(blocks(values), count))

    pca = PCA(min(50, count - 1, width), svd_solver="full").fit(values.astype(np.float64))
    expected = pca.transform(values.astype(np.float64))
    assert scores.shape == expected.shape
    np.testing.assert_allclose(np.abs(scores), np.abs(expected), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(scores.T @ scores, expected.T @ expected, atol=1e-6)
    assert variance == pytest.approx(pca.explained_variance_ratio_.sum())
    assert (scores.max(0) >= -scores.min(0)).all()


def test_a_feature_alone_has_one_component():
    values = np.arange(12, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)

    scores, variance = principal_components(inner_products([values], 12))

    assert scores.shape == (12, 1) and variance == pytest.approx(1)
    assert np.isfinite(embed(scores)).all()


def test_groups_of_images_stay_together_in_two_dimensions():
    labels = np.arange(90) % 3
    values = features(90, 50) + 8 * np.eye(50, dtype=np.float32)[labels]

    places = embed(principal_components(inner_products([values], 90))[0])

    distances = np.linalg.norm(places[:, None] - places, axis=2) + np.diag(np.full(90, np.inf))
    assert (labels[distances.argmin(1)] == labels).all()


CODE = """
import hashlib, sys, numpy as np, torch
from zfscope.embedding import embed, inner_products, principal_components
torch.set_num_threads(int(sys.argv[1]))
values = np.random.RandomState(0).standard_normal((150, 400)).astype(np.float32)
print(hashlib.sha256(embed(principal_components(inner_products([values], 150))[0]).tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_one_and_several_threads_give_the_same_map():
    digests = set()
    for threads in ("1", "3"):
        environment = {f"{name}_NUM_THREADS": threads for name in ("OMP", "OPENBLAS", "MKL")}
        ran = subprocess.run([sys.executable, "-c", CODE, threads], capture_output=True, text=True, env=environment)
        assert ran.returncode == 0, ran.stderr
        digests.add(ran.stdout)

    assert len(digests) == 1 and len(digests.pop().strip()) == 64


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(400, 20, 20), (40, 6, 6), (12, 3, 4), (3, 1, 3), (2, 1, 2)], ids=str
)
def test_every_cell_has_an_image_of_its_own(count, rows, columns):
    grid = grid_of(np.random.RandomState(0).rand(count, 2))

    assert grid.shape == (rows, columns)
    assert len(np.unique(grid)) == grid.size and grid.min() >= 0 and grid.max() < count


def test_the_grid_of_nine_places_that_stand_in_order_is_that_order():
    # Rows from the top, where the second number is largest; each place a little off the middle of its cell.
    places = np.array([[0, 9], [5, 9.5], [10, 10], [1, 5], [5, 5], [9, 4.5], [0, 0], [5, 0.5], [10, 1]])
    order = np.array([4, 0, 8, 2, 6, 1, 3, 7, 5])

    grid = grid_of(places[order])

    assert order[grid].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("seed", range(4))
def test_no_other_order_of_four_or_seven_images_lies_nearer(seed):
    count = 4 if seed % 2 else 7
    places = np.random.RandomState(seed).rand(count, 2)

    grid = grid_of(places)

    rows, columns = grid.shape
    scaled = (places - places.min(0)) / (places.max(0) - places.min(0))
    cells = [((c + 0.5) / columns, 1 - (r + 0.5) / rows) for r in range(rows) for c in range(columns)]

    def cost(order):
        return sum(((scaled[image] - cell) ** 2).sum() for image, cell in zip(order, cells, strict=True))

    assert cost(grid.ravel()) == pytest.approx(min(map(cost, itertools.permutations(range(count), len(cells)))))


def test_places_on_one_line_have_a_grid():
    assert sorted(grid_of(np.array([[0.0, 1], [1, 1], [2, 1], [3, 1]])).ravel()) == [0, 1, 2, 3]


def test_products_run_in_one_thread_and_the_number_comes_back(monkeypatch):
    counts, set_threads = [], torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda count: counts.append(count) or set_threads(count))
    before = torch.get_num_threads()

    with ProductsInOneThread():
        torch.nn.Linear(4, 2)(torch.ones(1, 4))
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            torch.ones(1, 4) @ torch.ones(2, 5)
        torch.nn.Conv2d(3, 2, 1)(torch.ones(1, 3, 2, 2))

    assert counts == [1, before, 1, before] and torch.get_num_threads() == before


def test_a_wide_dense_layer_gives_the_same_bits_with_any_number_of_threads():
    torch.manual_seed(0)
    layer, images = torch.nn.Linear(9216, 4096), torch.randn(16, 9216)
    before, digests = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            with torch.inference_mode(), ProductsInOneThread():
                digests[threads] = hashlib.sha256(layer(images).numpy().tobytes()).hexdigest()
    finally:
        torch.set_num_threads(before)

    assert len(set(digests.values())) == 1
