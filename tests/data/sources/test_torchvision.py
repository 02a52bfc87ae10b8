"""Data sets by torchvision's names, in small: what torchvision reads of the same files, and what is refused."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from tests.conftest import ROOT, TINY, composed, quick_first
from tests.data.sources import torchvision_layouts
from tests.data.sources.torchvision_layouts import LAYOUTS, md5
from zfscope.data.datamodule import open_data
from zfscope.data.sources.celeba import ATTRIBUTES
from zfscope.data.sources.torchvision import SOURCES
from zfscope.data.spec import TORCHVISION, DataConfig
from zfscope.schema import check

# Keywords of torchvision's class for our test part, and where that has its labels.
THEIRS = {
    "MNIST": ({"train": False}, "targets"),
    "SVHN": ({"split": "test"}, "labels"),
    "CelebA": ({"split": "test"}, None),
    "CIFAR10": ({"train": False}, "targets"),
    "CIFAR100": ({"train": False}, "targets"),
    "Flowers102": ({"split": "test"}, "_labels"),
    "OxfordIIITPet": ({"split": "test"}, "_labels"),
    "Food101": ({"split": "test"}, "_labels"),
}
SIZES = {  # training and validation images together, and test images, as laid out
    **{"MNIST": (40, 20), "SVHN": (40, 20), "CelebA": (36, 12), "CIFAR10": (100, 20), "CIFAR100": (200, 200)},
    **{"Flowers102": (36, 24), "OxfordIIITPet": (30, 15), "Food101": (30, 15)},
}
# A file that is taken away, by data set.
NEEDED = {
    "MNIST": "MNIST/raw/t10k-labels-idx1-ubyte.gz",
    "SVHN": "test_32x32.mat",
    "CelebA": "celeba/identity_CelebA.txt",
    "CIFAR10": "cifar-10-batches-py/data_batch_4",
    "CIFAR100": "cifar-100-python/meta",
    "Flowers102": "flowers-102/setid.mat",
    "OxfordIIITPet": "oxford-iiit-pet/annotations/test.txt",
    "Food101": "food-101/meta/train.json",
}
IMAGES = {
    "CelebA": "celeba/img_align_celeba/000007.jpg",
    "Flowers102": "flowers-102/jpg/image_00040.jpg",
    "OxfordIIITPet": "oxford-iiit-pet/images/Birman_3.jpg",
    "Food101": "food-101/images/waffles/test2.jpg",
}


def opened(root, name, **values):
    return open_data(DataConfig(name="torchvision", dataset=name, root=str(root), val_fraction=0.2, **values))


@pytest.fixture(params=LAYOUTS)
def laid_out(request, tmp_path, monkeypatch):
    """The name of a data set, and a folder that holds it."""
    LAYOUTS[request.param](tmp_path / "root", monkeypatch)
    return request.param, tmp_path / "root"


def test_the_parts_labels_and_pixels_are_those_that_torchvision_reads(laid_out, monkeypatch):
    name, root = laid_out
    if name == "MNIST":  # which torchvision reads unpacked alone
        shutil.rmtree(root)
        torchvision_layouts.mnist(root, monkeypatch, packed=False)
    keywords, labels = THEIRS[name]
    theirs = getattr(datasets, name)(str(root), **keywords)

    splits = opened(root, name)

    assert len(splits.train) + len(splits.val) == SIZES[name][0] and len(splits.test) == SIZES[name][1] == len(theirs)
    expected = theirs.attr[:, theirs.attr_names.index("Smiling")] if labels is None else getattr(theirs, labels)
    assert splits.test.labels.tolist() == np.asarray(expected).tolist()
    for index in (0, len(theirs) - 1):
        own = np.asarray(theirs[index][0].convert("RGB"))
        assert np.array_equal(np.asarray(splits.test.read(index)), own)
    if getattr(theirs, "classes", None):
        assert splits.test.classes == tuple(theirs.classes)


def test_train_and_validation_images_are_the_authors_training_images_each_once(laid_out):
    name, root = laid_out
    splits = opened(root, name)

    names = [part.name(index) for part in splits.parts.values() for index in range(len(part))]
    assert len(set(names)) == len(names) == sum(SIZES[name])
    again, other = opened(root, name), opened(root, name, split_seed=1)
    held_out = name not in ("CelebA", "Flowers102")  # which have validation images of their own
    assert splits.val.fingerprint == again.val.fingerprint
    assert (splits.val.fingerprint != other.val.fingerprint) == held_out
    assert splits.test.fingerprint == other.test.fingerprint and not splits.carved


def test_what_is_not_there_or_partly_is_told_in_one_line_with_place_and_way_out(laid_out, tmp_path):
    name, root = laid_out
    with pytest.raises(FileNotFoundError, match=rf"no whole {name} .*nowhere.*; set data\.download=true") as nothing:
        opened(tmp_path / "nowhere", name)
    (root / NEEDED[name]).unlink()

    with pytest.raises(
        FileNotFoundError, match=rf"no whole {name} .*{Path(NEEDED[name]).stem}.*set data\.down"
    ) as part:
        opened(root, name)

    assert not {"\n"} & set(f"{nothing.value}{part.value}") and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_of_the_lists_that_is_not_there_is_told(name, tmp_path, monkeypatch):
    LAYOUTS[name](tmp_path, monkeypatch)
    (tmp_path / IMAGES[name]).unlink()

    with pytest.raises(FileNotFoundError, match=rf"1 of \d+ images are not there, such as \S*{IMAGES[name]}; set data"):
        opened(tmp_path, name)


@pytest.mark.parametrize("name", ["SVHN", "CelebA", "Flowers102"])
def test_a_list_of_other_content_than_torchvision_knows_is_not_read(name, tmp_path, monkeypatch):
    LAYOUTS[name](tmp_path, monkeypatch)
    path = tmp_path / NEEDED[name]
    path.write_bytes(path.read_bytes() + b" ")

    with pytest.raises(FileNotFoundError, match=rf"{NEEDED[name]} is not the file whose checksum torchvision knows"):
        opened(tmp_path, name)


class Dangerous:
    """Unpickled it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
@pytest.mark.parametrize("table", ["train_list", "test_list", "meta"])
def test_a_pickle_of_other_content_is_refused_in_one_line_and_nothing_in_it_runs(
    command, tmp_path, monkeypatch, name, table
):
    root, trace = tmp_path / "root", tmp_path / "executed"
    LAYOUTS[name](root, monkeypatch)
    reader = getattr(datasets, name)
    file = reader.meta["filename"] if table == "meta" else getattr(reader, table)[-1][0]
    path = root / reader.base_folder / file
    path.write_bytes(pickle.dumps(Dangerous(trace)))
    words = [word for word in TINY if word != "data=folder"]

    code, _, err = command("train", "data=torchvision", f"data.dataset={name}", f"data.root={root}", *words)

    assert code == 2 and err.count("\n") == 1
    assert f"{path} is not the file whose checksum torchvision knows, and was not read; set data.download=true" in err
    assert not trace.exists() and not (tmp_path / "outputs").exists()


def test_such_a_pickle_would_run_where_its_checksum_held(tmp_path, monkeypatch):
    """So that the test above shows something."""
    torchvision_layouts.cifar(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py/test_batch"
    path.write_bytes(pickle.dumps(Dangerous(tmp_path / "executed")))
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(path)]])

    with pytest.raises(ValueError, match="the lists or arrays of CIFAR10 cannot be read"):
        opened(tmp_path, "CIFAR10")

    assert (tmp_path / "executed").exists()


def test_a_face_has_one_attribute_or_one_person_as_its_class(tmp_path, monkeypatch):
    torchvision_layouts.celeba(tmp_path, monkeypatch)
    theirs = datasets.CelebA(str(tmp_path), split="train", target_type=["attr", "identity"])

    male, people = opened(tmp_path, "CelebA", target="Male"), opened(tmp_path, "CelebA", target="identity")

    assert male.train.classes == ("not Male", "Male") and opened(tmp_path, "CelebA").train.classes[1] == "Smiling"
    assert male.train.labels.tolist() == [int(theirs[index][1][0][2]) for index in range(len(theirs))]
    assert people.train.classes == ("1", "8", "15", "22") and people.carved
    everyone = list(people.parts.values())
    assert sum(map(len, everyone)) == 48 and all(set(part.labels) == {0, 1, 2, 3} for part in everyone)
    for part in everyone:
        for index in range(len(part)):
            number = int(Path(part.name(index)).stem) - 1  # as they were laid out: person 1 + 7 * (number % 4)
            assert int(part.classes[part.labels[index]]) == 1 + 7 * (number % 4)


def test_an_attribute_that_is_none_is_told_with_a_near_one_before_and_after_a_download(tmp_path, monkeypatch):
    for root in (tmp_path / "nowhere", tmp_path / "root"):
        with pytest.raises(ValueError, match=r"^data\.target=Smilng: .* no such attribute; did you mean Smiling\?"):
            opened(root, "CelebA", target="Smilng", download=True)
        if root.name == "nowhere":
            torchvision_layouts.celeba(tmp_path / "root", monkeypatch)
    assert len(set(ATTRIBUTES)) == 40 and set(torchvision_layouts.ATTRIBUTES) <= set(ATTRIBUTES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "torchvision", "dataset": "mnist"}, r"dataset='mnist': .*'MNIST', 'SVHN'.* or 'Food101'"),
        ({"name": "torchvision", "dataset": "ImageNet"}, r"'MNIST', 'SVHN', 'CelebA', 'CIFAR10'"),
        ({"name": "folder", "dataset": "MNIST"}, "dataset=MNIST belongs to name=torchvision"),
        ({"name": "torchvision", "dataset": "SVHN", "target": "Male"}, "target=Male belongs to dataset=CelebA"),
    ],
)
def test_other_names_get_the_list(values, message):
    with pytest.raises(ValueError, match=message):
        check(DataConfig, values, "data")


def test_without_a_name_the_names_are_told():
    with pytest.raises(ValueError, match=r"data=torchvision needs data\.dataset=, one of MNIST, SVHN, CelebA"):
        open_data(check(DataConfig, composed("data=torchvision", "data.root=DIR")["data"]))


def test_a_damaged_image_is_left_out_as_of_any_data_set(tmp_path, monkeypatch):
    torchvision_layouts.food(tmp_path, monkeypatch)
    (tmp_path / "food-101/images/waffles/train3.jpg").write_bytes(b"<html>")

    splits = opened(tmp_path, "Food101")

    read = [splits.train, splits.val]
    (part, index) = next(
        (part, index) for part in read for index in range(len(part)) if part.name(index).endswith("waffles/train3.jpg")
    )
    with pytest.raises(OSError, match="it holds HTML or XML") as error:
        part.read(index)
    with pytest.warns(UserWarning, match=r"waffles/train3\.jpg: .*; it is left out"):
        part.leave_out(index, error.value)


def test_the_documentation_has_parts_target_and_licence_of_each():
    lines = (ROOT / "docs/data.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}

    assert tuple(SOURCES) == TORCHVISION == tuple(LAYOUTS)
    for name, source in SOURCES.items():
        assert source.licence in rows[name] and source.target in rows[name], name


@pytest.mark.parametrize("name", quick_first(LAYOUTS, 3))
def test_each_of_them_trains(command, tmp_path, monkeypatch, name):
    LAYOUTS[name](tmp_path / "root", monkeypatch)
    words = [word for word in TINY if word != "data=folder"]
    own = [f"data.dataset={name}", f"data.root={tmp_path / 'root'}", "data.val_fraction=0.2"]

    code, out, err = command("train", "data=torchvision", *own, *words, "debug=fast", "hydra.run.dir=run")

    assert (code, err) == (0, ""), (out, err)
