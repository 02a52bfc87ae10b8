"""Data as other people have it: mappings, shuffled loaders, streams, grey and oblong images, class folders."""

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

from tests.callbacks.conftest import COUNT, SIDE, Body, Module, Pictures, fit, panels, same
from tests.callbacks.foreign import Shaped, Taking, all_callbacks, by_keys, told
from tests.conftest import write_folders
from tests.oracles import check_alike, occluded_by_hand, strongest_by_sorting
from zfscope.activations import TopTable
from zfscope.callbacks import FeatureEvolution, OcclusionMaps, Projections
from zfscope.callbacks.batches import KeptImages, classes_of, image_of, label_of, names_its_index
from zfscope.deconvnet.projection import project
from zfscope.deconvnet.winners import as_pictures, project_winners, random_subset
from zfscope.figures import occlusion_panel
from zfscope.networks.hooked import as_network
from zfscope.occlusion.sensitivity import look

WHO = ("Projections", "FeatureEvolution", "OcclusionMaps", "Diagnostics", "FilterImages")
CONVS = ["network.conv1", "network.conv2"]


class Source(IterableDataset):
    """The images of a data set as a stream."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter([self.data[index] for index in range(len(self.data))])


@pytest.fixture
def projected(monkeypatch):
    """What the callback projects: tables, maps, how it reads images, and the winners."""
    calls = []

    def recording(network, tables, maps, read, **options):
        winners = list(project_winners(network, tables, maps, read, **options))
        calls.append((tables, maps, read, winners))
        return iter(winners)

    monkeypatch.setattr("zfscope.callbacks.projections.project_winners", recording)
    return calls


def check_projected(calls, module, images):
    """Values are those of sorting all activations; each winner is the image that it says, and its own projection."""
    ((tables, maps, read, winners),) = calls
    network = as_network(module)
    assert sorted(tables) == CONVS and {found.layer for found in winners} == set(CONVS)
    for layer, table in tables.items():
        expected = strongest_by_sorting(network, images, layer, maps[layer], table.values.shape[1])
        torch.testing.assert_close(table.values.float(), expected.values, rtol=1e-4, atol=1e-5)
    for found in winners:
        rows, ranks = found.rows, found.ranks
        table = tables[found.layer]
        chosen = read(table.indices[rows, ranks].tolist())
        places = table.positions[rows, ranks]
        expected, boxes = project(network, chosen, found.layer, maps[found.layer][rows], places, crop=True)
        if found.projections.shape[2:] == images.shape[2:]:  # a unit that sees the shorter side is shown whole
            expected = project(network, chosen, found.layer, maps[found.layer][rows], places)
            assert torch.equal(found.patches, as_pictures(network, chosen))
        torch.testing.assert_close(found.projections, expected)
        assert found.patches.shape[1] == found.tiles()[0].shape[1] == 3


KEYS = by_keys("image", "label")


@pytest.mark.parametrize(
    "make",
    [
        lambda: (Taking(Body(), Shaped(wrap=KEYS["wrap"]), KEYS["take"]), {}),
        lambda: (Taking(Body(), Shaped(wrap=KEYS["wrap"]), KEYS["take"], shuffled=True), {}),
        lambda: (Taking(Body(), Shaped(), shuffled=True), {}),
        lambda: (Module(validation=DataLoader(Shaped(), batch_sampler=[[10, 9, 8], [7, 6, 5, 4, 3], [2, 1, 0]])), {}),
        lambda: (Module(validation=DataLoader(Source(Shaped()), batch_size=4)), {}),
        lambda: (Taking(Body(1), Shaped((1, SIDE, SIDE)), shuffled=True), {}),
        lambda: (Taking(Body(1), Shaped((1, SIDE, SIDE))), {}),
        lambda: (Taking(Body(5), Shaped((5, SIDE, SIDE))), {}),
        lambda: (Taking(Body(), Shaped((3, SIDE, 30))), {}),
        lambda: (Taking(Body(1), Shaped((1, 30, SIDE)), shuffled=True), {}),
        lambda: (Taking(Body(), Shaped(wrap=lambda x, y: (y, x)), lambda batch: batch[::-1]), {"image_of": 1}),
        lambda: (
            Taking(Body(), Shaped(wrap=lambda x, y: {"scan": x, "y": y}), lambda batch: (batch["scan"], batch["y"])),
            {"image_of": "scan"},
        ),
        lambda: (
            Taking(Body(), Shaped(wrap=lambda x, y: ([x, x], y)), lambda batch: (batch[0][0], batch[1])),
            {"image_of": lambda item: item[0][0]},
        ),
    ],
    ids=["dict", "shuffled dict", "shuffled", "own batches", "stream", "shuffled grey", "grey", "five channels", "wide",
         "high grey", "label first", "key", "function"],
)  # fmt: skip
def test_winners_are_found_and_projected_however_the_images_come(tmp_path, warned, projected, make):
    module, options = make()
    images = getattr(module.validation, "images", None)

    fit(tmp_path, module, Projections(maps=3, top=3, **options), num_sanity_val_steps=2)

    check_projected(projected, module, Shaped().images if images is None else images)
    assert told(warned, "Projections") == []
    assert panels(tmp_path) == [f"projections/{layer}/epoch_001.png" for layer in CONVS]


@pytest.mark.parametrize("wrap", [by_keys("pixel_values", "labels"), by_keys("x", "target")], ids=["one", "other"])
@pytest.mark.parametrize("shape", [(3, SIDE, SIDE), (1, SIDE, SIDE), (1, 24, 33)], ids=["colour", "grey", "oblong"])
def test_all_callbacks_draw_what_mappings_hold_and_training_goes_the_same_way(tmp_path, warned, wrap, shape):
    alone, watched = (Taking(Body(shape[0]), Shaped(shape, wrap["wrap"]), wrap["take"], shuffled=True) for _ in "12")

    fit(tmp_path, alone, max_epochs=2)
    fit(tmp_path, watched, *all_callbacks(), max_epochs=2)

    assert same(watched.state_dict(), alone.state_dict())
    rooms = [panel.split("/")[0] for panel in panels(tmp_path)]
    counts = {"filter_images": 2, "projections": 4, "feature_evolution": 4, "occlusion": 2}
    assert {room: rooms.count(room) for room in counts} == counts
    # No layer of Body ends in an activation.
    assert [who for who in WHO if told(warned, who)] == ["Diagnostics"]


def test_the_label_of_a_mapping_is_followed_and_one_that_is_no_class_is_not(tmp_path, monkeypatch):
    seen = []

    def recording(*arguments, **options):
        seen.append(look(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr("zfscope.callbacks.occlusion_maps.look", recording)
    for label in (1, 7):
        data = Shaped((1, SIDE, SIDE), lambda image, _, label=label: {"image": image, "y": label})
        module = Module(Body(1), data)
        module.training_set = Shaped((1, SIDE, SIDE))
        module.validation_step = lambda batch, _, module=module: module(batch["image"])

        fit(tmp_path, module, OcclusionMaps(images=1, size=8, stride=5, fill=0.3))

    image = data.images[random_subset(COUNT, 1, 0)[0]]
    network = as_network(module)
    assert seen[1].target == 1 and seen[-1].target == seen[-1].label
    check_alike(seen[-1], occluded_by_hand(network, image, None, 8, 5, 0.3, "network.conv2"))


def test_evolution_finds_the_strongest_of_grey_images_in_mappings(tmp_path):
    evolution, keys = FeatureEvolution(maps=3, epochs=1, images=COUNT), by_keys("images", "targets")
    module = Taking(Body(1), Shaped((1, 24, 33), keys["wrap"]), keys["take"], lr=1e-9)

    fit(tmp_path, module, evolution)

    for layer, strip in evolution.strips.items():
        expected = strongest_by_sorting(as_network(module), module.training_set.images, layer, strip.maps, 1)
        torch.testing.assert_close(strip.values.float(), expected.values, rtol=1e-4, atol=1e-5)
        assert torch.equal(strip.indices, expected.indices)
    assert len(evolution.strips) == 2


def test_only_images_that_hold_a_place_are_kept():
    kept, images = KeptImages(), torch.randn(6, 1, 2, 2)

    first = kept.number(images[:4].clone())
    kept.keep({})
    second = kept.number(images[4:].clone())
    table = torch.tensor([[5, 0]])
    kept.keep({"conv1": TopTable(table, table, table)})

    assert first.tolist() == [0, 1, 2, 3] and second.tolist() == [4, 5]
    assert torch.equal(kept.read([5, 0]), images[[5, 0]])
    assert {image.untyped_storage().nbytes() for image in kept._images.values()} == {images[0].nbytes}
    with pytest.raises(KeyError, match="3"):
        kept.read([3])


@pytest.mark.parametrize(
    ("item", "image", "label", "index"),
    [
        ({"image": 1, "label": 2, "index": 3}, 1, 2, 3),
        ({"pixel_values": 1, "labels": 2}, 1, 2, None),
        ({"x": 1, "y": 2, "idx": 3}, 1, 2, 3),
        (({"img": 1}, 2), 1, 2, None),
        (({"input": 1, "target": 2},), 1, 2, None),
        ((1, {"label": 2}, 3), 1, 2, 3),
        ([1, 2, 3], 1, 2, 3),
    ],
)
def test_images_labels_and_indices_are_found_in_the_usual_places(item, image, label, index):
    def tensors(part):
        if isinstance(part, dict):
            return {key: tensors(value) for key, value in part.items()}
        return type(part)(map(tensors, part)) if isinstance(part, list | tuple) else torch.tensor(part)

    item = tensors(item)

    assert int(image_of(item)) == image and label_of(item) == label
    assert [number for number in (2, 3) if names_its_index(item, number)] == ([] if index is None else [index])


def test_class_names_are_those_of_the_folders_also_of_a_part_of_them(tmp_path, monkeypatch):
    root = write_folders(tmp_path / "images", {"val": 4}, classes=("cat", "dog"), side=SIDE) / "val"
    folder = ImageFolder(root, to_tensor)
    titles = []
    monkeypatch.setattr(
        "zfscope.callbacks.occlusion_maps.occlusion_panel",
        lambda *arguments, **options: titles.append(options) or occlusion_panel(*arguments, **options),
    )

    fit(tmp_path, Module(validation=Subset(folder, range(1, 8))), OcclusionMaps(images=7, stride=20))

    assert {options["classes"] for options in titles} == {("cat", "dog")}
    names = {title.split(", ")[0].split()[-1]: title.split(", ")[1] for title in (o["title"] for o in titles)}
    assert names == {str(index): "cat" if index < 3 else "dog" for index in range(7)}
    assert classes_of(ConcatDataset([Subset(folder, [0]), Pictures()])) == ("cat", "dog")
    assert classes_of(Pictures()) is None  # its number of classes is no name
    assert classes_of(nn.Identity()) is None
