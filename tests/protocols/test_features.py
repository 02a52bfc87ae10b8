import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import zfscope.protocols.features as features
from tests.conftest import tiny_images
from zfscope.data.datamodule import Examples, ImageData
from zfscope.data.imageset import ArrayImages, FileImages
from zfscope.data.spec import DataConfig
from zfscope.data.splits import Splits
from zfscope.networks.build import build_network
from zfscope.networks.preprocessing import Preprocessing
from zfscope.protocols.features import extract, feature_tables, fingerprint

MODEL = {
    "name": "n",
    "conv1": {"maps": 8, "kernel_size": 3, "pool": {}, "norm": "after_pool"},
    "conv2": {"maps": 5, "kernel_size": 3},
    "fc6": {"units": 16},
    "fc8": {},
}


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = build_network(MODEL, 3, 20)
    network.preprocessing = Preprocessing(24, 20, torch.full((3, 1, 1), 110.0), torch.full((3, 1, 1), 0.02))
    return network


def loader(network, count=21, batch_size=8):
    pixels, labels = tiny_images(count)
    images = ArrayImages(pixels, labels, ("cat", "dog", "owl"), "tiny")
    return DataLoader(Examples(images, network.preprocessing, network.preprocessing.canvas_kind), batch_size)


def extracted(network, cache, layers=("conv1", "conv2", "fc6"), images="a" * 64, **options):
    return extract(network, loader(network, **options), layers, images, cache)


@pytest.mark.parametrize("block", [7, 200, 4096])
def test_tables_hold_each_layers_feature_maps_row_by_row(network, tmp_path, monkeypatch, block):
    monkeypatch.setattr(features, "BLOCK", block)
    inputs = torch.stack([view for view, _, _ in loader(network).dataset])
    network.eval()

    tables = extracted(network, tmp_path)

    for layer, table in tables.items():
        direct = network.trace(inputs).maps[layer].flatten(1).detach()
        torch.testing.assert_close(table.rows([0, 20, 3, 3]), direct[[0, 20, 3, 3]])
        assert (table.count, table.width) == direct.shape


@pytest.mark.parametrize("block", [7, 4096])
@pytest.mark.parametrize("memory", [1, 4 * 21 * 5, 1e9])
def test_the_gram_matrix_is_the_product_of_all_pairs_whatever_memory_there_is(
    network, tmp_path, monkeypatch, block, memory
):
    monkeypatch.setattr(features, "BLOCK", block)
    table = extracted(network, tmp_path)["conv1"]
    rows = table.rows(range(21)).double()

    torch.testing.assert_close(table.gram(memory).double(), rows @ rows.T, rtol=1e-4, atol=1e-3)


def test_a_second_call_reads_what_the_first_one_wrote(network, tmp_path):
    first = extracted(network, tmp_path)
    unread = loader(network)
    unread.dataset.images.pixels = None  # any use of an image would fail

    again = extract(network, unread, ["fc6"], "a" * 64, tmp_path)

    assert torch.equal(first["fc6"].rows(range(21)), again["fc6"].rows(range(21)))


def test_other_weights_other_preprocessing_and_other_images_have_tables_of_their_own(network, tmp_path):
    before = fingerprint(network)
    first = extracted(network, tmp_path)["fc6"].rows([0])

    with torch.no_grad():
        network.fc6.linear.weight[0, 0] += 1
    assert fingerprint(network) != before
    square, before = network.preprocessing, fingerprint(network)
    for way in ({"interpolation": "bicubic"}, {"crop_mode": "squash"}):
        network.preprocessing = replace(square, **way)
        assert fingerprint(network) != before
    network.preprocessing = square
    changed = extracted(network, tmp_path)["fc6"].rows([0])
    network.preprocessing = Preprocessing(24, 20, torch.full((3, 1, 1), 90.0), torch.full((3, 1, 1), 0.02))
    brighter = extracted(network, tmp_path)["fc6"].rows([0])

    assert not torch.equal(first, changed) and not torch.equal(changed, brighter)
    assert extracted(network, tmp_path, images="b" * 64, count=5)["fc6"].count == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
        lambda path: path.with_suffix(".txt").write_bytes(b"\xff"),
    ],
    ids=["cut off", "flipped bit", "note lost"],
)
def test_a_damaged_table_is_computed_anew_with_one_line(network, tmp_path, damage):
    table = extracted(network, tmp_path)["fc6"]
    whole = table.rows(range(21))
    damage(table.path)

    with pytest.warns(UserWarning, match=r"_fc6\.f32 is damaged; its features are computed anew") as told:
        again = extracted(network, tmp_path)["fc6"].rows(range(21))

    assert torch.equal(again, whole) and len(told) == 1


def test_an_image_replaced_under_its_name_and_size_has_features_of_its_own(network, tmp_path):
    pixels, labels = tiny_images(21)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.bmp")
    images = FileImages([f"{number}.bmp" for number in range(21)], labels, ("cat", "dog", "owl"), root=tmp_path)
    config = DataConfig(name="folder", root=str(tmp_path), cache=str(tmp_path / "cache"), num_workers=0, batch_size=8)
    data = ImageData(Splits(images, images), config, network.preprocessing)

    def features_of():
        return feature_tables(network, data, images, ["fc6"], 8, torch.device("cpu"))["fc6"].rows(range(21))

    before = features_of()
    Image.fromarray(pixels[4]).save(tmp_path / "3.bmp")
    after = features_of()

    assert (before != after).any(1).nonzero().flatten().tolist() == [3]
    assert torch.equal(after[3], after[4])


def test_nothing_half_written_stays_behind(network, tmp_path):
    broken = loader(network)
    read = broken.dataset.images.pixels
    broken.dataset.images.pixels = lambda index, short_side=None: read(index) if index < 10 else 1 / 0

    with pytest.raises(ZeroDivisionError, match="division"):
        extract(network, broken, ["conv1"], "a" * 64, tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_features_that_do_not_fit_on_the_disk_are_refused_before_they_are_written(network, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(100))

    with pytest.raises(OSError, match=r"the features take .* GB, but .* left; give data\.cache=DIR"):
        extracted(network, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_mode_of_the_network_is_given_back_and_an_unknown_layer_refused(network, tmp_path):
    network.train()

    extracted(network, tmp_path)

    assert network.training
    with pytest.raises(ValueError, match=r"no layer 'conv9'; the layers are conv1"):
        extracted(network, tmp_path, layers=["conv9"])


def test_numbers_of_images_are_those_of_the_rows(network, tmp_path):
    table = extracted(network, tmp_path, batch_size=5)["conv2"]

    assert table.rows(np.array([20])).shape == (1, table.width)
