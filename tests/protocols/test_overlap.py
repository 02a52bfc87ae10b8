import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.fft import dctn, idctn

from tests.conftest import quick_first
from tests.examples.overlap import COPIES, files, photographs, recompressed
from zfscope.data.imageset import ArrayImages, JoinedImages
from zfscope.protocols.overlap import correlate, describe, description_size, find_overlap, keep_pairs, mirror, thumbnail


def described(pictures):
    return describe(torch.from_numpy(np.stack([thumbnail(picture.convert("RGB")) for picture in pictures])))


def counted(found):
    return {(int(i), int(j)) for i, j in found.pairs[found.same]}


def naive(first, second, threshold, margin, mirrored, flips):
    """All pairs that count, by loops over float64."""
    first, second = first.double().numpy(), second.double().numpy()
    alike = np.array([[a @ b for b in second] for a in first])
    if mirrored:
        alike = np.maximum(alike, np.array([[(a * flips) @ b for b in second] for a in first]))
    found = {}
    for i in range(len(first)):
        for j in range(len(second)):
            fourths = [sorted(others, reverse=True)[3:4] for others in (alike[i], alike[:, j])]
            fourth = max([0.0, *(value for values in fourths for value in values)])
            r = alike[i, j]
            if r >= threshold and (r > 1 - 4e-4 or (1 - fourth) / (1 - r) >= margin):
                found[i, j] = r
    return found


def test_a_scalar_product_is_the_correlation_of_filtered_thumbnails():
    grey = np.stack([thumbnail(picture) for picture in photographs(6)]).astype(np.float64)
    radius = np.hypot(np.arange(32)[:, None], np.arange(32)[None])
    weights = radius * np.exp(-((radius / 16) ** 4))
    weights[weights < 0.01 * weights.max()] = 0
    filtered = idctn(dctn(grey, axes=(1, 2), norm="ortho") * weights, axes=(1, 2), norm="ortho")

    ours = describe(torch.from_numpy(grey))

    np.testing.assert_allclose(ours @ ours.T, np.corrcoef(filtered.reshape(6, -1)), atol=1e-5)


def test_descriptions_are_mirrored_without_the_image():
    pictures = photographs(3, size=(67, 41))

    torch.testing.assert_close(
        mirror(described(pictures)), described([ImageOps.mirror(picture) for picture in pictures]), atol=2e-4, rtol=0
    )


@pytest.fixture(scope="module")
def lookalikes():
    """Descriptions that have much in common, copies among them: ``(22, D)`` and ``(26, D)``."""
    generator = torch.Generator().manual_seed(1)

    def noise(count, size=1.0):
        return size * torch.randn(count, description_size(), generator=generator)

    common = noise(1)
    first, second = noise(22) + 2 * common, noise(26) + 2 * common
    second[0:3] = first[0:3] + noise(3, 0.3)
    second[3:5] = first[3:5] + noise(2, 0.8)
    second[5:7] = first[5:7]
    second[9] = mirror(first[9:10] + noise(1, 0.2))
    second[11:14] = first[11] + noise(3, 0.2)  # as many copies as are found
    second[14:18] = first[14] + noise(4, 0.2)  # one too many, here and in the first set
    first[15:19] = second[19] + noise(4, 0.2)
    first[20], second[21] = noise(2)
    second[22] = first[20] + noise(1, 0.6)  # far nearer than others, yet no copy
    return tuple(each / each.norm(dim=1, keepdim=True) for each in (first, second))


@pytest.mark.parametrize("mirrored", [False, True], ids=["as they are", "mirrored"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (7, 5), (1000, 1000)])
def test_pairs_are_those_of_a_naive_loop_whatever_the_blocks(rows, columns, mirrored, lookalikes, monkeypatch):
    monkeypatch.setattr("zfscope.protocols.overlap.BLOCK_ROWS", 4)
    first, second = lookalikes
    flips = mirror(torch.ones(1, description_size()))[0].double().numpy()

    found = correlate(first.split(rows), second.numpy(), threshold=0.9, margin=3.0, mirrored=mirrored, columns=columns)

    expected = naive(first, second, 0.9, 3.0, mirrored, flips)
    assert {(0, 0), (5, 5), (11, 11), (11, 12), (11, 13)} <= set(expected)
    assert ((9, 9) in expected) == mirrored
    assert not {(14, 14), (15, 19), (20, 22)} & set(expected)
    assert counted(found) == set(expected)
    for (i, j), r in zip(found.pairs.tolist(), found.correlation, strict=True):
        if (i, j) in expected:
            assert r == pytest.approx(expected[i, j], abs=1e-5)
    assert (np.diff(found.correlation) <= 0).all()


@pytest.mark.parametrize("change", quick_first(COPIES.values(), 5), ids=COPIES)
def test_planted_copies_are_found_and_no_others(change, tmp_path):
    pictures = photographs(14)
    first = files(tmp_path / "first", pictures)
    second = files(tmp_path / "second", [*photographs(10, seed=1), *map(change, pictures[3:9])])

    found = find_overlap(first, second)

    assert counted(found) == {(3 + n, 10 + n) for n in range(6)}
    assert found.correlation[~found.same].max() < 0.6


def test_mirrored_copies_are_found_where_asked_for(tmp_path):
    pictures = photographs(12, size=(181, 119))
    first = files(tmp_path / "first", pictures)
    planted = [recompressed(ImageOps.mirror(picture)) for picture in pictures[:4]]
    second = files(tmp_path / "second", [*photographs(10, seed=1), *planted])

    assert counted(find_overlap(first, second)) == set()
    assert counted(find_overlap(first, second, mirrored=True)) == {(n, 10 + n) for n in range(4)}


def test_where_all_images_are_alike_a_copy_must_stand_out(tmp_path):
    common = np.asarray(photographs(1, seed=7)[0]).astype(float)
    alike = [Image.blend(Image.fromarray(common.astype(np.uint8)), each, 0.15) for each in photographs(30, seed=3)]
    first = files(tmp_path / "first", alike[:15])
    second = files(tmp_path / "second", [*alike[15:], *map(recompressed, alike[:3])])

    by_threshold, by_both = (counted(find_overlap(first, second, margin=margin)) for margin in (1.0, 4.0))

    assert len(by_threshold) > 30
    assert by_both == {(0, 15), (1, 16), (2, 17)}


def test_any_number_of_copies_that_are_the_same_but_for_rounding_is_found(tmp_path):
    pictures = photographs(8)
    first = files(tmp_path / "first", [*pictures[:6], pictures[0], pictures[0]])
    rounded = [recompressed(pictures[0], quality) for quality in (95, 96, 97, 98, 99, 100)]
    second = files(tmp_path / "second", [pictures[6], *rounded, pictures[7]])

    found = counted(find_overlap(first, second))

    assert {i for i, _ in found} == {0, 6, 7}
    assert {j for _, j in found} <= set(range(1, 7))


@pytest.mark.parametrize("memory_gb", [1.0, 1e-6], ids=["in memory", "in a file"])
def test_which_set_is_held_and_where_changes_nothing(memory_gb, tmp_path, monkeypatch):
    pictures = photographs(12)
    first = files(tmp_path / "first", pictures)
    second = files(tmp_path / "second", [*photographs(3, seed=1), *map(recompressed, pictures[5:7])])
    kept = []
    memmap = np.memmap

    def watched(path, *rest, **options):
        kept.append((path.parent.parent, options["shape"]))
        return memmap(path, *rest, **options)

    monkeypatch.setattr(np, "memmap", watched)

    there = find_overlap(first, second, memory_gb=memory_gb, scratch=tmp_path)
    back = find_overlap(second, first, memory_gb=memory_gb, scratch=tmp_path)

    assert counted(there) == {(5, 3), (6, 4)} == {(i, j) for j, i in counted(back)}
    assert {tuple(pair) for pair in there.pairs[:, ::-1]} <= {(j, i) for i in range(12) for j in range(5)}
    assert kept == ([] if memory_gb == 1.0 else [(tmp_path, (5, description_size()))] * 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_memory_is_bounded_by_the_size_of_products(tmp_path, monkeypatch):
    made, keep = [], keep_pairs

    def watched(best, alike, *rest):
        made.append(alike.numel())
        keep(best, alike, *rest)

    monkeypatch.setattr("zfscope.protocols.overlap.keep_pairs", watched)
    noise = np.random.default_rng(0).integers(0, 256, (1200, 8, 8), np.uint8)
    first, second = (ArrayImages(images, np.zeros(1200, int), "a", "set") for images in (noise, noise[::-1]))

    found = find_overlap(first, second, memory_gb=0.01)

    assert counted(found) >= {(n, 1199 - n) for n in range(1200)}
    assert 4 * max(made) <= 0.01e9 / 4


def test_images_of_one_grey_are_copies_of_nothing(tmp_path):
    plain = [Image.new("RGB", (40, 40), (grey,) * 3) for grey in (0, 0, 200)]
    first = files(tmp_path / "first", [*plain, *photographs(3)])
    second = files(tmp_path / "second", plain[:2])

    found = find_overlap(first, second)

    assert found.blank == (3, 2)
    assert find_overlap(second, first).blank == (2, 3)
    assert len(found.pairs) == 0


def test_a_set_without_images_has_nothing_in_common(tmp_path):
    images = files(tmp_path, photographs(2))

    with pytest.raises(ValueError, match="has no images, so they have none in common"):
        find_overlap(images, images.subset([]))


# Lists of images to leave out.


def test_workers_and_joined_sets_change_nothing(tmp_path):
    pictures = photographs(10)
    first = files(tmp_path / "first", pictures)
    halves = JoinedImages([first.subset(range(5, 10)), first.subset(range(5))])
    second = files(tmp_path / "second", [recompressed(pictures[2]), *photographs(4, seed=1)])

    whole, joined = find_overlap(first, second, num_workers=2), find_overlap(halves, second)

    assert counted(whole) == {(2, 0)} and counted(joined) == {(7, 0)}


@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_others_make_no_copy_of_what_is_not(count, tmp_path):
    first = files(tmp_path / "first", photographs(6))
    second = files(tmp_path / "second", photographs(count + 1, seed=1))

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = find_overlap(first, second)

    assert counted(found) == set()
