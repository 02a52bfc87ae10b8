"""The files of an atlas: the winners of an independent computation, the tiles of the projections, nothing missing."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.atlas.conftest import CLASSES, SIDE, content_of, random_images, small_module
from tests.oracles import strongest_by_sorting
from zfscope.atlas import write
from zfscope.atlas.source import over_classes
from zfscope.atlas.sprites import shrunk, tile_size
from zfscope.deconvnet import project
from zfscope.deconvnet.boxes import cut
from zfscope.deconvnet.winners import as_pictures
from zfscope.images import contrast_limits, to_tiles
from zfscope.networks.hooked import as_network
from zfscope.occlusion.sensitivity import look

LAYERS = ("one", "two")


def tiles_of(path, layer, across):
    """The tiles of a sheet, row by row, ``(N, height, width, 3)``."""
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height, width = layer["tile"]["height"], layer["tile"]["width"]
    rows = sheet.reshape(sheet.shape[0] // height, height, across, width, 3).swapaxes(1, 2)
    return rows.reshape(-1, height, width, 3)


def test_values_and_images_of_all_maps_are_those_of_sorting_all_activations(written):
    index, network = content_of(written, "index"), as_network(small_module(), LAYERS)

    for place, layer in enumerate(index["layers"]):
        maps = content_of(written, f"layer-{place}")["maps"]
        expected = strongest_by_sorting(network, random_images(), layer["name"], torch.arange(len(maps)), 4)
        for row, one in enumerate(maps):
            above = expected.values[row] > 0
            assert one["values"] == pytest.approx(expected.values[row][above].tolist(), rel=1e-3)
            assert one["images"] == expected.indices[row][above].tolist()
        dead = sum(not one["values"] for one in maps)
        assert layer["dead"] == dead and (layer["name"] == "one" or not maps[-1]["values"])
        assert layer["count"] == len(maps) == (40 if layer["name"] == "two" else 5)
        strongest = [maps[row]["values"][0] for row in layer["strongest"] if maps[row]["values"]]
        assert strongest == sorted(strongest, reverse=True) and len(layer["strongest"]) == min(12, len(maps))


@pytest.mark.parametrize(("name", "tolerance"), [("one", 2), ("two", 2)])
def test_a_sheet_holds_the_projections_and_then_the_patches_of_its_map(written, name, tolerance):
    index, images = content_of(written, "index"), random_images()
    network = as_network(small_module(), LAYERS)
    pictures = as_pictures(network, images)
    place, layer = next((place, one) for place, one in enumerate(index["layers"]) if one["name"] == name)

    for row, one in enumerate(content_of(written, f"layer-{place}")["maps"]):
        won = one["images"]
        if not won:
            assert not (written / layer["place"] / f"{row}.webp").exists()
            continue
        projections, boxes = project(network, images[won], name, [row] * len(won), crop=True)
        patches = cut(pictures[won], boxes, 127)
        tiles = tiles_of(written / layer["place"] / f"{row}.webp", layer, len(won))
        size = tile_size(patches.shape[3], patches.shape[2])
        expected = np.concatenate([shrunk(to_tiles(projections, limit=contrast_limits(projections)), size)])
        assert one["boxes"] == boxes.tolist()
        assert np.abs(tiles[: len(won)] - expected).mean() < tolerance
        assert np.abs(tiles[len(won) :] - shrunk(patches, size)).mean() < tolerance
        first = tiles_of(written / layer["place"] / f"all-{row // 64}.webp", layer, 16)[2 * (row % 64) :][:2]
        assert np.abs(first - tiles[[0, len(won)]]).mean() < tolerance


def test_tiles_keep_their_shape_and_are_never_larger_than_their_picture():
    assert [(size.width, size.height) for size in (tile_size(7, 7), tile_size(224, 112), tile_size(2000, 1))] == [
        (7, 7),
        (96, 48),
        (96, 1),
    ]
    assert tile_size(7, 7).is_sharp and not tile_size(224, 112).is_sharp
    picture = torch.full((1, 3, 224, 112), 9, dtype=torch.uint8)
    assert (shrunk(picture, tile_size(112, 224)) == 9).all()


def test_occlusion_maps_of_a_page_are_those_of_looking_at_its_image(written):
    index, module = content_of(written, "index"), small_module()

    assert len(index["pages"]) == 3
    assert sorted(number % 3 for number in index["pages"]) == [0, 1, 2]
    for number in index["pages"]:
        found = content_of(written, f"image-{number}")["occlusion"]
        seen = look(module, random_images()[number], number % 3)
        torch.testing.assert_close(torch.tensor(found["probability"]), seen.occlusion.probability, rtol=1e-3, atol=1e-5)
        assert found["label"] == seen.occlusion.label.tolist()
        assert (found["target"], found["size"], found["stride"]) == (number % 3, seen.size, seen.stride)


def test_strongest_maps_of_a_page_are_those_of_its_image_alone(written):
    index, network = content_of(written, "index"), as_network(small_module(), LAYERS)

    for number in index["pages"]:
        trace = network.trace(random_images()[number][None])
        for place, shown in content_of(written, f"image-{number}")["layers"].items():
            peaks = trace.maps[LAYERS[int(place)]][0].flatten(1).amax(1)
            values, order = peaks.sort(descending=True)
            count = min(8, int((values > 0).sum()))
            assert shown["maps"] == order[:count].tolist()
            assert shown["values"] == pytest.approx(values[:count].tolist(), rel=1e-3)


def test_images_and_classes_tell_which_maps_they_win(written):
    index, images = content_of(written, "index"), content_of(written, "images")
    layers = [content_of(written, f"layer-{place}")["maps"] for place in range(2)]
    wins = {
        (image, place, row, rank)
        for place, maps in enumerate(layers)
        for row, one in enumerate(maps)
        for rank, image in enumerate(one["images"])
    }

    assert {(one["index"], *win) for one in images for win in one["wins"]} == wins
    assert all(one["labels"] == [one["index"] % 3] for one in images)
    assert {one["index"] for one in images} == {win[0] for win in wins} | set(index["pages"])
    for label, one in enumerate(content_of(written, "classes")):
        assert (one["name"], one["total"]) == (CLASSES[label], len(range(label, 14, 3)))
        for place, counts in one["maps"].items():
            for row, count in counts:
                assert count == sum(image % 3 == label for image in layers[int(place)][row]["images"])
    for maps in layers:
        for one in maps:
            counts = dict(map(tuple, one["classes"]))
            assert counts == {n: c for n in range(3) if (c := sum(i % 3 == n for i in one["images"]))}
            assert one["selectivity"] == pytest.approx(
                max(counts.values(), default=0) / max(1, len(one["images"])), abs=1e-3
            )


def check_whole(folder):
    """All files that a page of the atlas can ask for are there, and there are no others."""
    index, named = content_of(folder, "index"), {"index.html", "atlas.css"}
    page = (folder / "index.html").read_text(encoding="utf-8")
    named |= set(re.findall(r'(?:src|href)="([^"#]+)"', page))
    named |= {f"data/{name}.js" for name in ("index", "images", "classes")}
    assert {f"#{layer['address']}" for layer in index["layers"]} <= set(re.findall(r'href="(#[^"]*)"', page))
    for place, layer in enumerate(index["layers"]):
        maps = content_of(folder, f"layer-{place}")["maps"]
        named |= {f"data/layer-{place}.js", *(f"{layer['place']}/all-{n}.webp" for n in range(-(-len(maps) // 64)))}
        named |= {f"{layer['place']}/{row}.webp" for row, one in enumerate(maps) if one["values"]}
    count = len(content_of(folder, "images"))
    named |= {f"sprites/images/{sheet}.webp" for sheet in range(-(-count // index["thumbs"]["sheet"]))}
    for number in index["pages"]:
        named |= {f"data/image-{number}.js", f"sprites/pages/{number}.webp"}
        layers = content_of(folder, f"image-{number}")["layers"]
        named |= {f"sprites/pages/{number}-{place}.webp" for place in layers}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == named


def test_every_file_that_the_page_names_is_there_and_no_other(written):
    check_whole(written)


@pytest.mark.parametrize("names", [["notes.txt"], ["index.html"], ["index.html", "data/index.js", "notes.txt"]])
def test_only_a_new_folder_or_an_earlier_atlas_is_written_to(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")

    with pytest.raises(ValueError, match="holds other files, or is one; give a new folder"):
        write(small_module(), random_images(), tmp_path)

    assert all((tmp_path / name).read_text() == "mine" for name in names)


def test_an_atlas_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    folder = tmp_path / "atlas"
    ways = {"layers": ["one"], "top": 2, "pages": 0}
    write(small_module(), random_images(4), folder, **ways)
    before = (folder / "data/layer-0.js").read_text()
    monkeypatch.setattr("zfscope.atlas.public.write_page", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        write(small_module(maps=(3, 4)), random_images(4), folder, **ways)

    assert (folder / "data/layer-0.js").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["atlas"]


def test_without_labels_there_are_no_classes_and_grey_images_are_taken(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU())  # no head, and no logits

    with pytest.warns(UserWarning, match="pages come without occlusion maps"):
        write(module, torch.rand(3, 1, 12, 20), tmp_path / "atlas", layers=["1"], top=2, pages=2)

    index = content_of(tmp_path / "atlas", "index")
    assert index["classes"] == [] and index["thumbs"]["imageWidth"] == 20
    assert all(content_of(tmp_path / "atlas", f"image-{n}")["occlusion"] is None for n in index["pages"])
    check_whole(tmp_path / "atlas")


@pytest.mark.parametrize(
    ("images", "ways", "message"),
    [
        (torch.rand(3, SIDE, SIDE), {}, r"images must be network inputs \(N, C, H, W\)"),
        (torch.rand(2, 3, SIDE, SIDE), {"labels": [0]}, "labels must be one for each of 2 images, but are 1"),
        (torch.rand(2, 3, SIDE, SIDE), {"labels": [0, -1]}, "labels must be 0 or more, but the least is -1"),
        (
            torch.rand(2, 3, SIDE, SIDE),
            {"labels": [0, 3], "classes": ["a"]},
            "classes names 1, but the largest label is 3",
        ),
        (torch.rand(2, 3, SIDE, SIDE), {"layers": ["three"]}, "has no submodule 'three'"),
    ],
)
def test_what_is_no_images_labels_or_layers_is_refused(tmp_path, images, ways, message):
    with pytest.raises(ValueError, match=message):
        write(small_module(), images, tmp_path / "atlas", **ways)

    assert list(tmp_path.iterdir()) == []


def test_images_are_taken_from_each_class_in_turn_in_an_order_of_the_seed():
    labels = [(0,)] * 5 + [(1, 0)] * 2 + [()] * 3

    order = over_classes(labels, 0)

    assert [labels[number] for number in order[:6]] == [(), (0,), (1, 0)] * 2
    assert sorted(order) == list(range(10)) and order == over_classes(labels, 0) != over_classes(labels, 1)


def test_numbers_in_the_data_are_json_without_nan(written):
    for path in (written / "data").glob("*.js"):
        text = path.read_text(encoding="ascii")
        assert "NaN" not in text and "Infinity" not in text
        json.loads(text.partition(", ")[2].removesuffix(");\n"))


def test_small_images_are_those_of_the_list_in_its_order(written):
    index, listed = content_of(written, "index"), content_of(written, "images")
    pictures = as_pictures(as_network(small_module(), LAYERS), random_images())

    tiles = tiles_of(written / "sprites/images/0.webp", {"tile": index["thumbs"]}, 10)

    assert index["thumbs"]["width"] == index["thumbs"]["imageWidth"] == SIDE
    for tile, one in zip(tiles, listed, strict=False):  # the last row of a sheet is filled up
        distances = [np.abs(tile - other.permute(1, 2, 0).numpy()).mean() for other in pictures]
        assert int(np.argmin(distances)) == one["index"]


def test_a_network_whose_maps_are_all_dead_has_an_atlas_without_images(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    torch.nn.init.zeros_(module[0].weight)
    torch.nn.init.constant_(module[0].bias, -1)

    write(module, random_images(3), tmp_path / "atlas", layers=["1"], top=2, pages=0)

    assert content_of(tmp_path / "atlas", "images") == []
    assert content_of(tmp_path / "atlas", "index")["layers"][0]["dead"] == 4
    check_whole(tmp_path / "atlas")
