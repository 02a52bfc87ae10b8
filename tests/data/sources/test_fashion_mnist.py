"""Fashion-MNIST: files plain and packed, and what is missing or damaged."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from zfscope.data.sources import fashion_mnist
from zfscope.data.sources.fashion_mnist import CLASSES
from zfscope.data.spec import DataConfig


def open_fashion_mnist(root, **values):
    return fashion_mnist.open_fashion_mnist(DataConfig(name="fashion_mnist", root=str(root), **values))


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def clothes(count, seed):
    images = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, (np.arange(count) % 10).astype(np.uint8)


def lay_out(folder, compressed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for part, count, seed in (("train", 60, 0), ("t10k", 20, 1)):
        images, labels = clothes(count, seed)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
    return folder


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("layout", ["FashionMNIST/raw", "."])
def test_the_four_files_become_three_parts_with_pixels_and_labels_together(tmp_path, layout, compressed):
    lay_out(tmp_path / layout, compressed)

    splits = open_fashion_mnist(tmp_path, val_fraction=0.2)

    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [48, 12, 20]
    seen = set()
    for part, (images, labels) in (
        (splits.train, clothes(60, 0)),
        (splits.val, clothes(60, 0)),
        (splits.test, clothes(20, 1)),
    ):
        for i in range(len(part)):
            name = part.name(i)
            number = int(name.rsplit("/", 1)[1])
            assert np.array_equal(np.asarray(part.read(i))[..., 2], images[number]) and part.labels[i] == labels[number]
            seen.add(name)
    assert len(seen) == 80


def test_torchvision_reads_the_same_files_alike(tmp_path):
    lay_out(tmp_path / "FashionMNIST" / "raw")

    theirs = datasets.FashionMNIST(str(tmp_path), train=False)
    ours = open_fashion_mnist(tmp_path).test

    assert tuple(theirs.classes) == CLASSES == ours.classes
    assert np.array_equal(theirs.targets.numpy(), ours.labels)
    assert np.array_equal(theirs.data[7].numpy(), np.asarray(ours.read(7))[..., 0])


def test_the_validation_part_is_a_function_of_the_seed_only(tmp_path):
    lay_out(tmp_path)

    first, again, other = (open_fashion_mnist(tmp_path, val_fraction=0.5, split_seed=seed) for seed in (1, 1, 2))

    assert first.val.fingerprint == again.val.fingerprint != other.val.fingerprint
    assert np.bincount(first.val.labels).tolist() == [3] * 10
    assert first.test.fingerprint == other.test.fingerprint


def test_where_it_looked_and_how_to_get_it_is_told(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"looked in {tmp_path}/FashionMNIST/raw, {tmp_path}; get .*download=true"
    ):
        open_fashion_mnist(tmp_path)
    (lay_out(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte\.gz"):
        open_fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data[:9], lambda data: b"<html>" + data, lambda data: b""],
    ids=["cut off", "no header", "html", "empty"],
)
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage, compressed):
    lay_out(tmp_path, compressed)
    path = next(tmp_path.glob("train-images*"))
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\S* is (damaged|no IDX file).*get it anew"):
        open_fashion_mnist(tmp_path)


def test_images_and_labels_must_be_as_many(tmp_path):
    lay_out(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(19, np.uint8)))

    with pytest.raises(ValueError, match="20 t10k images but 19 labels"):
        open_fashion_mnist(tmp_path)


def test_it_is_downloaded_by_torchvision_only_when_asked_and_not_there(tmp_path, monkeypatch):
    calls = []

    def fetch(root, download):
        calls.append((root, download))
        lay_out(tmp_path / "FashionMNIST" / "raw")

    monkeypatch.setattr(datasets, "FashionMNIST", fetch)

    assert len(open_fashion_mnist(tmp_path, download=True).test) == 20
    open_fashion_mnist(tmp_path, download=True)
    ((root, download),) = calls
    assert download and Path(root).parent == tmp_path  # a folder of its own, which is gone
    assert list(tmp_path.iterdir()) == [tmp_path / "FashionMNIST"]
