"""Small data sets in the very formats that torchvision reads; of torchvision only its checksums are replaced."""

import gzip
import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image
from torchvision import datasets

from tests.data.sources.test_fashion_mnist import idx

ATTRIBUTES = ("Bald", "Eyeglasses", "Male", "Smiling", "Young")


def md5(path):
    return hashlib.md5(Path(path).read_bytes()).hexdigest()


def pixels(count, side, colours=3, seed=0):
    shape = (count, side, side, colours) if colours > 1 else (count, side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def put(path, seed, size=(44, 36), mode="RGB"):
    """A photograph of noise, wider than high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, quality=95)


def mnist(root, patch, packed=True):
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        images, labels = pixels(count, 28, 1, count), (np.arange(count) % 10).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array), mtime=0))
            else:
                (folder / name).write_bytes(idx(array))
    if packed:
        own = [(name, md5(folder / name)) for name, _ in datasets.MNIST.resources]
        patch.setattr(datasets.MNIST, "resources", own)


def svhn(root, patch):
    root.mkdir(parents=True, exist_ok=True)
    own = dict(datasets.SVHN.split_list)
    for split, count in (("train", 40), ("test", 20)):
        path = root / f"{split}_32x32.mat"
        labels = np.arange(count) % 10 + 1  # 1 … 10, of which 10 is the digit 0
        scipy.io.savemat(
            path, {"X": pixels(count, 32, seed=count).transpose(1, 2, 3, 0), "y": labels.astype(np.uint8)[:, None]}
        )
        own[split] = [own[split][0], path.name, md5(path)]
    patch.setattr(datasets.SVHN, "split_list", own)


def celeba(root, patch, people=4):
    folder, count = root / "celeba", 48
    names = [f"{number:06d}.jpg" for number in range(1, count + 1)]
    for number, name in enumerate(names):
        put(folder / "img_align_celeba" / name, number, (36, 44))
    random = np.random.default_rng(0)
    has = np.where(random.random((count, len(ATTRIBUTES))) < 0.5, 1, -1)
    has[::2, 3], has[1::2, 3] = 1, -1  # Smiling

    def rows(values, width=0):
        return "".join(f"{name} {' '.join(f'{v:>{width}}' for v in row)}\n" for name, row in zip(names, values))  # noqa: B905

    lists = {
        "list_attr_celeba.txt": f"{count}\n{' '.join(ATTRIBUTES)} \n" + rows(has, 2),
        "identity_CelebA.txt": rows([[1 + number % people * 7] for number in range(count)]),
        "list_bbox_celeba.txt": f"{count}\nimage_id x_1 y_1 width height\n" + rows([[1, 2, 3, 4]] * count, 4),
        "list_landmarks_align_celeba.txt": f"{count}\n{' '.join('abcdefghij')}\n" + rows([range(10)] * count, 4),
        "list_eval_partition.txt": rows([[0 if n < 24 else 1 if n < 36 else 2] for n in range(count)]),
    }
    for name, text in lists.items():
        (folder / name).write_text(text)
    own = [(key, md5(folder / name) if name in lists else old, name) for key, old, name in datasets.CelebA.file_list]
    patch.setattr(datasets.CelebA, "file_list", own)


def cifar(root, patch, name="CIFAR10"):
    reader = getattr(datasets, name)
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    kinds, key = (10, "labels") if name == "CIFAR10" else (100, "fine_labels")
    for table in ("train_list", "test_list"):
        own = []
        for number, (file, _) in enumerate(getattr(reader, table)):
            count = 20 if name == "CIFAR10" else 200
            batch = pixels(count, 32, seed=len(file) + number).transpose(0, 3, 1, 2).reshape(count, -1)
            content = {"data": batch, key: [n % kinds for n in range(count)], "filenames": ["x.png"] * count}
            (folder / file).write_bytes(pickle.dumps(content, protocol=2))
            own.append([file, md5(folder / file)])
        patch.setattr(reader, table, own)
    meta = folder / reader.meta["filename"]
    meta.write_bytes(pickle.dumps({reader.meta["key"]: [f"kind {n}" for n in range(kinds)]}, protocol=2))
    patch.setattr(reader, "meta", reader.meta | {"md5": md5(meta)})


def cifar100(root, patch):
    cifar(root, patch, "CIFAR100")


def flowers(root, patch):
    folder, count = root / "flowers-102", 60
    for number in range(1, count + 1):
        put(folder / f"jpg/image_{number:05d}.jpg", number)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": (np.arange(count) % 6 + 1)[None]})
    ids = np.arange(1, count + 1)
    parts = {"trnid": ids[None, :24], "valid": ids[None, 24:36], "tstid": ids[None, 36:]}
    scipy.io.savemat(folder / "setid.mat", parts)
    own = {
        key: (name, old if key == "image" else md5(folder / name))
        for key, (name, old) in datasets.Flowers102._file_dict.items()
    }
    patch.setattr(datasets.Flowers102, "_file_dict", own)


def pets(root, patch):
    folder, breeds = root / "oxford-iiit-pet", ("Abyssinian", "american_bulldog", "Birman")
    (folder / "annotations/trimaps").mkdir(parents=True)
    for part, count in (("trainval", 10), ("test", 5)):
        lines = []
        for number in range(count):
            for label, breed in enumerate(breeds, 1):
                name = f"{breed}_{number + (100 if part == 'test' else 0)}"
                put(folder / f"images/{name}.jpg", 100 * count + len(lines), mode="L" if number == 0 else "RGB")
                lines.append(f"{name} {label} {1 if breed[0].isupper() else 2} 1\n")
        (folder / f"annotations/{part}.txt").write_text("".join(lines))


def food(root, patch):
    folder, dishes = root / "food-101", ("apple_pie", "waffles", "baklava")
    (folder / "meta").mkdir(parents=True)
    for part, count in (("train", 10), ("test", 5)):
        lists = {dish: [f"{dish}/{part}{number}" for number in range(count)] for dish in dishes}
        (folder / f"meta/{part}.json").write_text(json.dumps(lists))
        for number, path in enumerate(path for paths in lists.values() for path in paths):
            put(folder / f"images/{path}.jpg", 100 * count + number)


LAYOUTS = {
    "MNIST": mnist,
    "SVHN": svhn,
    "CelebA": celeba,
    "CIFAR10": cifar,
    "CIFAR100": cifar100,
    "Flowers102": flowers,
    "OxfordIIITPet": pets,
    "Food101": food,
}
