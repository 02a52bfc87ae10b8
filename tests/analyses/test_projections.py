"""The atlas of a run: top activations of all maps of all layers, against brute force over all images."""

import contextlib
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.callbacks.conftest import Pictures, small_chain
from tests.conftest import TINY, type_command
from tests.oracles import strongest_by_sorting
from zfscope import load_network
from zfscope.activations import TopTable
from zfscope.analyses.projections import Arrays, controls
from zfscope.analyses.spec import ProjectionsAnalysis
from zfscope.deconvnet.boxes import cut
from zfscope.deconvnet.controls import control_correlations
from zfscope.deconvnet.projection import project
from zfscope.deconvnet.winners import Winners, project_winners, random_subset
from zfscope.images import contrast_limits, to_tiles
from zfscope.networks.spec import InitConfig


def typed(folder, name, *overrides):
    """Type a command in a folder: ``(exit code, what it says to stderr)``."""
    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.chdir(folder)
        code = type_command(patch, name, *overrides)
    return code, errors.getvalue()


@pytest.fixture(scope="module")
def residual(tmp_path_factory, trained_run):
    """One epoch of timm's smallest residual network, without pictures."""
    folder = tmp_path_factory.mktemp("residual")
    (folder / "images").symlink_to(trained_run.parent / "images")
    tiny = [override for override in TINY if not override.startswith(("model.", "trainer.max_epochs"))]
    own = ["model=timm", "model.name=test_resnet", "trainer.max_epochs=1", "callbacks=none", "evaluate.enabled=false"]
    places = [f"data.root={folder / 'images'}", f"data.cache={folder / 'cache'}", "hydra.run.dir=run"]
    code, err = typed(folder, "train", *tiny, *own, *places)
    assert code == 0, err
    return folder / "run"


def analysed(folder, run, *overrides):
    """An atlas: what its results say, and its arrays without pickle."""
    common = ["analysis=projections", f"checkpoint={run}", "device=cpu", "logger=none", "hydra.run.dir=atlas"]
    code, err = typed(folder, "analyze", *common, *overrides)
    assert code == 0, err
    with np.load(folder / "atlas/arrays.npz", allow_pickle=False) as arrays:
        content = {name: arrays[name] for name in arrays.files}
    return json.loads((folder / "atlas/results.json").read_text())["metrics"], content


def validation_images(run):
    """Network and validation images, read without the data loaders: inputs, and uint8 pictures."""
    network = load_network(run)
    opened = [Image.open(path).convert("RGB") for path in sorted((run.parent / "images/val").rglob("*.jpg"))]
    inputs = torch.stack([network.preprocess(image) for image in opened])
    canvases = torch.stack([network.preprocessing.canvas(image) for image in opened])
    edge = (canvases.shape[-1] - inputs.shape[-1]) // 2
    return network, inputs, canvases[:, :, edge:-edge, edge:-edge]


def check_atlas(network, inputs, pictures, found, layer, k, unpooling="sum"):
    """The arrays of a layer against brute force over all images and single projections."""
    arrays = {name: torch.from_numpy(found[f"{layer}/{name}"]) for name in NAMES}
    expected = strongest_by_sorting(network, inputs, layer, arrays["maps"], k)
    torch.testing.assert_close(arrays["values"].float(), expected.values, rtol=1e-4, atol=1e-5)
    above = arrays["values"] > 0
    assert torch.equal(above, expected.values > 0)
    for name in ("indices", "positions"):
        assert torch.equal(arrays[name][above], getattr(expected, name)[above])
    rows = above.nonzero()[:, 0]
    chosen, positions, boxes = (arrays[name][above] for name in ("indices", "positions", "boxes"))
    side = arrays["patches"].shape[-1]
    assert ((boxes[:, 2:] - boxes[:, :2]) == side).all()
    for patch, index, box in zip(arrays["patches"][above], chosen, boxes, strict=True):
        assert torch.equal(patch, cut(pictures[index][None], box[None], 127)[0])
    question = network, inputs[chosen], layer, arrays["maps"][rows], positions
    whole = side == inputs.shape[-1]
    projected = project(*question, unpooling=unpooling, crop=not whole)
    if not whole:
        projected, own = projected
        assert torch.equal(own, boxes)
    scales = arrays["scales"][above][:, None, None, None]
    torch.testing.assert_close(scales.flatten(), contrast_limits(projected), rtol=1e-3, atol=1e-6)
    back = (arrays["projections"][above].float() - 127.5) / 127.5 * scales
    step = scales / 127.5
    assert ((back - projected.clamp(-scales, scales)).abs() <= 0.51 * step + 1e-6).all()
    for name, value in {"patches": 127, "projections": 127, "scales": 0, "boxes": 0}.items():
        assert (arrays[name][~above] == value).all()


NAMES = {
    "maps": ((), "int64"),
    "values": ("k", "float64"),
    "indices": ("k", "int64"),
    "positions": ("k", 2, "int64"),
    "boxes": ("k", 4, "int64"),
    "scales": ("k", "float32"),
    "patches": ("k", 3, "side", "side", "uint8"),
    "projections": ("k", 3, "side", "side", "uint8"),
}
CONVS = [f"conv{number}" for number in range(1, 6)]


def test_an_atlas_holds_all_maps_of_all_layers_as_brute_force_finds_them(tmp_path, trained_run):
    metrics, found = analysed(tmp_path, trained_run)

    network, inputs, pictures = validation_images(trained_run)
    assert set(found) == {f"{layer}/{name}" for layer in CONVS for name in NAMES}
    assert not (tmp_path / "atlas/.projections.0.tmp").exists()
    for layer in CONVS:
        side = found[f"{layer}/patches"].shape[-1]
        for name, (*shape, dtype) in NAMES.items():
            expected = [8, *({"k": 9, "side": side}.get(size, size) for size in shape if size != ())]
            assert (list(found[f"{layer}/{name}"].shape), str(found[f"{layer}/{name}"].dtype)) == (expected, dtype)
        assert found[f"{layer}/maps"].tolist() == list(range(8))
        check_atlas(network, inputs, pictures, found, layer, k=9)
        strongest = strongest_by_sorting(network, inputs, layer, torch.arange(8), 1).values
        assert metrics[f"{layer}/dead_maps"]["value"] == int((strongest <= 0).sum())
        assert metrics[f"{layer}/dead_maps"]["unit"] == "of 8"
        sheet = Image.open(tmp_path / f"atlas/figures/projections/{layer}.png")
        assert sheet.mode == "RGB" and min(sheet.size) > 100
        for control in ("other_map", "random_weights", "other_map_place", "random_weights_place"):
            value = metrics[f"{layer}/{control}_correlation"]["value"]
            assert value is None or -1 <= value < 1
    assert found["conv1/patches"].shape[-1] == 7 and found["conv5/patches"].shape[-1] == 28
    controls = [name for name in metrics if name.endswith("_correlation") and "between_images" not in name]
    assert len(controls) == 4 * 5
    assert metrics["conv1/between_images_correlation"]["value"] == pytest.approx(1)  # the filter itself
    assert metrics["conv1/random_weights_correlation"]["value"] is not None


def test_an_atlas_of_some_maps_of_one_layer_overwriting_and_without_controls(tmp_path, trained_run):
    asked = ["maps=5", "layers=[conv2]", "unpooling=overwrite", "controls=0", "top=4", "batch_size=5", "seed=3"]

    metrics, found = analysed(tmp_path, trained_run, *(f"analysis.{each}" for each in asked))

    network, inputs, pictures = validation_images(trained_run)
    assert set(found) == {f"conv2/{name}" for name in NAMES} and list(metrics) == ["conv2/dead_maps"]
    assert found["conv2/maps"].tolist() == random_subset(8, 5, seed=3).tolist()
    assert metrics["conv2/dead_maps"]["unit"] == "of 8"
    check_atlas(network, inputs, pictures, found, "conv2", k=4, unpooling="overwrite")
    assert [path.name for path in (tmp_path / "atlas/figures/projections").iterdir()] == ["conv2.png"]


def test_an_atlas_of_a_timm_run(tmp_path, residual):
    metrics, found = analysed(tmp_path, residual, "analysis.maps=2", "analysis.top=2")

    network, inputs, pictures = validation_images(residual)
    stages = ["act1", "layer1", "layer2", "layer3", "layer4"]
    assert set(found) == {f"{layer}/{name}" for layer in stages for name in NAMES}
    assert list(metrics) == [f"{layer}/dead_maps" for layer in stages]
    for layer in ("act1", "layer1"):
        check_atlas(network, inputs, pictures, found, layer, k=2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("layers=[conv9]", "no layer 'conv9'; the layers with feature maps are conv1, conv2, conv3, conv4, conv5$"),
        ("layers=[]", "layers names no layer; the layers are conv1, conv2"),
        ("layers=[fc8]", "fc8 is dense; the layers with feature maps are conv1, conv2, conv3, conv4, conv5"),
        ("part=test", "analysis.part=test: this data set has no labelled test images; use val"),
        ("part=vall", "analysis.*part='vall'"),
        ("unpooling=overwrit", "analysis.*unpooling='overwrit'"),
        ("maps=0", "analysis.*maps=0"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line_and_leaves_nothing(tmp_path, trained_run, override, message):
    code, err = typed(tmp_path, "analyze", "analysis=projections", f"checkpoint={trained_run}", f"analysis.{override}")

    assert code == 2 and len(err.strip().splitlines()) == 1, err
    assert re.search(message, err), err
    assert not (tmp_path / "outputs").exists()


def test_a_timm_run_cannot_be_overwritten_and_says_so_before_it_mines(tmp_path, residual, monkeypatch):
    monkeypatch.setattr("zfscope.analyses.projections.top_images", None)

    code, err = typed(
        tmp_path, "analyze", "analysis=projections", f"checkpoint={residual}", "analysis.unpooling=overwrite"
    )

    assert code == 2 and "unpooling='overwrite' needs a chain" in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_an_atlas_that_ends_badly_leaves_no_half_of_it(tmp_path, trained_run, monkeypatch):
    def broken(*given, **options):
        yield next(project_winners(*given, **options))
        raise OSError("no space left on device")

    monkeypatch.setattr("zfscope.analyses.projections.project_winners", broken)

    code, err = typed(tmp_path, "analyze", "analysis=projections", f"checkpoint={trained_run}")

    assert code == 2 and "no space left on device" in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def table_of(values):
    indices = torch.arange(values.numel()).view_as(values)
    return TopTable(values, indices, torch.stack([indices, indices + 1], 2))


def test_arrays_are_filled_in_any_order_and_a_dead_layer_has_all_its_names(tmp_path):
    tables = {"conv1": table_of(torch.ones(2, 3)), "conv2": table_of(torch.zeros(4, 3))}
    maps = {"conv1": torch.tensor([5, 9]), "conv2": torch.arange(4)}
    places = [(1, 2), (0, 0), (1, 0)]
    projections = torch.randn(3, 3, 6, 6)

    arrays = Arrays(tmp_path / "scratch", tables, maps)
    for number, (row, rank) in enumerate(places):
        patch = torch.full((1, 3, 6, 6), number, dtype=torch.uint8)
        box = torch.tensor([[number, 0, number + 6, 6]])
        arrays.put(Winners("conv1", torch.tensor([row]), torch.tensor([rank]), patch, projections[number][None], box))
    arrays.write(tmp_path / "arrays.npz")
    arrays.close()

    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as found:
        assert set(found.files) == {f"{layer}/{name}" for layer in tables for name in NAMES}
        assert found["conv1/patches"][:, :, 0, 0, 0].tolist() == [[1, 127, 127], [2, 127, 0]]
        assert found["conv1/boxes"][1].tolist() == [[2, 0, 8, 6], [0, 0, 0, 0], [0, 0, 6, 6]]
        limits = contrast_limits(projections)
        np.testing.assert_array_equal(found["conv1/scales"], [[limits[1], 0, 0], [limits[2], 0, limits[0]]])
        np.testing.assert_array_equal(found["conv1/projections"][1, 2], to_tiles(projections, limit=limits)[0])
        assert found["conv1/maps"].tolist() == [5, 9] and found["conv2/maps"].tolist() == [0, 1, 2, 3]
        assert found["conv2/scales"].shape == (4, 3) and not found["conv2/scales"].any()
        assert found["conv2/boxes"].shape == (4, 3, 4) and not found["conv2/boxes"].any()
        assert (found["conv2/patches"] == 127).all() and (found["conv2/projections"] == 127).all()
    assert [path.name for path in tmp_path.iterdir()] == ["arrays.npz"]


def test_controls_are_means_over_winners_with_the_same_random_weights_each_time():
    network, images = small_chain().eval(), Pictures().images
    maps = torch.tensor([3, 0, 4])
    table = strongest_by_sorting(network, images, "conv2", maps, 3)
    asked = ProjectionsAnalysis(controls=1000, batch_size=4, seed=5)
    reads = []

    def read(indices):
        reads.append(sorted(indices))
        return images[list(indices)]

    before = torch.get_rng_state()
    found = controls(network, {"conv2": table}, {"conv2": maps}, read, asked)
    again = controls(network, {"conv2": table}, {"conv2": maps}, read, asked)
    after = torch.get_rng_state()

    randomised = small_chain().eval()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        randomised.initialise(InitConfig(scheme="he"))
    rows, ranks = (table.values > 0).nonzero(as_tuple=True)
    with torch.no_grad():
        trace = network.trace(images[table.indices[rows, ranks]])
    places = table.positions[rows, ranks]
    expected = control_correlations(
        network, trace, "conv2", maps[rows], places, torch.arange(len(rows)), randomised, torch.Generator()
    )
    assert found == again and torch.equal(after, before)
    for name in ("random_weights", "random_weights_place"):  # the other map is drawn, these are not
        assert found[f"conv2/{name}_correlation"] == pytest.approx(float(expected[name].mean()), abs=1e-5)
    assert all(len(indices) <= 4 and len(indices) == len(set(indices)) for indices in reads)
    few = controls(network, {"conv2": table}, {"conv2": maps}, read, ProjectionsAnalysis(controls=2))
    assert len(reads[-1]) <= 2 and few != found


def test_controls_of_a_dead_layer_are_left_out():
    table = TopTable(torch.zeros(5, 3), torch.zeros(5, 3, dtype=torch.int64), torch.zeros(5, 3, 2, dtype=torch.int64))

    found = controls(small_chain(), {"conv1": table}, {"conv1": torch.arange(5)}, None, ProjectionsAnalysis())

    assert found == {}
